"""The actors: play games with the newest weights and send what they played; evaluate."""

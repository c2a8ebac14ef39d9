"""Networks: what maps encoded observations to policy logits and values."""

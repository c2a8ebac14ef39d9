"""Where a replay server answers unless it is told otherwise."""

DEFAULT_PORT = 8470
"""Of gRPC."""
DEFAULT_METRICS_PORT = 9470
"""Of /metrics and /sd; where Prometheus finds a run by deploy/prometheus/prometheus.yml."""
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
"""host:port of a server on this machine."""

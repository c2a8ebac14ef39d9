"""The replay server: stores trajectories durably, serves sequences and weights."""

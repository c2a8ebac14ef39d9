"""Deployment: command line, Ray launch, live view, Prometheus, experiments."""

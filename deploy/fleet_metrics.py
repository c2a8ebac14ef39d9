"""Prometheus metrics of the fleet of a run: how many actors it shall have, and how many it has."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge


class FleetMetrics:
    """All series of a fleet, in a registry of its own.

    Args:
        wanted: how many actors there shall be.
        running: how many there are.
    """

    def __init__(self, wanted: Callable[[], int], running: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._gauge("zero_fleet_actors_wanted", "Actors that there shall be.", wanted)
        self._gauge("zero_fleet_actors_running", "Actors that have a process and are to keep it.", running)

    def _gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)

"""Prometheus metrics of reanalysers, whose every change is an event, too."""

from actors.reanalysis import Reanalysed
from replay_server.client import UpdateResult
from replay_server.recorded_metrics import Counter, Gauge, RecordingRegistry
from zero.search_ages import SearchAges

NOT_YET = float("nan")


class ReanalyserMetrics:
    """All series of one reanalyser, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = RecordingRegistry()
        self._steps = Counter(
            "zero_reanalyser_steps",
            "Steps searched again: updated, evicted meanwhile, or outdated by a search with newer weights meanwhile.",
            ["result"],
            registry=self.registry,
        )
        self.updated, self.evicted, self.outdated = map(self._steps.labels, ("updated", "evicted", "outdated"))
        self.simulations = self._counter("simulations", "Search simulations made.")
        self.waited = self._counter("wait_seconds", "Time spent waiting for its turn, or for something to search.")
        self.weights_version = self._gauge("weights_version", "Version of the weights it searches with.")
        self.table_reanalysed = self._gauge(
            "table_reanalysed_ratio", "Share of the stored steps that were searched again, of those last looked at."
        )
        self.table_behind = self._gauge(
            "table_search_behind_versions",
            "Mean number of weights versions that the last search of stored steps is behind, of those last looked at.",
        )
        self.table_age = self._gauge(
            "table_reanalysed_age_seconds",
            "Mean time since stored steps were searched again, of those last looked at; NaN if none was.",
        )
        self.policy_divergence = self._gauge(
            "policy_divergence_nats", "Mean KL divergence of new policies from the stored ones, last batch."
        )
        self.value_change = self._gauge(
            "value_change", "Mean absolute difference of new values to the stored ones, last batch."
        )
        for gauge in (self.table_reanalysed, self.table_behind, self.table_age):
            gauge.set(NOT_YET)
        self.policy_divergence.set(NOT_YET)
        self.value_change.set(NOT_YET)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"zero_reanalyser_{name}", text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"zero_reanalyser_{name}", text, registry=self.registry)

    def report_seen(self, ages: SearchAges) -> None:
        """Enter what a look at the table showed, every step of which was equally likely."""
        self.table_reanalysed.set(ages.reanalysed_ratio)
        self.table_behind.set(ages.behind_versions)
        self.table_age.set(ages.reanalysed_age_seconds)

    def report_searched(self, found: Reanalysed) -> None:
        """Enter what a search found."""
        self.simulations.inc(found.num_simulations)
        self.policy_divergence.set(found.policy_divergence)
        self.value_change.set(found.value_change)

    def report_written(self, result: UpdateResult) -> None:
        """Enter what became of it."""
        self.updated.inc(result.updated)
        self.evicted.inc(result.evicted)
        self.outdated.inc(result.outdated)

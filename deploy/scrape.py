"""Reads the metrics of a run as Prometheus does: /sd of the replay server, then /metrics of every process it lists."""

import http.client
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]
"""Names and values of labels, sorted."""
MAX_REQUESTS_IN_FLIGHT = 8


@dataclass(frozen=True, order=True)
class Target:
    """A process that serves /metrics.

    Attributes:
        role: "replay_server", "learner", "actor", "reanalyser", "evaluator".
        process_id: unique among live processes.
        address: host:port of /metrics. A process that was restarted has another, so its counters are new series.
    """

    role: str
    process_id: str
    address: str


@dataclass(frozen=True, order=True)
class Series:
    """One time series of one process."""

    target: Target
    name: str
    labels: Labels = ()


@dataclass(frozen=True)
class Scrape:
    """All values read in one go.

    Attributes:
        seconds: when, on the monotonic clock.
        values: by series; the processes that did not answer are missing.
    """

    seconds: float
    values: Mapping[Series, float]

    def select(self, name: str, **labels: str) -> dict[Series, float]:
        """The series of that name that have these labels, in the order of their processes."""
        wanted = set(labels.items())
        return {
            series: value
            for series, value in sorted(self.values.items())
            if series.name == name and wanted <= set(series.labels)
        }

    def targets(self, role: str) -> set[Target]:
        """The processes of a role that answered."""
        return {series.target for series in self.values if series.target.role == role}


class Scraper:
    """Reads every live process of a run; close it after use.

    Args:
        discovery_address: host:port of the server that lists the processes at /sd.
        timeout_seconds: for one request.
        clock: monotonic seconds.
    """

    def __init__(
        self, discovery_address: str, timeout_seconds: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._discovery_address = discovery_address
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._targets: list[Target] = []
        self._executor = ThreadPoolExecutor(MAX_REQUESTS_IN_FLIGHT, thread_name_prefix="scrape")

    def scrape(self) -> Scrape:
        """Read all processes; those that do not answer are left out.

        While the replay server is away, the processes that it listed last are read.
        """
        listed = get_page(self._discovery_address, "/sd", self._timeout_seconds)
        if listed is not None:
            self._targets = parse_targets(listed)
        pages = self._executor.map(self._read, self._targets)
        values: dict[Series, float] = {}
        for page in pages:
            values.update(page)
        return Scrape(self._clock(), values)

    def close(self) -> None:
        """Wait for the requests under way."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _read(self, target: Target) -> dict[Series, float]:
        page = get_page(target.address, "/metrics", self._timeout_seconds)
        return {} if page is None else parse_page(target, page)


def get_page(address: str, path: str, timeout_seconds: float) -> str | None:
    """The body of a page of a process at host:port; None if it is away."""
    connection = http.client.HTTPConnection(address, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if response.status == http.HTTPStatus.OK else None


def parse_targets(listed: str) -> list[Target]:
    """Read the JSON of Prometheus HTTP service discovery.

    Raises:
        ValueError: it is no such JSON.
    """
    try:
        return [
            Target(group["labels"].get("role", ""), group["labels"].get("process_id", address), address)
            for group in json.loads(listed)
            for address in group["targets"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no list of scrape targets: {error!r}") from None


def parse_page(target: Target, page: str) -> dict[Series, float]:
    """The values of a page in the Prometheus text format."""
    return {
        Series(target, sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }

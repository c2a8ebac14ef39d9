"""Tests of the scraper against real HTTP endpoints."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client import CollectorRegistry, Counter, Summary, start_http_server

from deploy.scrape import Scraper, Target, parse_page, parse_targets


class Discovery(ThreadingHTTPServer):
    """Serves a list of scrape targets at /sd."""

    def __init__(self) -> None:
        self.groups: list[dict[str, object]] = []
        super().__init__(("127.0.0.1", 0), DiscoveryHandler)

    def add(self, role: str, process_id: str, address: str) -> None:
        """List a process."""
        self.groups.append({"targets": [address], "labels": {"role": role, "process_id": process_id}})


class DiscoveryHandler(BaseHTTPRequestHandler):
    """Answers /sd alone."""

    server: Discovery

    def do_GET(self) -> None:  # noqa: D102
        body = json.dumps(self.server.groups).encode()
        self.send_response(200 if self.path == "/sd" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
        """Keep the output of tests clean."""


def stop(server: ThreadingHTTPServer, thread: threading.Thread) -> None:
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def discovery() -> Iterator[Discovery]:
    server = Discovery()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    stop(server, thread)


@pytest.fixture
def actor_address() -> Iterator[str]:
    registry = CollectorRegistry()
    Counter("zero_actor_games", "Games.", registry=registry).inc(7)
    Summary("zero_actor_score", "Scores.", registry=registry).observe(12.5)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield f"127.0.0.1:{server.server_port}"
    stop(server, thread)


@pytest.fixture
def scraper(discovery: Discovery) -> Iterator[Scraper]:
    scraper = Scraper(f"127.0.0.1:{discovery.server_port}")
    yield scraper
    scraper.close()


def test_reads_every_listed_process_and_leaves_out_the_dead(
    discovery: Discovery, actor_address: str, scraper: Scraper
) -> None:
    """Values come with the process they are of; a process that is gone costs nothing but its own values."""
    discovery.add("actor", "actor-0", actor_address)
    discovery.add("actor", "actor-1", "127.0.0.1:9")
    scrape = scraper.scrape()
    assert scrape.targets("actor") == {Target("actor", "actor-0", actor_address)}
    assert list(scrape.select("zero_actor_games_total").values()) == [7.0]
    assert list(scrape.select("zero_actor_score_sum").values()) == [12.5]


def test_reads_on_while_the_replay_server_is_away(actor_address: str) -> None:
    """The processes listed last are read while discovery does not answer."""
    server = Discovery()
    server.add("actor", "actor-0", actor_address)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    scraper = Scraper(f"127.0.0.1:{server.server_port}")
    assert scraper.scrape().targets("actor")
    stop(server, thread)
    assert scraper.scrape().targets("actor")
    scraper.close()


def test_values_are_selected_by_name_and_labels() -> None:
    """Selecting by labels gives the series that have them, others besides or not."""
    page = '# TYPE zero_evaluator_score gauge\nzero_evaluator_score{player="search"} 3\n'
    page += 'zero_evaluator_score{player="policy"} 2\n'
    series = parse_page(Target("evaluator", "evaluator", "a:1"), page)
    assert sorted(series.values()) == [2.0, 3.0]
    assert {key.labels for key in series} == {(("player", "search"),), (("player", "policy"),)}


@pytest.mark.parametrize("listed", ["nothing", "[1]", '[{"labels": {}}]', '{"targets": []}'])
def test_what_is_no_list_of_targets_is_refused(listed: str) -> None:
    """Anything else than the JSON of HTTP service discovery is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        parse_targets(listed)

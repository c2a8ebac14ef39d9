"""Tests of the dashboards: they are as the code makes them, and name what the roles export."""

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from actors.evaluator_metrics import EvaluatorMetrics
from actors.metrics import ActorMetrics
from deploy.fleet_metrics import FleetMetrics
from deploy.serving_metrics import ServeMetrics
from deploy.statistics.definitions import DEFAULTS
from learner.metrics import LearnerMetrics
from replay_server.interceptors import CallMetrics
from replay_server.metrics import Levels, ServerMetrics

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "deploy/grafana/dashboards"
RULES = ROOT / "deploy/prometheus/alerts.yml"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md")]
OURS = re.compile(r"\b(?:zero_(?:actor|evaluator|fleet|learner|replay|serve|events)_|grpc_server_|process_(?!id\b))\w+")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


def expressions() -> Iterator[str]:
    """Of every panel."""
    for file in DASHBOARDS.glob("*.json"):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield target["expr"]


def families(folder: Path) -> list[Metric]:
    """All metrics that the roles export."""
    server = ServerMetrics(lambda: Levels((), [("actor", 1)], store_available=True))
    CallMetrics(server.registry)
    registries: list[CollectorRegistry] = [
        server.registry,
        ActorMetrics().registry,
        LearnerMetrics(folder).registry,
        EvaluatorMetrics().registry,
        FleetMetrics(lambda: 2, lambda: 1).registry,
        ServeMetrics().registry,
    ]
    return [family for registry in registries for family in registry.collect()]


def exported(folder: Path) -> dict[str, set[str]]:
    """The names of the series of every metric, by its name."""
    return {
        family.name: {family.name + suffix for suffix in SUFFIXES.get(family.type, ("",))}
        for family in families(folder)
    }


def test_no_metric_has_a_label_that_prometheus_gives(tmp_path: Path) -> None:
    """Where it says which process it has scraped: it would rename the metric's own."""
    labels = {label for family in families(tmp_path) for sample in family.samples for label in sample.labels}
    assert len(labels) > 5
    assert not labels & {"instance", "job", "process_id", "role"}


def test_the_dashboards_are_as_the_code_makes_them(tmp_path: Path) -> None:
    """Otherwise run `python -m deploy.grafana`."""
    pytest.importorskip("grafana_foundation_sdk")  # which only who changes dashboards needs
    import_module("deploy.grafana.__main__").write(tmp_path)
    made, committed = ({path.name: path.read_text() for path in folder.iterdir()} for folder in (tmp_path, DASHBOARDS))
    assert made == committed


def test_every_metric_that_is_named_exists(tmp_path: Path) -> None:
    """In dashboards, alert rules and on pages."""
    known = set[str]().union(*exported(tmp_path).values())
    alerts = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    named = {name for expression in (*expressions(), *alerts) for name in OURS.findall(expression)}
    assert len(named) > 80
    assert named - known == set()
    on_pages = {name for page in PAGES for name in OURS.findall(page.read_text())}
    assert {name for name in on_pages if "..." not in name} - known == set()


def test_every_metric_that_is_exported_is_shown_or_explained(tmp_path: Path) -> None:
    """On a dashboard, or on the page for operators."""
    shown = {name for expression in expressions() for name in OURS.findall(expression)}
    shown |= set(OURS.findall((ROOT / "deploy/README.md").read_text()))
    assert [name for name, series in exported(tmp_path).items() if not shown & series] == []


def test_every_statistic_is_of_a_metric_that_is_exported(tmp_path: Path) -> None:
    """With the labels by which events are chosen and named."""
    labels = {
        family.name: {label for sample in family.samples for label in sample.labels} for family in families(tmp_path)
    }
    for statistic in DEFAULTS:
        assert {statistic.event, *filter(None, (statistic.denominator,))} <= labels.keys()
        found = labels[statistic.event]  # none before the first value of a label
        assert not found or {*statistic.labels, *filter(None, (statistic.by,))} <= found


def test_panels_say_what_they_show_and_fit_their_dashboard() -> None:
    """Every panel has a title and queries and its place; addresses are unique."""
    boards = [json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))]
    assert len({board["uid"] for board in boards}) == len(boards) == 7
    for board in boards:
        places: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert panel["title"]
            assert place["x"] + place["w"] <= 24
            assert not places & cells, panel["title"]
            places |= cells
            if panel["type"] != "row":
                assert [target["refId"] for target in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("sum(zero_actor_games_total)", 'sum(zero_actor_games_total{job=~"$job"})'),
        ('rate(zero_a_b{role="x"}[5m])', 'rate(zero_a_b{job=~"$job", role="x"}[5m])'),
        ("sum by (process_id) (up == 1)", 'sum by (process_id) (up{job=~"$job"} == 1)'),
        ("sum by (grpc_code) (ray_resources)", "sum by (grpc_code) (ray_resources)"),
    ],
)
def test_an_expression_is_kept_to_the_run(expression: str, expected: str) -> None:
    """Every metric of ours, and nothing else, whether or not it has labels already."""
    pytest.importorskip("grafana_foundation_sdk")
    assert import_module("deploy.grafana.board").of_run(expression) == expected

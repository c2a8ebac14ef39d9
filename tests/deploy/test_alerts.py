"""Tests of the alert rules: each fires in its fault and is silent otherwise, and says what to do."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = (ROOT / "deploy/prometheus/alerts.yml", ROOT / "deploy/prometheus/kubernetes_alerts.yml")
RUNBOOK = ROOT / "deploy/README.md"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")

LEARNER, ACTOR = 'job="run", role="learner", instance="l:1"', 'job="run", role="actor", instance="a:1"'
SERVER = 'job="run", role="replay_server", instance="r:1"'
INSERTED = f'zero_replay_inserted_trajectories_total{{{SERVER}, table="self_play"}}'
STEPS = f"zero_learner_training_steps_total{{{LEARNER}}}"
LIVE_ACTORS = 'zero_replay_live_processes{job="run", process="actor"}'
LIVE_LEARNERS = 'zero_replay_live_processes{job="run", process="learner"}'
UP_SERVER, UP_ACTOR = f"up{{{SERVER}}}", f"up{{{ACTOR}}}"
RECEIVED = f'grpc_server_msg_received_total{{{SERVER}, grpc_method="Insert"}}'


@dataclass(frozen=True)
class Case:
    """Series by name, in promtool's notation, one value per minute.

    Attributes:
        alert: its name.
        fault: series in which it fires by the end of `minutes`.
        health: series in which it does not.
        minutes: how long either lasts.
    """

    alert: str
    fault: dict[str, str]
    health: dict[str, str] = field(default_factory=dict[str, str])
    minutes: int = 30


def of_replay(name: str, labels: str = "") -> str:
    """A series of the replay server."""
    return f"zero_replay_{name}{{{SERVER}{', ' if labels else ''}{labels}}}"


BEHIND = "zero_replay_sample_versions_behind_bucket"
STARTS = "process_start_time_seconds"
SCORE, SCORE_ERROR = (
    f'zero_evaluator_{name}{{job="run", player="search"}}' for name in ("score", "score_standard_error")
)
CHECKPOINT = f"zero_learner_checkpoint_timestamp_seconds{{{LEARNER}}}"
RUNNING, WANTED = (
    f'zero_fleet_actors_{name}{{job="run", role="fleet", instance="f:1"}}' for name in ("running", "wanted")
)
OPTIMISM = "zero_actor_search_optimism"
CASES = (
    Case("ZeroReplayServerDown", {UP_SERVER: "1 1 0x28"}, {UP_SERVER: "1 0 1x28"}),
    Case("ZeroReplayServerDown", {UP_ACTOR: "1x30"}, {UP_ACTOR: "1x30", UP_SERVER: "1x30"}),
    Case("ZeroStoreUnavailable", {of_replay("store_available"): "0x30"}, {of_replay("store_available"): "1 0 1x28"}),
    Case("ZeroProcessNotScraped", {UP_ACTOR: "0x30"}, {UP_ACTOR: "1x30", UP_SERVER: "0x30"}),
    Case(
        "ZeroNoActors",
        {LIVE_ACTORS: "3 0x29", LIVE_LEARNERS: "1x30"},
        {LIVE_ACTORS: "0x20 1x9", LIVE_LEARNERS: "1x30"},
    ),
    Case("ZeroNoActors", {LIVE_ACTORS: "0x30", LIVE_LEARNERS: "1x30"}, {LIVE_ACTORS: "0x30", LIVE_LEARNERS: "0x30"}),
    Case("ZeroFleetBelowWanted", {RUNNING: "8x9 5x20", WANTED: "8x30"}, {RUNNING: "5x10 8x20", WANTED: "8x30"}),
    # In place, as Kubernetes restarts a container; at another port, as it is on one machine.
    Case(
        "ZeroKeepsRestarting",
        {f'{STARTS}{{{ACTOR}, process_id="a"}}': "1x10 2 3 4 5x17"},
        {f'{STARTS}{{{ACTOR}, process_id="a"}}': "1x10 2 3 4x18", f'{STARTS}{{{LEARNER}, process_id="l"}}': "1x30"},
    ),
    Case(
        "ZeroKeepsRestarting",
        {f'{STARTS}{{job="run", role="actor", process_id="a", instance="a:{n}"}}': "_x9 1x5" for n in range(5)},
        {f'{STARTS}{{job="run", role="actor", process_id="a", instance="a:{n}"}}': "_x9 1x5" for n in range(4)},
    ),
    Case(
        "ZeroCertificateExpires",
        {of_replay("certificate_expiry_timestamp_seconds"): f"{13 * 86400}x30"},
        {of_replay("certificate_expiry_timestamp_seconds"): "Inf" + 30 * " Inf"},
    ),
    Case(
        "ZeroStaleCredentials",
        {of_replay("stale_credentials", 'kind="tokens"'): "1x30"},
        {of_replay("stale_credentials", 'kind="tokens"'): "1 1 1 0x27"},
    ),
    Case("ZeroNoInserts", {INSERTED: "0+1x9 10x20", LIVE_ACTORS: "2x30"}, {INSERTED: "0+1x30", LIVE_ACTORS: "2x30"}),
    Case("ZeroNoInserts", {INSERTED: "0x30", LIVE_ACTORS: "2x30"}, {INSERTED: "0x30", LIVE_ACTORS: "0x30"}),
    Case("ZeroNoLearnerSteps", {STEPS: "0+9x9 90x20"}, {STEPS: "0x3 0+9x26"}),
    Case(
        "ZeroNoLearnerSteps",
        {LIVE_ACTORS: "1x30", LIVE_LEARNERS: "0x30"},
        {LIVE_ACTORS: "1x30", LIVE_LEARNERS: "1x30", STEPS: "0+1x30"},
    ),
    Case(
        "ZeroActorsOnOldWeights",
        {of_replay("weights_version"): "0+10x30", f"zero_actor_weights_version{{{ACTOR}}}": "7x30"},
        {of_replay("weights_version"): "0+10x30", f"zero_actor_weights_version{{{ACTOR}}}": "0 0 0 0+10x27"},
    ),
    Case(
        "ZeroSampledDataStale",
        {f'{BEHIND}{{{SERVER}, le="512"}}': "0x60", f'{BEHIND}{{{SERVER}, le="+Inf"}}': "0+60x60"},
        {f'{BEHIND}{{{SERVER}, le="256"}}': "0+60x60", f'{BEHIND}{{{SERVER}, le="+Inf"}}': "0+60x60"},
        minutes=60,
    ),
    Case(
        "ZeroSamplesPerInsertOutOfBand",
        {
            of_replay("limiter_difference", 'table="t"'): "-2200x30",
            of_replay("limiter_error_buffer", 'table="t"'): "2000x30",
            of_replay("limiter_samples_per_insert", 'table="t"'): "8x30",
        },
        {
            of_replay("limiter_difference", 'table="t"'): "2000x30",
            of_replay("limiter_error_buffer", 'table="t"'): "2000x30",
            of_replay("limiter_samples_per_insert", 'table="t"'): "8x30",
        },
    ),
    Case(
        "ZeroDuplicateInserts",
        {INSERTED: "0+10x30", of_replay("duplicate_trajectories_total", 'table="self_play"'): "0+10x30"},
        {INSERTED: "0+1000x30", of_replay("duplicate_trajectories_total", 'table="self_play"'): "0+5x30"},
    ),
    Case(
        "ZeroRequestsRefused",
        {of_replay("rejected_requests_total", 'reason="NOT_FINITE"'): "0+2x30", RECEIVED: "0+100x30"},
        {of_replay("rejected_requests_total", 'reason="RATE_LIMITED"'): "0+50x30", RECEIVED: "0+100x30"},
    ),
    Case(
        "ZeroServerErrors",
        {f'grpc_server_handled_total{{{SERVER}, grpc_method="Sample", grpc_code="INTERNAL"}}': "0x25 1x5"},
        {f'grpc_server_handled_total{{{SERVER}, grpc_method="Sample", grpc_code="UNAVAILABLE"}}': "0+1x30"},
    ),
    Case(
        "ZeroRedisWriteFailed", {of_replay("redis_write_failed"): "0x29 1"}, {of_replay("redis_write_failed"): "0x30"}
    ),
    Case(
        "ZeroRedisFlushesLate",
        {of_replay("redis_delayed_fsyncs_total"): "0+1x30"},
        {of_replay("redis_delayed_fsyncs_total"): "7x30"},
    ),
    Case(
        "ZeroDiskAlmostFull",
        {of_replay("disk_free_bytes"): "9x30", of_replay("disk_bytes"): "100x30"},
        {of_replay("disk_free_bytes"): "0x30", of_replay("disk_bytes"): "0x30"},  # Redis is somebody else's
    ),
    Case(
        "ZeroDiskAlmostFull",
        {f"zero_learner_disk_free_bytes{{{LEARNER}}}": "9x30", f"zero_learner_disk_bytes{{{LEARNER}}}": "100x30"},
        {f"zero_learner_disk_free_bytes{{{LEARNER}}}": "11x30", f"zero_learner_disk_bytes{{{LEARNER}}}": "100x30"},
    ),
    Case(
        "ZeroMemoryAlmostFull",
        {f"process_resident_memory_bytes{{{SERVER}}}": "90x30", of_replay("memory_limit_bytes"): "100x30"},
        {f"process_resident_memory_bytes{{{SERVER}}}": "80x30", of_replay("memory_limit_bytes"): "100x30"},
    ),
    Case(
        "ZeroMemoryAlmostFull",
        {of_replay("redis_memory_bytes"): "90x30", of_replay("redis_max_memory_bytes"): "100x30"},
        {of_replay("redis_memory_bytes"): "90x30", of_replay("redis_max_memory_bytes"): "0x30"},
    ),
    Case(
        "ZeroCheckpointFailed",
        {f"zero_learner_failed_checkpoints_total{{{LEARNER}}}": "0x25 1x5"},
        {f"zero_learner_failed_checkpoints_total{{{LEARNER}}}": "3x30"},
    ),
    Case("ZeroCheckpointTooOld", {CHECKPOINT: "60x60"}, {CHECKPOINT: "0+60x60"}, minutes=60),
    Case(
        "ZeroCheckpointTooOld",  # none was saved yet
        {CHECKPOINT: "0x60", f"{STARTS}{{{LEARNER}}}": "1x60"},
        {CHECKPOINT: "0x60", f"{STARTS}{{{LEARNER}}}": "3000x60"},
        minutes=60,
    ),
    Case(
        "ZeroLossNotFinite",
        {f"zero_learner_nonfinite_steps_total{{{LEARNER}}}": "0x25 1x5"},
        {f"zero_learner_nonfinite_steps_total{{{LEARNER}}}": "3x30"},
    ),
    Case(
        "ZeroSearchOptimistic",
        {
            f"{OPTIMISM}_sum{{{ACTOR}}}": "0+20x90",
            f"{OPTIMISM}_count{{{ACTOR}}}": "0+1x90",
            f"zero_actor_recent_score{{{ACTOR}}}": "30x90",
        },
        {
            f"{OPTIMISM}_sum{{{ACTOR}}}": "0+10x90",
            f"{OPTIMISM}_count{{{ACTOR}}}": "0+1x90",
            f"zero_actor_recent_score{{{ACTOR}}}": "30x90",
        },
        minutes=90,
    ),
    Case(
        "ZeroDuplicateLeaves",
        {f"zero_actor_unique_leaf_ratio{{{ACTOR}}}": "0.3x40"},
        {f"zero_actor_unique_leaf_ratio{{{ACTOR}}}": "0.9x40"},
        minutes=40,
    ),
    Case(
        "ZeroPolicyCollapsed",
        {f"zero_learner_target_entropy{{{LEARNER}}}": "0.01x40"},
        {f"zero_learner_target_entropy{{{LEARNER}}}": "1.2x40"},
        minutes=40,
    ),
    Case(
        "ZeroTargetsClamped",
        {f"zero_learner_clamped_targets_ratio{{{LEARNER}}}": "0.2x40"},
        {f"zero_learner_clamped_targets_ratio{{{LEARNER}}}": "0.01x40"},
        minutes=40,
    ),
    Case(
        "ZeroScoreFalling",
        {SCORE: "50x10 20x50", SCORE_ERROR: "2x60"},
        {SCORE: "50x10 45x50", SCORE_ERROR: "2x60"},
        minutes=60,
    ),
    Case(
        "ZeroActorsBelowWanted",
        {
            'kube_deployment_status_replicas_available{namespace="n", deployment="zero-actor"}': "5x30",
            'kube_deployment_spec_replicas{namespace="n", deployment="zero-actor"}': "8x30",
        },
        {
            'kube_deployment_status_replicas_available{namespace="n", deployment="zero-actor"}': "0x10 8x20",
            'kube_deployment_spec_replicas{namespace="n", deployment="zero-actor"}': "8x30",
        },
    ),
    Case(
        "ZeroPodCrashLoop",
        {'kube_pod_container_status_restarts_total{namespace="n", pod="zero-learner-0"}': "0x20 5x10"},
        {'kube_pod_container_status_restarts_total{namespace="n", pod="zero-learner-0"}': "5x30"},
    ),
)


def rules() -> list[dict[str, object]]:
    """All alert rules."""
    return [rule for file in RULES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def promtool_tests() -> list[dict[str, object]]:
    """Every case twice, ill and well, told apart by job or namespace; all of one length in one test, for speed."""
    tests: dict[int, dict[str, list[dict[str, object]]]] = {}
    for number, case in enumerate(CASES):
        test = tests.setdefault(case.minutes, {"input_series": [], "promql_expr_test": []})
        for series, firing in ((case.fault, True), (case.health, False)):
            run = f"{number}-{'ill' if firing else 'well'}"
            for name, values in series.items():
                its_own = name.replace('job="run"', f'job="{run}"').replace('namespace="n"', f'namespace="{run}"')
                assert run in its_own
                test["input_series"].append({"series": its_own, "values": values})
            alert = f'ALERTS{{alertname="{case.alert}", alertstate="firing", '
            test["promql_expr_test"].append(
                {
                    "expr": f'count({alert}job="{run}"}} or {alert}namespace="{run}"}}) or vector(0)',
                    "eval_time": f"{case.minutes}m",
                    "exp_samples": [{"labels": "{}", "value": int(firing)}],
                }
            )
    return [{"interval": "1m", **test} for test in tests.values()]


@needs_promtool
def test_every_alert_fires_in_its_fault_and_is_silent_otherwise(tmp_path: Path) -> None:
    """By promtool, on series as the fault and health make them; no alert goes without a case."""
    assert {case.alert for case in CASES} == {rule["alert"] for rule in rules()}
    file = tmp_path / "tests.json"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": [str(path) for path in RULES], "tests": promtool_tests()}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_pass_promtools_lint() -> None:
    """Expressions, templates and names."""
    command = ["promtool", "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def anchors(page: str) -> set[str]:
    """Of the headings of a Markdown page, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    """Summary, description, severity, and a place on the page for operators that exists; no place is left over."""
    known = anchors(RUNBOOK.read_text())
    for rule in rules():
        annotations = rule["annotations"]
        assert annotations.keys() == {"summary", "description", "runbook_url"}
        assert all(annotations.values())
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        page, _, anchor = annotations["runbook_url"].partition("#")
        assert ROOT / page == RUNBOOK
        assert anchor == rule["alert"].lower()
        assert anchor in known
    alerts = {rule["alert"].lower() for rule in rules()}
    assert {anchor for anchor in known if anchor.startswith("zero") and "-" not in anchor} == alerts

"""Tests of `zero train` as a whole: real processes, a real run, and what happens when parts of it die."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from deploy.interrupts import INTERRUPTED
from deploy.scrape import Scraper
from deploy.supervisor import MAX_QUICK_FAILURES
from replay_server.client import ReplayClient
from tests.integration.processes import SMALL, Command, wait_until
from tests.ledger import Ledger, check_that_nothing_is_lost
from tests.replay_server.played import table_config

pytestmark = pytest.mark.slow
LONG = ["--minutes=10", "--metrics-port=0", "--no-live"]


def scraper_of(command: Command) -> Scraper:
    """Reads the metrics of a run that has started."""
    return Scraper(command.wait_for(r"metrics http://(\S+)/metrics")[1])


def training_step(scraper: Scraper) -> float:
    """Where the learner is; -1 while it does not answer."""
    return max(scraper.scrape().select("zero_learner_training_step").values(), default=-1.0)


def nothing_left(command: Command, timeout: float = 10.0, but: tuple[str, ...] = ()) -> None:
    """Every process that the command brought forth ends, Redis included.

    `but` may take longer: Ray's own agents look for their dead head for a minute.
    """

    def left() -> list[str]:
        return [line for line in command.survivors() if not line.startswith(but)]

    try:
        wait_until(lambda: not left(), "the end of every process", timeout)
    except AssertionError as error:
        raise AssertionError(f"{error}: {[line.split() for line in left()]}") from None


def test_a_run_learns_saves_and_can_go_on(tmp_path: Path) -> None:
    """A bounded run plays, learns, publishes, measures, says where everything is, and is resumed where it stopped."""
    with Command(tmp_path, "train", *SMALL, "--minutes=0.35", "--metrics-port=0", "--run-dir=run") as command:
        assert command.wait(120) == 0, command.output
        nothing_left(command)
        output = command.output
    run = tmp_path / "run"
    for expected in ("learning since", "self-play score", "zero evaluate --run", f"zero train --resume {run}"):
        assert expected in output
    step = int(re.search(r"checkpoint +\S+/step-(\d+)", output)[1])
    assert (run / "checkpoints" / f"step-{step:09d}").is_dir()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["training_step"] <= step
    assert last["games"] > 0
    assert last["weights_version"] > 0
    assert last["evaluation_scores"].keys() >= {"random", "greedy", "policy", "search"}
    assert {path.name for path in (run / "logs").iterdir()} == {
        f"{role}.log" for role in ("replay-server", "learner", "actor-0", "evaluator")
    }

    with Command(tmp_path, "evaluate", "--run=run", "--games=8") as command:
        assert command.wait(60) == 0, command.output
        assert f"training step {step:,}" in command.output
        assert re.search(r"search +│ +-?\d", command.output)
    best = json.loads((run / "best/best.json").read_text())
    assert 0 <= best["training_step"] <= step
    with Command(tmp_path, "evaluate", "--run=run", "--games=8", "--weights=best") as command:
        assert command.wait(60) == 0, command.output
        assert f"training step {best['training_step']:,} (best)" in " ".join(command.output.split())

    with Command(tmp_path, "train", "--resume=run", *LONG) as command:
        scraper = scraper_of(command)
        wait_until(lambda: training_step(scraper) > step, "steps beyond the checkpoint")
        scraper.close()
        assert f"resuming at training step {step}" in (run / "logs/learner.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C to the whole foreground group, or SIGTERM to the command, ends it: 130, a checkpoint, no process."""
    with Command(tmp_path, "train", *SMALL, *LONG, "--run-dir=run") as command:
        command.wait_for("learning since", 90)
        if number is signal.SIGINT:
            command.interrupt()
        else:
            os.kill(command.pid, number)
        assert command.wait(60) == INTERRUPTED, command.output
        assert list((tmp_path / "run/checkpoints").glob("step-*"))
        assert "did not" not in command.output
        nothing_left(command)


def test_the_run_goes_on_when_any_role_is_killed(tmp_path: Path) -> None:
    """kill -9 of the actor, the learner and the replay server: each is started again and the steps go on rising."""
    with Command(tmp_path, "train", *SMALL, *LONG, "--run-dir=run") as command:
        command.wait_for("learning since", 90)
        scraper = scraper_of(command)
        for role in ("actor-0", "learner", "replay-server", "evaluator"):
            (pid,) = command.pids_of(role)
            before = training_step(scraper)
            os.kill(pid, signal.SIGKILL)
            command.wait_for(rf"{role} died \(its process died\); restart 1 in")
            wait_until(lambda role=role: len(command.pids_of(role)) == 2, f"{role} runs again")
            wait_until(lambda before=before: training_step(scraper) > before + 20, f"steps after the death of {role}")
        inserted = wait_until(
            lambda: max(scraper.scrape().select("zero_replay_inserted_steps_total").values(), default=None), "inserts"
        )
        wait_until(
            lambda: max(scraper.scrape().select("zero_replay_inserted_steps_total").values(), default=0) > inserted,
            "inserts after the death of the actor",
        )
        scraper.close()
        command.interrupt()
        assert command.wait(60) == INTERRUPTED, command.output
        nothing_left(command)


def test_a_replay_server_killed_again_and_again_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """kill -9 of the replay server while a client inserts: the run goes on by itself, and its ledger is all there."""
    with Command(tmp_path, "train", *SMALL, *LONG, "--run-dir=run") as command:
        address = command.wait_for(r"replay +(\S+),")[1]
        command.wait_for("learning since", 90)
        scraper = scraper_of(command)
        with ReplayClient(address) as client:
            client.create_table(table_config("ledger", capacity=10**6))
            with Ledger(address, "ledger", pause_seconds=0.02) as ledger:
                # How much is written before each kill: another moment each time, the second one right after a recovery.
                for kill, written in enumerate((100, 1, 40), start=1):
                    until_written(ledger, written)
                    os.kill(command.pids_of("replay-server")[-1], signal.SIGKILL)
                    wait_until(lambda kill=kill: len(command.pids_of("replay-server")) > kill, "it runs again")
                    until_written(ledger, 1)
                step = wait_until(lambda: max(0.0, training_step(scraper)) or None, "the learner's step")
                wait_until(lambda: training_step(scraper) > step + 20, "steps after the last kill")
            check_that_nothing_is_lost(client, "ledger", [ledger])
            assert len(ledger.acknowledged) > 100
            assert re.search(r"replay-server died .*; restart 3 in", command.output)
        scraper.close()
        command.interrupt()
        assert command.wait(60) == INTERRUPTED, command.output
        nothing_left(command)


def until_written(ledger: Ledger, count: int) -> None:
    """Wait until so many more trajectories are acknowledged."""
    before = len(ledger.acknowledged)
    wait_until(lambda: len(ledger.acknowledged) >= before + count, f"{count} more acknowledged trajectories")


def test_nothing_outlives_a_killed_command(tmp_path: Path) -> None:
    """kill -9 of `zero train` itself takes the roles, Redis and Ray with it."""
    with Command(tmp_path, "train", *SMALL, *LONG, "--run-dir=run") as command:
        command.wait_for("learning since", 90)
        assert any("redis" in line for line in command.survivors())
        os.kill(command.pid, signal.SIGKILL)
        nothing_left(command, 20, but=("ray::DashboardAgent", "ray::RuntimeEnvAgent"))


def test_a_second_interrupt_hurries(tmp_path: Path) -> None:
    """Interrupting twice ends the run at once, still without leaving a process."""
    with Command(tmp_path, "train", *SMALL, *LONG, "--run-dir=run") as command:
        command.wait_for("learning since", 90)
        command.interrupt()
        command.wait_for("==> Stopping")
        command.interrupt()
        assert command.wait(20) == INTERRUPTED, command.output
        nothing_left(command)


def test_a_run_that_cannot_live_ends_with_its_reason(tmp_path: Path) -> None:
    """A learner whose checkpoint does not fit the config ends the run in one line, and everything is stopped."""
    with Command(tmp_path, "train", *SMALL, *LONG, "--run-dir=run") as command:
        wait_until(lambda: list((tmp_path / "run").glob("checkpoints/step-*")) or None, "a checkpoint", 90)
        command.interrupt()
        assert command.wait(60) == INTERRUPTED, command.output
    config_file = tmp_path / "run/config.toml"
    config_file.write_text(config_file.read_text().replace("channels = 8", "channels = 16"))
    with Command(tmp_path, "train", "--resume=run", *LONG) as command:
        assert command.wait(60) == 2
        # Whoever comes first: the learner cannot load its checkpoint, the actor cannot load the published weights.
        assert re.match(
            r"error: (learner|actor-0|evaluator): the (checkpoint|best weights|weights) ",
            command.output.splitlines()[-1],
        )
        assert "Traceback" not in command.output
        nothing_left(command)


def test_a_role_that_keeps_failing_ends_the_run(tmp_path: Path) -> None:
    """A learner that the replay server refuses is tried a few times, then the run ends with the server's reason."""
    too_large = ["--set=learner.batch_size=10000000", "--set=replay.error_buffer=1e9"]
    with Command(tmp_path, "train", *SMALL, *too_large, *LONG, "--run-dir=run") as command:
        assert command.wait(120) == 1
        assert len(command.pids_of("learner")) == MAX_QUICK_FAILURES
        assert re.match(r"error: learner failed 5 times in a row: .*\d", command.output.splitlines()[-1])
        assert "Traceback" not in command.output
        nothing_left(command)

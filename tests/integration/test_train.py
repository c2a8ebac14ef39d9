"""Tests of `zero train` as a whole: real processes, a real run, and what happens when parts of it die."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.interrupts import INTERRUPTED
from deploy.scrape import Scraper
from deploy.statistics.definitions import DEFAULTS
from deploy.supervisor import MAX_QUICK_FAILURES
from learner.checkpoint import read_checkpoint
from replay_server.client import ReplayClient
from tests.integration.processes import PATIENCE_SECONDS, SMALL, Command, wait_until
from tests.ledger import Ledger, check_that_nothing_is_lost
from tests.replay_server.played import table_config

pytestmark = pytest.mark.slow
KNOWN = {default.name for default in DEFAULTS}
SINKS = ["--sink=json", "--sink=tensorboard", "--sink=mlflow", "--sink=console"]
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


def saved_step(command: Command) -> int:
    """The training step of the checkpoint that a run names when it has ended."""
    return int(re.search(r"checkpoint +\S+/step-(\d+)", command.output)[1])


def newest_checkpoint(run: Path) -> int:
    """Its training step."""
    return max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def stops_cleanly(command: Command, run: Path, number: signal.Signals) -> None:
    """Ctrl-C to the whole foreground group, or SIGTERM to the command, ends it: 130, a checkpoint, no process."""
    scraper = scraper_of(command)
    step = wait_until(lambda: max(0.0, training_step(scraper)) or None, "the learner's step")
    scraper.close()
    if number is signal.SIGINT:
        command.interrupt()
    else:
        os.kill(command.pid, number)
    assert command.wait() == INTERRUPTED, command.output
    assert newest_checkpoint(run) >= step
    stopping = command.output.partition("==> Stopping")[2]
    assert stopping
    assert "did not" not in stopping
    nothing_left(command)


def until_written(ledger: Ledger, count: int) -> None:
    """Wait until so many more trajectories are acknowledged."""
    before = len(ledger.acknowledged)
    wait_until(lambda: len(ledger.acknowledged) >= before + count, f"{count} more acknowledged trajectories")


# --- one run, from its start over many deaths to its end: the tests of this part follow each other ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run."""
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """The folder of the run."""
    return folder / "run"


@pytest.fixture(scope="module")
def finished(folder: Path) -> Iterator[Command]:
    """The run, which has ended with its first evaluation, whatever that was."""
    with Command(folder, "train", *SMALL, *LONG, "--target-score=-1", "--profile", *SINKS, "--run-dir=run") as command:
        assert command.wait() == 0, command.output
        yield command


@pytest.fixture(scope="module")
def resumed(folder: Path, finished: Command) -> Iterator[Command]:
    """The run after that, resumed."""
    with Command(folder, "train", "--resume=run", *LONG) as command:
        yield command


def test_a_run_learns_and_saves(finished: Command, run: Path) -> None:
    """A run up to a score plays, learns, publishes, measures, says where everything is, and leaves no process."""
    nothing_left(finished)
    said = (
        "tic_tac_toe, 1 blocks x 8 channels, 4 simulations",
        "learning since",
        "self-play score",
        "zero evaluate --run",
    )
    for expected in (*said, f"zero train --resume {run}"):
        assert expected in finished.output
    step = saved_step(finished)
    checkpoint, _ = read_checkpoint(run / "checkpoints" / f"step-{step:09d}")
    assert checkpoint.statistics["run"]["step"] > 0
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["training_step"] <= step
    assert last["games"] > 0
    assert last["weights_version"] > 0
    assert last["evaluation_scores"].keys() >= {"random", "greedy", "policy", "search"}
    assert {path.name for path in (run / "logs").iterdir()} == {
        f"{role}.log" for role in ("replay-server", "learner", "actor-0", "evaluator")
    }


def test_a_run_can_be_measured(finished: Command, folder: Path, run: Path) -> None:
    """Its newest weights and its best ones."""
    step = saved_step(finished)
    with Command(folder, "evaluate", "--run=run", "--games=8") as command:
        assert command.wait() == 0, command.output
        assert f"training step {step:,}" in command.output
        assert re.search(r"search +│ +-?\d", command.output)
    best = json.loads((run / "best/best.json").read_text())
    assert 0 <= best["training_step"] <= step
    with Command(folder, "evaluate", "--run=run", "--games=8", "--baseline=random", "--weights=best") as command:
        assert command.wait() == 0, command.output
        assert f"training step {best['training_step']:,} (best)" in " ".join(command.output.split())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_a_run_is_in_every_sink(finished: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All numbers that there are in this game, of every role and the server; MLflow has how it ended, too."""
    from mlflow.tracking import MlflowClient  # noqa: PLC0415
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    points = [json.loads(line) for line in (run / "statistics/points.jsonl").read_text().splitlines()]
    names = {point["name"] for point in points}
    learned_model = {"loss/unrolled_policy", "loss/unrolled_value", "loss/reward", "loss/chance", "loss/consistency"}
    absent = learned_model | {"episode/stat", "replay/refused_inserts"}
    found = {name if name in KNOWN else name.rpartition("/")[0] for name in names}
    assert KNOWN - found <= absent
    assert {"progress/live/actor", "evaluation/score/search"} <= names
    assert max(point["step"] for point in points) > 0
    read = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(read.Tags()["scalars"]) == names
    assert re.search(r"^loss: .*policy \d", finished.output, re.MULTILINE)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient((run.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("tic_tac_toe")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert (kept.info.run_name, kept.info.status) == ("run", "FINISHED")
    assert kept.data.params["search.num_simulations"] == "4"
    assert kept.data.metrics.keys() == names
    assert [artifact.path for artifact in client.list_artifacts(kept.info.run_id)] == ["manifest.json"]


def test_a_run_says_where_the_time_of_its_roles_went(finished: Command, folder: Path, run: Path) -> None:
    """Trained with --profile, by function and role; the files are in its manifest."""
    with Command(folder, "profile", "show", "run", "--json", "--top=1000") as command:
        assert command.wait() == 0, command.output
        told = json.loads(command.output)
    for role, function in (("learner", "learner.learner.LearnerLoop.run"), ("actor-0", "actors.actor.ActorLoop.run")):
        together = {share["function"]: share["together"] for share in told[role]["functions"]}
        assert 0 < together[function] <= 1
    assert told.keys() == {"replay-server", "learner", "actor-0", "evaluator"}
    noted = json.loads((run / "manifest.json").read_text())["files"]
    assert all(str(Path(one["file"]).relative_to(run)) in noted for one in told.values())


def test_a_run_that_cannot_live_ends_with_its_reason(finished: Command, run: Path, tmp_path: Path) -> None:
    """Weights that do not fit the network end the run in one line, and everything is stopped."""
    shutil.copytree(run, tmp_path / "run")
    for changed in ("config.toml", "run.json"):
        path = tmp_path / "run" / changed
        text = path.read_text()
        path.write_text(text.replace("channels = 8", "channels = 16").replace('"channels": 8', '"channels": 16'))
        assert path.read_text() != text
    with Command(tmp_path, "train", "--resume=run", *LONG) as command:
        assert command.wait() == 2
        # Whoever comes first: the learner cannot load its checkpoint, the actor cannot load the published weights.
        assert re.match(
            r"error: (learner|actor-0|evaluator): the (checkpoint|best weights|weights) ",
            command.output.splitlines()[-1],
        )
        assert "Traceback" not in command.output
        nothing_left(command)


def test_a_run_stops_at_a_step_and_when_it_is_told_to(finished: Command, run: Path, tmp_path: Path) -> None:
    """`--max-steps` ends it with 0 at that very step, `zero stop` with 130; both save, and nothing is left."""
    shutil.copytree(run, tmp_path / "run")
    last = newest_checkpoint(tmp_path / "run") + 7
    with Command(tmp_path, "train", "--resume=run", f"--max-steps={last}", "--metrics-port=0") as command:
        assert command.wait() == 0, command.output
        assert newest_checkpoint(tmp_path / "run") == last
        nothing_left(command)
    with Command(tmp_path, "train", "--resume=run", f"--max-steps={last}", "--metrics-port=0") as command:
        assert command.wait() == 2
        assert f"has {last:,} training steps already" in command.output
    with Command(tmp_path, "train", "--resume=run", *LONG) as command:
        command.wait_for("learning since")
        with Command(tmp_path, "stop", "run") as stopping:
            assert stopping.wait() == 0, stopping.output
            assert f"has stopped at training step {newest_checkpoint(tmp_path / 'run'):,}" in stopping.output
        assert command.wait() == INTERRUPTED, command.output
        nothing_left(command)


def test_a_run_goes_on_where_it_stopped(finished: Command, resumed: Command, run: Path) -> None:
    """Resumed, it makes further steps."""
    step, scraper = saved_step(finished), scraper_of(resumed)
    wait_until(lambda: training_step(scraper) > step, "steps beyond the checkpoint")
    scraper.close()
    assert f"resuming at training step {step}" in (run / "logs/learner.log").read_text()


def test_the_run_goes_on_when_any_role_is_killed(resumed: Command) -> None:
    """kill -9 of the actor, the learner and the replay server: each is started again and the steps go on rising."""
    scraper = scraper_of(resumed)
    wait_until(lambda: training_step(scraper) > 0, "it learns")
    for role in ("actor-0", "learner", "replay-server", "evaluator"):
        (pid,) = resumed.pids_of(role)
        before = training_step(scraper)
        os.kill(pid, signal.SIGKILL)
        resumed.wait_for(rf"{role} died \(its process died\); restart 1 in")
        wait_until(lambda role=role: len(resumed.pids_of(role)) == 2, f"{role} runs again")
        wait_until(lambda before=before: training_step(scraper) > before + 20, f"steps after the death of {role}")
    inserted = wait_until(
        lambda: max(scraper.scrape().select("zero_replay_inserted_steps_total").values(), default=None), "inserts"
    )
    wait_until(
        lambda: max(scraper.scrape().select("zero_replay_inserted_steps_total").values(), default=0) > inserted,
        "inserts after the death of the actor",
    )
    scraper.close()


def test_a_replay_server_killed_again_and_again_loses_nothing_acknowledged(resumed: Command) -> None:
    """kill -9 of the replay server while a client inserts: the run goes on by itself, and its ledger is all there."""
    address = resumed.wait_for(r"replay +(\S+),")[1]
    scraper = scraper_of(resumed)
    deaths = resumed.output.count("replay-server died")
    with ReplayClient(address) as client:
        client.create_table(table_config("ledger", capacity=10**6))
        with Ledger(address, "ledger", pause_seconds=0.02) as ledger:
            # How much is written before each kill: another moment each time, the second one right after a recovery.
            for written in (100, 1, 40):
                until_written(ledger, written)
                pids = resumed.pids_of("replay-server")
                os.kill(pids[-1], signal.SIGKILL)
                wait_until(lambda pids=pids: len(resumed.pids_of("replay-server")) > len(pids), "it runs again")
                until_written(ledger, 1)
            step = wait_until(lambda: max(0.0, training_step(scraper)) or None, "the learner's step")
            wait_until(lambda: training_step(scraper) > step + 20, "steps after the last kill")
        check_that_nothing_is_lost(client, "ledger", [ledger])
        assert len(ledger.acknowledged) > 100
        assert re.search(rf"replay-server died .*; restart {deaths + 3} in", resumed.output)
    scraper.close()


def test_ctrl_c_saves_and_stops_cleanly(resumed: Command, run: Path) -> None:
    """Whatever has died before."""
    stops_cleanly(resumed, run, signal.SIGINT)


# --- runs of their own ---


def test_a_terminated_run_saves_and_stops_cleanly(tmp_path: Path) -> None:
    """As soon as it learns."""
    with Command(tmp_path, "train", *SMALL, *LONG, "--run-dir=run") as command:
        command.wait_for("learning since")
        stops_cleanly(command, tmp_path / "run", signal.SIGTERM)


def test_a_run_ends_after_its_minutes(tmp_path: Path) -> None:
    """However far it has come."""
    with Command(tmp_path, "train", *SMALL, "--minutes=0.02", "--metrics-port=0", "--run-dir=run") as command:
        assert command.wait() == 0, command.output
        assert "==> Done" in command.output
        nothing_left(command)


def test_nothing_outlives_a_killed_command(tmp_path: Path) -> None:
    """kill -9 of `zero train` itself takes the roles, Redis and Ray with it."""
    with Command(tmp_path, "train", *SMALL, *LONG, "--run-dir=run") as command:
        command.wait_for("learning since")
        assert any("redis" in line for line in command.survivors())
        os.kill(command.pid, signal.SIGKILL)
        nothing_left(command, 20, but=("ray::DashboardAgent", "ray::RuntimeEnvAgent"))


def test_a_second_interrupt_hurries(tmp_path: Path) -> None:
    """Interrupting twice ends the run at once, still without leaving a process."""
    with Command(tmp_path, "train", *SMALL, *LONG, "--run-dir=run") as command:
        command.wait_for("learning since")
        command.interrupt()
        command.wait_for("==> Stopping")
        command.interrupt()
        assert command.wait(20) == INTERRUPTED, command.output
        nothing_left(command)


def test_a_role_that_keeps_failing_ends_the_run(tmp_path: Path) -> None:
    """A learner that the replay server refuses is tried a few times, then the run ends with the server's reason."""
    too_large = ["--set=learner.batch_size=10000000", "--set=replay.error_buffer=1e9"]
    with Command(tmp_path, "train", *SMALL, *too_large, *LONG, "--run-dir=run") as command:
        assert command.wait(2 * PATIENCE_SECONDS) == 1
        assert len(command.pids_of("learner")) == MAX_QUICK_FAILURES
        assert re.match(r"error: learner failed 5 times in a row: .*\d", command.output.splitlines()[-1])
        assert "Traceback" not in command.output
        nothing_left(command)

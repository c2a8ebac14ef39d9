"""Reanalysers in a real run: placed by the command and started by hand, killed, stopped, seen in the metrics."""

import os
import signal
import time
from pathlib import Path

import pytest

from deploy.interrupts import INTERRUPTED
from deploy.scrape import Scraper
from tests.integration.processes import SMALL, Command, wait_until

pytestmark = pytest.mark.slow


def test_reanalysers_come_and_go_while_a_run_learns_from_what_they_find(tmp_path: Path) -> None:
    """One is placed with the run and started again when it is killed, one joins by hand and ends within seconds."""
    train = ["train", *SMALL, "--minutes=10", "--metrics-port=0", "--no-live", "--run-dir=run", "--reanalysers=1"]
    with Command(tmp_path, *train) as run:
        address = run.wait_for(r"replay +(\S+),")[1]
        scraper = Scraper(run.wait_for(r"metrics http://(\S+)/metrics")[1])

        def updated(process: str) -> float:
            series = scraper.scrape().select("zero_reanalyser_steps_total", result="updated")
            return sum(value for one, value in series.items() if one.target.process_id == process)

        def reanalysed_share() -> float:
            return max(scraper.scrape().select("zero_learner_reanalysed_ratio").values(), default=0.0)

        wait_until(lambda: updated("reanalyser-0") > 0, "what the first has found", 120)
        wait_until(lambda: reanalysed_share() > 0, "the learner's batches have some of it")
        with Command(tmp_path, "reanalyser", *SMALL, "--index=1", f"--replay-address={address}") as second:
            wait_until(lambda: updated("reanalyser-1") > 0, "what the second has found", 120)
            asked = time.monotonic()
            os.kill(second.pid, signal.SIGTERM)
            assert second.wait(30) == 0, second.output
            assert time.monotonic() - asked < 15
        (pid,) = run.pids_of("reanalyser-0")
        os.kill(pid, signal.SIGKILL)
        run.wait_for(r"reanalyser-0 died \(its process died\); restart 1 in")
        wait_until(lambda: len(run.pids_of("reanalyser-0")) == 2, "it runs again")
        wait_until(lambda: updated("reanalyser-0") > 0, "it finds something again", 120)
        scraper.close()
        run.interrupt()
        assert run.wait(60) == INTERRUPTED, run.output
        assert "did not" not in run.output
    assert (tmp_path / "run/logs/reanalyser-0.log").exists()

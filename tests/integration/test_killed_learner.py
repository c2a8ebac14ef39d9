"""A learner killed again and again, also in the middle of a checkpoint, ends where one ends that was never killed."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Event

import pytest
import torch

from learner.checkpoint import CheckpointStore
from learner.learner import LearnerSettings, run_learner
from replay_server.client import ReplayClient
from replay_server.server import ReplayServer, ReplayServerSettings
from tests.learner.filled import fill, learn_until, small_config

KILLS = 50
SETTLED_SECONDS = 60.0


def learn(address: str, run_dir: str, max_steps: int) -> None:
    """What the killed processes do: learn, and save all the time."""
    torch.set_num_threads(1)
    config = small_config("learner.checkpoint_interval_seconds=0.001")
    run_learner(config, LearnerSettings(address, Path(run_dir), max_steps=max_steps), Event())


def started(address: str, run_dir: Path, max_steps: int) -> ForkServerProcess:
    """A process that learns; the imports are done once, in the process that it is forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["learner.learner", "tests.learner.filled", __name__])
    process = context.Process(target=learn, args=(address, str(run_dir), max_steps))
    process.start()
    return process


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    """It resumes from the last complete checkpoint each time; versions never go back; the end is the same, bit for bit.

    Each process is killed a random moment after it has saved something new: most are saving again by then.
    """
    torch.set_num_threads(1)
    rng = random.Random(5)
    config = small_config()
    fill(tmp_path / "data", config)
    shutil.copytree(tmp_path / "data", tmp_path / "whole-data")
    store = CheckpointStore(tmp_path / "killed/checkpoints")
    in_a_write, step, version = 0, 0, 0
    with ReplayServer(ReplayServerSettings(tmp_path / "data")) as bound, ReplayClient(bound.address) as client:
        for _ in range(KILLS):
            process = started(bound.address, tmp_path / "killed", 10**6)
            until_saved_after(store, step, process)
            time.sleep(rng.uniform(0, 0.03))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            in_a_write += any((tmp_path / "killed/checkpoints").glob(".step-*.tmp"))
            checkpoint = store.newest(config)
            assert checkpoint is not None
            assert checkpoint.training_step > step, "what was complete is lost"
            step = checkpoint.training_step
            assert client.server_info().weights_version >= version, "the published version went back"
            version = client.server_info().weights_version
        last = step + 10
        process = started(bound.address, tmp_path / "killed", last)
        process.join(SETTLED_SECONDS)
        assert process.exitcode == 0
    assert in_a_write > 0, "no kill fell into a write"
    whole, killed = learn_until(config, tmp_path / "whole-data", tmp_path / "whole", last), store.newest(config)
    assert killed.training_step == last
    assert killed.model == whole.model
    assert all(torch.equal(killed.optimizer[name], whole.optimizer[name]) for name in whole.optimizer)


def until_saved_after(store: CheckpointStore, step: int, process: ForkServerProcess) -> None:
    """Wait until a checkpoint of a later step is there."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while not any(int(folder.name.removeprefix("step-")) > step for folder in store.folders()):
        assert process.is_alive(), f"the learner ended with {process.exitcode}"
        assert time.monotonic() < deadline, "nothing was saved in time"
        time.sleep(0.002)

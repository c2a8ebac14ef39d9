"""A checkpoint is complete or absent, detects damage, and lets a learner go on bit by bit as if nothing happened."""

import hashlib
import json
import os
import pickle
import random
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.checkpoint import (
    FILES,
    MANIFEST,
    MANIFEST_HASH,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    CheckpointError,
    CheckpointStore,
    KeepPolicy,
    read_checkpoint,
)
from learner.checkpoint_saver import CheckpointSaver
from learner.learner import Learner, learning_rate
from learner.losses import TrainingBatch
from learner.metrics import LearnerMetrics
from tests.roles import wait_until
from zero.config import ExperimentConfig, LearnerConfig, SearchConfig, parse_config
from zero.games.registry import make_game
from zero.networks.weights import weights_to_bytes

CONFIG = parse_config("", ["game.name=tic_tac_toe", "network.channels=8", "network.blocks=1", "network.support_min=-1"])


def make_learner(config: ExperimentConfig = CONFIG) -> Learner:
    """A fresh learner on the CPU."""
    return Learner(config, make_game(config.game.name, config.game.options), torch.device("cpu"))


def training_batch(seed: int) -> TrainingBatch:
    """A batch of noise that fits tic-tac-toe."""
    game = make_game("tic_tac_toe", {})
    generator = torch.Generator().manual_seed(seed)
    policy = torch.rand(16, game.num_actions, generator=generator)
    return TrainingBatch(
        encoded=torch.rand(16, game.encoded_size, generator=generator),
        actions=torch.zeros(16, 0, dtype=torch.int64),
        chance_codes=torch.zeros(16, 0, 0, dtype=torch.int64),
        policy_mask=torch.ones(16, 1, game.num_actions, dtype=torch.bool),
        target_policy=(policy / policy.sum(-1, keepdim=True))[:, None],
        target_value=torch.rand(16, 1, generator=generator) * 2 - 1,
        target_reward=torch.zeros(16, 0),
        is_known=torch.ones(16, 1),
        is_inside=torch.ones(16, 1),
        importance_weights=torch.ones(16),
    )


def test_a_restored_learner_goes_on_bit_by_bit(tmp_path: Path) -> None:
    """Five steps, a checkpoint, five more: the same weights as ten steps in one go."""
    torch.set_num_threads(1)
    uninterrupted, first = make_learner(), make_learner()
    for seed in range(10):
        uninterrupted.train(training_batch(seed))
    for seed in range(5):
        first.train(training_batch(seed))
    store = CheckpointStore(tmp_path)
    store.save(first.checkpoint(), CONFIG)
    loaded = store.newest(CONFIG)
    assert loaded is not None
    resumed = make_learner()
    resumed.restore(loaded)
    for seed in range(5, 10):
        resumed.train(training_batch(seed))
    assert resumed.training_step == 10
    assert weights_to_bytes(resumed.network) == weights_to_bytes(uninterrupted.network)


def test_the_generators_of_the_process_go_on_where_they_were(tmp_path: Path) -> None:
    """Python's, NumPy's and PyTorch's: what a game or library of others draws comes as it would have come."""

    def numbers() -> list[float]:
        return [random.random(), np.random.normal(), float(torch.rand(()))]

    np.random.normal()  # leaves a number over for the next call
    store = CheckpointStore(tmp_path)
    store.save(make_learner().checkpoint(), CONFIG)
    expected = numbers()
    numbers()
    make_learner().restore(store.newest(CONFIG))
    assert numbers() == expected


def test_training_learns_a_fixed_batch() -> None:
    """Repeating one batch brings its loss down."""
    learner = make_learner()
    first, _ = learner.train(training_batch(0))
    for _ in range(60):
        last, _ = learner.train(training_batch(0))
    assert last.total < first.total * 0.8


def test_a_loss_that_is_not_finite_leaves_the_weights_alone() -> None:
    """NaN in a batch is an error, not an update."""
    learner = make_learner()
    before = weights_to_bytes(learner.network)
    batch = training_batch(0)
    batch.encoded[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="training step 0"):
        learner.train(batch)
    assert weights_to_bytes(learner.network) == before


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone() -> None:
    """A finite loss with an infinite gradient is an error, not an update."""
    learner = make_learner()
    before = weights_to_bytes(learner.network)
    parameter = next(learner.network.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="gradient"):
        learner.train(training_batch(0))
    assert weights_to_bytes(learner.network) == before


def saved_store(folder: Path, steps: int = 2) -> CheckpointStore:
    """A store with checkpoints at steps 1, 2, ..."""
    store = CheckpointStore(folder)
    learner = make_learner()
    for seed in range(steps):
        learner.train(training_batch(seed))
        store.save(learner.checkpoint(), CONFIG)
    return store


@pytest.mark.parametrize("name", [MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, MANIFEST, MANIFEST_HASH])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 0.999])
def test_damage_is_detected_and_the_previous_checkpoint_used(tmp_path: Path, name: str, where: float) -> None:
    """A flipped byte anywhere in the newest checkpoint falls back to the one before."""
    store = saved_store(tmp_path)
    path = store.folders()[0] / name
    payload = bytearray(path.read_bytes())
    payload[int(where * len(payload))] ^= 0xFF
    path.write_bytes(payload)
    loaded = store.newest(CONFIG)
    assert loaded is not None
    assert loaded.training_step == 1


def test_a_thousand_flipped_bytes_are_all_detected(tmp_path: Path) -> None:
    """Any other value of any byte of any file of a checkpoint: it is refused, and the text names the file."""
    store = saved_store(tmp_path, steps=1)
    (folder,) = store.folders()
    rng = np.random.default_rng(0)
    files = sorted(folder.iterdir())
    contents = [path.read_bytes() for path in files]
    for flip in range(1000):
        which = flip % len(files)
        payload = bytearray(contents[which])
        payload[rng.integers(len(payload))] ^= int(rng.integers(1, 256))
        files[which].write_bytes(payload)
        with pytest.raises(CheckpointError, match="does not match its sha256"):
            read_checkpoint(folder)
        files[which].write_bytes(contents[which])
    assert read_checkpoint(folder)[0].training_step == 1


def test_a_warning_names_what_was_passed_over_and_what_was_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Falling back is never silent."""
    store = saved_store(tmp_path)
    (store.folders()[0] / MODEL_FILE).write_bytes(b"broken")
    assert store.newest(CONFIG).training_step == 1
    assert (
        "going on from step-000000001; passed over: step-000000002: model.safetensors does not match its sha256"
        in caplog.text
    )


@pytest.mark.parametrize("missing", [*FILES, MANIFEST, MANIFEST_HASH])
def test_whatever_a_crash_leaves_of_a_checkpoint_is_passed_over(tmp_path: Path, missing: str) -> None:
    """A folder that lacks a file, or holds half of one, counts for nothing."""
    store = saved_store(tmp_path)
    path = store.folders()[0] / missing
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert store.newest(CONFIG).training_step == 1
    path.unlink()
    assert store.newest(CONFIG).training_step == 1


def test_a_pickle_in_the_place_of_a_file_is_not_run(tmp_path: Path) -> None:
    """Not even with the right hashes: nothing that reads a checkpoint can run code."""
    store = saved_store(tmp_path)
    folder = store.folders()[0]
    payload = pickle.dumps(Trap(tmp_path / "ran"))
    for name in FILES:
        (folder / name).write_bytes(payload)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"] = dict.fromkeys(FILES, hashlib.sha256(payload).hexdigest())
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / MANIFEST_HASH).write_text(hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest())
    assert store.newest(CONFIG).training_step == 1
    assert not (tmp_path / "ran").exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_the_disk_may_be_full_for_a_while(small_disk: Path) -> None:
    """The old checkpoint stays, training goes on, a counter rises; when there is room again, saving goes on."""
    metrics, learner = LearnerMetrics(small_disk), make_learner()
    store = CheckpointStore(small_disk / "checkpoints")
    failed = "zero_learner_failed_checkpoints_total"
    with closing(CheckpointSaver(store, CONFIG, metrics)) as saver:
        learner.train(training_batch(0))
        saver.save(learner.checkpoint())
        wait_until(lambda: not saver.is_busy)
        assert (metrics.registry.get_sample_value(failed), store.newest(CONFIG).training_step) == (0, 1)
        fill_up(small_disk / "other")
        learner.train(training_batch(1))
        saver.save(learner.checkpoint())
        wait_until(lambda: not saver.is_busy)
        assert (metrics.registry.get_sample_value(failed), store.newest(CONFIG).training_step) == (1, 1)
        assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step-000000001"]
        learner.train(training_batch(2))
        with pytest.raises(OSError, match="No space left"):
            saver.finish(learner.checkpoint())
        (small_disk / "other").unlink()
        saver.finish(learner.checkpoint())
        assert (metrics.registry.get_sample_value(failed), store.newest(CONFIG).training_step) == (2, 3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(path: Path) -> None:
    """Let a file take all room that is left."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    """What a crash leaves behind is passed over and cleaned up by the next save."""
    store = saved_store(tmp_path, steps=1)
    (tmp_path / ".step-000000002.tmp").mkdir()
    (tmp_path / ".step-000000002.tmp" / MODEL_FILE).write_bytes(b"half")
    loaded = store.newest(CONFIG)
    assert loaded is not None
    assert loaded.training_step == 1
    learner = make_learner()
    learner.restore(loaded)
    learner.train(training_batch(1))
    store.save(learner.checkpoint(), CONFIG)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000001", "step-000000002"]


def test_a_step_saved_again_is_left_alone_unless_it_is_damaged(tmp_path: Path) -> None:
    """There is no moment at which the only checkpoint of a run is gone; a broken one is mended."""
    store = saved_store(tmp_path, steps=1)
    (folder,) = store.folders()
    before = folder.stat().st_ino
    learner = make_learner()
    learner.train(training_batch(0))
    assert store.save(learner.checkpoint(), CONFIG) == folder
    assert folder.stat().st_ino == before
    (folder / MODEL_FILE).write_bytes(b"broken")
    store.save(learner.checkpoint(), CONFIG)
    assert store.newest(CONFIG) is not None


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    """A run whose checkpoints are all broken does not silently start again from nothing."""
    store = saved_store(tmp_path, steps=1)
    (store.folders()[0] / MODEL_FILE).unlink()
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        store.newest(CONFIG)


@pytest.mark.parametrize(
    ("section", "values", "difference"),
    [
        ("network", {"channels": 16}, "was made with network.channels 8, the config says 16;"),
        ("network", {"blocks": 2, "channels": 4}, r"network.channels 8, the config says 4 \(and 1 more\);"),
        ("game", {"name": "connect_four"}, 'was made with game.name "tic_tac_toe", the config says "connect_four";'),
        ("game", {"options": {"size": 4}}, "was made with game.options.size unset, the config says 4;"),
    ],
)
def test_another_game_or_network_is_refused_with_the_difference_named(
    tmp_path: Path, section: str, values: dict, difference: str
) -> None:
    """A checkpoint is not loaded into what it was not trained for; how it is searched may change."""
    store = saved_store(tmp_path, steps=1)
    other = CONFIG.model_copy(update={section: getattr(CONFIG, section).model_copy(update=values)})
    with pytest.raises(CheckpointError, match=difference) as caught:
        store.newest(other)
    assert "\n" not in str(caught.value)
    assert store.newest(CONFIG.model_copy(update={"seed": 5, "search": SearchConfig(num_simulations=3)})) is not None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """Old checkpoints make room."""
    store = saved_store(tmp_path, steps=5)
    assert [folder.name for folder in store.folders()] == ["step-000000005", "step-000000004", "step-000000003"]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (KeepPolicy(1), {900}),
        (KeepPolicy(2), {900, 800}),
        (KeepPolicy(1, every=300), {100, 300, 600, 900}),
        (KeepPolicy(1, best_step=lambda: 450), {500, 900}),
        (KeepPolicy(1, best_step=lambda: 500), {500, 900}),
        (KeepPolicy(1, best_step=lambda: 950), {900}),
        (KeepPolicy(20), set(range(100, 1000, 100))),
    ],
)
def test_policy_says_what_stays(policy: KeepPolicy, kept: set[int]) -> None:
    """The newest ones, the first of every stretch, and the one that holds the best weights or what came of them."""
    assert policy.kept(range(100, 1000, 100)) == kept


def test_an_empty_run_has_no_checkpoint(tmp_path: Path) -> None:
    """Nothing saved is no error."""
    assert CheckpointStore(tmp_path / "none").newest(CONFIG) is None


def test_learning_rate_schedule() -> None:
    """Warm-up from above zero, the peak, then a cosine down to the final fraction, where it stays."""
    config = LearnerConfig(learning_rate=1.0, warmup_steps=10, schedule_steps=100, final_learning_rate_fraction=0.1)
    rates = np.array([learning_rate(config, step) for step in range(300)])
    assert 0 < rates[0] < rates[5] < rates[10]
    assert rates[10] == rates.max() > 0.95
    assert (np.diff(rates[10:101]) < 0).all()
    assert rates[100:] == pytest.approx(0.1)
    constant = LearnerConfig(learning_rate=1.0, warmup_steps=0, schedule="constant")
    assert learning_rate(constant, 0) == learning_rate(constant, 10**6) == 1.0

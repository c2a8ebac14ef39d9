"""A learner that is started again goes on bit by bit as if it had never ended, as long as nobody plays meanwhile."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.checkpoint import Checkpoint
from tests.learner.filled import fill, learn_until, small_config

pytestmark = pytest.mark.slow


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints agree to the last bit: weights, optimizer, generators, and what is drawn next."""
    if one.replay is None or other.replay is None or one.generators is None or other.generators is None:
        return False
    return (
        one.model == other.model
        and one.optimizer.keys() == other.optimizer.keys()
        and all(torch.equal(one.optimizer[name], other.optimizer[name]) for name in one.optimizer)
        and one.learning_rate == other.learning_rate
        and one.generators.record == other.generators.record
        and all(np.array_equal(one.generators.arrays[k], other.generators.arrays[k]) for k in one.generators.arrays)
        and one.replay.stream.next_number == other.replay.stream.next_number
        and all(
            np.array_equal(batch.keys, another.keys) and np.array_equal(batch.probabilities, another.probabilities)
            for batch, another in zip(one.replay.stream.drawn, other.replay.stream.drawn, strict=False)
        )
    )


@pytest.mark.parametrize(
    ("selector", "model"), [("prioritized", "rules"), ("uniform", "rules"), ("prioritized", "learned")]
)
def test_a_resumed_learner_goes_on_bit_by_bit(tmp_path: Path, selector: str, model: str) -> None:
    """Ended at step 12 and resumed, or thrown back from step 20 to its checkpoint of 12: at 30 all are the same.

    The next batches come from the same draws, by the same priorities, and give the same losses: any difference would
    show in the weights. So does a model that is learned. Server and learner are started anew each time.
    """
    torch.set_num_threads(1)
    unroll_steps = 2 if model == "learned" else 0
    config = small_config(
        f"replay.selector={selector}", f"network.model={model}", f"learner.unroll_steps={unroll_steps}"
    )
    fill(tmp_path / "data", config)
    for name in ("whole", "stopped", "thrown-back"):
        shutil.copytree(tmp_path / "data", tmp_path / f"{name}-data")

    def learn(name: str, max_steps: int) -> Checkpoint:
        return learn_until(config, tmp_path / f"{name}-data", tmp_path / name, max_steps)

    whole = learn("whole", 30)
    stopped = learn("stopped", 12)
    assert len(stopped.replay.stream.drawn) + len(stopped.replay.stream.asked) == config.learner.prefetch_batches
    assert len(stopped.replay.priorities.keys) == (0 if selector == "uniform" else stopped.replay.reference.num_steps)
    assert same(learn("stopped", 30), whole)
    learn("thrown-back", 12)
    learn("thrown-back", 20)
    shutil.rmtree(tmp_path / "thrown-back/checkpoints/step-000000020")
    assert same(learn("thrown-back", 30), whole)
    assert not same(stopped, whole)

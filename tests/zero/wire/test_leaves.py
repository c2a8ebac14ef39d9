"""Leaves and what a network makes of them come through their bytes unchanged."""

import numpy as np
import pytest

from zero.trajectories import ColumnSpec
from zero.wire.leaves import (
    Evaluation,
    LeavesError,
    pack_evaluation,
    pack_observations,
    unpack_evaluation,
    unpack_observations,
)

SPECS = (
    ColumnSpec("observation", "uint8", (9,)),
    ColumnSpec("observation", "float32", (2, 3)),
    ColumnSpec("o", "int16"),
)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.dtype}{spec.shape}")
def test_observations_come_back_as_they_went(spec: ColumnSpec) -> None:
    """Of any type and shape, also if they lie otherwise in memory; a part of one, or none, is refused."""
    numbers = np.random.default_rng(0).integers(0, 100, (10, *spec.shape)).astype(spec.dtype)[::2]
    body = pack_observations(numbers)
    back = unpack_observations(body, spec)
    assert back.dtype == spec.dtype
    np.testing.assert_array_equal(back, numbers)
    with pytest.raises(LeavesError, match="must hold"):
        unpack_observations(b"", spec)
    with pytest.raises(LeavesError, match="must hold"):
        unpack_observations(body[:-1], spec)


def test_an_evaluation_comes_back_as_it_went() -> None:
    """Bit for bit, in arrays that a search may write to; one of other leaves or actions is refused."""
    rng = np.random.default_rng(0)
    logits, values = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    body = pack_evaluation(Evaluation(2**40, 3, logits, values))
    back = unpack_evaluation(body, 5, 7)
    assert (back.weights_version, back.training_step) == (2**40, 3)
    np.testing.assert_array_equal(back.logits, logits)
    np.testing.assert_array_equal(back.values, values)
    assert back.logits.flags.carray
    assert back.values.flags.carray
    for wrong in ((4, 7), (5, 8)):
        with pytest.raises(LeavesError, match=f"{len(body)} bytes"):
            unpack_evaluation(body, *wrong)

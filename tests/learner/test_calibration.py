"""Calibration says in which way values are wrong, whatever is drawn more often."""

import math

import numpy as np
import pytest

from learner.calibration import value_calibration

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=4000).astype(np.float32)
UNIFORM = np.full(4000, 1 / 4000)


def test_values_that_mean_what_they_say_are_calibrated() -> None:
    """Noise around the values changes neither bias nor slope."""
    calibration = value_calibration(VALUES, VALUES + RNG.normal(size=4000).astype(np.float32), UNIFORM)
    assert calibration == pytest.approx((0, 1), abs=0.06)


def test_hope_and_exaggeration_are_told_apart() -> None:
    """Values half a point too high are biased; values twice too far from their mean have a slope of a half."""
    hopeful = value_calibration(VALUES + np.float32(0.5), VALUES, UNIFORM)
    exaggerated = value_calibration(2 * VALUES, VALUES, UNIFORM)
    assert hopeful == pytest.approx((0.5, 1), abs=1e-5)
    assert exaggerated.slope == pytest.approx(0.5)


def test_preferred_draws_do_not_count_twice() -> None:
    """Drawing the wrong half nine times as often leaves the estimate where uniform draws have it."""
    wrong = np.arange(4000) % 2 == 1
    values = VALUES + np.where(wrong, np.float32(1), np.float32(0))
    chances = np.where(wrong, 9.0, 1.0)
    chances /= chances.sum()
    drawn = RNG.choice(4000, 100_000, p=chances)
    calibration = value_calibration(values[drawn], VALUES[drawn], chances[drawn])
    assert calibration == pytest.approx(value_calibration(values, VALUES, UNIFORM), abs=0.03)


def test_values_that_are_all_alike_have_no_slope() -> None:
    """Nothing can be said, which is not the same as 0."""
    assert math.isnan(value_calibration(np.ones(8, np.float32), VALUES[:8], UNIFORM[:8]).slope)

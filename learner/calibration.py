"""How well the network's values fit their targets: a health figure of learning that no loss shows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ValueCalibration(NamedTuple):
    """Of predicted values against their targets.

    Attributes:
        bias: mean prediction minus mean target, in real scale; above 0 the network is too hopeful.
        slope: of the line that predicts targets from predictions; 1 if values mean what they say, below 1 if they are
            too extreme, NaN if all predictions are alike.
    """

    bias: float
    slope: float


def value_calibration(
    values: NDArray[np.float32], targets: NDArray[np.float32], probabilities: NDArray[np.float64]
) -> ValueCalibration:
    """The calibration over a whole table, estimated from a batch.

    Prioritized draws prefer positions whose value is wrong; each counts by the inverse of its probability, so that the
    estimate is that of uniform draws.

    Args:
        values: predictions [B].
        targets: [B].
        probabilities: of the draws [B], above 0.
    """
    weights = 1 / probabilities
    weights /= weights.sum()
    centred_values = values - weights @ values
    centred_targets = targets - weights @ targets
    variance = float(weights @ centred_values**2)
    slope = float(weights @ (centred_values * centred_targets)) / variance if variance > 0 else float("nan")
    return ValueCalibration(float(weights @ (values - targets)), slope)

"""The categorical value: scalars as two-hot distributions over a support, squashed by the h-transform."""

import torch
from torch import Tensor, nn

from zero.config import NetworkConfig

EPSILON = 1e-3
"""The linear share of the h-transform; it keeps the inverse Lipschitz."""


def value_transform(values: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + epsilon x (Pohlen et al. 2018; MuZero, appendix F)."""
    return values.sign() * ((values.abs() + 1).sqrt() - 1) + EPSILON * values


def inverse_value_transform(values: Tensor) -> Tensor:
    """The inverse of `value_transform`."""
    root = (1 + 4 * EPSILON * (values.abs() + 1 + EPSILON)).sqrt()
    return values.sign() * (((root - 1) / (2 * EPSILON)) ** 2 - 1)


class ValueSupport(nn.Module):
    """Maps between returns in real scale and categorical distributions over evenly spaced atoms.

    Attributes:
        atoms: float32 [support_size], in transformed scale.
    """

    atoms: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self._minimum = config.support_min
        self._maximum = config.support_max
        self._last = config.support_size - 1
        self._transformed = config.value_transform
        self.register_buffer(
            "atoms", torch.linspace(config.support_min, config.support_max, config.support_size), persistent=False
        )

    def transform(self, values: Tensor) -> Tensor:
        """Returns in the scale of the atoms, without clamping."""
        return value_transform(values) if self._transformed else values

    def two_hot(self, values: Tensor) -> Tensor:
        """Distributions [B, support_size] whose expectation is the transformed value; clamped to the support.

        What is not a number has no number in its distribution.

        Args:
            values: float32 [B], in real scale.
        """
        span = self._maximum - self._minimum
        position = (self.transform(values).clamp(self._minimum, self._maximum) - self._minimum) * (self._last / span)
        # An exact top atom must not index beyond the support, so the lower neighbour is at most the last but one.
        lower = position.floor().clamp(max=self._last - 1).nan_to_num(0)
        upper_share = (position - lower).unsqueeze(-1)
        index = lower.long().unsqueeze(-1)
        distribution = torch.zeros(*values.shape, self._last + 1, device=values.device)
        distribution.scatter_(-1, index, 1 - upper_share)
        return distribution.scatter_(-1, index + 1, upper_share)

    def expectation(self, value_logits: Tensor) -> Tensor:
        """Values [B] in real scale: the expectation over the atoms, then the inverse transform.

        Args:
            value_logits: [B, support_size], any float dtype; computed in float32.
        """
        expected = (value_logits.float().softmax(-1) * self.atoms).sum(-1)
        return inverse_value_transform(expected) if self._transformed else expected

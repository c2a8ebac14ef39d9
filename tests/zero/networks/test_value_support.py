"""The categorical value keeps scalars exactly, wherever they fall."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zero.config import NetworkConfig
from zero.networks.value_support import ValueSupport, inverse_value_transform, value_transform

SUPPORT = ValueSupport(NetworkConfig())


@settings(deadline=None)
@given(st.floats(-1e4, 1e4, width=32))
def test_inverse_value_transform_undoes_the_transform(value: float) -> None:
    """h^-1(h(x)) = x, both signs."""
    values = torch.tensor([value], dtype=torch.float64)
    assert inverse_value_transform(value_transform(values)).item() == pytest.approx(value, abs=1e-6, rel=1e-6)


def test_value_transform_adds_epsilon_outside_the_root() -> None:
    """h(3) = (sqrt(4) - 1) + 0.001 * 3."""
    assert value_transform(torch.tensor([3.0, -3.0])).tolist() == pytest.approx([1.003, -1.003])


@settings(deadline=None)
@given(st.floats(0, 400, width=32))
def test_two_hot_has_the_value_as_expectation(value: float) -> None:
    """Encoding and decoding a value inside the support gives it back."""
    logits = SUPPORT.two_hot(torch.tensor([value])).clamp(min=1e-30).log()
    assert SUPPORT.expectation(logits).item() == pytest.approx(value, rel=2e-3, abs=2e-3)


def test_two_hot_of_exact_atoms_is_one_hot_also_at_both_ends() -> None:
    """A value exactly on an atom has all of its mass there."""
    support = ValueSupport(NetworkConfig(support_min=-2, support_max=2, support_size=5, value_transform=False))
    assert torch.equal(support.two_hot(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])), torch.eye(5))


def test_two_hot_clamps_to_the_support() -> None:
    """A value beyond the support counts as its end."""
    support = ValueSupport(NetworkConfig(support_min=-1, support_max=1, support_size=3, value_transform=False))
    assert support.two_hot(torch.tensor([-7.0, 7.0])).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_two_hot_sums_to_one_over_many_values() -> None:
    """Every row is a distribution."""
    values = torch.from_numpy(np.random.default_rng(0).uniform(-50, 600, 1000).astype(np.float32))
    distribution = SUPPORT.two_hot(values)
    assert (distribution >= 0).all()
    assert torch.allclose(distribution.sum(-1), torch.ones(1000))


def test_default_support_covers_a_return_of_three_hundred() -> None:
    """The default atoms reach beyond h(300)."""
    assert value_transform(torch.tensor([300.0])).item() < SUPPORT.atoms[-1].item()


def test_two_hot_of_what_is_no_number_has_no_number_and_leaves_others_alone() -> None:
    """A broken target shows in the loss, which is then not learned; it must not end the process another way."""
    support = ValueSupport(NetworkConfig())
    mixed = support.two_hot(torch.tensor([float("nan"), 2.0]))
    assert mixed[0].isnan().any()
    assert torch.equal(mixed[1], support.two_hot(torch.tensor([2.0]))[0])

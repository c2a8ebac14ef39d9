"""The numbered random streams of the search: exact values, range, distribution, independence."""

import math

import numpy as np
import pytest

from tests.zero.search import reference
from zero.search.randomness import gumbel, log_gamma, uniform


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("counter", [0, 1, 1000, 2**40])
def test_numbers_are_those_of_the_generator_in_plain_integers(seed: int, counter: int) -> None:
    """Compiled and plain arithmetic agree to the last bit, at the ends of the range too."""
    assert uniform(np.uint64(seed), counter) == reference.uniform(seed, counter)
    assert gumbel(np.uint64(seed), counter) == pytest.approx(-math.log(-math.log(reference.uniform(seed, counter))))


def test_neighbouring_streams_look_independent() -> None:
    """Uniform within and across streams of consecutive seeds; no number occurs twice, none is 0 or 1."""
    numbers = np.array([[uniform(np.uint64(seed), counter) for counter in range(200)] for seed in range(200)])
    assert 0 < numbers.min() < numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    histogram = np.histogram(numbers, 20, (0, 1))[0]
    assert ((histogram - 2000) ** 2 / 2000).sum() < 44, "chi-square with 19 degrees of freedom, one in a thousand"
    assert abs(np.corrcoef(numbers)[np.triu_indices(200, 1)]).max() < 0.4
    assert abs(np.corrcoef(numbers.T)[np.triu_indices(200, 1)]).max() < 0.4


def test_gumbel_noise_has_the_moments_of_a_gumbel() -> None:
    """Mean is Euler's constant, variance is pi squared over 6."""
    noise = np.array([gumbel(np.uint64(5), counter) for counter in range(40_000)])
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.03)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.1)


@pytest.mark.parametrize("shape", [0.05, 0.5, 1.0, 7.0])
def test_gamma_numbers_are_gamma_distributed(shape: float) -> None:
    """Mean and variance are the shape; the logarithms are finite and those of the generator in plain floats."""
    logarithms = np.array([log_gamma(np.uint64(6), counter, shape) for counter in range(40_000)])
    assert np.isfinite(logarithms).all()
    numbers = np.exp(logarithms)
    assert numbers.mean() == pytest.approx(shape, abs=5 * math.sqrt(shape / 40_000))
    assert numbers.var() == pytest.approx(shape, rel=0.15)
    for counter in range(50):
        assert numbers[counter] == pytest.approx(reference.gamma(6, counter, shape), rel=1e-9)


def test_gamma_numbers_of_neighbouring_places_are_independent() -> None:
    """The streams of their own that they draw from do not run into each other."""
    numbers = np.array([[log_gamma(np.uint64(seed), counter, 2.0) for counter in range(200)] for seed in range(200)])
    assert len(np.unique(numbers)) == numbers.size
    assert abs(np.corrcoef(numbers)[np.triu_indices(200, 1)]).max() < 0.4
    assert abs(np.corrcoef(numbers.T)[np.triu_indices(200, 1)]).max() < 0.4

"""How likely a new sample is to be taken into a full buffer, by how long samples are to live there."""

import math
import warnings

EULER_GAMMA = 0.5772156649


def survival_probability(max_size: int, length: float) -> float:
    """The probability for an oldest sample of an age of `length`: N / L x (ln N + gamma), at most 1.

    So many samples come until every slot has been replaced, on average (the coupon collector's problem, with the
    harmonic number approximated): the age of the oldest sample, not the mean life, which is N / p.

    Args:
        max_size: N, slots.
        length: L, in samples that come.

    Raises:
        ValueError: L is not positive.
    """
    return _clamped("expected_survival_length", length, max_size * (math.log(max_size) + EULER_GAMMA))


def turnover_probability(max_size: int, length: float) -> float:
    """As survival_probability with the exact harmonic number H: N x H / L.

    Raises:
        ValueError: L is not positive.
    """
    return _clamped("turnover", length, max_size * math.fsum(1 / k for k in range(1, max_size + 1)))


def mean_lifetime_probability(max_size: int, length: float) -> float:
    """The probability for samples that stay for L samples that come, on average: N / L.

    Raises:
        ValueError: L is not positive.
    """
    return _clamped("mean_lifetime", length, float(max_size))


def _clamped(name: str, length: float, least: float) -> float:
    """least / length; a length below the least one cannot be had."""
    if not length > 0:
        raise ValueError(f"{name} is {length}, must be positive")
    if length < least:
        warnings.warn(
            f"{name} {length:g} cannot be reached: every sample is taken, which gives {least:.6g}",
            RuntimeWarning,
            stacklevel=4,
        )
        return 1.0
    return min(max(least / length, 0.0), 1.0)


def probability_of(
    max_size: int,
    replace_probability: float | None = None,
    expected_survival_length: float | None = None,
    turnover: float | None = None,
    mean_lifetime: float | None = None,
) -> float:
    """The probability by whichever one was given; 1 without any.

    Raises:
        ValueError: more than one was given, or one that is out of range.
    """
    given = {
        "replace_probability": replace_probability,
        "expected_survival_length": expected_survival_length,
        "turnover": turnover,
        "mean_lifetime": mean_lifetime,
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} say the same thing: give one of them")
    if replace_probability is not None and not 0 <= replace_probability <= 1:
        raise ValueError(f"replace_probability is {replace_probability}, must be within 0 to 1")
    if expected_survival_length is not None:
        return survival_probability(max_size, expected_survival_length)
    if turnover is not None:
        return turnover_probability(max_size, turnover)
    if mean_lifetime is not None:
        return mean_lifetime_probability(max_size, mean_lifetime)
    return 1.0 if replace_probability is None else float(replace_probability)

"""Value targets against a naive recursion, and by hand at every kind of end."""

import numpy as np
import pytest

from learner.targets import td_lambda_targets


def naive(rewards, discounts, values, length, td_lambda):
    """The recursion of one sequence, as in the book."""
    last = min(length, len(rewards)) - 1

    def target(step: int) -> float:
        if step == last:
            return rewards[step] if discounts[step] == 0 else values[step]
        following = (1 - td_lambda) * values[step + 1] + td_lambda * target(step + 1)
        return rewards[step] + discounts[step] * following

    return target(0)


@pytest.mark.parametrize("td_lambda", [0.0, 0.5, 0.9, 1.0])
def test_targets_equal_the_naive_recursion(td_lambda: float) -> None:
    """Random sequences of every length, with and without an ending, with players in turns."""
    rng = np.random.default_rng(0)
    batch, window = 200, 6
    rewards = rng.normal(size=(batch, window)).astype(np.float32)
    values = rng.normal(size=(batch, window)).astype(np.float32)
    discounts = rng.choice([0.9, -0.9], size=(batch, window)).astype(np.float32)
    lengths = rng.integers(1, 2 * window, batch).astype(np.int32)
    for row in range(batch):
        if lengths[row] <= window and rng.random() < 0.7:
            discounts[row, lengths[row] - 1] = 0
        rewards[row, lengths[row] :] = values[row, lengths[row] :] = 0
    expected = [naive(rewards[i], discounts[i], values[i], lengths[i], td_lambda) for i in range(batch)]
    got = td_lambda_targets(rewards, discounts, values, lengths, td_lambda)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_td_lambda_one_is_the_n_step_return() -> None:
    """Two discounted rewards and the bootstrap value at the end of the window."""
    got = td_lambda_targets(
        np.array([[1.0, 2.0, 100.0]], np.float32),
        np.array([[0.5, 0.5, 0.5]], np.float32),
        np.array([[-9.0, -9.0, 8.0]], np.float32),
        np.array([3], np.int32),
        td_lambda=1.0,
    )
    assert got.tolist() == [1 + 0.5 * 2 + 0.25 * 8]


def test_nothing_counts_beyond_a_terminal_step() -> None:
    """The value of what follows a finished game is zero."""
    got = td_lambda_targets(
        np.array([[3.0, 7.0]], np.float32),
        np.array([[0.0, 0.9]], np.float32),
        np.array([[5.0, 5.0]], np.float32),
        np.array([1], np.int32),
        td_lambda=0.9,
    )
    assert got.tolist() == [3.0]


def test_a_truncated_trajectory_bootstraps() -> None:
    """At the last step of a game that was cut off, the search's own value stands for the rest."""
    got = td_lambda_targets(
        np.array([[3.0, 7.0]], np.float32),
        np.array([[0.9, 0.9]], np.float32),
        np.array([[5.0, 6.0]], np.float32),
        np.array([2], np.int32),
        td_lambda=0.5,
    )
    assert got[0] == pytest.approx(3 + 0.9 * 6)

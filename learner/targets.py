"""Value targets, computed when sequences are sampled, from stored rewards and search values."""

import numpy as np
from numpy.typing import NDArray


def td_lambda_targets(
    rewards: NDArray[np.float32],
    discounts: NDArray[np.float32],
    search_values: NDArray[np.float32],
    lengths: NDArray[np.int32],
    td_lambda: float,
) -> NDArray[np.float32]:
    """Lambda-returns of the first step of every sequence (Sutton and Barto, 2nd ed., equation 12.18).

    G_t = r_t + d_t ((1 - lambda) V_{t+1} + lambda G_{t+1}). The recursion bootstraps with the search value at the last
    step of the window; with td_lambda 1 and a window of n + 1 steps that is the n-step return. A game that ended inside
    the window has d = 0 at its end and nothing beyond it counts; one that was truncated bootstraps at its last step.

    Args:
        rewards: [B, L].
        discounts: [B, L], the discount from step t+1 to t, its sign flipped where the player changes; 0 where the game
            ended.
        search_values: [B, L].
        lengths: [B], steps of the trajectory from the start of the window on; may exceed L.
        td_lambda: 0 (one step) to 1 (n steps).

    Returns:
        [B], in real scale.
    """
    window = rewards.shape[1]
    last = np.minimum(lengths, window) - 1  # [B]
    returns = np.zeros(rewards.shape[0], np.float32)
    for step in range(window - 1, -1, -1):
        at_end = np.where(discounts[:, step] == 0, rewards[:, step], search_values[:, step])
        if step == window - 1:
            returns = np.where(step == last, at_end, returns)
            continue
        following = (1 - td_lambda) * search_values[:, step + 1] + td_lambda * returns
        inside = rewards[:, step] + discounts[:, step] * following
        returns = np.where(step == last, at_end, np.where(step < last, inside, returns))
    return returns.astype(np.float32)

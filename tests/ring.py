"""A game whose dynamics, rewards and values are written down, for tests of learned models: a walk on a ring."""

import numpy as np
from numpy.typing import NDArray

from zero.games.game import Game, States, Transition
from zero.trajectories import ColumnSpec

SIZE = 7
DISCOUNT = 0.9
VALUES = np.array([0.5, -0.75, 1.0, -0.25, 0.75, -1.0, 0.25])
"""Of the numbers; rewards are such that every return from a number is its value, whatever is played."""
LAST = 5
"""From here action 0 ends the game, if any does."""
LIKELY = 0.75
"""The probability of code 0."""

_NUMBER = np.uint64(0xFF)
_OVER = np.uint64(1 << 8)
_PENDING = np.uint64(1 << 9)
_SECOND_MOVES = np.uint64(1 << 10)


def following(number: int, action: int, code: int) -> int:
    """Where an action leads, and chance after action 1."""
    return (2 * number + action + 3 * code) % SIZE


class Ring(Game):
    """Two actions, always legal: from n to 2 n + action, and 3 further if chance says so, after action 1 alone.

    Args:
        is_random: chance has a say.
        ends: action 0 ends the game at the number LAST.
        pays_after_chance: the reward is that of the outcome, not of the action.
        num_players: 2 take turns, and what a number is worth to one of them it costs the other; without chance.
    """

    name = "ring"
    num_actions = max_legal_actions = 2
    state_size = 1
    observation_spec = ColumnSpec("observation", "uint64", (1,))
    planes_shape = (SIZE, 1, 1)
    num_features = 0

    def __init__(
        self, *, is_random: bool = False, ends: bool = False, pays_after_chance: bool = True, num_players: int = 1
    ) -> None:
        self._is_random, self._ends, self._pays_after_chance = is_random, ends, pays_after_chance
        self.chance_size = int(is_random)
        self.num_players = num_players

    @property
    def signed_discount(self) -> float:
        """From the value after a step to the value before it."""
        return DISCOUNT if self.num_players == 1 else -DISCOUNT

    @property
    def chance_code_sizes(self) -> tuple[int, ...]:
        """See Game."""
        return (2,) if self._is_random else ()

    def initial(self, outcomes: NDArray[np.int64]) -> States:
        """See Game."""
        return np.ones((len(outcomes), 1), np.uint64)

    def legal_action_mask(self, states: States) -> NDArray[np.bool_]:
        """See Game."""
        return np.repeat((states & (_OVER | _PENDING)) == 0, 2, axis=1)

    def apply(self, states: States, actions: NDArray[np.int64]) -> Transition:
        """See Game."""
        after, rewards = states.copy(), np.zeros(len(states), np.float32)
        for row, (state, action) in enumerate(zip(states[:, 0], actions.tolist(), strict=True)):
            if state & (_OVER | _PENDING):
                continue
            number = int(state & _NUMBER)
            if self._ends and number == LAST and action == 0:
                after[row], rewards[row] = _OVER | state, VALUES[number]
                continue
            turn = (state & _SECOND_MOVES) ^ (_SECOND_MOVES if self.num_players == 2 else np.uint64(0))
            after[row] = np.uint64(following(number, action, 0)) | turn
            if self._is_random and action == 1:
                after[row] |= _PENDING
                if self._pays_after_chance:
                    continue
            rewards[row] = VALUES[number] - self.signed_discount * VALUES[following(number, action, 0)]
        return self._transition(after, rewards)

    def resolve(self, states: States, outcomes: NDArray[np.int64]) -> Transition:
        """See Game."""
        after, rewards = states.copy(), np.zeros(len(states), np.float32)
        for row in np.flatnonzero(states[:, 0] & _PENDING):
            likely = int(states[row, 0] & _NUMBER)
            number = (likely + 3 * int(outcomes[row, 0])) % SIZE
            after[row] = number
            if self._pays_after_chance:
                before = next(one for one in range(SIZE) if following(one, 1, 0) == likely)
                rewards[row] = VALUES[before] - DISCOUNT * VALUES[number]
        return self._transition(after, rewards)

    def chance_from_uniforms(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """See Game."""
        return (uniforms >= LIKELY).astype(np.int64)

    def chance_codes(self, states: States, outcomes: NDArray[np.int64]) -> NDArray[np.int64]:
        """See Game."""
        del states
        return outcomes.copy()

    def terminated(self, states: States) -> NDArray[np.bool_]:
        """See Game."""
        return (states[:, 0] & _OVER) != 0

    def to_play(self, states: States) -> NDArray[np.int8]:
        """See Game."""
        return ((states[:, 0] & _SECOND_MOVES) != 0).astype(np.int8)

    def observation(self, states: States) -> NDArray[np.generic]:
        """See Game."""
        return states.copy()

    def decode(self, observations: NDArray[np.generic]) -> States:
        """See Game."""
        return observations.astype(np.uint64)

    def encode(self, observations: NDArray[np.generic]) -> NDArray[np.float32]:
        """See Game."""
        numbers = (observations[:, 0] & _NUMBER).astype(np.int64)
        return np.eye(SIZE, dtype=np.float32)[numbers]

    def render_ascii(self, states: States, index: int = 0) -> str:
        """See Game."""
        return str(int(states[index, 0]))

    def _transition(self, states: States, rewards: NDArray[np.float32]) -> Transition:
        return Transition(states, rewards, self.terminated(states), (states[:, 0] & _PENDING) != 0)

"""Gymnasium environments with discrete actions, if their state can be saved and restored: an optional adapter."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zero.games.arrays import as_actions, as_outcomes, as_rows
from zero.games.game import Game, GameError, States, Transition
from zero.games.gymnasium_simulators import Simulator, make_simulator
from zero.trajectories import ColumnSpec

_OUTCOMES = 2**53
_OVER = np.uint64(1)
_PENDING = np.uint64(2)
_ACTION_SHIFT = np.uint64(8)


class GymnasiumGame(Game):
    """An environment as a game for one player.

    A position is the saved state, then a word: bit 0, the episode is over; bit 1, the action in the bits from 8 on is
    chosen and waits for chance. The observation is the same words, the planes are what the environment shows, as
    channels of a board of one cell. An outcome is one number, for the start and, if steps draw numbers, for each step.

    The limits of steps that Gymnasium puts around environments are not rules of them: set `self_play.max_moves`.

    Args:
        environment_id: as `gymnasium.make` takes it.
        simulator: the environment.
    """

    name = "gymnasium"
    num_players = 1
    chance_size = 1
    num_features = 0

    def __init__(self, environment_id: str, simulator: Simulator) -> None:
        self._environment_id = environment_id
        self._simulator = simulator
        self.num_actions = self.max_legal_actions = simulator.num_actions
        self.state_size = simulator.num_words + 1
        self.observation_spec = ColumnSpec("observation", "uint64", (self.state_size,))
        self.planes_shape = (simulator.num_features, 1, 1)

    def initial(self, outcomes: NDArray[np.int64]) -> States:
        """Start positions, drawn by outcomes [B, 1]."""
        outcomes = as_rows("outcomes", outcomes, np.int64, (1,))
        states = np.zeros((len(outcomes), self.state_size), np.uint64)
        for row, outcome in enumerate(outcomes[:, 0].tolist()):
            states[row, :-1] = self._simulator.reset(outcome)
        return states

    def legal_action_mask(self, states: States) -> NDArray[np.bool_]:
        """bool [B, A]: everything, until the episode is over or chance is pending."""
        running = (self._checked(states)[:, -1] & (_OVER | _PENDING)) == 0
        return np.repeat(running[:, None], self.num_actions, axis=1)

    def apply(self, states: States, actions: NDArray[np.int64]) -> Transition:
        """Choose actions [B]; unless steps draw numbers, that is the whole step.

        Raises:
            GameError: there is no such action, in an episode that is not over.
        """
        after = self._checked(states).copy()
        actions = as_actions(actions, len(after))
        rewards = np.zeros(len(after), np.float32)
        for row in np.flatnonzero(self.legal_action_mask(after).any(axis=1)):
            action = int(actions[row])
            if not 0 <= action < self.num_actions:
                raise GameError(f"{self._environment_id}: action {action} is not legal")
            if self._simulator.is_random:
                after[row, -1] = _PENDING | np.uint64(action) << _ACTION_SHIFT
            else:
                rewards[row] = self._step(after[row], action, 0)
        return self._transition(after, rewards)

    def resolve(self, states: States, outcomes: NDArray[np.int64]) -> Transition:
        """Take the steps that wait for chance, with outcomes [B, 1]."""
        after = self._checked(states).copy()
        outcomes = as_outcomes(outcomes, len(after), self.chance_size)
        rewards = np.zeros(len(after), np.float32)
        for row in np.flatnonzero(after[:, -1] & _PENDING):
            rewards[row] = self._step(after[row], int(after[row, -1] >> _ACTION_SHIFT), int(outcomes[row, 0]))
        return self._transition(after, rewards)

    def chance_from_uniforms(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """The uniforms as integers below 2^53."""
        return (as_rows("uniforms", uniforms, np.float64, (1,)) * _OUTCOMES).astype(np.int64)

    def terminated(self, states: States) -> NDArray[np.bool_]:
        """bool [B], the environment said so."""
        return (self._checked(states)[:, -1] & _OVER) != 0

    def to_play(self, states: States) -> NDArray[np.int8]:
        """int8 [B], zeros: there is one player."""
        return np.zeros(len(states), np.int8)

    def observation(self, states: States) -> NDArray[np.generic]:
        """The position itself, uint64 [B, state_size]."""
        return self._checked(states).copy()

    def decode(self, observations: NDArray[np.generic]) -> States:
        """The observation itself."""
        return as_rows("observations", observations, np.uint64, (self.state_size,)).copy()

    def encode(self, observations: NDArray[np.generic]) -> NDArray[np.float32]:
        """float32 [B, C], what the environment shows."""
        rows = as_rows("observations", observations, np.uint64, (self.state_size,))
        return np.array([self._simulator.features(row[:-1]) for row in rows], np.float32).reshape(-1, self.encoded_size)

    def render_ascii(self, states: States, index: int = 0) -> str:
        """What the environment shows, as numbers; of a one-hot vector, which one it is."""
        row = self._checked(states)[index]
        features = self._simulator.features(row[:-1])
        is_one_hot = self._simulator.num_words == 1
        shown = f"state {features.argmax()}" if is_one_hot else " ".join(f"{number:.4g}" for number in features)
        return shown + (" (over)" if row[-1] & _OVER else "")

    def _step(self, position: NDArray[np.uint64], action: int, number: int) -> float:
        """Step a position [state_size] in place; the reward."""
        step = self._simulator.step(position[:-1], action, number)
        position[:-1] = step.saved
        position[-1] = _OVER if step.terminated else 0
        return step.reward

    def _transition(self, states: States, rewards: NDArray[np.float32]) -> Transition:
        return Transition(states, rewards, self.terminated(states), (states[:, -1] & _PENDING) != 0)

    def _checked(self, states: NDArray[Any]) -> States:
        return as_rows("states", states, np.uint64, (self.state_size,))


def make_game(environment_id: str, options: Mapping[str, Any]) -> Game:
    """An environment by its id; the options are arguments of `gymnasium.make`.

    Raises:
        GameError: no such environment, an argument that it does not take, or one that cannot be saved and restored.
    """
    return GymnasiumGame(environment_id, make_simulator(environment_id, dict(options)))

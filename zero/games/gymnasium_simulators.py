"""Gymnasium environments as functions of a saved state: what can be saved and restored, and what cannot."""

from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from zero.games.game import GameError

TESTED_EPISODES = 3
TESTED_STEPS = 50
"""How far a restored environment is compared with one that plays on undisturbed."""

_TRANSPARENT_WRAPPERS = ("TimeLimit", "OrderEnforcing", "PassiveEnvChecker")
"""What `gymnasium.make` puts around every environment; they change neither states nor rewards."""

Words = NDArray[np.uint64]


class Step(NamedTuple):
    """What a step gave: the saved state after it, the reward, and whether the environment says it is over."""

    saved: Words
    reward: float
    terminated: bool


class Simulator(Protocol):
    """An environment without a state of its own.

    Attributes:
        num_actions: numbered from 0.
        num_words: uint64 words of a saved state.
        num_features: numbers that the network sees.
        is_random: steps draw numbers.
    """

    num_actions: int
    num_words: int
    num_features: int
    is_random: bool

    def reset(self, number: int) -> Words:
        """A start state [num_words], drawn by a number below 2^53."""
        ...

    def step(self, saved: Words, action: int, number: int) -> Step:
        """One step from a saved state; the number, below 2^53, decides what is drawn."""
        ...

    def features(self, saved: Words) -> NDArray[np.float32]:
        """What the environment shows of a saved state, [num_features]."""
        ...


def make_simulator(environment_id: str, arguments: dict[str, Any]) -> Simulator:
    """The simulator of an environment.

    Args:
        environment_id: as `gymnasium.make` takes it.
        arguments: for `gymnasium.make`.

    Raises:
        GameError: no such environment, or one that cannot be saved and restored; the text says why.
    """
    environment = _make(environment_id, arguments)
    if not isinstance(environment.action_space, Discrete):
        raise _refusal(environment_id, f"its actions are {environment.action_space}, not Discrete")
    if isinstance(getattr(environment, "P", None), dict) and hasattr(environment, "initial_state_distrib"):
        table = TableSimulator(environment)
        table.compare(environment, environment_id)
        return table
    environment.reset(seed=0)
    if not isinstance(environment.observation_space, Box) or _state_vector(environment) is None:
        raise _refusal(
            environment_id, "it has neither a table of transitions `P` nor a vector `state` that could be saved and set"
        )
    simulator = VectorSimulator(environment)
    simulator.compare(_make(environment_id, arguments), environment_id)
    return simulator


class _CountingGenerator:
    """Draws from a generator and counts how often."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.draws = 0

    def __getattr__(self, name: str) -> Any:
        self.draws += 1
        return getattr(self._rng, name)


class TableSimulator:
    """An environment that shows its transitions, such as FrozenLake. A saved state is its number.

    `P[state][action]` lists (probability, next state, reward, terminated).
    """

    num_words = 1

    def __init__(self, environment: Any) -> None:
        self.num_actions = int(environment.action_space.n)
        self.num_features = int(environment.observation_space.n)
        self._table: dict[int, dict[int, list[tuple[float, int, float, bool]]]] = environment.P
        self._starts = np.cumsum(environment.initial_state_distrib)
        self.is_random = any(len(outcomes) > 1 for row in self._table.values() for outcomes in row.values())

    def reset(self, number: int) -> Words:
        """See Simulator."""
        return np.array([_pick(self._starts, number)], np.uint64)

    def step(self, saved: Words, action: int, number: int) -> Step:
        """See Simulator."""
        outcomes = self._table[int(saved[0])][action]
        chosen = _pick(np.cumsum([outcome[0] for outcome in outcomes]), number)
        _, state, reward, terminated = outcomes[chosen]
        return Step(np.array([state], np.uint64), float(reward), bool(terminated))

    def features(self, saved: Words) -> NDArray[np.float32]:
        """The state, one-hot."""
        return np.eye(1, self.num_features, int(saved[0]), np.float32)[0]

    def compare(self, environment: Any, environment_id: str) -> None:
        """Play episodes in the environment itself.

        Raises:
            GameError: it does what its table does not say, or draws more than one number for a start or a step.
        """
        rng = np.random.default_rng(0)
        for _ in range(TESTED_EPISODES):
            environment.reset(seed=0)
            source = environment.np_random = _CountingGenerator(rng)
            state, _ = environment.reset()
            terminated, draws = False, 1
            for action in rng.integers(0, self.num_actions, TESTED_STEPS).tolist():
                if terminated or source.draws != draws:
                    break
                outcomes = self._table[int(state)][action]
                state, reward, terminated, _, _ = environment.step(action)
                draws += 1
                if not any(outcome[1:] == (state, reward, terminated) for outcome in outcomes):
                    raise _refusal(environment_id, "its steps are not those of its table of transitions `P`")
            if source.draws != draws:
                raise _refusal(environment_id, "it leaves more to chance than its table of transitions `P` says")


class _DrewError(Exception):
    """An environment asked for a random number where there is none."""


class _NoGenerator:
    """Stands in for the generator of an environment whose steps draw nothing."""

    def __getattr__(self, name: str) -> Any:
        raise _DrewError(name)


class VectorSimulator:
    """An environment whose attribute `state`, a vector, is all that changes, such as CartPole.

    A saved state is that vector, float64, and the observation that the environment gave with it, float32. Before every
    step all attributes are set back to what they were after the first reset, and `state` to the saved one. Where steps
    draw numbers, they do so from a generator made from the given number.
    """

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._attributes = dict(vars(environment))
        self._first_action = int(environment.action_space.start)
        self.num_actions = int(environment.action_space.n)
        self.num_features = int(np.prod(environment.observation_space.shape))
        self._state_size = len(np.ravel(environment.state))
        self.num_words = self._state_size + (self.num_features + 1) // 2
        self.is_random = False

    def reset(self, number: int) -> Words:
        """See Simulator."""
        self._restore_attributes()
        observation, _ = self._environment.reset(seed=number)
        return self._save(self._environment, observation)

    def step(self, saved: Words, action: int, number: int) -> Step:
        """See Simulator.

        Raises:
            GameError: the step drew a number, which none did when the environment was tried.
        """
        self._restore_attributes()
        self._environment.state = saved[: self._state_size].view(np.float64).copy()
        try:
            return self._step(self._environment, action, number)
        except _DrewError:
            raise GameError(
                f"{type(self._environment).__name__} drew a random number in a step, but in none of those tried first"
            ) from None

    def features(self, saved: Words) -> NDArray[np.float32]:
        """The observation that belongs to the state."""
        return saved[self._state_size :].view(np.float32)[: self.num_features].copy()

    def compare(self, undisturbed: Any, environment_id: str) -> None:
        """Play episodes in another copy of the environment, and find out whether steps draw numbers.

        Raises:
            GameError: restored states lead elsewhere than there.
        """
        try:
            steps = self._play(undisturbed)
        except _DrewError:
            self.is_random = True
            steps = self._play(undisturbed)
        # Backwards: what one step leaves behind cannot help the next.
        for saved, action, number, expected in reversed(steps):
            found = self.step(saved, action, number)
            if not (np.array_equal(found.saved, expected.saved) and found[1:] == expected[1:]):
                raise _refusal(environment_id, "its next state depends on more than its attribute `state`")

    def _play(self, environment: Any) -> list[tuple[Words, int, int, Step]]:
        """Random episodes: saved state, action, number, and what came of them."""
        rng, steps = np.random.default_rng(0), list[tuple[Words, int, int, Step]]()
        for episode in range(TESTED_EPISODES):
            observation, _ = environment.reset(seed=episode)
            saved = self._save(environment, observation)
            for number in rng.integers(0, 2**53, TESTED_STEPS).tolist():
                action = int(rng.integers(self.num_actions))
                step = self._step(environment, action, number)
                steps.append((saved, action, number, step))
                if step.terminated:
                    break
                saved = step.saved
        return steps

    def _step(self, environment: Any, action: int, number: int) -> Step:
        environment.np_random = np.random.default_rng(number) if self.is_random else _NoGenerator()
        observation, reward, terminated, _, _ = environment.step(self._first_action + action)
        return Step(self._save(environment, observation), float(reward), bool(terminated))

    def _save(self, environment: Any, observation: NDArray[Any]) -> Words:
        saved = np.zeros(self.num_words, np.uint64)
        saved[: self._state_size].view(np.float64)[:] = np.ravel(environment.state)
        saved[self._state_size :].view(np.float32)[: self.num_features] = np.ravel(observation)
        return saved

    def _restore_attributes(self) -> None:
        vars(self._environment).clear()
        vars(self._environment).update(self._attributes)


def _make(environment_id: str, arguments: dict[str, Any]) -> Any:
    """The environment itself, without what is around it."""
    try:
        environment = gymnasium.make(environment_id, **arguments)
    except (gymnasium.error.Error, TypeError, ImportError) as error:
        text = " ".join(str(error).split())
        raise GameError(f"Gymnasium cannot make {environment_id!r}: {text}") from error
    while isinstance(environment, gymnasium.Wrapper):
        wrapper = type(environment).__name__
        if wrapper not in _TRANSPARENT_WRAPPERS:
            raise _refusal(environment_id, f"its wrapper {wrapper} may keep a state of its own")
        environment = environment.env
    return environment


def _state_vector(environment: Any) -> NDArray[np.float64] | None:
    """The attribute `state` as numbers; None for anything else."""
    state = vars(environment).get("state")
    if not isinstance(state, np.ndarray | tuple | list):
        return None
    try:
        return np.array(state, np.float64)
    except (TypeError, ValueError):
        return None


def _refusal(environment_id: str, reason: str) -> GameError:
    return GameError(f"{environment_id!r} cannot be searched by its true rules: {reason}")


def _pick(cumulative: NDArray[np.float64], number: int) -> int:
    """The entry of a distribution, given as running sums, that a number below 2^53 falls on."""
    return min(int(np.searchsorted(cumulative, number / 2**53, side="right")), len(cumulative) - 1)

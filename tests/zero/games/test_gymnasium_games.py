"""Gymnasium environments through the interface, held against Gymnasium itself."""

from collections import Counter

import numpy as np
import pytest

from zero.games.contract import check_game
from zero.games.game import GameError
from zero.games.registry import make_game

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra gymnasium")


class Drift(gymnasium.Env):
    """A walk whose steps draw numbers: all that changes is `state`."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2, start=3)

    def reset(self, *, seed=None, options=None):
        """Start near 0."""
        super().reset(seed=seed, options=options)
        self.state = self.np_random.normal(size=1)
        return self.state.astype(np.float32), {}

    def step(self, action):
        """Go up or down, more or less."""
        self.state = self.state + (1.0 if action == 4 else -1.0) + self.np_random.normal(size=1)
        return self.state.astype(np.float32), float(self.state[0]), bool(abs(self.state[0]) > 4), False, {}


class Forgetful(Drift):
    """A walk that gets faster, which `state` does not say."""

    def reset(self, *, seed=None, options=None):
        """Start slowly."""
        self.speed = [0.1]
        return super().reset(seed=seed, options=options)

    def step(self, action):
        """Go up or down, faster than before."""
        self.speed[0] += 0.1 * (action - 3)
        self.state = self.state + self.speed[0]
        return self.state.astype(np.float32), 0.0, False, False, {}


class Wrapped(gymnasium.Wrapper):
    """Something around an environment."""


@pytest.fixture(scope="module", autouse=True)
def environments():
    """Environments of these tests, known to Gymnasium."""
    added = {
        "zero/Drift-v0": Drift,
        "zero/Forgetful-v0": Forgetful,
        "zero/Wrapped-v0": lambda: Wrapped(Drift()),
    }
    for name, entry_point in added.items():
        gymnasium.register(name, entry_point)
    yield
    for name in added:
        del gymnasium.registry[name]


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("CartPole-v1", {}, 4),
        ("Acrobot-v1", {}, 6),
        ("MountainCar-v0", {}, 2),
        ("Taxi-v4", {}, 500),
        ("FrozenLake-v1", {"map_name": "8x8"}, 64),
        ("CliffWalking-v1", {}, 48),
        ("zero/Drift-v0", {}, 1),
    ],
)
def test_environments_keep_the_contract(name: str, options: dict, channels: int):
    """Vectors and tables, with random steps and without."""
    game = make_game(f"gymnasium:{name}", options)
    assert game.planes_shape == (channels, 1, 1)
    check_game(game, num_games=4, max_moves=40)


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "FrozenLake-v1"])
def test_an_episode_is_that_of_the_environment(name: str):
    """From the same seed the same actions give the same observations, rewards and end."""
    arguments = {"is_slippery": False} if name == "FrozenLake-v1" else {}
    game, environment = make_game(f"gymnasium:{name}", arguments), gymnasium.make(name, **arguments)
    rng, steps = np.random.default_rng(2), 0
    seed = 12345
    observation, _ = environment.reset(seed=seed)
    states = game.initial(np.array([[seed]]))
    terminated = False
    while not terminated and steps < 100:
        shown = game.encode(game.observation(states))[0]
        assert np.array_equal(shown, np.eye(16)[observation] if arguments else observation)
        action = int(rng.integers(game.num_actions))
        observation, reward, terminated, _, _ = environment.step(action)
        result = game.step(states, np.array([action]), np.zeros((1, 1), np.int64))
        assert (result.rewards[0], result.terminated[0]) == (np.float32(reward), terminated)
        states, steps = result.states, steps + 1
    assert game.terminated(states)[0] == terminated
    assert steps > 3


def test_slipping_has_the_probabilities_of_the_table():
    """On the ice a step right goes right, up or down, each one time in three; until chance decides, nothing moves."""
    game = make_game("gymnasium:FrozenLake-v1", {})
    states = np.repeat(game.initial(np.zeros((1, 1), np.int64)), 3000, axis=0)
    applied = game.apply(states, np.full(3000, 2))
    assert applied.chance_pending.all()
    assert np.array_equal(applied.states[:, 0], states[:, 0])
    outcomes = game.draw_chance(np.random.default_rng(0), 3000)
    resolved = game.resolve(applied.states, outcomes).states
    counts = Counter(resolved[:, 0].tolist())
    assert sorted(counts) == [0, 1, 4]
    assert all(abs(count - 1000) < 120 for count in counts.values())


def test_random_steps_follow_from_the_outcome_alone():
    """A step that draws numbers waits for chance, and gives for an outcome what the environment's generator gives."""
    game = make_game("gymnasium:zero/Drift-v0", {})
    start = game.initial(np.array([[7]]))
    applied = game.apply(start, np.array([1]))
    assert applied.chance_pending.tolist() == [True]
    resolved = game.resolve(applied.states, np.array([[99]]))
    expected = np.random.default_rng(7).normal() + 1 + np.random.default_rng(99).normal()
    assert resolved.rewards[0] == np.float32(expected)
    assert game.encode(game.observation(resolved.states)).tolist() == [[np.float32(expected)]]


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("Blackjack-v1", {}, "it has neither a table of transitions `P` nor a vector `state` that could be saved"),
        ("Pendulum-v1", {}, "its actions are Box(-2.0, 2.0, (1,), float32), not Discrete"),
        ("Taxi-v4", {"fickle_passenger": True}, "it leaves more to chance than its table of transitions `P` says"),
        ("zero/Forgetful-v0", {}, "its next state depends on more than its attribute `state`"),
        ("zero/Wrapped-v0", {}, "its wrapper Wrapped may keep a state of its own"),
        ("NoSuch-v0", {}, "Gymnasium cannot make 'NoSuch-v0': Environment `NoSuch` doesn't exist."),
        ("CartPole-v1", {"colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(name: str, options: dict, text: str):
    """The text says which property the environment lacks."""
    with pytest.raises(GameError) as caught:
        make_game(f"gymnasium:{name}", options)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_there_is_no_other_action():
    """The actions are numbered from 0, whatever the environment calls them."""
    game = make_game("gymnasium:zero/Drift-v0", {})
    with pytest.raises(GameError, match="action 3 is not legal"):
        game.apply(game.initial(np.array([[7]])), np.array([3]))


def test_rendering_shows_the_observation():
    """A state by its number, a vector by its numbers, and whether the episode is over."""
    lake, walk = make_game("gymnasium:FrozenLake-v1", {"is_slippery": False}), make_game("gymnasium:zero/Drift-v0", {})
    states = lake.initial(np.zeros((1, 1), np.int64))
    for action in (1, 2):
        states = lake.apply(states, np.array([action])).states
    assert lake.render_ascii(states) == "state 5 (over)"
    assert walk.render_ascii(walk.initial(np.array([[7]]))) == f"{np.random.default_rng(7).normal():.4g}"

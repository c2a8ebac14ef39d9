"""Self-play records what happened, so that every trajectory can be replayed move by move from its seed."""

import numpy as np
import pytest

from actors.self_play import Recorder, SelfPlay
from zero.config import SearchConfig, SelfPlayConfig
from zero.games.game import Game
from zero.games.registry import make_game
from zero.search.alphazero_model import AlphaZeroModel
from zero.search.gumbel import GumbelSearch
from zero.self_play_table import self_play_signature
from zero.trajectories import ColumnSpec, Trajectory

CONFIG = SelfPlayConfig(games_per_actor=6, sampled_moves=2)
SEARCH = SearchConfig(num_simulations=4, max_num_considered_actions=4)


def flat_network(game: Game):
    """Uniform policy, value 0: what an ignorant network says."""
    return lambda encoded: (
        np.zeros((len(encoded), game.num_actions), np.float32),
        np.zeros(len(encoded), np.float32),
    )


def make_search(game: Game) -> GumbelSearch:
    """A small search as wide as the games in lock step."""
    return GumbelSearch(AlphaZeroModel(game, flat_network(game), 0.99), SEARCH, CONFIG.games_per_actor)


def play(game: Game, seed: int, moves: int, config: SelfPlayConfig = CONFIG) -> list[Trajectory]:
    """The trajectories that finish within some moves."""
    self_play = SelfPlay(game, config, SEARCH.num_simulations, "actor-0", np.random.SeedSequence(seed))
    search = make_search(game)
    return [trajectory for version in range(moves) for trajectory in self_play.play_move(search, version)[0]]


@pytest.fixture(scope="module", params=["triangle", "tic_tac_toe"])
def game(request: pytest.FixtureRequest) -> Game:
    """Every built-in game."""
    return make_game(request.param, {})


def test_a_trajectory_can_be_replayed_from_its_seed(game: Game) -> None:
    """Dealing from the seed and playing the recorded actions gives the recorded rows, ending and score."""
    trajectories = play(game, seed=0, moves=45)
    assert len(trajectories) > CONFIG.games_per_actor
    for trajectory in trajectories:
        rng = np.random.default_rng(trajectory.episode_seed)
        states = game.initial(game.draw_chance(rng, 1))
        score = 0.0
        for step in range(trajectory.num_steps):
            columns = {name: column[step] for name, column in trajectory.columns.items()}
            np.testing.assert_array_equal(columns["observation"], game.observation(states)[0])
            action = np.array([columns["action"]], np.int64)
            assert game.legal_action_mask(states)[0, action[0]]
            transition = game.step(states, action, game.draw_chance(rng, 1))
            mover, following = game.to_play(states)[0], game.to_play(transition.states)[0]
            assert columns["reward"] == transition.rewards[0]
            ended = bool(transition.terminated[0])
            assert columns["discount"] == (0 if ended else 1 if mover == following else -1)
            assert ended == (step == trajectory.num_steps - 1)
            score += float(transition.rewards[0]) * (1 if mover == 0 else -1)
            states = transition.states
        assert trajectory.terminated
        assert not trajectory.truncated
        assert trajectory.stats["score"] == pytest.approx(score, abs=1e-4)


def test_search_policies_are_distributions_over_searched_actions(game: Game) -> None:
    """Stored policies sum to one up to half precision and put nothing on what the search did not consider."""
    for trajectory in play(game, seed=1, moves=30):
        policy = trajectory.columns["search_policy"].astype(np.float32)
        mask = game.search_action_mask(game.decode(trajectory.columns["observation"]))
        np.testing.assert_allclose(policy.sum(-1), 1, atol=5e-3)
        assert (policy[~mask] == 0).all()


def test_columns_fit_the_table(game: Game) -> None:
    """Names, dtypes and shapes are those of the signature."""
    for trajectory in play(game, seed=1, moves=30):
        specs = tuple(ColumnSpec(n, str(c.dtype), c.shape[1:]) for n, c in trajectory.columns.items())
        assert specs == self_play_signature(game)


def test_same_seeds_play_the_same_games_and_others_do_not(game: Game) -> None:
    """A run of one actor is a function of its seeds, ids included; no id and no seed ever comes twice."""
    first, again, other = play(game, 3, 40), play(game, 3, 40), play(game, 4, 40)
    assert [t.trajectory_id for t in first] == [t.trajectory_id for t in again]
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left.columns["action"], right.columns["action"])
    ids = [t.trajectory_id for t in first + other]
    assert len(set(ids)) == len(ids)


def test_weights_version_is_that_of_the_first_move() -> None:
    """Move v is played with version v here, so a game's version is the number of the move that began it."""
    game = make_game("tic_tac_toe", {})
    self_play = SelfPlay(game, CONFIG, SEARCH.num_simulations, "a", np.random.SeedSequence(0))
    search = make_search(game)
    for version in range(30):
        for trajectory in self_play.play_move(search, version)[0]:
            assert trajectory.weights_version == version - trajectory.num_steps + 1


def test_a_game_at_its_move_limit_is_truncated() -> None:
    """The limit cuts the game, says so, and does not pretend that it ended."""
    game = make_game("triangle", {})
    config = CONFIG.model_copy(update={"max_moves": 3})
    trajectories = play(game, 0, 6, config)
    assert len(trajectories) == 2 * CONFIG.games_per_actor
    for trajectory in trajectories:
        assert (trajectory.num_steps, trajectory.terminated, trajectory.truncated) == (3, False, True)
        assert trajectory.columns["discount"][-1] == 1


def test_recorder_grows_and_keeps_games_apart() -> None:
    """Rows of different games and lengths come back as they went in, beyond the first capacity."""
    recorder = Recorder((ColumnSpec("x", "int64"),), num_games=2, capacity=2)
    taken = []
    for step in range(9):
        recorder.append({"x": np.array([step, 100 + step])})
        if step == 3:
            taken.append(recorder.take(0)["x"].tolist())
    assert taken == [[0, 1, 2, 3]]
    assert recorder.take(0)["x"].tolist() == [4, 5, 6, 7, 8]
    assert recorder.take(1)["x"].tolist() == list(range(100, 109))

"""Self-play records what happened, so that every trajectory can be replayed move by move from its seed."""

import numpy as np
import pytest

from actors.metrics import ActorMetrics
from actors.self_play import MoveReport, Recorder, SelfPlay, search_optimism
from zero.config import ExperimentConfig, SelfPlayConfig
from zero.games.game import Game
from zero.games.registry import make_game
from zero.games.triangle import Triangle, TriangleOptions
from zero.games.triangle_board import NO_SHAPE
from zero.search.make_search import make_search
from zero.search.tree_search import TreeSearch
from zero.self_play_table import NO_CODE, self_play_signature
from zero.trajectories import ColumnSpec, Trajectory

CONFIG = SelfPlayConfig(games_per_actor=6, sampled_moves=2)
NUM_SIMULATIONS = 4
SEARCHES = {
    "gumbel": {"max_num_considered_actions": 4},
    "puct": {"root_policy": "puct"},
    "puct with reuse": {"root_policy": "puct", "reuse_subtree": True},
}


def flat_network(game: Game):
    """Uniform policy, value 0: what an ignorant network says."""
    return lambda encoded: (
        np.zeros((len(encoded), game.num_actions), np.float32),
        np.zeros(len(encoded), np.float32),
    )


def search_for(game: Game, config: SelfPlayConfig = CONFIG, name: str = "gumbel") -> TreeSearch:
    """A small search as wide as the games in lock step."""
    search = {"num_simulations": NUM_SIMULATIONS} | SEARCHES[name]
    experiment = ExperimentConfig.model_validate({"discount": 0.9, "search": search})
    return make_search(game, flat_network(game), experiment, config.games_per_actor)


def start(game: Game, seed: int, config: SelfPlayConfig = CONFIG) -> SelfPlay:
    """Games in lock step, none moved yet."""
    seeds = np.random.SeedSequence(seed)
    return SelfPlay(game, config, NUM_SIMULATIONS, "actor-0", seeds, config.games_per_actor)


def play(
    game: Game, seed: int, moves: int, config: SelfPlayConfig = CONFIG, search: str = "gumbel"
) -> list[Trajectory]:
    """The trajectories that finish within some moves."""
    self_play, searching = start(game, seed, config), search_for(game, config, search)
    return [trajectory for version in range(moves) for trajectory in self_play.play_move(searching, version)[0]]


@pytest.fixture(params=SEARCHES)
def search(request: pytest.FixtureRequest) -> str:
    """Every kind of search, by name."""
    return request.param


@pytest.fixture(scope="module", params=["triangle", "tic_tac_toe"])
def game(request: pytest.FixtureRequest) -> Game:
    """Every built-in game."""
    return make_game(request.param, {})


def test_a_trajectory_can_be_replayed_from_its_seed(game: Game, search: str) -> None:
    """Dealing from the seed and playing the recorded actions gives the recorded rows, ending and score."""
    trajectories = play(game, seed=0, moves=45, search=search)
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


def test_what_chance_showed_is_recorded() -> None:
    """The codes of a deal are the shapes of the position that it led to, and stand where the hand was empty alone."""
    game = make_game("triangle", {})
    num_dealt = 0
    for trajectory in play(game, seed=1, moves=30):
        codes, hands = trajectory.columns["chance_code"], trajectory.columns["observation"][:, -3:]
        dealt = (codes != NO_CODE).all(-1)
        last_shape = (hands != NO_SHAPE).sum(-1) == 1
        assert ((codes != NO_CODE).any(-1) == dealt).all()
        assert (dealt <= last_shape).all()
        followed = np.flatnonzero(last_shape[:-1])
        assert dealt[followed].all()
        np.testing.assert_array_equal(codes[followed], hands[followed + 1])
        num_dealt += len(followed)
    assert num_dealt > 0


def test_search_policies_are_distributions_over_searched_actions(game: Game, search: str) -> None:
    """Stored policies sum to one up to half precision and put nothing on what the search did not consider."""
    for trajectory in play(game, seed=1, moves=30, search=search):
        policy = trajectory.columns["search_policy"].astype(np.float32)
        mask = game.search_action_mask(game.decode(trajectory.columns["observation"]))
        np.testing.assert_allclose(policy.sum(-1), 1, atol=5e-3)
        assert (policy[~mask] == 0).all()


def test_columns_fit_the_table(game: Game) -> None:
    """Names, dtypes and shapes are those of the signature."""
    for trajectory in play(game, seed=1, moves=30):
        specs = tuple(ColumnSpec(n, str(c.dtype), c.shape[1:]) for n, c in trajectory.columns.items())
        assert specs == self_play_signature(game)


def test_same_seeds_play_the_same_games_and_others_do_not(game: Game, search: str) -> None:
    """A run of one actor is a function of its seeds, bit for bit, ids included; none of these ever comes twice."""
    config = CONFIG.model_copy(update={"cheap_move_fraction": 0.3, "cheap_simulations": 2, "final_temperature": 0.3})
    first, again, other = (play(game, seed, 40, config, search) for seed in (3, 3, 4))
    assert [t.trajectory_id for t in first] == [t.trajectory_id for t in again]
    for left, right in zip(first, again, strict=True):
        for name, column in left.columns.items():
            np.testing.assert_array_equal(column, right.columns[name], name)
    ids = [t.trajectory_id for t in first + other]
    assert len(set(ids)) == len(ids)


def test_weights_version_is_that_of_the_first_move() -> None:
    """Move v is played with version v here, so a game's version is the number of the move that began it."""
    game = make_game("tic_tac_toe", {})
    self_play, search = start(game, 0), search_for(game)
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


def test_stored_visits_are_shares_of_all_simulations(game: Game) -> None:
    """What PUCT stores as policy are its visits, so with four simulations every probability is so many quarters."""
    for trajectory in play(game, seed=1, moves=30, search="puct"):
        quarters = trajectory.columns["search_policy"].astype(np.float32) * NUM_SIMULATIONS
        np.testing.assert_array_equal(quarters, quarters.round())


class OtherFuture(Triangle):
    """The puzzle with one slot, whose real deals can be exchanged while games are under way."""

    exchanged = False

    def __init__(self) -> None:
        super().__init__(TriangleOptions(num_slots=1))

    def chance_from_uniforms(self, uniforms: np.ndarray) -> np.ndarray:
        """As ever, or of other numbers."""
        return super().chance_from_uniforms(1 - uniforms if self.exchanged else uniforms)


def test_what_is_recorded_does_not_know_the_real_future(search: str) -> None:
    """Whatever will be dealt after a move, its search policy, value and action are the same."""
    plain = Triangle(TriangleOptions(num_slots=1))
    config = CONFIG.model_copy(update={"games_per_actor": 32, "max_moves": 2})
    columns = []
    for exchanged in (False, True):
        game = OtherFuture()
        self_play, searching = start(game, 5, config), search_for(plain, config, search)
        game.exchanged = exchanged
        self_play.play_move(searching, 1)
        columns.append([trajectory.columns for trajectory in self_play.play_move(searching, 1)[0]])
    assert len(columns[0]) == 32
    for one, other in zip(*columns, strict=True):
        for name in ("observation", "action", "search_policy", "search_value"):
            np.testing.assert_array_equal(one[name][0], other[name][0], name)
    differ = [(one["observation"][1] != other["observation"][1]).any() for one, other in zip(*columns, strict=True)]
    assert np.mean(differ) > 0.5, "both futures are the same one"


def first_moves(config: SelfPlayConfig, name: str = "gumbel") -> tuple[np.ndarray, np.ndarray]:
    """Stored policies [G, 9] and actions [G] of the first moves of tic-tac-toe, with a network that likes some more."""
    game = make_game("tic_tac_toe", {})
    config = config.model_copy(update={"games_per_actor": 3000, "max_moves": 1})
    search = {"num_simulations": NUM_SIMULATIONS} | SEARCHES[name]
    experiment = ExperimentConfig.model_validate({"discount": 0.9, "search": search})
    logits = np.linspace(-1, 1, 9, dtype=np.float32)
    searching = make_search(game, lambda encoded: (np.tile(logits, (3000, 1)), encoded[:, 0]), experiment, 3000)
    finished, _ = start(game, 0, config).play_move(searching, 1)
    policies = np.stack([trajectory.columns["search_policy"][0] for trajectory in finished]).astype(np.float64)
    return policies, np.array([trajectory.columns["action"][0] for trajectory in finished])


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("early", [True, False])
def test_moves_are_drawn_at_their_temperature(temperature: float, early: bool) -> None:
    """Frequencies are in proportion to policy ^ (1 / temperature), of the first moves and of the later ones."""
    settings = {"sampled_moves": 1, "temperature": temperature} if early else {"final_temperature": temperature}
    policies, actions = first_moves(SelfPlayConfig.model_validate({"noise_scale": 0.0} | settings))
    assert (policies == policies[0]).all()
    assert policies[0].max() > 2 * policies[0].min()
    expected = policies[0] ** (1 / temperature)
    expected /= expected.sum()
    np.testing.assert_allclose(np.bincount(actions, minlength=9) / 3000, expected, atol=5 * np.sqrt(0.25 / 3000))


def test_the_best_move_is_played_after_the_drawn_ones() -> None:
    """Without a temperature the search decides, so games that are searched alike go on alike."""
    _, actions = first_moves(SelfPlayConfig(noise_scale=0.0))
    assert (actions == actions[0]).all()


def test_cheap_moves_are_played_without_noise(search: str) -> None:
    """Searched alike, all games move alike where the search is cheap, and differ by their noise where it is not."""
    cheap = {"cheap_move_fraction": 0.99, "cheap_simulations": 3}
    for settings, is_cheap in ((cheap, True), ({}, False)):
        policies, actions = first_moves(SelfPlayConfig.model_validate(settings), search)
        assert (policies == 0).all() == is_cheap
        assert (len(set(actions.tolist())) == 1) == is_cheap


def test_policies_of_cheap_moves_are_not_recorded(game: Game, search: str) -> None:
    """A share of the moves is searched with fewer simulations, in all games at once, and leaves values alone behind."""
    config = CONFIG.model_copy(update={"cheap_move_fraction": 0.4, "cheap_simulations": 2})
    self_play, searching = start(game, 0, config), search_for(game, config, search)
    cheap, finished = [], []
    for _ in range(60):
        trajectories, report = self_play.play_move(searching, 1)
        assert report.num_simulations in (6 * 2, 6 * NUM_SIMULATIONS)
        cheap.append(report.num_simulations == 6 * 2)
        finished += [(len(cheap), trajectory) for trajectory in trajectories]
    assert 0.2 < np.mean(cheap) < 0.6
    for end, trajectory in finished:
        recorded = trajectory.columns["search_policy"].any(-1)
        assert (~recorded).tolist() == cheap[end - trajectory.num_steps : end]


def test_optimism_is_the_mean_of_value_minus_return() -> None:
    """Worked out by hand: at discount 0.5 the returns of both players are 1 - 0.5 x 2, 2 and 4."""
    columns = {
        "reward": np.array([1, 0, 4], np.float32),
        "discount": np.array([-1, 1, 0], np.float32),
        "search_value": np.array([3, 2.5, 4], np.float32),
    }
    assert search_optimism(columns, 0.5) == pytest.approx((3 + 0.5 + 0) / 3)


def test_moves_are_reported_as_they_were(game: Game) -> None:
    """Simulations, leaves, entropy and divergence of the move, and the optimism of every game that ended with it."""
    self_play, search = start(game, 0), search_for(game)
    num_ended = 0
    for _ in range(45):
        finished, report = self_play.play_move(search, 1)
        assert (report.num_moves, report.num_simulations) == (6, 6 * NUM_SIMULATIONS)
        assert 0 < report.unique_leaf_ratio <= 1
        assert 0 <= report.policy_entropy < np.log(game.max_legal_actions) + 1e-6
        assert report.policy_divergence >= 0
        expected = [search_optimism(trajectory.columns, 0.9) for trajectory in finished]
        assert report.search_optimism == pytest.approx(expected)
        num_ended += len(finished)
    assert num_ended > 6


def test_games_that_were_cut_say_nothing_about_optimism() -> None:
    """What would have followed the move limit is not known."""
    game = make_game("triangle", {})
    config = CONFIG.model_copy(update={"max_moves": 2})
    self_play, search = start(game, 0, config), search_for(game)
    reports = [self_play.play_move(search, 1)[1] for _ in range(2)]
    assert [report.search_optimism for report in reports] == [(), ()]


def test_a_reported_move_is_shown_by_the_metrics() -> None:
    """Counters add up, gauges show the last move, optimism is summed with its count."""
    metrics = ActorMetrics()
    metrics.report_move(MoveReport(6, 24, 2.5, 0.5, 1.5, 0.25, (0.5, -2.0)))
    metrics.report_move(MoveReport(6, 12, 3.5, 0.75, 1.0, 0.125, ()))
    shown = {
        "zero_actor_moves_total": 12,
        "zero_actor_simulations_total": 36,
        "zero_actor_unique_leaf_ratio": 0.75,
        "zero_actor_search_policy_entropy_nats": 1.0,
        "zero_actor_search_policy_divergence_nats": 0.125,
        "zero_actor_search_optimism_sum": -1.5,
        "zero_actor_search_optimism_count": 2,
    }
    assert {name: metrics.registry.get_sample_value(name) for name in shown} == shown

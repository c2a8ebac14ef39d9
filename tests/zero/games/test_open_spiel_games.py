"""Games of OpenSpiel through the interface, held against our own engines and against OpenSpiel itself."""

from types import SimpleNamespace

import numpy as np
import pytest

from zero.games.contract import check_game
from zero.games.game import Game, GameError
from zero.games.registry import make_game

pyspiel = pytest.importorskip("pyspiel", reason="needs the extra open_spiel")

SIZE = 40


def draw(game: Game, rng: np.random.Generator) -> np.ndarray:
    return game.draw_chance(rng, SIZE)


@pytest.mark.parametrize("name", ["connect_four", "tic_tac_toe"])
def test_our_engines_and_theirs_play_the_same_game(name: str):
    """Legal actions, turns, ends and rewards agree along random games."""
    ours, theirs = make_game(name, {}), make_game(f"open_spiel:{name}", {})
    assert (theirs.num_actions, theirs.num_players, theirs.chance_size) == (ours.num_actions, 2, 0)
    rng = np.random.default_rng(0)
    states, others = ours.initial(draw(ours, rng)), theirs.initial(draw(theirs, rng))
    while not ours.terminated(states).all():
        mask = ours.legal_action_mask(states)
        running = mask.any(axis=1)
        assert np.array_equal(theirs.legal_action_mask(others), mask)
        assert np.array_equal(theirs.terminated(others), ~running)
        assert np.array_equal(theirs.to_play(others)[running], ours.to_play(states)[running])
        actions = np.where(mask, rng.random(mask.shape), -1).argmax(1)
        step, other = ours.apply(states, actions), theirs.apply(others, actions)
        assert np.array_equal(step.rewards, other.rewards)
        states, others = step.states, other.states
    assert theirs.terminated(others).all()


@pytest.mark.parametrize(
    ("name", "planes"),
    [
        ("2048", (1, 4, 4)),
        ("breakthrough(rows=5,columns=4)", (3, 5, 4)),
        ("catch", (1, 10, 5)),
        ("einstein_wurfelt_nicht", (300, 1, 1)),
        ("go(board_size=5)", (4, 5, 5)),
        ("hex(board_size=4)", (9, 4, 4)),
        ("nim", (39, 1, 1)),
    ],
)
def test_games_keep_the_contract(name: str, planes: tuple[int, int, int]):
    """One player and two, with chance at the start, after every move, or never; boards and plain vectors."""
    game = make_game(f"open_spiel:{name}", {"max_history": 60})
    assert game.planes_shape == planes
    check_game(game, num_games=4, max_moves=60)


def test_the_network_sees_the_tensor_of_the_player_to_move():
    """Encoded observations are OpenSpiel's own, in either player's turn, and say whose turn it is."""
    game, state = make_game("open_spiel:othello", {}), pyspiel.load_game("othello").new_initial_state()
    states = game.initial(np.zeros((1, 0), np.int64))
    for player in (0, 1, 0):
        tensor = state.observation_tensor(player)
        assert tensor != state.observation_tensor(1 - player)
        assert game.encode(game.observation(states))[0].tolist() == [*tensor, 1.0 - player]
        assert game.render_ascii(states) == str(state)
        action = state.legal_actions()[-1]
        state.apply_action(action)
        states = game.apply(states, np.array([action])).states


def test_chance_has_their_probabilities_and_comes_from_the_outcome_alone():
    """A new tile of 2048 is a four one time in ten, on each free cell alike; the same outcome gives the same tile."""
    game = make_game("open_spiel:2048", {"max_history": 30})
    rng = np.random.default_rng(0)
    start = np.repeat(game.initial(game.draw_chance(rng, 1)), 3000, axis=0)
    action = int(np.flatnonzero(game.legal_action_mask(start[:1])[0])[0])
    applied = game.apply(start, np.full(3000, action))
    assert applied.chance_pending.all()
    outcomes = game.draw_chance(rng, 3000)
    resolved = game.resolve(applied.states, outcomes)
    assert np.array_equal(game.resolve(applied.states, outcomes).states, resolved.states)
    before = game.observation(applied.states[:1])[0]
    drawn = game.observation(resolved.states)[:, np.count_nonzero(before)] - 1
    state = pyspiel.load_game("2048").new_initial_state()
    for code in before[before > 0].tolist():
        state.apply_action(code - 1)
    expected = dict(state.chance_outcomes())
    assert set(drawn.tolist()) <= set(expected)
    for outcome, probability in expected.items():
        assert (drawn == outcome).mean() == pytest.approx(probability, abs=4 * np.sqrt(probability / 3000))


def kind(name: str):
    """The type of a game for two with chance and no secrets."""
    return pyspiel.GameType(
        short_name=name,
        long_name=name,
        dynamics=pyspiel.GameType.Dynamics.SEQUENTIAL,
        chance_mode=pyspiel.GameType.ChanceMode.EXPLICIT_STOCHASTIC,
        information=pyspiel.GameType.Information.PERFECT_INFORMATION,
        utility=pyspiel.GameType.Utility.ZERO_SUM,
        reward_model=pyspiel.GameType.RewardModel.TERMINAL,
        max_num_players=2,
        min_num_players=2,
        provides_information_state_string=False,
        provides_information_state_tensor=False,
        provides_observation_string=False,
        provides_observation_tensor=True,
    )


class Coins(pyspiel.Game):
    """Each player in turn throws a coin; the first who throws 1 wins, and player 0 if nobody does."""

    KIND = kind("python_coins")
    LENGTH = 4

    def __init__(self, params=None):
        info = pyspiel.GameInfo(1, 2, 2, -1.0, 1.0, 0.0, self.LENGTH)
        super().__init__(self.KIND, info, params or {})

    def new_initial_state(self):
        """Nobody has thrown."""
        return Throws(self)

    def make_py_observer(self, kind=None, params=None):  # noqa: ARG002
        """Nothing is to be seen."""
        nothing = np.zeros(1, np.float32)
        return SimpleNamespace(tensor=nothing, dict={"nothing": nothing}, set_from=lambda *_: None, string_from=str)


class UnderstatedCoins(Coins):
    """The same, with a wrong idea of how long it is."""

    KIND = kind("python_understated_coins")
    LENGTH = 1


class Throws(pyspiel.State):
    """A position of Coins."""

    def __init__(self, game):
        super().__init__(game)
        self.coins: list[int] = []
        self.thrown = False

    def current_player(self):
        """Who throws, or the coin."""
        if 1 in self.coins or len(self.coins) == 2:
            return pyspiel.PlayerId.TERMINAL
        return pyspiel.PlayerId.CHANCE if self.thrown else len(self.coins)

    def _legal_actions(self, player):  # noqa: ARG002
        return [0]

    def chance_outcomes(self):
        """Evenly."""
        return [(0, 0.5), (1, 0.5)]

    def _apply_action(self, action):
        if self.thrown:
            self.coins.append(action)
        self.thrown = not self.thrown

    def is_terminal(self):
        """Whether somebody has won."""
        return self.current_player() == pyspiel.PlayerId.TERMINAL

    def returns(self):
        """To both players."""
        winner = self.coins.index(1) if 1 in self.coins else 0
        return ([1.0, -1.0] if winner == 0 else [-1.0, 1.0]) if self.is_terminal() else [0.0, 0.0]

    def __str__(self):
        return str(self.coins)


def test_what_chance_pays_goes_to_the_player_who_moved():
    """Also where a throw ends the game; and the turn passes before the coin falls, for whoever reads the history."""
    pyspiel.register_game(Coins.KIND, Coins)
    game, other = (make_game("open_spiel:python_coins", {}) for _ in range(2))
    check_game(game, num_games=8)
    states = np.repeat(game.initial(np.zeros((1, 1), np.int64)), 40, axis=0)
    outcomes = game.draw_chance(np.random.default_rng(0), 40)
    first = game.apply(states, np.zeros(40, np.int64))
    assert game.to_play(first.states).tolist() == other.to_play(first.states).tolist() == [1] * 40
    thrown = game.resolve(first.states, outcomes)
    assert set(thrown.rewards.tolist()) == {0.0, 1.0}
    assert np.array_equal(thrown.rewards == 1, thrown.terminated)
    second = game.apply(thrown.states, np.zeros(40, np.int64))
    last = game.resolve(second.states, game.draw_chance(np.random.default_rng(1), 40))
    assert last.terminated.all()
    assert set(last.rewards[~thrown.terminated].tolist()) == {1.0, -1.0}
    assert other.to_play(last.states).tolist() == game.to_play(last.states).tolist()


def test_a_game_that_is_longer_than_it_says_is_refused():
    """Its histories would not fit; the text says what to set."""
    pyspiel.register_game(UnderstatedCoins.KIND, UnderstatedCoins)
    with pytest.raises(GameError, match=r"goes on after . actions.*set the option max_history"):
        make_game("open_spiel:python_understated_coins", {})
    assert make_game("open_spiel:python_understated_coins", {"max_history": 4}).state_size == 1


class Streak(pyspiel.Game):
    """Chance says who begins; players add ones and zeros in turns, but after ten ones the last one moves again."""

    KIND = kind("python_streak")
    LENGTH = 14

    def __init__(self, params=None):
        info = pyspiel.GameInfo(2, 2, 2, -1.0, 1.0, 0.0, self.LENGTH)
        super().__init__(self.KIND, info, params or {})

    def new_initial_state(self):
        """Nobody has begun."""
        return Numbers(self)

    def make_py_observer(self, kind=None, params=None):  # noqa: ARG002
        """Nothing is to be seen."""
        nothing = np.zeros(1, np.float32)
        return SimpleNamespace(tensor=nothing, dict={"nothing": nothing}, set_from=lambda *_: None, string_from=str)


class Numbers(pyspiel.State):
    """A position of Streak."""

    def __init__(self, game):
        super().__init__(game)
        self.numbers: list[int] = []

    def current_player(self):
        """Chance, the players in turns, and the exception."""
        if not self.numbers:
            return pyspiel.PlayerId.CHANCE
        if len(self.numbers) == Streak.LENGTH:
            return pyspiel.PlayerId.TERMINAL
        return (self.numbers[0] + len(self.numbers) - 1 + (self.numbers[1:11] == [1] * 10)) % 2

    def _legal_actions(self, player):  # noqa: ARG002
        return [0, 1]

    def chance_outcomes(self):
        """Evenly."""
        return [(0, 0.5), (1, 0.5)]

    def _apply_action(self, action):
        self.numbers.append(action)

    def _action_to_string(self, player, action):
        return f"{player}\nadds {action}"

    def is_terminal(self):
        """Whether all numbers are there."""
        return len(self.numbers) == Streak.LENGTH

    def returns(self):
        """To both players."""
        return [1.0, -1.0] if self.is_terminal() else [0.0, 0.0]

    def __str__(self):
        return str(self.numbers)


def test_a_second_move_is_refused_when_it_comes_up():
    """Where random games never show it; who begins may be left to chance."""
    pyspiel.register_game(Streak.KIND, Streak)
    game = make_game("open_spiel:python_streak", {})
    states = game.initial(game.draw_chance(np.random.default_rng(0), SIZE))
    beginners = game.to_play(states)
    assert set(beginners.tolist()) == {0, 1}
    for move in range(9):
        states = game.apply(states, np.ones(SIZE, np.int64)).states
        assert np.array_equal(game.to_play(states), (beginners + move + 1) % 2)
    assert (game.apply(states, np.zeros(SIZE, np.int64)).rewards == 0).all()
    for refused in (
        lambda: game.apply(states, np.ones(SIZE, np.int64)),
        lambda: game.decode(np.array([[1] + [2] * 10 + [0] * 17], np.uint8)),
    ):
        with pytest.raises(GameError, match=r"a player moves twice in a row, for example after . adds 1, . adds 1"):
            refused()


def test_rewards_of_chance_and_moves_add_up_to_their_returns():
    """A whole game of 2048 earns what OpenSpiel says it did."""
    game, rng, total = make_game("open_spiel:2048", {}), np.random.default_rng(1), 0.0
    states = game.initial(game.draw_chance(rng, 1))
    while not game.terminated(states)[0]:
        mask = game.legal_action_mask(states)
        result = game.step(states, np.where(mask, rng.random(mask.shape), -1).argmax(1), game.draw_chance(rng, 1))
        states, total = result.states, total + float(result.rewards[0])
    state, history = pyspiel.load_game("2048").new_initial_state(), game.observation(states)[0]
    for code in history[history > 0].tolist():
        state.apply_action(code - 1)
    assert total == state.returns()[0] > 0


def test_positions_that_were_forgotten_are_played_again(monkeypatch: pytest.MonkeyPatch):
    """What a position says does not depend on which positions are kept."""
    game = make_game("open_spiel:hex(board_size=4)", {})
    monkeypatch.setattr("zero.games.open_spiel_games.CACHED_POSITIONS", 3)
    check_game(game, num_games=4)


def test_a_game_that_is_long_enough_is_over():
    """With max_history a game ends there, paying nothing, although OpenSpiel would go on."""
    game = make_game("open_spiel:chess", {"max_history": 2, "max_legal_actions": 218})
    assert (game.max_legal_actions, game.observation_spec.dtype) == (218, "uint16")
    states = game.initial(np.zeros((1, 0), np.int64))
    for over in (False, True):
        result = game.apply(states, game.legal_action_mask(states).argmax(1))
        states = result.states
        assert (result.terminated.tolist(), result.rewards.tolist()) == ([over], [0.0])


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("no_such_game", {}, "OpenSpiel has no game 'no_such_game'"),
        ("hex(size=4)", {}, "OpenSpiel refuses 'hex(size=4)': Unknown parameter 'size'"),
        ("kuhn_poker", {}, "it hides information from its players"),
        ("goofspiel", {}, "its players do not move one after the other"),
        ("stones_and_gems", {}, "it keeps its chance to itself"),
        ("nim", {"size": 3}, "game 'open_spiel:nim' has no option 'size'; allowed: max_history, max_legal_actions"),
        ("dots_and_boxes", {}, "a player moves twice in a row, for example after P1(h,0,1), P2(h,2,0), P1(v,0,0)"),
        ("checkers", {}, "'checkers' cannot be played here: a player moves twice in a row, for example after"),
        ("mancala", {}, "a player moves twice in a row"),
        ("pig", {}, "a player moves twice in a row"),
        ("backgammon", {}, "a player moves twice in a row"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(name: str, options: dict, text: str):
    """The text says which property the game lacks."""
    with pytest.raises(GameError) as caught:
        make_game(f"open_spiel:{name}", options)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_illegal_actions_and_impossible_histories_are_refused():
    """A full column; a history that goes on after the end."""
    game = make_game("open_spiel:tic_tac_toe", {})
    states = game.apply(game.initial(np.zeros((1, 0), np.int64)), np.array([4])).states
    with pytest.raises(GameError, match="action 4 is not legal"):
        game.apply(states, np.array([4]))
    for history in ([5, 5, 0, 0, 0, 0, 0, 0, 0], [1, 4, 2, 5, 3, 6, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0]):
        with pytest.raises(GameError, match="no history of a game"):
            game.decode(np.array([history], np.uint8))

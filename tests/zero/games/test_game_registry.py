"""Games by name, built in and plugged in."""

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from zero.games import registry
from zero.games.connect_four import ConnectFour
from zero.games.game import GameError
from zero.games.registry import game_names, make_game
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle


def test_built_in_games():
    """All are known by name and take their options."""
    assert {"triangle", "tic_tac_toe", "connect_four"} <= set(game_names())
    assert isinstance(make_game("tic_tac_toe", {}), TicTacToe)
    assert isinstance(make_game("connect_four", {}), ConnectFour)
    game = make_game("triangle", {"num_slots": 2, "reward_alive": 1.0})
    assert isinstance(game, Triangle)
    assert (game.chance_size, game.options.reward_alive) == (2, 1.0)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("chess", {}, "unknown game 'chess'; known: connect_four, tic_tac_toe, triangle"),
        ("tic_tac_toe", {"rows": 3}, "game 'tic_tac_toe' has no option 'rows'; allowed: none"),
    ],
)
def test_what_is_unknown_is_refused_in_one_line(name: str, options: dict, text: str):
    """The text names what was given and what is known."""
    with pytest.raises(GameError) as caught:
        make_game(name, options)
    assert str(caught.value) == text


def plugged_in(options):
    """Build a game as another package would."""
    return TicTacToe() if options == {"size": 3} else None


def test_other_packages_plug_in_games(monkeypatch: pytest.MonkeyPatch):
    """An entry point of the group is a game's name and a callable that takes its options."""
    group = "zero.games"
    points = EntryPoints(
        [
            EntryPoint("ours", f"{__name__}:plugged_in", group),
            EntryPoint("gone", "no_such_package.games:make", group),
            EntryPoint("less", f"{__name__}:no_such_name", group),
        ]
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    assert game_names() == ("connect_four", "gone", "less", "ours", "tic_tac_toe", "triangle")
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(plugged_in=plugged_in))
    assert isinstance(make_game("ours", {"size": 3}), TicTacToe)
    for name, text in (("ours", "returned a NoneType"), ("gone", "no_such_package"), ("less", "no_such_name")):
        with pytest.raises(GameError, match=text):
            make_game(name, {})

"""Games by name, built in and plugged in."""

from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest

from zero.games import registry
from zero.games.connect_four import ConnectFour
from zero.games.game import GameError, States
from zero.games.registry import game_names, make_game, register_game
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle, TriangleOptions


def test_built_in_games():
    """All are known by name and take their options."""
    assert {"triangle", "tic_tac_toe", "connect_four"} <= set(game_names())
    assert isinstance(make_game("tic_tac_toe", {}), TicTacToe)
    assert isinstance(make_game("connect_four", {}), ConnectFour)
    game = make_game("triangle", {"num_slots": 2, "reward_alive": 1.0})
    assert isinstance(game, Triangle)
    assert (game.chance_size, game.options.reward_alive) == (2, 1.0)


KNOWN = "connect_four, tic_tac_toe, triangle, gymnasium:NAME, open_spiel:NAME"


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("chess", {}, f"unknown game 'chess'; known: {KNOWN}"),
        ("chess:960", {}, f"unknown game 'chess:960'; known: {KNOWN}"),
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


class Endless(TicTacToe):
    """Never over, which its own masks deny."""

    def terminated(self, states: States) -> np.ndarray:
        """Nothing is."""
        return np.zeros(len(states), np.bool_)


class Crashing(TicTacToe):
    """Cannot be drawn."""

    def render_ascii(self, states: States, index: int = 0) -> str:  # noqa: ARG002
        """Fail."""
        raise KeyError(f"no picture\nof {index}")


def test_a_registered_game_is_known_by_its_name():
    """With its options, in this process, until another one takes its name."""
    register_game("mine", lambda options: Triangle(TriangleOptions(**options)), {"num_slots": 1})
    assert "mine" in game_names()
    assert make_game("mine", {"num_slots": 2}).chance_size == 2
    register_game("mine", lambda _: TicTacToe())
    assert isinstance(make_game("mine", {}), TicTacToe)
    with pytest.raises(GameError, match="'triangle' is built in"):
        register_game("triangle", lambda _: TicTacToe())


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (lambda _: Endless(), "breaks the contract of games: exactly the positions that are not over have legal"),
        (lambda _: Crashing(), "failed while its contract was checked: KeyError: 'no picture\\\\nof 0'; zero.games"),
        (lambda _: "tic_tac_toe", "its factory returned a str, not a Game"),
    ],
)
def test_a_game_that_breaks_the_contract_is_refused_at_registration(factory, text: str):
    """One line says which rule it breaks; the name stays unknown, or what it was."""
    with pytest.raises(GameError, match=text) as caught:
        register_game("mine", factory)
    assert "\n" not in str(caught.value)
    assert "mine" not in game_names()
    register_game("mine", lambda _: TicTacToe())
    with pytest.raises(GameError, match=text):
        register_game("mine", factory)
    assert isinstance(make_game("mine", {}), TicTacToe)


def test_a_plugged_in_game_is_checked_too(monkeypatch: pytest.MonkeyPatch):
    """Whoever brings it."""
    point = EntryPoint("endless", "somewhere:Endless", "zero.games")
    monkeypatch.setattr(registry, "_plug_ins", lambda: {"endless": point})
    monkeypatch.setattr(registry, "_load", lambda _: lambda _: Endless())
    with pytest.raises(GameError, match="'endless' breaks the contract"):
        make_game("endless", {})


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch):
    """Without the extra, the text says how to install it."""
    monkeypatch.setattr(registry, "ADAPTERS", {"open_spiel": "zero.games.no_such_module"})
    with pytest.raises(GameError, match=r"No module named .*pip install 'zero-selfplay\[open_spiel\]'"):
        make_game("open_spiel:hex", {})

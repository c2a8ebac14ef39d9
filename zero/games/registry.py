"""Games by name: the built-in ones, and those that other packages plug in by the entry point group "zero.games"."""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zero.games.connect_four import ConnectFour
from zero.games.game import Game, GameError
from zero.games.options import GameOptions, parse_options
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle, TriangleOptions

ENTRY_POINT_GROUP = "zero.games"
"""An entry point of this group is the name of a game and a callable that takes its options and returns a Game."""

GameFactory = Callable[[Mapping[str, Any]], Game]


def make_game(name: str, options: Mapping[str, Any]) -> Game:
    """Build a game.

    Args:
        name: one of `game_names()`.
        options: what the game lets one choose, by name.

    Raises:
        GameError: an unknown name, an unknown option, a value that is not allowed, or a plug-in that cannot be loaded.
    """
    built_in = _BUILT_IN.get(name)
    if built_in is not None:
        return built_in(options)
    plug_in = _plug_ins().get(name)
    if plug_in is None:
        raise GameError(f"unknown game {name!r}; known: {', '.join(game_names())}")
    game = _load(plug_in)(options)
    if not isinstance(game, Game):  # pyright: ignore[reportUnnecessaryIsInstance] - plug-ins are not type checked here
        raise GameError(f"game {name!r}: {plug_in.value} returned a {type(game).__name__}, not a Game")
    return game


def game_names() -> tuple[str, ...]:
    """Names that `make_game` knows, sorted."""
    return tuple(sorted({*_BUILT_IN, *_plug_ins()}))


def _load(plug_in: EntryPoint) -> GameFactory:
    try:
        return plug_in.load()
    except (ImportError, AttributeError) as error:
        raise GameError(f"game {plug_in.name!r}: {plug_in.value} cannot be loaded: {error}") from error


def _plug_ins() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}


def _make_triangle(options: Mapping[str, Any]) -> Game:
    return Triangle(parse_options(Triangle.name, TriangleOptions, options))


def _make_tic_tac_toe(options: Mapping[str, Any]) -> Game:
    parse_options(TicTacToe.name, GameOptions, options)
    return TicTacToe()


def _make_connect_four(options: Mapping[str, Any]) -> Game:
    parse_options(ConnectFour.name, GameOptions, options)
    return ConnectFour()


_BUILT_IN: Mapping[str, GameFactory] = {
    Triangle.name: _make_triangle,
    TicTacToe.name: _make_tic_tac_toe,
    ConnectFour.name: _make_connect_four,
}

"""Games by name: built in, plugged in by other packages, registered by this process, or adapted from a library."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zero.games.connect_four import ConnectFour
from zero.games.contract import ContractError, check_game
from zero.games.game import Game, GameError
from zero.games.options import GameOptions, parse_options
from zero.games.tic_tac_toe import TicTacToe
from zero.games.triangle import Triangle, TriangleOptions

ENTRY_POINT_GROUP = "zero.games"
"""An entry point of this group is the name of a game and a callable that takes its options and returns a Game."""

GameFactory = Callable[[Mapping[str, Any]], Game]

ADAPTERS: Mapping[str, str] = {"gymnasium": "zero.games.gymnasium_games", "open_spiel": "zero.games.open_spiel_games"}
"""What stands before the colon of a name such as "open_spiel:hex": the module whose `make_game(rest, options)` adapts
the game, and the extra of this package that brings the library."""

CHECKED_GAMES = 4
CHECKED_MOVES = 20
"""How far the contract is checked whenever a game is built that is not built in."""


def make_game(name: str, options: Mapping[str, Any]) -> Game:
    """Build a game; one that is not built in is checked for its contract.

    Args:
        name: one of `game_names()`, or PREFIX:NAME with a prefix of `ADAPTERS`.
        options: what the game lets one choose, by name.

    Raises:
        GameError: an unknown name, an unknown option, a value that is not allowed, a plug-in that cannot be loaded, or
            a game that breaks its contract.
    """
    built_in = _BUILT_IN.get(name)
    if built_in is not None:
        return built_in(options)
    return _checked(name, _factory(name)(options))


def register_game(name: str, factory: GameFactory, options: Mapping[str, Any] | None = None) -> None:
    """Let `make_game` of this process know one more game.

    Args:
        name: of the game; a later registration replaces an earlier one, if it is not refused.
        factory: builds it from its options.
        options: with which it is built and checked right away; none by default.

    Raises:
        GameError: the name is that of a built-in game, or the game breaks its contract.
    """
    if name in _BUILT_IN:
        raise GameError(f"game {name!r} is built in: register yours under another name")
    _checked(name, factory(options or {}))
    _REGISTERED[name] = factory


def registered_game(name: str) -> GameFactory | None:
    """What was registered under a name in this process."""
    return _REGISTERED.get(name)


def game_names() -> tuple[str, ...]:
    """Names that `make_game` knows, sorted; those with a prefix are not among them."""
    return tuple(sorted({*_BUILT_IN, *_REGISTERED, *_plug_ins()}))


def _factory(name: str) -> GameFactory:
    registered = _REGISTERED.get(name)
    if registered is not None:
        return registered
    plug_in = _plug_ins().get(name)
    if plug_in is not None:
        return _load(plug_in)
    prefix, colon, rest = name.partition(":")
    if colon and prefix in ADAPTERS:
        return _adapter(prefix, rest)
    known = [*game_names(), *(f"{prefix}:NAME" for prefix in ADAPTERS)]
    raise GameError(f"unknown game {name!r}; known: {', '.join(known)}")


def _load(plug_in: EntryPoint) -> GameFactory:
    try:
        return plug_in.load()
    except (ImportError, AttributeError) as error:
        raise GameError(f"game {plug_in.name!r}: {plug_in.value} cannot be loaded: {error}") from error


def _plug_ins() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}


def _adapter(prefix: str, rest: str) -> GameFactory:
    """The factory of one game of another library."""
    try:
        module = import_module(ADAPTERS[prefix])
    except ImportError as error:
        raise GameError(
            f"game '{prefix}:{rest}': {error}; install it with: pip install 'zero-selfplay[{prefix}]'"
        ) from error
    return lambda options: module.make_game(rest, options)


def _checked(name: str, game: Game) -> Game:
    """The game, if it keeps the contract."""
    if not isinstance(game, Game):  # pyright: ignore[reportUnnecessaryIsInstance] - plug-ins are not type checked here
        raise GameError(f"game {name!r}: its factory returned a {type(game).__name__}, not a Game")
    try:
        check_game(game, num_games=CHECKED_GAMES, max_moves=CHECKED_MOVES)
    except ContractError as error:
        raise GameError(f"game {name!r} breaks the contract of games: {error}") from error
    except GameError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise GameError(
            f"game {name!r} failed while its contract was checked: {type(error).__name__}: {text}; "
            "zero.games.contract.check_game shows where"
        ) from error
    return game


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

_REGISTERED: dict[str, GameFactory] = {}

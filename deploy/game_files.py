"""Games that a user keeps in a file or script: makes them known to the processes that play them."""

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from deploy.errors import BAD_INPUT, DeployError
from deploy.experiment_files import split_game_file
from zero.config import ExperimentConfig
from zero.games.game import Game, GameError
from zero.games.registry import GameFactory, register_game, registered_game

_MODULE_PREFIX = "zero_game_file_"


def register_game_file(config: ExperimentConfig) -> None:
    """If the game's name is path/to/file.py:NAME and nobody registered it yet, load the file and register the game.

    NAME is a class, made with the options as keyword arguments, or a function that takes them as a mapping.

    Raises:
        DeployError: the file cannot be read or run, or has no such name.
        GameError: the game breaks the contract of games, or does not take the options.
    """
    name = config.game.name
    file = split_game_file(name)
    if file is None or registered_game(name) is not None:
        return
    path, attribute = file
    found = getattr(_load(path), attribute, None)
    if not callable(found):
        raise DeployError(f"game {name!r}: the file defines no class or function {attribute!r}", BAD_INPUT)
    register_game(name, _factory(name, found), config.game.options)


def pack_game(config: ExperimentConfig) -> bytes | None:
    """The game as bytes for processes that may have no file of it, if this process registered it; else None."""
    factory = registered_game(config.game.name)
    if factory is None:
        return None
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(_MODULE_PREFIX):
            cloudpickle.register_pickle_by_value(module)
    return cloudpickle.dumps(factory)


def unpack_game(config: ExperimentConfig, payload: bytes) -> None:
    """Register a packed game in this process; the bytes come from the command that started it, over Ray.

    Raises:
        DeployError: the game breaks the contract of games.
    """
    try:
        register_game(config.game.name, cloudpickle.loads(payload), config.game.options)
    except GameError as error:
        raise DeployError(str(error), BAD_INPUT) from error


def _load(path: Path) -> ModuleType:
    """Run a file as a module, once per process."""
    path = path.absolute()
    module_name = f"{_MODULE_PREFIX}{sha256(str(path).encode()).hexdigest()[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise DeployError(f"game file {str(path)!r}: there is no such file", BAD_INPUT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        text = " ".join(str(error).split())
        raise DeployError(f"game file {str(path)!r}{line}: {type(error).__name__}: {text}", BAD_INPUT) from error
    return module


def _factory(name: str, found: Any) -> GameFactory:
    if not isinstance(found, type):
        return found
    game_class = found

    def make(options: Mapping[str, Any]) -> Game:
        try:
            return game_class(**options)
        except TypeError as error:
            raise GameError(f"game {name!r}: {error}") from error

    return make

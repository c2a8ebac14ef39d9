"""Experiment files: finds them by name or path, reads them, and writes the effective config."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from deploy.errors import BAD_INPUT, DeployError
from zero.config import ConfigError, ExperimentConfig, parse_config

BUILT_IN_FOLDER = Path(__file__).parent / "experiments"


def built_in_names() -> tuple[str, ...]:
    """Names of the experiments that come with Zero, sorted."""
    return tuple(sorted(path.stem for path in BUILT_IN_FOLDER.glob("*.toml")))


def load_experiment(name_or_path: str, overrides: Sequence[str]) -> ExperimentConfig:
    """Read an experiment; a game in a file of its own is found from the experiment's file, or as an override from here.

    Args:
        name_or_path: one of `built_in_names()`, or the path of a TOML file.
        overrides: `section.key=value`, later ones win.

    Raises:
        DeployError: no such experiment, or a key or value that is not allowed.
    """
    path = BUILT_IN_FOLDER / f"{name_or_path}.toml" if name_or_path in built_in_names() else Path(name_or_path)
    remedy = f"name one of {', '.join(built_in_names())}, or the path of a TOML file"
    config = read_config(path, overrides, f"experiment {str(path)!r}", remedy)
    is_overridden = any(override.partition("=")[0].strip() == "game.name" for override in overrides)
    return with_absolute_game_file(config, Path.cwd() if is_overridden else path.parent)


def read_config(path: Path, overrides: Sequence[str], what: str, remedy: str) -> ExperimentConfig:
    """Read a config file.

    Args:
        path: the file.
        overrides: `section.key=value`, later ones win.
        what: the file to the user, where it cannot be read.
        remedy: what the user can do then.

    Raises:
        DeployError: it cannot be read, or holds what is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise DeployError(f"{what}: {reason}; {remedy}", BAD_INPUT) from None
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DeployError(f"{what} is no TOML: {error}", BAD_INPUT) from None
    try:
        return parse_config(text, list(overrides))
    except ConfigError as error:
        raise DeployError(str(error), BAD_INPUT) from None


def split_game_file(game_name: str) -> tuple[Path, str] | None:
    """The file and what to take from it, if a game's name is path/to/file.py:NAME; else None."""
    path, colon, attribute = game_name.rpartition(":")
    return (Path(path), attribute) if colon and path.endswith(".py") else None


def with_absolute_game_file(config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    """The config with the path in its game's name, if it holds one, taken from a folder, so that the name travels."""
    file = split_game_file(config.game.name)
    if file is None:
        return config
    path, attribute = file
    game = config.game.model_copy(update={"name": f"{(folder / path).absolute()}:{attribute}"})
    return config.model_copy(update={"game": game})


def config_to_toml(config: ExperimentConfig) -> str:
    """All values of a config as TOML that `parse_config` reads back to an equal one."""
    return tomli_w.dumps(config.model_dump(mode="json"))

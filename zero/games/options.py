"""Options of games: frozen pydantic models, with errors in one line."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from zero.games.game import GameError


class GameOptions(BaseModel):
    """Options of a game that has none; base of those that have some."""

    model_config = ConfigDict(frozen=True, extra="forbid")


OptionsT = TypeVar("OptionsT", bound=GameOptions)


def parse_options(game_name: str, model: type[OptionsT], options: Mapping[str, Any]) -> OptionsT:
    """Check options against a model.

    Raises:
        GameError: an unknown option or a value that is not allowed.
    """
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(model.model_fields) or "none"
        raise GameError(f"game {game_name!r} has no option {field!r}; allowed: {allowed}")
    message = problem["msg"].removeprefix("Value error, ")
    if not field:
        raise GameError(f"game {game_name!r}: {message}")
    raise GameError(f"game {game_name!r}, option {field!r}: {message}, got {problem['input']!r}")

"""Writes what commands print with --json: dataclasses, records and what they hold, as one JSON document."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic_core import to_json


def json_text(value: Any) -> str:
    """The value as JSON; what is no number is null, for JSON has no other word for it."""
    return to_json(value, indent=1, inf_nan_mode="null", fallback=_plain).decode()


def _plain(value: Any) -> Any:
    """What the library does not know by itself."""
    match value:
        case Mapping():
            return dict(value)
        case np.ndarray() | np.generic():
            return value.tolist()
        case _:
            raise TypeError(f"{type(value).__name__} cannot be written as JSON")

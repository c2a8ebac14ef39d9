"""What a page or an agent answers over HTTP, whichever web server sends it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OK, BAD_REQUEST, NOT_FOUND, NOT_ALLOWED, CONFLICT, TOO_LARGE = 200, 400, 404, 405, 409, 413


@dataclass(frozen=True)
class Reply:
    """A response.

    Attributes:
        status: of HTTP.
        body: its bytes.
        content_type: of the body.
    """

    status: int
    body: bytes
    content_type: str = "application/json"


def json_reply(data: Mapping[str, Any], status: int = OK) -> Reply:
    """A response of JSON."""
    return Reply(status, json.dumps(data, separators=(",", ":")).encode())


def refusal(status: int, text: str) -> Reply:
    """What was asked wrongly, in one line."""
    return json_reply({"error": " ".join(text.split())}, status)

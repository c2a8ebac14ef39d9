"""Why calls are refused and why the server cannot start."""

import grpc

from zero.wire.codec import Reason

STATUS_CODES = {
    Reason.BAD_MESSAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNKNOWN_TABLE: grpc.StatusCode.NOT_FOUND,
    Reason.TABLE_CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    Reason.BAD_CONFIG: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.WRONG_SIGNATURE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.BAD_LENGTH: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.BAD_DATA: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.NOT_FINITE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.OUT_OF_RANGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.BAD_PRIORITY: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.CONTENT_CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    Reason.MISSING_CHUNK: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNKNOWN_CURSOR: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NOT_DURABLE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.MESSAGE_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.TOO_BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.RATE_LIMITED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.RECOVERING: grpc.StatusCode.UNAVAILABLE,
    Reason.BAD_WEIGHTS: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.LEASE_HELD: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.LEASE_LOST: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
}
"""The table of replay.proto."""


_RETRY_AFTER_SECONDS = {
    Reason.TOO_BUSY: 0.1,
    Reason.RATE_LIMITED: 0.001,  # it has waited here already
    Reason.STORE_UNAVAILABLE: 0.25,
    Reason.RECOVERING: 0.5,
}


class Refusal(Exception):  # noqa: N818 -- the call is refused, the server is well
    """A call that gets an error instead of an answer.

    Attributes:
        reason: the stable reason.
        message: one line for a person.
        retry_after_seconds: when to try again; 0 if that does not help.
    """

    def __init__(self, reason: Reason, message: str, retry_after_seconds: float | None = None) -> None:
        """By default the reason says when to try again."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        if retry_after_seconds is None:
            retry_after_seconds = _RETRY_AFTER_SECONDS.get(reason, 0.0)
        self.retry_after_seconds = retry_after_seconds


def was_reset(table: str) -> Refusal:
    """What a call meets whose table was emptied while it waited."""
    return Refusal(Reason.STORE_UNAVAILABLE, f"table {table!r} was reset meanwhile; try again")


def was_deleted(table: str) -> Refusal:
    """What a call meets whose table went while it waited."""
    return Refusal(Reason.UNKNOWN_TABLE, f"table {table!r} was deleted")


def gives_no_fsync(appendfsync: str) -> Refusal:
    """What meets who wants more of Redis than it gives with this policy."""
    return Refusal(
        Reason.NOT_DURABLE,
        f"Redis does not give durability fsync now: its appendfsync is {appendfsync!r}; set it to 'always', or use "
        "Redis 7.2 or newer with an append-only file",
    )


class ReplayServerError(Exception):
    """The server cannot start or go on; one line that names the cause and the remedy."""


class TakenOverError(ReplayServerError):
    """Another server has begun under the same Redis prefix."""

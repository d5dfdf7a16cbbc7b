"""How a call fails, and what a refusal says."""

from dataclasses import dataclass
from typing import cast

import grpc

from nsa_metadata.enums import REASONS
from nsa_metadata.wire import Message

_DOMAIN = "nsa.metadata.v1"


@dataclass(eq=False)
class Error(Exception):
    """A call failed.

    code: gRPC's. message: for people; its wording may change. The grpc.RpcError, where there is one, is the __cause__.
    """

    code: grpc.StatusCode
    message: str

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


@dataclass(eq=False)
class Refused(Error):
    """The service refused the request; this is the first violation it found.

    reason: the RefusalReason's name without its prefix, as "NEGATIVE_LENGTH".
    field: the field at fault, as "seq_lens[3]"; empty where no field is.
    value, limit: the value refused and the limit it passed; 0 where there is none.
    retry_after: seconds after which to try again; None where the same request will be refused again.
    """

    reason: str
    field: str
    value: int
    limit: int
    retry_after: float | None

    def __str__(self) -> str:
        return f"{super().__str__()} (reason {self.reason})"


class Unreachable(Error):
    """The server was not reached: UNAVAILABLE, and no refusal of the service's."""


class DeadlineExceeded(Error):
    """The timeout passed before the answer came, or the server's own limit did."""


def error_of(failure: grpc.RpcError) -> Error:
    """What a failed call raises."""
    call = cast(grpc.Call, failure)
    code, message = call.code(), call.details() or ""
    # Before the refusal: whether the server or this side sees first that the time is over is chance.
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(code, message)
    # Not dict(...): grpc.aio's has the keys of a mapping and yields pairs.
    metadata = {key: value for key, value in call.trailing_metadata() or ()}
    if refused := _refused(code, message, cast(bytes, metadata.get("grpc-status-details-bin", b""))):
        return refused
    return Unreachable(code, message) if code is grpc.StatusCode.UNAVAILABLE else Error(code, message)


def no_answer() -> DeadlineExceeded:
    """What is raised where this side alone saw that the time is over."""
    return DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, "the answer did not come in time")


def refusal_of(refusal: Message) -> Error:
    """What a stream's item raises that was refused."""
    number, message = refusal.uint64(2), refusal.text(4)
    code = next((one for one in grpc.StatusCode if one.value[0] == number), grpc.StatusCode.UNKNOWN)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(code, message)
    reason = REASONS.get(refusal.uint64(3), str(refusal.uint64(3)))
    retry = refusal.message(8)
    retry_after = None if retry is None else retry.int64(1) + retry.int64(2) / 1e9
    return Refused(code, message, reason, refusal.text(5), refusal.int64(6), refusal.int64(7), retry_after)


def _refused(code: grpc.StatusCode, message: str, details: bytes) -> Refused | None:
    """The refusal in a google.rpc.Status; None where there is none of this service's."""
    try:
        # An Any's type URL ends with the message's name.
        parts = {part.text(1).rpartition("/")[2]: part.message(2) for part in Message(details).messages(3)}
        info, retry = parts.get("google.rpc.ErrorInfo"), parts.get("google.rpc.RetryInfo")
        if info is None or info.text(2) != _DOMAIN:
            return None
        said = {entry.text(1): entry.text(2) for entry in info.messages(3)}
        value, limit = int(said.get("value", 0)), int(said.get("limit", 0))
        return Refused(code, message, info.text(1), said.get("field", ""), value, limit, _retry_after(retry))
    except ValueError:
        return None


def _retry_after(retry: Message | None) -> float | None:
    if retry is None:
        return None
    delay = retry.message(1)
    return 0.0 if delay is None else delay.int64(1) + delay.int64(2) / 1e9

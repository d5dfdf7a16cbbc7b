"""Calls to a server through grpcio, and their refusals read from the standard status details."""

import dataclasses

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

SERVICE = "nsa.metadata.v1.MetadataService"
EXPAND = f"/{SERVICE}/Expand"
TIMEOUT_S = 30


def channel(address, *, largest_reply=None):
    """A connection of its own. largest_reply: bytes; unset: grpcio's default of 4 MiB."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if largest_reply is not None:
        options.append(("grpc.max_receive_message_length", largest_reply))
    return grpc.insecure_channel(address, options)


def raw_expand(on):
    """Expand that takes and returns bytes."""
    return on.unary_unary(EXPAND)


@dataclasses.dataclass
class Refusal:
    """What a refused call told its caller; what it did not tell is None, or empty."""

    code: grpc.StatusCode
    message: str
    reason: str = None
    domain: str = None
    field: str = None
    value: int = None
    limit: int = None
    violated_fields: list = dataclasses.field(default_factory=list)
    retry_delay_s: float = None
    pushback_ms: int = None


def refusal_of(error):
    """Reads grpc-status-details-bin and grpc-retry-pushback-ms of a failed call."""
    metadata = dict(error.trailing_metadata() or ())
    refusal = Refusal(error.code(), error.details())
    if "grpc-retry-pushback-ms" in metadata:
        refusal.pushback_ms = int(metadata["grpc-retry-pushback-ms"])
    if "grpc-status-details-bin" not in metadata:
        return refusal
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    assert (status.code, status.message) == (error.code().value[0], error.details()), "the details tell another status"
    for detail in status.details:
        info, bad_request, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            refusal.reason, refusal.domain = info.reason, info.domain
            refusal.field = info.metadata["field"]
            refusal.value, refusal.limit = int(info.metadata["value"]), int(info.metadata["limit"])
        elif detail.Unpack(bad_request):
            refusal.violated_fields = [violation.field for violation in bad_request.field_violations]
        elif detail.Unpack(retry):
            refusal.retry_delay_s = retry.retry_delay.ToTimedelta().total_seconds()
        else:
            pytest.fail(f"an unexpected detail {detail.type_url}")
    return refusal


def refused(method, request, **more):
    """The refusal of a call that has to be refused."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=TIMEOUT_S, **more)
    return refusal_of(caught.value)

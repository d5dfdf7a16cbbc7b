"""What a channel to a server is given: checked arguments, retries, balancing, limits."""

import json
import math
from typing import Any

SERVICE = "nsa.metadata.v1.MetadataService"
EXPAND = f"/{SERVICE}/Expand"
EXPAND_STREAM = f"/{SERVICE}/ExpandStream"
# gRPC doesn't repeat a call whose request is larger than its buffer, by default 256 KiB; the service takes 1 MiB.
_RETRY_BUFFER_BYTES = 2 << 20


def channel_options(
    target: str,
    timeout: float | None,
    max_attempts: int,
    max_receive_message_bytes: int,
    server_name: str | None,
    keepalive_time: float,
    keepalive_timeout: float,
) -> list[tuple[str, Any]]:
    """gRPC's options for Client's arguments. ValueError names the argument that is out of range."""
    if not target:
        raise ValueError('the target is empty, want a name as "host:port"')
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout is {timeout}, want more than 0 or None")
    if not 1 <= max_attempts <= 5:
        raise ValueError(f"max_attempts is {max_attempts}, want 1 to 5")
    if max_receive_message_bytes < 1:
        raise ValueError(f"max_receive_message_bytes is {max_receive_message_bytes}, want 1 or more")
    if not keepalive_time >= 10:
        raise ValueError(f"keepalive_time is {keepalive_time}, want 10 or more")
    if not keepalive_timeout > 0:
        raise ValueError(f"keepalive_timeout is {keepalive_timeout}, want more than 0")
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", _service_config(max_attempts)),
        # The policy above is the only one: no answer of a name server's can replace it.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
        # gRPC's own, 1 s and 120 s, outlast all attempts of a call.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.max_receive_message_length", max_receive_message_bytes),
        ("grpc.keepalive_time_ms", math.ceil(keepalive_time * 1e3)),
        ("grpc.keepalive_timeout_ms", math.ceil(keepalive_timeout * 1e3)),
        # Clients of the same target and options would share a connection otherwise.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


def _service_config(max_attempts: int) -> str:
    # ExpandStream sends its items again itself: gRPC can't once an answer has come.
    stream = {"name": [{"service": SERVICE, "method": "ExpandStream"}]}
    method: dict[str, Any] = {"name": [{"service": SERVICE}]}
    if max_attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": max_attempts,
            "initialBackoff": "0.05s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
    return json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [stream, method]})

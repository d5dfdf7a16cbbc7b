"""The Python client, client/python, against the real server, and against one of grpcio's whose bytes a test chooses."""

import asyncio
import concurrent.futures
import contextlib
import itertools
import pickle
import re
import socket
import struct
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from calls import SERVICE
from programs import REPOSITORY, Server, eventually, run
from reference import DEFAULT_OUTPUTS, INT32_MAX, MODES, OUTPUTS, expand

import nsa_metadata
from nsa_metadata import AsyncClient, Client, DeadlineExceeded, Error, Refused, Unreachable
from nsa_metadata.request import int32_array

each_mode = pytest.mark.parametrize("mode", ["repeat", "causal"])
SMALL = {"extend_seq_lens": [3, 2], "seq_lens": [10, 4], "nsa_index_topk": 2048, "mode": "causal"}
SMALL_ANSWER = [8, 9, 10, 3, 4]


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address) as made:
        yield made


def assert_holds(expansion, request, outputs=DEFAULT_OUTPUTS):
    """Fails with the first difference between an expansion and what `request`, expand()'s arguments, asked for."""
    lengths = [np.asarray(request[name], dtype=np.int64) for name in ("extend_seq_lens", "seq_lens")]
    expected = expand(*lengths, request["nsa_index_topk"], request["mode"].upper())
    assert expansion.request_id == request.get("request_id", 0)
    assert expansion.total_tokens == lengths[0].sum()
    assert expansion.mode == request["mode"]
    for name in OUTPUTS:
        got = getattr(expansion, name)
        if name not in outputs:
            assert got is None, name
        else:
            assert got.dtype == np.int32, name
            assert np.array_equal(got, expected[name]), f"{name}: got {got}, want {expected[name]}"


def received(array):
    """The object whose memory an array shows."""
    while isinstance(array, (np.ndarray, memoryview)):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return array


@contextlib.contextmanager
def fake_server(answer):
    """A server whose Expand is `answer(request bytes, context) -> reply bytes`; yields its address."""
    methods = {"Expand": grpc.unary_unary_rpc_method_handler(answer)}
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def expansion_of(reply, **more):
    """What the client makes of these bytes."""
    with fake_server(lambda *_: reply) as address, Client(address) as client:
        return client.expand(**{**SMALL, **more})


@pytest.mark.parametrize(
    ("extend_seq_lens", "seq_lens", "mode", "seqlens_expanded"),
    [
        ([3, 2], [10, 4], "causal", [8, 9, 10, 3, 4]),
        ([3, 1, 4, 0], [10, 7, 12, 0], "causal", [8, 9, 10, 7, 9, 10, 11, 12]),
        ([3, 2], [10, 4], "repeat", [10, 10, 10, 4, 4]),
        ([3], [1], "causal", [0, 0, 1]),
    ],
)
def test_known_lengths_have_known_answers(client, extend_seq_lens, seq_lens, mode, seqlens_expanded):
    expansion = client.expand(extend_seq_lens, seq_lens, nsa_index_topk=9, mode=mode)
    assert expansion.seqlens_expanded.tolist() == seqlens_expanded
    assert expansion.nsa_cache_seqlens.tolist() == [min(length, 9) for length in seqlens_expanded]
    assert (expansion.total_tokens, expansion.mode, expansion.timing) == (len(seqlens_expanded), mode, None)


@each_mode
def test_all_nine_outputs_agree_with_the_reference(client, mode):
    rng = np.random.default_rng(9)
    request = {
        "extend_seq_lens": rng.integers(0, 9, 300, dtype=np.int32),
        "seq_lens": rng.integers(0, 70_000, 300, dtype=np.int32),
        "nsa_index_topk": 2048,
        "mode": mode,
        "request_id": 2**64 - 1,
    }
    assert nsa_metadata.OUTPUTS == OUTPUTS
    assert_holds(client.expand(**request, outputs=OUTPUTS), request, OUTPUTS)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_asked_alone_comes_alone(client, name):
    assert_holds(client.expand(**SMALL, outputs=[name]), SMALL, [name])


def test_outputs_are_asked_in_any_order_and_more_than_once(client):
    assert_holds(client.expand(**SMALL, outputs=("ke", "positions", "ke")), SMALL, ["positions", "ke"])


def test_no_outputs_mean_the_first_two(client):
    assert_holds(client.expand(**SMALL, outputs=[]), SMALL)


@each_mode
@pytest.mark.parametrize(("extend_seq_lens", "seq_lens"), [([], []), ([0, 0], [5, 6])], ids=["empty", "no token"])
def test_a_batch_without_a_token_has_empty_arrays(client, extend_seq_lens, seq_lens, mode):
    request = {"extend_seq_lens": extend_seq_lens, "seq_lens": seq_lens, "nsa_index_topk": 1, "mode": mode}
    expansion = client.expand(**request, outputs=OUTPUTS)
    assert_holds(expansion, request, OUTPUTS)
    assert expansion.ks.size == 0


@pytest.mark.parametrize(
    "convert",
    [
        lambda values: np.array(values, np.int64),
        lambda values: np.array(values, np.uint64),
        lambda values: np.array(values, np.uint8),
        lambda values: np.array(values, ">i4"),
        lambda values: np.array(values, object),
        tuple,
        lambda values: np.repeat(np.array(values, np.int32), 2)[::2],
        lambda values: np.frombuffer(np.array(values, np.int32).tobytes(), np.int32),
    ],
    ids=["int64", "uint64", "uint8", "big-endian", "objects", "tuple", "every second", "read-only"],
)
def test_any_integers_are_taken(client, convert):
    expansion = client.expand(convert([3, 2]), convert([10, 4]), nsa_index_topk=2048, mode="causal")
    assert expansion.seqlens_expanded.tolist() == SMALL_ANSWER


def test_a_contiguous_int32_array_is_not_converted():
    array = np.arange(5, dtype=np.int32)
    assert np.shares_memory(int32_array("seq_lens", array), array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_lens": [10, 2**31]}, "seq_lens[1] is 2147483648, want at most 2147483647"),
        ({"seq_lens": np.array([-(2**31) - 1, 4])}, "seq_lens[0] is -2147483649, want at least -2147483648"),
        ({"extend_seq_lens": np.array([3, 2**32 - 1], np.uint32)}, "extend_seq_lens[1] is 4294967295, want at most"),
        ({"extend_seq_lens": [2**63, -1]}, "extend_seq_lens[0] is 9223372036854775808, want at most"),
        ({"extend_seq_lens": [1, -(2**70)]}, "extend_seq_lens[1] is -1180591620717411303424, want at least"),
        ({"seq_lens": [[10, 4]]}, "seq_lens has the shape [1, 2], want [num_sequences]"),
        ({"seq_lens": 10}, "seq_lens has the shape [], want [num_sequences]"),
        ({"nsa_index_topk": 2**31}, "nsa_index_topk is 2147483648, want at most 2147483647"),
        ({"request_id": -1}, "request_id is -1, want at least 0"),
        ({"request_id": 2**64}, "request_id is 18446744073709551616, want at most 18446744073709551615"),
        ({"mode": "CAUSAL"}, "mode is 'CAUSAL', want one of repeat, causal"),
        ({"outputs": ["ks", "kz"]}, "outputs[1] is 'kz', want one of seqlens_expanded, nsa_cache_seqlens,"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_the_wire_cannot_hold_is_named_and_not_sent(client, change, message):
    for call in (client.expand, client.expand_async):
        with pytest.raises(ValueError) as caught:
            call(**{**SMALL, **change})
        assert message in str(caught.value)


@pytest.mark.parametrize("values", [[3.0, 2.0], np.array([3.5, 2]), ["3", "2"], [3, None]], ids=repr)
def test_what_is_no_integer_is_a_type_error(client, values):
    with pytest.raises(TypeError, match=r"seq_lens\[\d\] is .*, want an integer"):
        client.expand(**{**SMALL, "seq_lens": values})


@pytest.mark.parametrize("value", [2048.0, "2048", None], ids=repr)
@pytest.mark.parametrize("name", ["nsa_index_topk", "request_id"])
def test_a_number_that_is_no_integer_is_a_type_error_with_its_name(client, name, value):
    with pytest.raises(TypeError, match=re.escape(f"{name} is {value!r}, want an integer")):
        client.expand(**{**SMALL, name: value})


def test_the_mode_has_no_default(client):
    with pytest.raises(TypeError, match="mode"):
        client.expand([1], [1], nsa_index_topk=1)


def test_every_array_is_a_read_only_view_of_one_received_message(client):
    expansion = client.expand(**SMALL, outputs=OUTPUTS)
    message = received(expansion.ks)
    assert isinstance(message, bytes)
    whole = np.frombuffer(message, dtype=np.uint8)
    for name in OUTPUTS:
        array = getattr(expansion, name)
        assert received(array) is message, name
        assert np.shares_memory(array, whole), name
        assert not array.flags.writeable, name


def test_a_reply_of_almost_4_mib_arrives_as_one_view(client):
    tokens = ((4 << 20) - (64 << 10) - 256) // 4
    request = {"extend_seq_lens": [tokens], "seq_lens": [tokens], "nsa_index_topk": 2048, "mode": "repeat"}
    expansion = client.expand(**request, outputs=["positions"])
    assert_holds(expansion, request, ["positions"])
    assert len(received(expansion.positions)) < expansion.positions.nbytes + 256


def test_a_reply_over_the_clients_limit_is_an_error(server):
    with Client(server.address, max_receive_message_bytes=1000) as client:
        with pytest.raises(Error) as caught:
            client.expand([500], [500], nsa_index_topk=1, mode="repeat")
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert type(caught.value) is Error


def test_the_timing_comes_when_it_is_asked_for(client):
    timing = client.expand(**SMALL, include_timing=True).timing
    assert timing.backend == "cpu"
    assert (timing.batch_requests, timing.batch_tokens) == (1, 5)
    assert timing.parse_ns > 0 and timing.device_ns > 0


@pytest.mark.parametrize(
    ("change", "reason", "field", "value", "limit"),
    [
        ({"seq_lens": [10, -4]}, "NEGATIVE_LENGTH", "seq_lens[1]", -4, 0),
        ({"seq_lens": [10]}, "LENGTHS_DIFFER", "seq_lens", 1, 2),
        ({"nsa_index_topk": -5}, "TOP_K_TOO_SMALL", "nsa_index_topk", -5, 1),
        ({"seq_lens": [INT32_MAX, 1], "outputs": ["ke"]}, "OUTPUT_OVERFLOW", "ke", INT32_MAX + 1, INT32_MAX),
    ],
    ids=lambda part: part if isinstance(part, str) and part.isupper() else "",
)
def test_a_refusal_tells_reason_field_value_and_limit(client, change, reason, field, value, limit):
    with pytest.raises(Refused) as caught:
        client.expand(**{**SMALL, **change})
    refused = caught.value
    assert isinstance(refused, Error)
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.reason, refused.field, refused.value, refused.limit) == (reason, field, value, limit)
    assert refused.retry_after is None, "it would be refused again"
    assert str(refused) == f"INVALID_ARGUMENT: {refused.message} (reason {reason})"
    assert isinstance(refused.__cause__, grpc.RpcError)


def test_a_refusal_survives_pickling(client):
    with pytest.raises(Refused) as caught:
        client.expand([1], [], mode="repeat")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), vars(copy), str(copy)) == (Refused, vars(caught.value), str(caught.value))


def test_a_passing_refusal_tells_when_to_try_again():
    with (
        Server("--max_queue_requests=1", "--batch_delay=1s") as server,
        Client(server.address, max_attempts=1) as client,
    ):
        first = client.expand_async(**SMALL)
        eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 1, "the first waits")
        with pytest.raises(Refused) as caught:
            client.expand(**SMALL)
        assert first.result(10).seqlens_expanded.tolist() == SMALL_ANSWER
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert (caught.value.reason, caught.value.field, caught.value.limit) == ("QUEUE_FULL", "", 1)
    assert 0 < caught.value.retry_after < 10


def test_a_full_queue_is_tried_again_before_it_is_an_error():
    with Server("--max_queue_requests=1", "--batch_delay=1s") as server, Client(server.address) as client:
        first = client.expand_async(**SMALL)
        eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 1, "the first waits")
        with pytest.raises(Refused, match="QUEUE_FULL"):
            client.expand(**SMALL)
        first.result(10)
        attempts = server.settled_metrics().total("grpc_server_started_total", grpc_method="Expand")
    assert attempts == 1 + 4


@contextlib.contextmanager
def silent_server():
    """The address of a server that answers no call."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"127.0.0.1:{silent.getsockname()[1]}"


def test_a_timeout_of_the_call_goes_before_the_clients(server):
    with (
        silent_server() as address,
        Client(address) as patient,
        Client(address, timeout=0.1) as hasty,
        Client(server.address, timeout=1e-9) as hopeless,
    ):
        for late in (lambda: patient.expand(**SMALL, timeout=0.1), lambda: hasty.expand(**SMALL)):
            with pytest.raises(DeadlineExceeded) as caught:
                late()
            assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert hopeless.expand(**SMALL, timeout=20).seqlens_expanded.tolist() == SMALL_ANSWER


def test_a_refusal_for_want_of_time_is_a_deadline_too():
    def late(_, context):
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the request was computed")

    with fake_server(late) as address, Client(address) as client:
        with pytest.raises(DeadlineExceeded):
            client.expand(**SMALL)


def test_a_negative_timeout_has_passed(client):
    with pytest.raises(DeadlineExceeded):
        client.expand(**SMALL, timeout=-1)


def test_nobody_there_is_unreachable():
    # Bound, so that nobody else takes the port, and not listening.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with Client(f"127.0.0.1:{held.getsockname()[1]}") as client:
            with pytest.raises(Unreachable) as caught:
                client.expand(**SMALL)
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ""}, "the target is empty"),
        ({"timeout": 0}, "timeout is 0, want more than 0 or None"),
        ({"max_attempts": 6}, "max_attempts is 6, want 1 to 5"),
        ({"max_receive_message_bytes": 0}, "max_receive_message_bytes is 0, want 1 or more"),
        ({"keepalive_time": 9}, "keepalive_time is 9, want 10 or more"),
        ({"keepalive_timeout": 0}, "keepalive_timeout is 0, want more than 0"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_an_option_out_of_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Client(**{"target": "127.0.0.1:1", **options})


def test_a_closed_client_makes_no_calls(server):
    with Client(server.address) as client:
        client.expand(**SMALL)
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.expand(**SMALL)


def test_threads_share_a_client(client):
    def calls_of(thread):
        rng = np.random.default_rng(thread)
        for call in range(50):
            request = {
                "extend_seq_lens": rng.integers(0, 5, 20, dtype=np.int32),
                "seq_lens": rng.integers(0, 5000, 20),
                "nsa_index_topk": 512,
                "mode": "causal" if call % 2 else "repeat",
                "request_id": thread * 1000 + call,
            }
            assert_holds(client.expand(**request, outputs=OUTPUTS), request, OUTPUTS)
        return thread

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(calls_of, range(8))) == list(range(8))


def test_a_future_has_the_answer_or_the_error(client):
    futures = [client.expand_async(**SMALL, request_id=number) for number in range(20)]
    refused = client.expand_async(**{**SMALL, "seq_lens": [1, -1]})
    late = client.expand_async(**SMALL, timeout=-1)
    for number, future in enumerate(futures):
        assert_holds(future.result(10), {**SMALL, "request_id": number})
    assert refused.exception(10).reason == "NEGATIVE_LENGTH"
    assert isinstance(late.exception(10), DeadlineExceeded)


def test_a_future_can_be_awaited(client):
    async def answer():
        return await asyncio.wrap_future(client.expand_async(**SMALL))

    assert_holds(asyncio.run(answer()), SMALL)


def test_cancelling_a_future_cancels_the_call():
    with Server("--batch_delay=1s") as server, Client(server.address) as client:
        future = client.expand_async(**SMALL)
        eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 1, "it waits")
        assert future.cancel()
        eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 0, "the server gave it up")
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(10)


def test_closing_ends_the_calls_in_flight():
    arrived, release = threading.Event(), threading.Event()

    def wait(*_):
        arrived.set()
        release.wait(20)
        return b""

    with fake_server(wait) as address:
        client = Client(address)
        future = client.expand_async(**SMALL)
        assert arrived.wait(10)
        client.close()
        error = future.exception(10)
        release.set()
    assert type(error) is Error
    assert error.code == grpc.StatusCode.CANCELLED


def test_a_request_on_the_wire_is_what_generated_code_reads(pb):
    requests = []

    def answer(request, _):
        requests.append(pb.ExpandRequest.FromString(request))
        return b""

    with fake_server(answer) as address, Client(address) as client:
        client.expand(
            [3, 0, -1],
            [2**31 - 1, -(2**31), 5],
            nsa_index_topk=-7,
            mode="causal",
            outputs=["ke", "seqlens_expanded"],
            request_id=2**64 - 1,
            include_timing=True,
        )
        client.expand([], [], mode="repeat")
    lengths = {"extend_seq_lens": [3, 0, -1], "seq_lens": [2**31 - 1, -(2**31), 5]}
    assert requests == [
        pb.ExpandRequest(
            **lengths,
            request_id=2**64 - 1,
            nsa_index_topk=-7,
            mode=MODES["CAUSAL"],
            outputs=[9, 1],
            include_timing=True,
        ),
        pb.ExpandRequest(mode=MODES["REPEAT"], outputs=[1, 2]),
    ]


def reply_pieces(pb):
    """An answer to SMALL in pieces, each a message of its own."""
    return [
        pb.ExpandResponse(request_id=7),
        pb.ExpandResponse(total_tokens=5, mode=MODES["CAUSAL"]),
        pb.ExpandResponse(seqlens_expanded=SMALL_ANSWER),
        pb.ExpandResponse(nsa_cache_seqlens=SMALL_ANSWER),
    ]


def test_fields_may_come_in_any_order(pb):
    for order in itertools.permutations(piece.SerializeToString() for piece in reply_pieces(pb)):
        assert_holds(expansion_of(b"".join(order), request_id=7), {**SMALL, "request_id": 7})


def test_a_split_array_is_put_together(pb):
    parts = [pb.ExpandResponse(seqlens_expanded=part).SerializeToString() for part in ([8, 9], [10], [3, 4])]
    between = pb.ExpandResponse(nsa_cache_seqlens=SMALL_ANSWER).SerializeToString()
    expansion = expansion_of(parts[0] + between + parts[1] + parts[2])
    assert expansion.seqlens_expanded.tolist() == SMALL_ANSWER
    assert expansion.nsa_cache_seqlens.tolist() == SMALL_ANSWER


def test_an_unpacked_array_is_read(pb):
    # The tag of field 16 with the wire type of four bytes, and a value.
    values = [b"\x85\x01" + struct.pack("<i", value) for value in (8, 9, 10)]
    packed = pb.ExpandResponse(seqlens_expanded=[3, -4]).SerializeToString()
    assert expansion_of(b"".join(values) + packed).seqlens_expanded.tolist() == [8, 9, 10, 3, -4]


def test_unknown_fields_are_skipped(pb):
    # Field 5, which is reserved, as each of the wire types; and one of a number far up.
    unknown = [b"\x28\xff\x01", b"\x29" + b"x" * 8, b"\x2a\x03abc", b"\x2d" + b"x" * 4, b"\xf8\xff\xff\xff\x0f\x01"]
    pieces = [piece.SerializeToString() for piece in reply_pieces(pb)]
    reply = b"".join(itertools.chain(*zip(unknown, [*pieces, b""], strict=True)))
    assert_holds(expansion_of(reply), {**SMALL, "request_id": 7})


def test_an_output_nobody_asked_for_is_left_out(pb):
    reply = b"".join(piece.SerializeToString() for piece in reply_pieces(pb))
    expansion = expansion_of(reply, outputs=["seqlens_expanded"])
    assert expansion.seqlens_expanded.tolist() == SMALL_ANSWER
    assert expansion.nsa_cache_seqlens is None


def test_a_newer_servers_mode_and_backend_are_told_by_number(pb):
    reply = pb.ExpandResponse(mode=9, timing=pb.Timing(parse_ns=2**64 - 1, backend=8)).SerializeToString()
    expansion = expansion_of(reply)
    assert (expansion.mode, expansion.timing.backend) == ("9", "8")
    assert expansion.timing.parse_ns == 2**64 - 1


@pytest.mark.parametrize(
    "reply",
    [
        b"\x82\x01\x08\x01\x02\x03\x04",
        b"\x82\x01\x03\x01\x02\x03",
        b"\x08",
        b"\x08" + b"\xff" * 10 + b"\x01",
        b"\x85\x01\x01\x02",
        b"\x00\x01",
        b"\x0b\x0c",
        b"\x82\x01\x04\x01\x02\x03\x04\x82",
    ],
    ids=["cut array", "three bytes", "no value", "long number", "cut value", "field 0", "group", "cut tag"],
)
def test_bytes_that_are_no_reply_are_an_internal_error(reply):
    with pytest.raises(Error, match="the reply is no ExpandResponse") as caught:
        expansion_of(reply)
    assert type(caught.value) is Error
    assert caught.value.code == grpc.StatusCode.INTERNAL


def failing(times, calls, reply, *, pushback_ms=None, details=b""):
    """An Expand that is UNAVAILABLE some times before it answers; `calls` gets the time of each call."""

    def answer(_, context):
        calls.append(time.monotonic())
        if len(calls) <= times:
            metadata = [("grpc-status-details-bin", details)] if details else []
            if pushback_ms is not None:
                metadata.append(("grpc-retry-pushback-ms", str(pushback_ms)))
            context.set_trailing_metadata(metadata)
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return reply

    return answer


def test_unavailable_is_tried_again_three_times(pb):
    reply = b"".join(piece.SerializeToString() for piece in reply_pieces(pb))
    calls = []
    with fake_server(failing(3, calls, reply)) as address, Client(address) as client:
        assert client.expand(**SMALL).seqlens_expanded.tolist() == SMALL_ANSWER
    assert len(calls) == 4
    calls.clear()
    with fake_server(failing(4, calls, reply)) as address, Client(address) as client:
        with pytest.raises(Unreachable, match="UNAVAILABLE: not now"):
            client.expand(**SMALL)
    assert len(calls) == 4


def test_one_attempt_means_no_retry():
    calls = []
    with fake_server(failing(1, calls, b"")) as address, Client(address, max_attempts=1) as client:
        with pytest.raises(Unreachable):
            client.expand(**SMALL)
    assert len(calls) == 1


def test_the_servers_pushback_goes_before_the_backoff():
    calls = []
    with fake_server(failing(1, calls, b"", pushback_ms=400)) as address, Client(address) as client:
        client.expand(**SMALL)
    assert calls[1] - calls[0] > 0.3, "the backoff alone would be 50 ms"


def test_a_large_request_is_tried_again_too():
    calls = []
    lengths = np.zeros(65_536, dtype=np.int32)
    with fake_server(failing(1, calls, b"")) as address, Client(address) as client:
        client.expand(lengths, lengths, nsa_index_topk=1, mode="repeat")
    assert len(calls) == 2


@pytest.mark.parametrize("details", [b"\xff", b"\x08\x0e", b"\x1a\x02\x0a\x00"], ids=["noise", "none", "empty"])
def test_details_that_are_no_refusal_of_the_services_are_none(details):
    with fake_server(failing(9, [], b"", details=details)) as address, Client(address, max_attempts=1) as client:
        with pytest.raises(Unreachable):
            client.expand(**SMALL)


def test_another_domains_details_are_no_refusal():
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(domain="proxy.example", reason="NO_ROUTE"))
    details = status_pb2.Status(code=14, details=[info]).SerializeToString()
    with fake_server(failing(9, [], b"", details=details)) as address, Client(address, max_attempts=1) as client:
        with pytest.raises(Unreachable):
            client.expand(**SMALL)


def test_the_package_imports_nothing_but_grpcio_and_numpy():
    program = "import sys, nsa_metadata; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = run(sys.executable, "-c", program, cwd=REPOSITORY / "client" / "python")
    assert done.returncode == 0, done.stderr
    assert "google" not in done.stdout.split()


# asyncio


def in_a_loop(server, *calls, **options):
    """What the calls answer that each of `calls` makes of a client, all at once."""

    async def go():
        async with AsyncClient(server.address, **options) as on:
            return await asyncio.gather(*(call(on) for call in calls), return_exceptions=True)

    return asyncio.run(go())


def test_asyncio_callers_get_what_others_get(server, client):
    ids = range(100)
    answers = in_a_loop(server, *(lambda on, i=i: on.expand([3, i % 5], [10, 40], nsa_index_topk=8, mode="causal", request_id=i) for i in ids))
    for i, answer in zip(ids, answers, strict=True):
        same = client.expand([3, i % 5], [10, 40], nsa_index_topk=8, mode="causal", request_id=i)
        assert answer.request_id == i and np.array_equal(answer.seqlens_expanded, same.seqlens_expanded)


def test_asyncio_callers_are_refused_and_time_out_alike(server):
    refused, late, wrong = in_a_loop(
        server,
        lambda on: on.expand([3, -2], [10, 4], nsa_index_topk=8, mode="causal"),
        lambda on: on.expand([3], [10], nsa_index_topk=8, mode="causal", timeout=-1),
        lambda on: on.expand([3], [1 << 40], nsa_index_topk=8, mode="causal"),
    )
    assert isinstance(refused, Refused) and (refused.reason, refused.field, refused.value) == ("NEGATIVE_LENGTH", "extend_seq_lens[1]", -2)
    assert isinstance(late, DeadlineExceeded)
    assert isinstance(wrong, ValueError) and "seq_lens[0]" in str(wrong)


def test_asyncio_arguments_are_checked_alike(server):
    async def make():
        with pytest.raises(ValueError, match="max_attempts is 9"):
            AsyncClient(server.address, max_attempts=9)

    asyncio.run(make())


def test_cancelling_a_task_cancels_its_call():
    async def give_up(server):
        async with AsyncClient(server.address) as on:
            task = asyncio.create_task(on.expand([3], [10], nsa_index_topk=8, mode="causal"))
            while server.metrics().total("nsa_metadata_queue_requests") == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with Server("--batch_delay=2s") as waiting:
        asyncio.run(give_up(waiting))
        eventually(lambda: waiting.metrics().total("nsa_metadata_cancelled_total", stage="queue") == 1, "it is not computed")

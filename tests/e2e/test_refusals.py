"""Every refusal that a unary call can meet: what the caller is told, and that it is counted exactly once."""

import contextlib
import dataclasses
import re

import grpc
import pytest

from calls import TIMEOUT_S, channel, raw_expand, refusal_of, refused
from programs import Server, eventually
from raw_http2 import RawConnection, frame
from reference import INT32_MAX, MODES, OUTPUT_NUMBERS, OUTPUTS, assert_right
from scrape import growth

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNARY_REPLY_BYTES = (4 << 20) - (64 << 10)
REPLY_BYTES = 64 << 20
# go-grpc-prometheus's spelling, as the metrics have it.
CODE_LABELS = {
    grpc.StatusCode.OK: "OK",
    INVALID: "InvalidArgument",
    grpc.StatusCode.UNAVAILABLE: "Unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "DeadlineExceeded",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "ResourceExhausted",
    grpc.StatusCode.UNIMPLEMENTED: "Unimplemented",
}
# A reply of at least 1 MB, from few bytes.
MEGABYTE = {"extend_seq_lens": [250_000], "seq_lens": [300_000], "outputs": [OUTPUT_NUMBERS["positions"]]}


def ask(pb, **fields):
    return pb.ExpandRequest(**{"nsa_index_topk": 2048, **fields})


def number(*names):
    return [OUTPUT_NUMBERS[name] for name in names]


@contextlib.contextmanager
def counted(server, codes, reasons):
    """What happens inside adds exactly these to grpc_server_handled_total by code and to refused_total by reason."""

    def counts():
        scrape = server.settled_metrics()
        return (
            scrape.by("grpc_code", "grpc_server_handled_total"),
            scrape.by("reason", "nsa_metadata_refused_total"),
        )

    codes_before, reasons_before = counts()
    yield
    codes_after, reasons_after = counts()
    assert growth(codes_before, codes_after) == {CODE_LABELS[code]: count for code, count in codes.items()}
    assert growth(reasons_before, reasons_after) == reasons


def waiting(server):
    return server.metrics().total("nsa_metadata_queue_requests")


def submit(server, method, request, now_waiting, **more):
    """Starts a call and returns its future once `now_waiting` requests are in the server's queue."""
    call = method.future(request, **{"timeout": TIMEOUT_S, **more})
    eventually(lambda: waiting(server) == now_waiting, f"{now_waiting} requests wait in the queue")
    return call


@pytest.fixture(scope="module")
def on(server):
    with channel(server.address) as made:
        yield made


@pytest.fixture(scope="module")
def stub(on, stubs):
    return stubs.rpc.MetadataServiceStub(on)


@dataclasses.dataclass
class Case:
    name: str
    request: dict
    reason: str
    field: str
    # None: any that is over the limit.
    value: int | None
    limit: int
    message: str = ""


LENGTHS = {"extend_seq_lens": [3, 2], "seq_lens": [10, 4]}
# Their sum is one over int32's largest.
LONG = {"extend_seq_lens": [1, 1, 1], "seq_lens": [INT32_MAX, 1, 0], "nsa_index_topk": INT32_MAX}

CASES = [
    Case("fewer seq_lens", {"extend_seq_lens": [1, 2], "seq_lens": [3]}, "LENGTHS_DIFFER", "seq_lens", 1, 2),
    Case("more seq_lens", {"extend_seq_lens": [], "seq_lens": [3]}, "LENGTHS_DIFFER", "seq_lens", 1, 0),
    Case(
        "a negative extension",
        {"extend_seq_lens": [1, -2], "seq_lens": [3, 4]},
        "NEGATIVE_LENGTH",
        "extend_seq_lens[1]",
        -2,
        0,
    ),
    Case(
        "a negative length",
        {"extend_seq_lens": [1, 0, 1], "seq_lens": [3, 4, -(2**31)]},
        "NEGATIVE_LENGTH",
        "seq_lens[2]",
        -(2**31),
        0,
    ),
    Case(
        "no top-k for the default outputs", LENGTHS | {"nsa_index_topk": 0}, "TOP_K_TOO_SMALL", "nsa_index_topk", 0, 1
    ),
    Case(
        "a negative top-k for a running sum",
        LENGTHS | {"nsa_index_topk": -5, "outputs": number("nsa_cu_seqlens_k")},
        "TOP_K_TOO_SMALL",
        "nsa_index_topk",
        -5,
        1,
    ),
    Case("a mode after the last", LENGTHS | {"mode": 3}, "UNKNOWN_ENUM", "mode", 3, 2),
    Case("a negative mode", LENGTHS | {"mode": -1}, "UNKNOWN_ENUM", "mode", -1, 2),
    Case("an output after the last", LENGTHS | {"outputs": [1, 10]}, "UNKNOWN_ENUM", "outputs[1]", 10, 9),
    Case("an unspecified output", LENGTHS | {"outputs": [0]}, "UNKNOWN_ENUM", "outputs[0]", 0, 9),
    Case(
        "one sequence over the default",
        {"extend_seq_lens": [0] * 65_537, "seq_lens": [1] * 65_537},
        "TOO_MANY_SEQUENCES",
        "extend_seq_lens",
        65_537,
        65_536,
    ),
    Case(
        "one token over the default",
        {"extend_seq_lens": [4_194_304, 1], "seq_lens": [1, 1]},
        "TOO_MANY_TOKENS",
        "extend_seq_lens",
        4_194_305,
        4_194_304,
    ),
    Case(
        "tokens that pass int32",
        {"extend_seq_lens": [INT32_MAX] * 3, "seq_lens": [1] * 3},
        "TOO_MANY_TOKENS",
        "extend_seq_lens",
        3 * INT32_MAX,
        4_194_304,
    ),
    *(
        Case(
            f"{output} past int32",
            LONG | {"outputs": number(output)},
            "OUTPUT_OVERFLOW",
            output,
            INT32_MAX + 1,
            INT32_MAX,
        )
        for output in ("cu_seqlens_k", "nsa_cu_seqlens_k", "ks", "ke")
    ),
    Case(
        "a reply too large for unary",
        {"extend_seq_lens": [1 << 20], "seq_lens": [1], "outputs": number("positions")},
        "REPLY_TOO_LARGE",
        "outputs",
        None,
        UNARY_REPLY_BYTES,
        message="ExpandStream",
    ),
    Case(
        "a reply too large for any call",
        {"extend_seq_lens": [4_194_304], "seq_lens": [1], "outputs": number(*OUTPUTS)},
        "REPLY_TOO_LARGE",
        "outputs",
        None,
        REPLY_BYTES,
        message="max_reply_bytes",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_request_is_refused_with_field_value_and_limit(server, stub, pb, case):
    with counted(server, {INVALID: 1}, {case.reason.lower(): 1}):
        refusal = refused(stub.Expand, ask(pb, **case.request))
    assert refusal.code == INVALID
    assert (refusal.domain, refusal.reason) == ("nsa.metadata.v1", case.reason)
    assert (refusal.field, refusal.limit) == (case.field, case.limit)
    assert refusal.value > case.limit if case.value is None else refusal.value == case.value
    assert refusal.violated_fields == [case.field], "BadRequest names the first violation only"
    assert (refusal.retry_delay_s, refusal.pushback_ms) == (None, None), "it would fail again"
    assert case.field.split("[")[0] in refusal.message
    assert str(refusal.value) in refusal.message and str(refusal.limit) in refusal.message, "numbers for people"
    assert case.message in refusal.message


@pytest.mark.parametrize(
    "body",
    [b"\xff\xff\xff\xff", b"\x12\x08\x01", b"\x12\x03\x01\x02\x03", b"\x0a" * 1000],
    ids=["no tag", "cut array", "array of three bytes", "noise"],
)
def test_bytes_that_are_no_request_are_malformed(server, on, body):
    with counted(server, {INVALID: 1}, {"malformed": 1}):
        refusal = refused(raw_expand(on), body)
    assert refusal.code == INVALID
    assert (refusal.reason, refusal.field, refusal.violated_fields) == ("MALFORMED", "", [])
    assert refusal.value == len(body)


def test_top_k_is_ignored_unless_an_output_needs_it(server, stub, pb):
    outputs = [name for name in OUTPUTS if "nsa" not in name]
    with counted(server, {grpc.StatusCode.OK: 2}, {}):
        for topk in (0, -7):
            request = ask(pb, **LENGTHS, mode=MODES["CAUSAL"], nsa_index_topk=topk, outputs=number(*outputs))
            assert_right(stub.Expand(request, timeout=TIMEOUT_S), request, "CAUSAL", outputs)


def test_an_overflow_is_refused_only_where_that_output_is_asked(stub, pb):
    outputs = ["seqlens_expanded", "nsa_cache_seqlens", "token_to_batch_idx", "positions", "cu_seqlens_q"]
    request = ask(pb, **LONG, outputs=number(*outputs))
    assert_right(stub.Expand(request, timeout=TIMEOUT_S), request, "REPEAT", outputs)


def test_requests_at_the_default_limits_are_answered(stub, pb):
    sequences = ask(pb, extend_seq_lens=[1] * 65_536, seq_lens=[9] * 65_536, outputs=number("ks"))
    assert_right(stub.Expand(sequences, timeout=TIMEOUT_S), sequences, "REPEAT", ["ks"])
    # The largest unary reply arrives at a client with gRPC's default limit of 4 MiB.
    tokens = (UNARY_REPLY_BYTES - 256) // 4
    large = ask(pb, extend_seq_lens=[tokens], seq_lens=[tokens], outputs=number("positions"))
    assert_right(stub.Expand(large, timeout=TIMEOUT_S), large, "REPEAT", ["positions"])


def test_limits_given_as_flags_hold(stubs, pb):
    flags = ["--max_sequences=2", "--max_tokens=400", "--max_reply_bytes=3000", "--max_unary_reply_bytes=2000"]
    with Server(*flags) as server, channel(server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        with counted(
            server,
            {INVALID: 4, grpc.StatusCode.OK: 1},
            {"too_many_sequences": 1, "too_many_tokens": 1, "reply_too_large": 2},
        ):
            within = ask(pb, extend_seq_lens=[399, 1], seq_lens=[1, 1], outputs=number("ks"))
            assert_right(stub.Expand(within, timeout=TIMEOUT_S), within, "REPEAT", ["ks"])

            refusal = refused(stub.Expand, ask(pb, extend_seq_lens=[1] * 3, seq_lens=[1] * 3))
            assert (refusal.reason, refusal.value, refusal.limit) == ("TOO_MANY_SEQUENCES", 3, 2)
            refusal = refused(stub.Expand, ask(pb, extend_seq_lens=[400, 1], seq_lens=[1, 1]))
            assert (refusal.reason, refusal.value, refusal.limit) == ("TOO_MANY_TOKENS", 401, 400)
            refusal = refused(stub.Expand, ask(pb, extend_seq_lens=[300], seq_lens=[1]))
            assert (refusal.reason, refusal.limit) == ("REPLY_TOO_LARGE", 2000)
            refusal = refused(stub.Expand, ask(pb, extend_seq_lens=[400], seq_lens=[1]))
            assert (refusal.reason, refusal.limit) == ("REPLY_TOO_LARGE", 3000)


def test_metadata_over_their_limit_are_refused(server, stub, pb):
    with counted(server, {INVALID: 1, grpc.StatusCode.OK: 1}, {"metadata_too_large": 1}):
        stub.Expand(ask(pb, **LENGTHS), timeout=TIMEOUT_S, metadata=[("x-filler", "a" * 7000)])
        refusal = refused(stub.Expand, ask(pb, **LENGTHS), metadata=[("x-filler", "a" * 9000)])
    assert refusal.code == INVALID
    assert (refusal.reason, refusal.field, refusal.limit) == ("METADATA_TOO_LARGE", "metadata", 8192)
    assert refusal.value > 9000
    assert refusal.violated_fields == ["metadata"]


def test_a_message_over_max_receive_message_is_refused(server, stub, pb):
    lengths = [1] * 140_000
    request = ask(pb, extend_seq_lens=lengths, seq_lens=lengths)
    with counted(server, {grpc.StatusCode.RESOURCE_EXHAUSTED: 1, grpc.StatusCode.OK: 1}, {"message_too_large": 1}):
        refusal = refused(stub.Expand, request)
        stub.Expand(ask(pb, **LENGTHS), timeout=TIMEOUT_S)
    assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (refusal.reason, refusal.value, refusal.limit) == ("MESSAGE_TOO_LARGE", request.ByteSize(), 1 << 20)
    assert re.search(rf"\b{request.ByteSize()}\b.*\bmax_receive_message 1048576\b", refusal.message), "it names size and limit"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=["gzip", "deflate"])
def test_a_compressed_message_is_unimplemented(server, stub, pb, compression):
    request = ask(pb, extend_seq_lens=[1] * 1000, seq_lens=[9] * 1000)
    with counted(server, {grpc.StatusCode.UNIMPLEMENTED: 1}, {"compressed": 1}):
        refusal = refused(stub.Expand, request, compression=compression)
    assert refusal.code == grpc.StatusCode.UNIMPLEMENTED
    assert refusal.reason == "COMPRESSED"
    assert_right(stub.Expand(request, timeout=TIMEOUT_S), request, "REPEAT")


def assert_passing(refusal, reason):
    """It may be tried again after a delay, which is told in both ways."""
    assert refusal.code == grpc.StatusCode.UNAVAILABLE
    assert refusal.reason == reason
    assert refusal.violated_fields == [], "the request is not at fault"
    assert refusal.pushback_ms > 0
    assert refusal.retry_delay_s == refusal.pushback_ms / 1000


def test_a_full_queue_refuses_what_comes_next(stubs, pb):
    # The delay keeps the first request in the queue.
    with Server("--max_queue_requests=1", "--batch_delay=2s") as server, channel(server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        with counted(server, {grpc.StatusCode.OK: 1, grpc.StatusCode.UNAVAILABLE: 1}, {"queue_full": 1}):
            request = ask(pb, **LENGTHS)
            first = submit(server, stub.Expand, request, now_waiting=1)
            refusal = refused(stub.Expand, request)
            assert_right(first.result(), request, "REPEAT")
    assert_passing(refusal, "QUEUE_FULL")
    assert (refusal.value, refusal.limit) == (1, 1)


def test_a_busy_lane_behind_a_full_queue_refuses_and_answers_the_rest(stubs, pb):
    # The slowest backend, one lane and requests of 4 M tokens: the lane is busy while others arrive.
    flags = ["--backend=reference", "--lanes=1", "--completion_queues=4", "--max_queue_requests=1"]
    unary = ["--max_unary_reply_bytes=67108864"]
    request = ask(pb, extend_seq_lens=[1 << 20] * 3, seq_lens=[1 << 20] * 3, outputs=number("ks", "ke"))
    with Server(*flags, *unary) as server, contextlib.ExitStack() as stack:
        # Several connections, so that several of the server's threads take calls.
        channels = [stack.enter_context(channel(server.address, largest_reply=-1)) for _ in range(8)]
        refusals, answered = [], 0
        for _ in range(20):
            calls = [raw_expand(on).future(request.SerializeToString(), TIMEOUT_S) for on in channels]
            failed = [call.exception() for call in calls if call.exception() is not None]
            refusals += [refusal_of(error) for error in failed]
            answered += len(calls) - len(failed)
            if refusals:
                break
        assert refusals, f"{answered} calls, and the queue of one was never full"
        for refusal in refusals:
            assert_passing(refusal, "QUEUE_FULL")
        assert answered > 0
        scrape = server.settled_metrics()
        assert scrape.by("reason", "nsa_metadata_refused_total") == {"queue_full": len(refusals)}
        assert scrape.by("grpc_code", "grpc_server_handled_total") == {"OK": answered, "Unavailable": len(refusals)}


# 300 KB of lengths; arrays that grew as they were read may be twice as large.
MANY_SEQUENCES = {"extend_seq_lens": [1] * 37_500, "seq_lens": [9] * 37_500}
LENGTHS_BUDGET = 4 << 20


def test_lengths_that_wait_have_a_budget_and_what_comes_next_is_refused(stubs, pb):
    flags = [f"--lengths_budget_bytes={LENGTHS_BUDGET}", "--max_batch_sequences=1000000", "--caller_share=1"]
    with Server(*flags, "--batch_delay=4s") as server, channel(server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        request, small = ask(pb, **MANY_SEQUENCES), ask(pb, **LENGTHS)
        calls = [stub.Expand.future(request, timeout=TIMEOUT_S) for _ in range(20)]
        eventually(lambda: waiting(server) + sum(call.done() for call in calls) == 20, "each waits or is refused")
        admitted = [call for call in calls if not call.done()]
        held = server.metrics().total("nsa_metadata_lengths_bytes")
        assert LENGTHS_BUDGET / 2 - 300_000 < held <= LENGTHS_BUDGET
        assert 300_000 * len(admitted) <= held <= 600_000 * len(admitted)
        few = stub.Expand.future(small, timeout=TIMEOUT_S)
        for call in calls:
            if call in admitted:
                assert_right(call.result(), request, "REPEAT")
                continue
            refusal = refusal_of(call.exception())
            assert_passing(refusal, "BUDGET_FULL")
            assert 300_000 <= refusal.value <= 600_000 and refusal.limit == LENGTHS_BUDGET
            assert "lengths_budget_bytes" in refusal.message
        assert_right(few.result(), small, "REPEAT")
        eventually(lambda: server.metrics().total("nsa_metadata_lengths_bytes") == 0, "none are left")


def test_a_caller_has_its_share_of_the_lengths_that_wait_once_half_of_the_budget_is_in_use(stubs, pb):
    flags = [f"--lengths_budget_bytes={LENGTHS_BUDGET}", "--max_batch_sequences=1000000", "--batch_delay=4s"]
    with Server(*flags) as server, channel(server.address) as on:
        request = ask(pb, **MANY_SEQUENCES)
        calls = [stubs.rpc.MetadataServiceStub(on).Expand.future(request, timeout=TIMEOUT_S) for _ in range(20)]
        eventually(lambda: waiting(server) + sum(call.done() for call in calls) == 20, "each waits or is refused")
        held = server.metrics().total("nsa_metadata_lengths_bytes")
        assert LENGTHS_BUDGET / 2 < held <= LENGTHS_BUDGET / 2 + 600_000
        refusals = [refusal_of(call.exception()) for call in calls if call.done()]
        assert refusals
        for refusal in refusals:
            assert_passing(refusal, "CALLER_SHARE")
            assert refusal.limit == LENGTHS_BUDGET / 4
            assert "lengths_budget_bytes" in refusal.message


@pytest.mark.parametrize("budget", [6 << 20, 1 << 20], ids=["room for an item of each stream", "none"])
def test_streams_wait_for_room_for_lengths(stubs, pb, budget):
    request = ask(pb, **MANY_SEQUENCES)
    # One caller, whose share is a quarter: it binds none of those that wait.
    flags = [f"--lengths_budget_bytes={budget}", "--max_batch_sequences=1000000", "--batch_delay=20ms"]
    with Server(*flags, "--lanes=1") as server, contextlib.ExitStack() as stack:
        streams = []
        for _ in range(4):
            stub = stubs.rpc.MetadataServiceStub(stack.enter_context(channel(server.address)))
            items = [pb.ExpandStreamRequest(expand=request) for _ in range(16)]
            for i, item in enumerate(items):
                item.expand.request_id = i
            streams.append(stub.ExpandStream(iter(items), timeout=TIMEOUT_S))
        most, refusals = 0, []
        for stream in streams:
            answered = []
            for answer in stream:
                most = max(most, server.metrics().total("nsa_metadata_lengths_bytes"))
                refusals += [answer.refusal] if answer.HasField("refusal") else []
                answered.append(answer.expansion.request_id or answer.refusal.request_id)
            assert sorted(answered) == list(range(16)), "one answer for each"
        assert most <= budget
        # An item is refused only where all streams' next ones, read at the same time, pass the budget.
        assert {pb.RefusalReason.Name(refusal.reason) for refusal in refusals} <= {"REFUSAL_REASON_BUDGET_FULL"}
        assert all(refusal.retry_after.ToMilliseconds() > 0 for refusal in refusals)
        if budget == 6 << 20:
            assert refusals == []


# A reply of 1 MB fits, two don't.
SMALL_BUDGET = [
    "--max_reply_bytes=1048576",
    "--max_unary_reply_bytes=1048576",
    "--output_budget_bytes=1114112",
    "--caller_share=1",
]


def test_a_used_budget_refuses_what_comes_next(stubs, pb):
    with Server(*SMALL_BUDGET, "--batch_delay=2s") as server, channel(server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        with counted(server, {grpc.StatusCode.OK: 2, grpc.StatusCode.UNAVAILABLE: 1}, {"budget_full": 1}):
            request = ask(pb, **MEGABYTE)
            first = submit(server, stub.Expand, request, now_waiting=1)
            refusal = refused(stub.Expand, request)
            small = ask(pb, **LENGTHS)
            second = submit(server, stub.Expand, small, now_waiting=2)
            assert_right(first.result(), request, "REPEAT", ["positions"])
            assert_right(second.result(), small, "REPEAT")
        assert_passing(refusal, "BUDGET_FULL")
        assert refusal.limit == 1114112
        assert refusal.value >= 1_000_000
        eventually(lambda: server.metrics().total("nsa_metadata_output_blocks_in_use") == 0, "the blocks are back")


@pytest.mark.parametrize("path", [
    "/nsa.metadata.v1.MetadataService/GetServerInfo",
    *(f"/inference.GRPCInferenceService/{method}" for method in ("ServerLive", "ServerReady", "ServerMetadata")),
])
def test_a_question_that_can_not_be_decoded_is_refused(server, path):
    with RawConnection(server.address) as peer:
        answer = peer.answer(peer.call(frame(b"\xff\xff"), path=path))
    assert answer.status == INVALID.value[0], answer.headers


def test_a_slow_reader_holds_its_part_of_the_budget_until_it_reads(stubs, pb):
    with (
        Server(*SMALL_BUDGET) as server,
        channel(server.address) as on,
        RawConnection(server.address, window=0) as slow_reader,
    ):
        stub = stubs.rpc.MetadataServiceStub(on)
        request = ask(pb, **MEGABYTE)
        stream = slow_reader.call(frame(request.SerializeToString()))
        slow_reader.wait_for_headers(stream)
        refusal = refused(stub.Expand, request)
        assert_passing(refusal, "BUDGET_FULL")

        slow_reader.open_window(stream, 2 << 20)
        answer = slow_reader.answer(stream)
        assert answer.status == 0
        assert_right(pb.ExpandResponse.FromString(bytes(answer.data[5:])), request, "REPEAT", ["positions"])
        eventually(lambda: server.metrics().total("nsa_metadata_output_blocks_in_use") == 0, "the blocks are back")
        assert_right(stub.Expand(request, timeout=TIMEOUT_S), request, "REPEAT", ["positions"])
        high_water = server.metrics().total("nsa_metadata_output_blocks_high_water")
        assert high_water <= server.metrics().total("nsa_metadata_output_blocks")


def test_a_batch_that_waits_for_others_is_closed_in_time_for_its_first_deadline(stubs, pb):
    with Server("--batch_delay=20s") as server, channel(server.address) as on:
        request = ask(pb, **LENGTHS)

        def answered():
            # It is closed a moment before; a machine that has much to do may be late.
            try:
                return stubs.rpc.MetadataServiceStub(on).Expand(request, timeout=0.5)
            except grpc.RpcError as late:
                assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED

        assert_right(eventually(answered, "one is answered in time"), request, "REPEAT")
        closed = server.settled_metrics().by("reason", "nsa_metadata_batch_closed_total")
        assert closed.keys() == {"deadline"}


def test_nothing_is_launched_for_a_caller_that_gave_up(stubs, pb):
    with Server("--batch_delay=1s") as server, channel(server.address) as on:
        call = submit(server, stubs.rpc.MetadataServiceStub(on).Expand, ask(pb, **LENGTHS), now_waiting=1)
        assert call.cancel()
        eventually(lambda: waiting(server) == 0, "the queue is empty")
        scrape = server.settled_metrics()
        assert scrape.by("stage", "nsa_metadata_cancelled_total") == {"queue": 1}
        assert scrape.by("reason", "nsa_metadata_refused_total") == {"cancelled": 1}
        assert scrape.total("nsa_metadata_kernel_launches_total") == 0

"""One caller among others: what it may use while the server is busy."""

import contextlib

import grpc

from calls import TIMEOUT_S, channel, refusal_of
from programs import Server, eventually
from raw_http2 import RawConnection, frame
from reference import assert_right

# A reply of 400,000 bytes: 7 blocks of the 32 of this budget.
REPLY = {"extend_seq_lens": [50_000], "seq_lens": [50_000], "nsa_index_topk": 2048}
BUDGET = ["--max_reply_bytes=1048576", "--max_unary_reply_bytes=1048576", "--output_budget_bytes=2097152"]
NAMED = ["--trusted_proxies=127.0.0.0/8", "--caller_metadata=x-caller"]


def slow_reader(stack, server, pb, caller):
    """A call by `caller` whose reply stays in the server."""
    connection = stack.enter_context(RawConnection(server.address, window=0))
    request = frame(pb.ExpandRequest(**REPLY).SerializeToString())
    connection.wait_for_headers(connection.call(request, headers=[("x-caller", caller)]))


def outcome(stub, pb, caller):
    """The reason of the refusal of a call by `caller`, or None."""
    request = pb.ExpandRequest(**REPLY)
    try:
        assert_right(stub.Expand(request, timeout=TIMEOUT_S, metadata=[("x-caller", caller)]), request, "REPEAT")
    except grpc.RpcError as error:
        refusal = refusal_of(error)
        assert refusal.code == grpc.StatusCode.UNAVAILABLE and refusal.pushback_ms > 0
        return refusal.reason


def test_a_caller_that_holds_much_is_refused_more_while_others_are_served(stubs, pb):
    with Server(*BUDGET, *NAMED) as server, channel(server.address) as on, contextlib.ExitStack() as stack:
        stub = stubs.rpc.MetadataServiceStub(on)
        slow_reader(stack, server, pb, "greedy")
        slow_reader(stack, server, pb, "greedy")
        assert outcome(stub, pb, "greedy") is None, "less than half of the budget is in use"
        slow_reader(stack, server, pb, "greedy")
        assert outcome(stub, pb, "greedy") == "CALLER_SHARE"
        assert outcome(stub, pb, "modest") is None
        assert server.metrics().by("reason", "nsa_metadata_refused_total") == {"caller_share": 1}


def test_without_a_trusted_proxy_nobody_chooses_a_name(stubs, pb):
    with Server(*BUDGET) as server, channel(server.address) as on, contextlib.ExitStack() as stack:
        stub = stubs.rpc.MetadataServiceStub(on)
        for caller in ("a", "b", "c"):
            slow_reader(stack, server, pb, caller)
        assert outcome(stub, pb, "d") == "CALLER_SHARE", "they are all of one address"


def test_what_a_caller_held_is_its_again_once_it_is_sent(stubs, pb):
    with Server(*BUDGET, *NAMED) as server, channel(server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                slow_reader(stack, server, pb, "greedy")
            assert outcome(stub, pb, "greedy") == "CALLER_SHARE"
        eventually(lambda: server.metrics().total("nsa_metadata_output_blocks_in_use") == 0, "the blocks are back")
        assert outcome(stub, pb, "greedy") is None

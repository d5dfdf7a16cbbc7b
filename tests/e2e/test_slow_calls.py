"""Slow calls in the log, as text and as JSON: where their time went, for whom, and nothing that the caller sent."""

import collections
import json
import queue
import re
import urllib.request

import grpc
import pytest

from calls import TIMEOUT_S, channel, refusal_of
from programs import TEST_SERVER, Server, eventually
from reference import MODES

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
# A batch takes longer than what counts as slow.
SLOW = ["--batch_time=30ms", "--lanes=1", "--slow_call_threshold=20ms"]
STAGES = {f"{stage}_s" for stage in ("parse", "admit", "queue", "pack", "device", "frame", "send")}


def request(pb):
    return pb.ExpandRequest(request_id=987654321, extend_seq_lens=[3, 2], seq_lens=[10, 4], nsa_index_topk=987654, mode=MODES["CAUSAL"])


def slow_lines(log):
    return [line for line in log.splitlines() if "slow call" in line]


def text_fields(line):
    return dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line))


def call(server, stubs, pb, *, metadata=None, count=1):
    with channel(server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        for pending in [stub.Expand.future(request(pb), metadata=metadata, timeout=TIMEOUT_S) for _ in range(count)]:
            pending.result()


def test_a_slow_call_is_logged_with_its_stages_its_batch_its_caller_and_its_trace(stubs, pb):
    with Server(*SLOW, program=TEST_SERVER) as server:
        call(server, stubs, pb, metadata=[("traceparent", TRACEPARENT)])
        line = eventually(lambda: slow_lines(server.log), "the call is logged")[0]
    fields = text_fields(line)
    assert fields["method"] == "Expand" and fields["outcome"] == "ok" and fields["traceparent"] == TRACEPARENT, line
    assert fields["caller"].startswith("ipv4:127.0.0.1:"), line
    assert (fields["sequences"], fields["tokens"], fields["batch_requests"], fields["batch_tokens"]) == ("2", "5", "1", "5"), line
    assert STAGES <= fields.keys(), line
    assert float(fields["device_s"]) >= 0.03, line
    assert sum(float(fields[stage]) for stage in STAGES) == pytest.approx(float(fields["seconds"]), rel=0.2), line
    assert "987654" not in line, "the caller's data"


def test_quick_calls_are_not_logged_and_with_0_none(stubs, pb):
    for flags in (["--slow_call_threshold=10s"], ["--slow_call_threshold=0"]):
        with Server("--batch_time=30ms", *flags, program=TEST_SERVER) as server:
            call(server, stubs, pb)
            server.stop()
            assert slow_lines(server.log) == []


def test_an_item_of_a_stream_is_logged_too(stubs, pb):
    with Server(*SLOW, program=TEST_SERVER) as server, channel(server.address) as on:
        answers = stubs.rpc.MetadataServiceStub(on).ExpandStream(iter([pb.ExpandStreamRequest(expand=request(pb))]), timeout=TIMEOUT_S)
        assert len(list(answers)) == 1
        line = eventually(lambda: slow_lines(server.log), "the item is logged")[0]
    assert text_fields(line)["method"] == "ExpandStream", line
    assert float(text_fields(line)["device_s"]) >= 0.03, line


def test_one_that_was_refused_says_why(stubs, pb):
    bad = pb.ExpandRequest(extend_seq_lens=[1], seq_lens=[-1], nsa_index_topk=1)
    with Server("--slow_call_threshold=1us") as server, channel(server.address) as on:
        with pytest.raises(grpc.RpcError) as refused:
            stubs.rpc.MetadataServiceStub(on).Expand(bad, timeout=TIMEOUT_S)
        line = eventually(lambda: slow_lines(server.log), "the call is logged")[0]
    assert text_fields(line)["outcome"] == refusal_of(refused.value).reason.lower(), line
    assert not STAGES & text_fields(line).keys(), "nothing was computed"


def test_one_whose_deadline_passed_in_the_queue_says_how_long_it_waited(stubs, pb):
    flags = ["--batch_time=2s", "--lanes=1", "--completion_queues=2", "--slow_call_threshold=20ms"]
    with Server(*flags, program=TEST_SERVER) as server, channel(server.address) as first, channel(server.address) as second:
        answered = stubs.rpc.MetadataServiceStub(first).Expand.future(request(pb), timeout=TIMEOUT_S)
        eventually(lambda: server.metrics().total("nsa_metadata_admitted_total") == 1, "it is admitted, to the only lane")
        grpc.channel_ready_future(second).result(TIMEOUT_S)  # or the connection may take all of its time
        with pytest.raises(grpc.RpcError):
            stubs.rpc.MetadataServiceStub(second).Expand(request(pb), timeout=0.5)
        answered.result()
        line = eventually(lambda: [line for line in slow_lines(server.log) if "outcome=deadline" in line], "the call is logged")[0]
    fields = text_fields(line)
    assert float(fields["queue_s"]) >= 0.1 and fields["tokens"] == "5", line
    assert not {"device_s", "kernel", "batch_requests"} & fields.keys(), "nothing was computed"


def test_a_streams_item_whose_caller_left_is_logged_too(stubs, pb):
    flags = ["--batch_time=1s", "--lanes=1", "--completion_queues=2", "--slow_call_threshold=20ms"]
    items = queue.SimpleQueue()
    items.put(pb.ExpandStreamRequest(expand=request(pb)))
    with Server(*flags, program=TEST_SERVER) as server, channel(server.address) as first, channel(server.address) as second:
        answered = stubs.rpc.MetadataServiceStub(first).Expand.future(request(pb), timeout=TIMEOUT_S)
        eventually(lambda: server.metrics().total("nsa_metadata_admitted_total") == 1, "it is admitted, to the only lane")
        stream = stubs.rpc.MetadataServiceStub(second).ExpandStream(iter(items.get, None), timeout=TIMEOUT_S)
        eventually(lambda: server.metrics().total("nsa_metadata_admitted_total") == 2, "the item waits behind it")
        stream.cancel()
        items.put(None)
        answered.result()
        line = eventually(lambda: [line for line in slow_lines(server.log) if "outcome=cancelled" in line], "the item is logged")[0]
    assert text_fields(line)["method"] == "ExpandStream", line


def test_a_caller_over_its_share_is_named_once_a_second(stubs, pb):
    flags = ["--batch_time=500ms", "--lanes=1", "--max_queue_requests=10", "--caller_share=0.1"]
    with Server(*flags, program=TEST_SERVER) as server, channel(server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        pending = [stub.Expand.future(request(pb), timeout=TIMEOUT_S) for _ in range(30)]
        assert any(one.code() == grpc.StatusCode.UNAVAILABLE for one in pending)
        lines = eventually(lambda: [line for line in server.log.splitlines() if "caller over its share" in line], "the caller is named")
    assert 'caller=ipv4:127.0.0.1:' in lines[0] and len(lines) <= 3, lines


@pytest.mark.parametrize("value", ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0", TRACEPARENT.upper(), "x" * 55, 'y" outcome=forged'])
def test_a_traceparent_of_another_form_is_left_out(stubs, pb, value):
    with Server(*SLOW, program=TEST_SERVER) as server:
        call(server, stubs, pb, metadata=[("traceparent", value)])
        line = eventually(lambda: slow_lines(server.log), "the call is logged")[0]
    assert "traceparent" not in line and value not in line


def test_ten_lines_a_second_at_most_and_the_next_says_how_many_there_were(stubs, pb):
    # One batch, so that all end in the same second, or in two.
    with Server("--batch_time=150ms", "--lanes=1", "--slow_call_threshold=20ms", "--batch_delay=50ms", program=TEST_SERVER) as server:
        call(server, stubs, pb, count=60)

        def later():
            call(server, stubs, pb)
            return [line for line in slow_lines(server.log) if "not_logged_before" in line]

        line = eventually(later, "the suppressed ones are counted")[0]
        seconds = collections.Counter(one.split(".")[0] for one in slow_lines(server.log))
    assert int(text_fields(line)["not_logged_before"]) >= 30, line
    assert max(seconds.values()) <= 10, seconds


def test_the_json_log_is_an_object_a_line(stubs, pb):
    with Server(*SLOW, "--log_format=json", program=TEST_SERVER) as server:
        call(server, stubs, pb, metadata=[("traceparent", TRACEPARENT)])
        eventually(lambda: slow_lines(server.log), "the call is logged")
        server.stop()
        lines = [json.loads(line) for line in server.log.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines), lines
    (slow,) = [line for line in lines if line["message"] == "slow call"]
    assert slow["level"] == "warning" and slow["traceparent"] == TRACEPARENT
    assert slow["device_s"] >= 0.03 and slow["batch_requests"] == 1 and STAGES <= slow.keys(), slow
    assert any(line["message"].startswith("serving: grpc=") for line in lines)
    assert lines[-1]["message"] == "drained"


def status_of(server):
    with urllib.request.urlopen(f"http://{server.metrics_address}/status.json", timeout=TIMEOUT_S) as reply:
        assert reply.headers["Content-Type"] == "application/json"
        return json.load(reply)


def test_the_status_has_the_last_slow_calls(stubs, pb):
    with Server(*SLOW, program=TEST_SERVER) as server:
        call(server, stubs, pb, metadata=[("traceparent", TRACEPARENT)])
        slow = eventually(lambda: status_of(server)["slowCalls"], "the call is there")[0]
    assert slow["traceparent"] == TRACEPARENT and slow["method"] == "Expand" and slow["batchRequests"] == 1
    assert slow["stages"]["device"] >= 30 and slow["total"] >= slow["stages"]["device"]

"""The Python client's streams, against the server as it is shipped."""

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from nsa_metadata import AsyncClient, Client, DeadlineExceeded, Error, Refused, Unreachable
from nsa_metadata.enums import REASONS
from programs import Server, eventually
from reference import OUTPUTS, expand

LENGTHS = ([3, 2], [10, 4])


@pytest.fixture(scope="module")
def server():
    with Server("--backend=cpu") as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.address) as on:
        yield on


def assert_right(answer, extend_seq_lens, seq_lens, mode="causal", outputs=OUTPUTS[:2], top_k=2048):
    expected = expand(extend_seq_lens, seq_lens, top_k, mode.upper())
    for name in outputs:
        assert np.array_equal(getattr(answer, name), expected[name]), name
    assert answer.total_tokens == sum(extend_seq_lens)


def test_answers_find_their_requests_whatever_their_order(client):
    random = np.random.default_rng(1)
    requests = [(random.integers(0, 9, n), random.integers(9, 900, n)) for n in random.integers(0, 50, 500)]
    with client.open_stream() as stream:
        futures = [stream.send(q, s, nsa_index_topk=64, mode="causal", outputs=OUTPUTS) for q, s in requests]
        for future, (q, s) in zip(futures, requests, strict=True):
            assert_right(future.result(20), q, s, outputs=OUTPUTS, top_k=64)


def test_an_answer_in_chunks_is_put_together(client):
    q, s = [400_000, 7, 300_000], [500_000, 3, 300_001]
    with client.open_stream() as stream:
        answer = stream.send(q, s, nsa_index_topk=2048, mode="causal", outputs=OUTPUTS, request_id=5).result(30)
    assert answer.request_id == 5
    assert_right(answer, q, s, outputs=OUTPUTS)


def test_a_bad_item_is_refused_and_the_others_are_answered(client):
    with client.open_stream() as stream:
        bad = stream.send([3, -2], [10, 4], nsa_index_topk=8, mode="causal")
        good = stream.send(*LENGTHS, nsa_index_topk=8, mode="causal")
        with pytest.raises(Refused) as refused:
            bad.result(20)
        assert_right(good.result(20), *LENGTHS, top_k=8)
    assert (refused.value.reason, refused.value.field, refused.value.value) == ("NEGATIVE_LENGTH", "extend_seq_lens[1]", -2)
    assert refused.value.retry_after is None and "-2" in str(refused.value)


def test_reasons_are_the_protos(pb):
    numbers = {value.number: value.name.removeprefix("REFUSAL_REASON_") for value in pb.RefusalReason.DESCRIPTOR.values}
    assert REASONS == {number: name for number, name in numbers.items() if number}


def test_what_the_wire_cannot_hold_and_ids_in_flight_are_not_sent():
    with Server("--batch_delay=3s") as waiting, Client(waiting.address) as on:
        stream = on.open_stream()
        stream.send(*LENGTHS, nsa_index_topk=8, mode="causal", request_id=7)
        with pytest.raises(ValueError, match="request_id is 7, which is in flight"):
            stream.send(*LENGTHS, nsa_index_topk=8, mode="causal", request_id=7)
        with pytest.raises(ValueError, match=r"seq_lens\[0\]"):
            stream.send([1], [1 << 40], nsa_index_topk=8, mode="causal")
        stream.close(timeout=0)
        with pytest.raises(ValueError, match="the stream is closed"):
            stream.send(*LENGTHS, nsa_index_topk=8, mode="causal")


def test_an_items_timeout_is_the_servers_to_keep(client):
    with client.open_stream() as stream:
        late = stream.send(*LENGTHS, nsa_index_topk=8, mode="causal", timeout=-1)
        assert_right(stream.send(*LENGTHS, nsa_index_topk=8, mode="causal", timeout=20).result(20), *LENGTHS, top_k=8)
        with pytest.raises(DeadlineExceeded):
            late.result(20)


def test_cancelling_a_future_cancels_the_item():
    with Server("--batch_delay=2s") as waiting, Client(waiting.address) as on, on.open_stream() as stream:
        future = stream.send(*LENGTHS, nsa_index_topk=8, mode="causal")
        eventually(lambda: waiting.metrics().total("nsa_metadata_queue_requests") == 1, "it waits")
        assert future.cancel()
        eventually(lambda: waiting.metrics().total("nsa_metadata_cancelled_total", stage="queue") == 1, "it is not computed")
        assert_right(stream.send(*LENGTHS, nsa_index_topk=8, mode="causal").result(20), *LENGTHS, top_k=8)


def test_closing_waits_for_the_answers_but_no_longer_than_it_is_told():
    with Server("--batch_delay=3s") as waiting, Client(waiting.address) as on:
        stream = on.open_stream()
        futures = [stream.send(*LENGTHS, nsa_index_topk=8, mode="causal") for _ in range(3)]
        stream.close(timeout=0.2)
        for future in futures:
            with pytest.raises(DeadlineExceeded):
                future.result(0)
    with Server("--batch_delay=300ms") as soon, Client(soon.address) as on:
        with on.open_stream() as stream:
            future = stream.send(*LENGTHS, nsa_index_topk=8, mode="causal")
        assert future.done()
        assert_right(future.result(), *LENGTHS, top_k=8)


def test_a_stream_without_items_ends(client):
    client.open_stream().close()


def test_items_outlive_the_server_they_were_sent_to():
    with Server("--batch_delay=20s") as first, Server("--backend=cpu") as second:
        with Client(f"ipv4:{first.address},{second.address}") as on:
            for _ in range(10):  # streams go round the two
                stream = on.open_stream()
                futures = [stream.send(*LENGTHS, nsa_index_topk=8, mode="causal") for _ in range(20)]
                eventually(lambda: futures[0].done() or first.metrics().total("nsa_metadata_queue_requests") == 20, "they are somewhere")
                if not futures[0].done():
                    break
                stream.close()
            assert not futures[0].done(), "no stream went to the first"
            first.kill()
            for future in futures:
                assert_right(future.result(20), *LENGTHS, top_k=8)
            stream.close()


@pytest.fixture
def shutting_down(server):
    """A server whose first streams end CANCELLED once an item came, as those may that reach one in its shutdown; what comes after goes to ours."""
    streams = []

    def expand_stream(messages, context):
        streams.append(next(messages))
        if len(streams) < 3:
            context.abort(grpc.StatusCode.CANCELLED, "shut down")
        with grpc.insecure_channel(server.address) as channel:
            yield from channel.stream_stream("/nsa.metadata.v1.MetadataService/ExpandStream")(itertools.chain(streams[-1:], messages))

    handlers = {"ExpandStream": grpc.stream_stream_rpc_method_handler(expand_stream)}
    running = grpc.server(ThreadPoolExecutor(4))
    running.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("nsa.metadata.v1.MetadataService", handlers)])
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield f"127.0.0.1:{port}"
    running.stop(None)


def test_items_outlive_a_stream_that_a_shutdown_cancelled(shutting_down):
    with Client(shutting_down) as on, on.open_stream() as stream:
        assert_right(stream.send(*LENGTHS, nsa_index_topk=8, mode="causal").result(20), *LENGTHS, top_k=8)


def test_a_cancelled_item_is_not_sent_again():
    with Server("--batch_delay=20s") as first, Client(first.address) as on:
        stream = on.open_stream()
        future = stream.send(*LENGTHS, nsa_index_topk=8, mode="causal", request_id=7)
        eventually(lambda: first.metrics().total("nsa_metadata_queue_requests") == 1, "it waits")
        stream.cancel(7)
        first.kill()
        with pytest.raises(Error) as told:
            future.result(20)
        assert told.value.code is grpc.StatusCode.CANCELLED
        stream.close()


def test_nobody_there_is_unreachable_after_all_attempts():
    with Server("--backend=cpu") as gone:
        address = gone.address
    with Client(address, max_attempts=2) as on, on.open_stream() as stream:
        with pytest.raises(Unreachable):
            stream.send(*LENGTHS, nsa_index_topk=8, mode="causal").result(20)


def test_many_threads_may_send_over_one(client):
    outcomes = []
    with client.open_stream() as stream:

        def go(first):
            for i in range(first, first + 100):
                outcomes.append((i, stream.send([i % 7], [50], nsa_index_topk=8, mode="causal", request_id=i)))

        threads = [threading.Thread(target=go, args=(first,)) for first in range(1, 401, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, future in outcomes:
            answer = future.result(20)
            assert answer.request_id == i and answer.total_tokens == i % 7
    assert len(outcomes) == 400


def test_closing_comes_after_what_was_sent_before():
    # One item at a time finds room in the server.
    with Server("--backend=cpu", "--max_stream_inflight=1") as narrow, Client(narrow.address) as on:
        stream = on.open_stream()
        futures = [stream.send([i % 7], [50], nsa_index_topk=8, mode="causal") for i in range(500)]
        stream.close()
        assert [future.result(0).total_tokens for future in futures] == [i % 7 for i in range(500)]


def test_futures_can_be_awaited(client):
    async def go():
        with client.open_stream() as stream:
            return await asyncio.gather(*(asyncio.wrap_future(stream.send([i], [50], nsa_index_topk=8, mode="causal")) for i in range(50)))

    assert [answer.total_tokens for answer in asyncio.run(go())] == list(range(50))


def test_asyncios_stream_answers_what_it_is_sent(server):
    async def go():
        async with AsyncClient(server.address) as on, on.open_stream() as stream:
            # More than find room at once.
            answers = [stream.expand([i % 7], [50], nsa_index_topk=8, mode="causal", outputs=OUTPUTS) for i in range(500)]
            return await asyncio.gather(*answers)

    for i, answer in enumerate(asyncio.run(go())):
        assert_right(answer, [i % 7], [50], outputs=OUTPUTS, top_k=8)


def test_asyncios_stream_raises_what_a_future_would(server):
    async def go(address):
        async with AsyncClient(address) as on, on.open_stream() as stream:
            with pytest.raises(Refused) as refused:
                await stream.expand([3, -2], [10, 4], nsa_index_topk=8, mode="causal")
            with pytest.raises(DeadlineExceeded):
                await stream.expand(*LENGTHS, nsa_index_topk=8, mode="causal", timeout=-1)
        return refused.value.reason

    assert asyncio.run(go(server.address)) == "NEGATIVE_LENGTH"


def test_cancelling_a_task_of_asyncios_stream_cancels_the_item():
    async def go(waiting):
        async with AsyncClient(waiting.address) as on, on.open_stream() as stream:
            task = asyncio.create_task(stream.expand(*LENGTHS, nsa_index_topk=8, mode="causal"))
            await asyncio.to_thread(
                eventually, lambda: waiting.metrics().total("nsa_metadata_queue_requests") == 1, "it waits"
            )
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with Server("--batch_delay=2s") as waiting:
        asyncio.run(go(waiting))
        eventually(lambda: waiting.metrics().total("nsa_metadata_cancelled_total", stage="queue") == 1, "it is not computed")


def test_a_closed_client_ends_its_streams_items():
    with Server("--batch_delay=3s") as waiting:
        on = Client(waiting.address)
        stream = on.open_stream()
        future = stream.send(*LENGTHS, nsa_index_topk=8, mode="causal")
        eventually(lambda: waiting.metrics().total("nsa_metadata_queue_requests") == 1, "it waits")
        on.close()
        with pytest.raises(Error):
            future.result(20)
        with pytest.raises(Error, match="closed"):
            stream.send(*LENGTHS, nsa_index_topk=8, mode="causal").result(20)
        stream.close()

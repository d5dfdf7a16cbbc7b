"""Bad requests among good ones, in the same batches: the bad ones are refused and the good ones never notice."""

import contextlib
import random

import grpc
import pytest

from calls import TIMEOUT_S, channel, raw_expand, refusal_of
from programs import Server
from reference import INT32_MAX, MODES, OUTPUT_NUMBERS, OUTPUTS, assert_right

GOOD, BAD, CHANNELS = 1000, 100, 4


def good_request(pb, rng, request_id):
    """A request, the name of its mode and the names of its outputs."""
    num_sequences = rng.choice([1, 2, 7, 64, 300])
    mode = rng.choice(list(MODES))
    outputs = rng.sample(OUTPUTS, rng.randint(1, len(OUTPUTS)))
    request = pb.ExpandRequest(
        request_id=request_id,
        extend_seq_lens=[rng.choice([0, 1, rng.randint(2, 40)]) for _ in range(num_sequences)],
        seq_lens=[rng.randint(0, 100_000) for _ in range(num_sequences)],
        nsa_index_topk=rng.choice([1, 64, 2048]),
        mode=MODES[mode],
        outputs=[OUTPUT_NUMBERS[name] for name in outputs],
    )
    return request, mode, outputs


def bad_request(pb, rng):
    """The bytes of a request and the reason of its refusal."""
    two = {"extend_seq_lens": [3, 2], "nsa_index_topk": 2048}
    wrong = {
        "LENGTHS_DIFFER": pb.ExpandRequest(**two, seq_lens=[10]),
        "NEGATIVE_LENGTH": pb.ExpandRequest(**two, seq_lens=[10, -4]),
        "TOP_K_TOO_SMALL": pb.ExpandRequest(extend_seq_lens=[1], seq_lens=[1]),
        "UNKNOWN_ENUM": pb.ExpandRequest(**two, seq_lens=[10, 4], mode=9),
        "TOO_MANY_TOKENS": pb.ExpandRequest(extend_seq_lens=[INT32_MAX], seq_lens=[1], nsa_index_topk=1),
        "OUTPUT_OVERFLOW": pb.ExpandRequest(**two, seq_lens=[INT32_MAX] * 2, outputs=[OUTPUT_NUMBERS["ke"]]),
        "REPLY_TOO_LARGE": pb.ExpandRequest(extend_seq_lens=[4_000_000], seq_lens=[1], nsa_index_topk=1),
    }
    reason = rng.choice([*wrong, "MALFORMED"])
    return (b"\xff" * 20 if reason == "MALFORMED" else wrong[reason].SerializeToString()), reason


@pytest.mark.parametrize("delay", ["0", "5ms"], ids=["batches as they come", "batches filled for 5 ms"])
def test_a_hundred_bad_requests_leave_a_thousand_good_ones_alone(pb, delay):
    rng = random.Random(20_240_601)
    kinds = rng.sample(["good"] * GOOD + ["bad"] * BAD, GOOD + BAD)
    sent = []
    with Server(f"--batch_delay={delay}") as server, contextlib.ExitStack() as stack:
        methods = [raw_expand(stack.enter_context(channel(server.address))) for _ in range(CHANNELS)]
        for request_id, kind in enumerate(kinds):
            if kind == "good":
                what = good_request(pb, rng, request_id)
                body = what[0].SerializeToString()
            else:
                body, what = bad_request(pb, rng)
            sent.append((kind, what, methods[request_id % CHANNELS].future(body, TIMEOUT_S)))

        reasons = {}
        for kind, what, call in sent:
            if kind == "good":
                request, mode, outputs = what
                assert_right(pb.ExpandResponse.FromString(call.result()), request, mode, outputs)
            else:
                error = call.exception()
                assert error is not None, f"a request to be refused with {what} was answered"
                refusal = refusal_of(error)
                assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, what)
                reasons[what.lower()] = reasons.get(what.lower(), 0) + 1

        scrape = server.settled_metrics()
        assert scrape.by("reason", "nsa_metadata_refused_total") == reasons
        assert scrape.by("grpc_code", "grpc_server_handled_total") == {"OK": GOOD, "InvalidArgument": BAD}
        if delay != "0":
            assert scrape.total("nsa_metadata_kernel_launches_total") < GOOD, "requests shared batches"

"""The Open Inference Protocol, by the client that Triton's users have, unmodified, sync and asyncio."""

import asyncio
import json
import re
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as sync_client
import tritonclient.grpc.aio as async_client
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from calls import TIMEOUT_S, refusal_of
from programs import REPOSITORY, Server, eventually
from reference import OUTPUTS, expand

MODELS = {"nsa_metadata": "REPEAT", "nsa_metadata_causal": "CAUSAL"}
GOLDEN = [json.loads(line) for line in (REPOSITORY / "tests" / "golden" / "expand.jsonl").read_text().splitlines()]
EXTEND_SEQ_LENS, SEQ_LENS, TOP_K = [3, 0, 2], [10, 7, 4], 8


@pytest.fixture(scope="module")
def server():
    with Server("--backend=cpu") as running:
        yield running


@pytest.fixture
def client(server):
    with sync_client.InferenceServerClient(server.address) as on:
        yield on


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as on:
        yield service_pb2_grpc.GRPCInferenceServiceStub(on)


def tensor(name, values, module=sync_client):
    made = module.InferInput(name, [len(values)], "INT32")
    made.set_data_from_numpy(np.array(values, dtype=np.int32))
    return made


def inputs_of(extend_seq_lens=EXTEND_SEQ_LENS, seq_lens=SEQ_LENS, top_k=TOP_K):
    return [tensor("extend_seq_lens", extend_seq_lens), tensor("seq_lens", seq_lens), tensor("nsa_index_topk", [top_k])]


def request_of(**changed):
    """A good request, as a message, to be spoilt."""
    request = service_pb2.ModelInferRequest(model_name="nsa_metadata")
    for name, values in {"extend_seq_lens": EXTEND_SEQ_LENS, "seq_lens": SEQ_LENS, "nsa_index_topk": [TOP_K]}.items():
        request.inputs.add(name=name, datatype="INT32", shape=[len(values)])
        request.raw_input_contents.append(np.array(values, dtype="<i4").tobytes())
    for name, value in changed.items():
        setattr(request, name, value)
    return request


def assert_right(result, mode, outputs=OUTPUTS, extend_seq_lens=EXTEND_SEQ_LENS, seq_lens=SEQ_LENS, top_k=TOP_K):
    expected = expand(extend_seq_lens, seq_lens, top_k, mode)
    assert [output.name for output in result.get_response().outputs] == [name for name in OUTPUTS if name in outputs]
    for name in outputs:
        got = result.as_numpy(name)
        assert got.dtype == np.int32 and np.array_equal(got, expected[name]), f"{name}: got {got}, want {expected[name]}"


# What it is


def test_it_is_live_and_ready(client):
    assert client.is_server_live() and client.is_server_ready()
    assert all(client.is_model_ready(model) and client.is_model_ready(model, "1") for model in MODELS)
    assert not client.is_model_ready("resnet") and not client.is_model_ready("nsa_metadata", "2")


def test_a_server_that_drains_is_live_and_not_ready():
    with Server("--backend=cpu", "--lame_duck=20s") as draining:
        with sync_client.InferenceServerClient(draining.address) as on:
            assert on.is_server_ready()
            draining.terminate()
            eventually(lambda: not on.is_server_ready(), "it is not ready")
            assert on.is_server_live() and not on.is_model_ready("nsa_metadata")
        draining.kill()


def test_it_says_what_it_is(server, client):
    metadata = client.get_server_metadata()
    assert metadata.name == "nsa-metadata-server"
    assert f'version="{metadata.version}"' in server.get("/metrics")[1]
    assert set(metadata.extensions) == {"model_configuration", "statistics"}


@pytest.mark.parametrize("model", MODELS)
def test_it_says_what_its_models_take_and_give(client, model):
    metadata = client.get_model_metadata(model)
    assert (metadata.name, list(metadata.versions)) == (model, ["1"])
    inputs = {one.name: (one.datatype, list(one.shape)) for one in metadata.inputs}
    assert inputs == {"extend_seq_lens": ("INT32", [-1]), "seq_lens": ("INT32", [-1]), "nsa_index_topk": ("INT32", [1])}
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.outputs] == [(name, "INT32", [-1]) for name in OUTPUTS]
    config = client.get_model_config(model, as_json=True)["config"]
    assert config["name"] == model and "max_batch_size" not in config
    assert {one["name"]: one.get("optional", False) for one in config["input"]} == {
        "extend_seq_lens": False, "seq_lens": False, "nsa_index_topk": True}
    assert [one["name"] for one in config["output"]] == list(OUTPUTS)


# Expansions


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['name']}, {case['mode']}")
def test_golden_cases_are_answered_as_by_expand(client, case):
    model = next(name for name, mode in MODELS.items() if mode == case["mode"])
    wanted = {name: values for name, values in case["expected"].items() if values is not None}
    outputs = [sync_client.InferRequestedOutput(name) for name in wanted]
    result = client.infer(model, inputs_of(case["extend_seq_lens"], case["seq_lens"], case["nsa_index_topk"]), outputs=outputs)
    for name, values in wanted.items():
        assert result.as_numpy(name).tolist() == values, name


@pytest.mark.parametrize("model", MODELS)
def test_without_named_outputs_all_are_answered(client, model):
    result = client.infer(model, inputs_of(), request_id="seven")
    assert_right(result, MODELS[model])
    assert (result.get_response().id, result.get_response().model_version) == ("seven", "1")


def test_outputs_come_in_one_order_and_once(client):
    outputs = [sync_client.InferRequestedOutput(name) for name in ("ke", "positions", "ke")]
    assert_right(client.infer("nsa_metadata", inputs_of(), outputs=outputs), "REPEAT", ("positions", "ke"))


def test_many_sequences_and_a_long_id_come_back_whole(client):
    random = np.random.default_rng(3)
    extend_seq_lens, seq_lens = random.integers(0, 5, 20_000), random.integers(0, 100_000, 20_000)
    outputs = [sync_client.InferRequestedOutput(name) for name in ("seqlens_expanded", "cu_seqlens_q")]
    result = client.infer("nsa_metadata_causal", inputs_of(extend_seq_lens, seq_lens), outputs=outputs, request_id="i" * 1024)
    assert_right(result, "CAUSAL", ("seqlens_expanded", "cu_seqlens_q"), extend_seq_lens, seq_lens)
    assert result.get_response().id == "i" * 1024


def test_typed_contents_are_taken_too(stub):
    request = request_of()
    del request.raw_input_contents[:]
    for one, values in zip(request.inputs, (EXTEND_SEQ_LENS, SEQ_LENS, [TOP_K])):
        one.contents.int_contents.extend(values)
    reply = stub.ModelInfer(request, timeout=TIMEOUT_S)
    expected = expand(EXTEND_SEQ_LENS, SEQ_LENS, TOP_K, "REPEAT")
    for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        assert np.array_equal(np.frombuffer(raw, "<i4"), expected[output.name]), output.name


def test_top_k_may_be_left_out_where_no_output_needs_it(client):
    outputs = [sync_client.InferRequestedOutput("positions")]
    assert_right(client.infer("nsa_metadata", inputs_of()[:2], outputs=outputs), "REPEAT", ("positions",))


def test_unknown_parameters_are_ignored(client):
    result = client.infer("nsa_metadata", inputs_of(), priority=1, sequence_id=7, sequence_start=True, parameters={"mine": "x"})
    assert_right(result, "REPEAT")


def test_the_quick_start_works(server):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "client" / "README.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "tritonclient" in block)
    names = {}
    exec(code.replace("127.0.0.1:50051", server.address), names)
    assert names["result"].as_numpy("seqlens_expanded").tolist() == [8, 9, 10, 3, 4]


def test_asyncio_callers_get_the_same(server):
    async def many():
        async with async_client.InferenceServerClient(server.address) as on:
            assert await on.is_server_ready()
            inputs = [tensor("extend_seq_lens", EXTEND_SEQ_LENS, async_client), tensor("seq_lens", SEQ_LENS, async_client),
                      tensor("nsa_index_topk", [TOP_K], async_client)]
            return await asyncio.gather(*(on.infer("nsa_metadata_causal", inputs, request_id=str(i)) for i in range(50)))

    results = asyncio.run(many())
    assert [result.get_response().id for result in results] == [str(i) for i in range(50)]
    for result in results:
        assert_right(result, "CAUSAL")


# Refusals


def spoilt_by(change):
    request = request_of()
    change(request)
    return request


SPOILT = {
    "no such model": (lambda r: setattr(r, "model_name", "resnet"), "NOT_FOUND", "UNKNOWN_NAME", "model_name", 'model_name is "resnet"'),
    "no such version": (lambda r: setattr(r, "model_version", "3"), "NOT_FOUND", "UNKNOWN_NAME", "model_version", 'model_version is "3"'),
    "no such input": (lambda r: setattr(r.inputs[1], "name", "lens"), "INVALID_ARGUMENT", "UNKNOWN_NAME", "inputs[1].name", 'there is no input "lens"'),
    "no such output": (lambda r: r.outputs.add(name="logits"), "INVALID_ARGUMENT", "UNKNOWN_NAME", "outputs[0].name", 'there is no output "logits"'),
    "an input twice": (lambda r: setattr(r.inputs[1], "name", "extend_seq_lens"), "INVALID_ARGUMENT", "BAD_TENSOR", "extend_seq_lens", "there twice"),
    "another datatype": (lambda r: setattr(r.inputs[0], "datatype", "INT64"), "INVALID_ARGUMENT", "BAD_TENSOR", "extend_seq_lens", 'datatype "INT64", want INT32'),
    "two dimensions": (lambda r: r.inputs[0].shape.append(1), "INVALID_ARGUMENT", "BAD_TENSOR", "extend_seq_lens", "2 dimensions"),
    "a negative dimension": (lambda r: r.inputs[0].shape.__setitem__(0, -1), "INVALID_ARGUMENT", "BAD_TENSOR", "extend_seq_lens", "dimensions of -1"),
    "fewer bytes than the shape": (lambda r: r.raw_input_contents.__setitem__(0, b"\0" * 8), "INVALID_ARGUMENT", "BAD_TENSOR", "extend_seq_lens", "8 bytes"),
    "bytes that are no int32s": (lambda r: r.raw_input_contents.__setitem__(0, b"\0" * 13), "INVALID_ARGUMENT", "BAD_TENSOR", "extend_seq_lens", "13 bytes"),
    "raw values of some inputs": (lambda r: r.raw_input_contents.pop(), "INVALID_ARGUMENT", "BAD_TENSOR", "raw_input_contents", "2 entries, inputs has 3"),
    "no values": (lambda r: r.raw_input_contents.__delitem__(slice(None)), "INVALID_ARGUMENT", "BAD_TENSOR", "extend_seq_lens", "0 values in int_contents"),
    "a negative length": (lambda r: r.raw_input_contents.__setitem__(1, np.array([10, -7, 4], "<i4").tobytes()), "INVALID_ARGUMENT", "NEGATIVE_LENGTH", "seq_lens[1]", "seq_lens[1] is -7"),
    "a top k of 0": (lambda r: r.raw_input_contents.__setitem__(2, b"\0" * 4), "INVALID_ARGUMENT", "TOP_K_TOO_SMALL", "nsa_index_topk", "nsa_index_topk is 0"),
    "a long id": (lambda r: setattr(r, "id", "i" * 1025), "INVALID_ARGUMENT", "MALFORMED", "id", "id has 1025 bytes, more than 1024"),
    "a negative timeout": (lambda r: setattr(r.parameters["timeout"], "int64_param", -5), "INVALID_ARGUMENT", "MALFORMED", "parameters[timeout]", "is -5 microseconds"),
    "a timeout in words": (lambda r: setattr(r.parameters["timeout"], "string_param", "soon"), "INVALID_ARGUMENT", "MALFORMED", "parameters[timeout]", "no whole number"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_wrong_is_named(stub, what):
    change, code, reason, field, message = SPOILT[what]
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(spoilt_by(change), timeout=TIMEOUT_S)
    refusal = refusal_of(caught.value)
    assert (refusal.code, refusal.reason, refusal.field) == (grpc.StatusCode[code], reason, field), refusal.message
    assert message in refusal.message
    assert stub.ModelInfer(request_of(), timeout=TIMEOUT_S).model_name == "nsa_metadata", "the next one is answered"


def test_two_missing_inputs_are_named_one_by_one(stub):
    request = request_of()
    del request.inputs[1:], request.raw_input_contents[1:]
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=TIMEOUT_S)
    assert refusal_of(caught.value).message == "the input seq_lens is missing"


def test_tritonclient_shows_the_message(client):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nsa_metadata", inputs_of(seq_lens=[1, 2]))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert caught.value.message() == "seq_lens has 2 values, extend_seq_lens has 3"


def test_a_name_of_control_characters_is_shown_short_and_escaped(client):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("\n\x1b" + "m" * 1000, inputs_of())
    assert caught.value.message().startswith('model_name is "\\n\\033mmm') and len(caught.value.message()) < 200


def test_streams_of_inferences_are_unimplemented(stub):
    with pytest.raises(grpc.RpcError) as ended:
        list(stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest()]), timeout=TIMEOUT_S))
    assert ended.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_other_methods_are_unimplemented(client):
    for call in (lambda: client.load_model("x"), client.get_model_repository_index, client.get_trace_settings, client.get_system_shared_memory_status):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_bytes_that_are_no_request_are_refused(server):
    with grpc.insecure_channel(server.address) as on:
        with pytest.raises(grpc.RpcError) as caught:
            on.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff\xff", timeout=TIMEOUT_S)
    assert refusal_of(caught.value).reason == "MALFORMED"
    assert "inference.ModelInferRequest" in caught.value.details()


def test_strangers_bytes_do_not_fill_the_log():
    # A name that is no UTF-8, which protobuf reports each time.
    with Server("--backend=cpu") as fresh, grpc.insecure_channel(fresh.address) as on:
        infer = on.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        begin = time.monotonic()
        for _ in range(500):
            with pytest.raises(grpc.RpcError):
                infer(b"\n\x02\xff\xfe", timeout=TIMEOUT_S)
        seconds = time.monotonic() - begin
        said = [line for line in fresh.log.splitlines() if "UTF-8" in line]
        assert 1 <= len(said) <= 10 * (seconds + 2), f"{len(said)} lines in {seconds:.1f} s: {said[:3]}"


def test_nothing_stays_of_requests_that_hold_more_than_they_should():
    # Each puts its bytes into another place of the message that it is read to.
    with Server("--backend=cpu") as fresh, grpc.insecure_channel(fresh.address) as on:
        infer = on.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        def send(place):
            request = service_pb2.ModelInferRequest(model_name="nsa_metadata", raw_input_contents=[b""] * place + [b"x" * 60_000])
            with pytest.raises(grpc.RpcError):
                infer(request.SerializeToString(), timeout=TIMEOUT_S)

        for place in range(100):
            send(place)
        before = fresh.memory("VmRSS")
        for place in range(100, 1_000):
            send(place)
        grown = fresh.memory("VmRSS") - before
        assert grown < 16 << 20, f"{grown >> 20} MiB of 52 stayed"


# Time, and what is counted


def test_a_timeout_that_has_passed_is_a_deadline_that_has(client):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nsa_metadata", inputs_of(), timeout=1)  # a microsecond
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_a_timeout_closes_a_batch_that_would_wait_longer():
    with Server("--backend=cpu", "--batch_delay=10s", "--lanes=1") as batching:
        with sync_client.InferenceServerClient(batching.address) as on:

            def answered():
                # It is closed shortly before; a machine that has much to do may be late.
                try:
                    return on.infer("nsa_metadata", inputs_of(), timeout=200_000)
                except InferenceServerException as late:
                    assert late.status() == "StatusCode.DEADLINE_EXCEEDED"

            assert_right(eventually(answered, "one is answered in time"), "REPEAT")
        assert batching.metrics().total("nsa_metadata_batch_closed_total", reason="deadline") >= 1


def test_statistics_count_what_became_of_each_models_requests():
    with Server("--backend=cpu") as fresh, sync_client.InferenceServerClient(fresh.address) as on:
        for _ in range(20):
            on.infer("nsa_metadata", inputs_of())
        for _ in range(3):
            with pytest.raises(InferenceServerException):
                on.infer("nsa_metadata", inputs_of(seq_lens=[1]))
        on.infer("nsa_metadata_causal", inputs_of())
        repeat, causal = on.get_inference_statistics().model_stats
        assert (repeat.name, repeat.inference_count, causal.name, causal.inference_count) == ("nsa_metadata", 20, "nsa_metadata_causal", 1)
        stages = repeat.inference_stats
        assert (stages.success.count, stages.fail.count, causal.inference_stats.fail.count) == (20, 3, 0)
        assert repeat.execution_count == 20, "one at a time, each was a batch"
        parts = [getattr(stages, name) for name in ("queue", "compute_input", "compute_infer", "compute_output")]
        assert all(part.count == 20 for part in parts)
        assert 0 < sum(part.ns for part in parts) <= stages.success.ns
        (alone,) = on.get_inference_statistics("nsa_metadata_causal").model_stats
        assert alone == causal
        with pytest.raises(InferenceServerException) as caught:
            on.get_inference_statistics("resnet")
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        metrics = fresh.metrics()
        labels = {"grpc_service": "inference.GRPCInferenceService", "grpc_method": "ModelInfer"}
        eventually(lambda: fresh.metrics().total("grpc_server_handled_total", grpc_code="OK", **labels) == 21, "all are counted as handled")
        assert metrics.total("nsa_metadata_refused_total", reason="lengths_differ") == 3


def test_requests_that_share_a_batch_are_one_execution():
    # Held up for 50 ms, so that those sent together are computed together.
    with Server("--backend=cpu", "--batch_delay=50ms", "--lanes=1") as batching:
        with sync_client.InferenceServerClient(batching.address) as on:
            done = []
            for _ in range(16):
                on.async_infer("nsa_metadata", inputs_of(), callback=lambda result, error: done.append(error))
            eventually(lambda: len(done) == 16, "all are answered")
            assert done == [None] * 16
            statistics = on.get_inference_statistics("nsa_metadata").model_stats[0]
            assert statistics.inference_count == 16 and 1 <= statistics.execution_count < 16

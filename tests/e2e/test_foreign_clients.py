"""Peers that share no code with the service: Python's gRPC, a reader without our messages, a plain HTTP/2 load
generator, health checkers and reflection clients."""

import json
import re
import subprocess

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from calls import EXPAND, SERVICE, TIMEOUT_S, channel, refused
from programs import REPOSITORY, Server, eventually, tool
from raw_http2 import frame
from reference import DEFAULT_OUTPUTS, INT32_MAX, MODES, OUTPUT_NUMBERS, OUTPUTS, expand

GOLDEN = [json.loads(line) for line in (REPOSITORY / "tests" / "golden" / "expand.jsonl").read_text().splitlines()]
each_golden = pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['name']}, {case['mode']}")


@pytest.fixture(scope="module", params=["cpu", "reference"])
def golden_stub(request, stubs):
    # A delay, so that requests sent together are computed together.
    with Server(f"--backend={request.param}", "--batch_delay=5ms") as server, channel(server.address) as on:
        yield stubs.rpc.MetadataServiceStub(on)


def golden_request(pb, case, outputs, request_id=7):
    return pb.ExpandRequest(
        request_id=request_id,
        extend_seq_lens=case["extend_seq_lens"],
        seq_lens=case["seq_lens"],
        nsa_index_topk=case["nsa_index_topk"],
        mode=MODES[case["mode"]],
        outputs=[OUTPUT_NUMBERS[name] for name in outputs],
    )


def fitting(case):
    return [name for name in OUTPUTS if case["expected"][name] is not None]


def overflowing(case):
    return [name for name in OUTPUTS if case["expected"][name] is None]


def assert_golden(response, case, outputs, request_id=7):
    assert response.request_id == request_id
    assert response.total_tokens == sum(case["extend_seq_lens"])
    assert response.mode == MODES[case["mode"]]
    for name in OUTPUTS:
        wanted = case["expected"][name] if name in outputs else []
        assert list(getattr(response, name)) == wanted, name


def test_the_golden_file_holds_both_modes_and_overflows():
    assert {case["mode"] for case in GOLDEN} == set(MODES)
    assert any(overflowing(case) for case in GOLDEN)


@each_golden
def test_the_tests_own_reference_agrees_with_the_golden_vectors(case):
    values = expand(case["extend_seq_lens"], case["seq_lens"], case["nsa_index_topk"], case["mode"])
    for name in OUTPUTS:
        if case["expected"][name] is None:
            assert values[name].max() > INT32_MAX, name
        else:
            assert values[name].tolist() == case["expected"][name], name


@each_golden
def test_golden_outputs_arrive_as_asked(golden_stub, pb, case):
    outputs = fitting(case)
    response = golden_stub.Expand(golden_request(pb, case, outputs), timeout=TIMEOUT_S)
    assert_golden(response, case, outputs)


@each_golden
def test_golden_default_outputs_arrive_unasked(golden_stub, pb, case):
    response = golden_stub.Expand(golden_request(pb, case, outputs=[]), timeout=TIMEOUT_S)
    assert_golden(response, case, DEFAULT_OUTPUTS)


@pytest.mark.parametrize(
    ("case", "output"),
    [(case, output) for case in GOLDEN for output in overflowing(case)],
    ids=lambda part: part if isinstance(part, str) else f"{part['name']}, {part['mode']}",
)
def test_golden_outputs_that_pass_int32_are_refused(golden_stub, pb, case, output):
    values = expand(case["extend_seq_lens"], case["seq_lens"], case["nsa_index_topk"], case["mode"])
    refusal = refused(golden_stub.Expand, golden_request(pb, case, ["positions", output]))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.domain == "nsa.metadata.v1"
    assert refusal.reason == "OUTPUT_OVERFLOW"
    assert refusal.field == output
    assert refusal.violated_fields == [output]
    assert refusal.value == values[output].max()
    assert refusal.limit == INT32_MAX


def test_golden_cases_computed_together_stay_apart(golden_stub, pb):
    calls = [
        (case, request_id, golden_stub.Expand.future(golden_request(pb, case, fitting(case), request_id), TIMEOUT_S))
        for request_id, case in enumerate(GOLDEN * 2, start=1)
    ]
    for case, request_id, call in calls:
        assert_golden(call.result(), case, fitting(case), request_id)


def bytes_response_class():
    """ExpandResponse as a reader declares it that wants no copy: the same field numbers, the arrays as bytes."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="reader.proto", package="reader", syntax="proto3")
    message = file.message_type.add(name="Response")
    message.field.add(name="total_tokens", number=2, type=field.TYPE_INT64, label=field.LABEL_OPTIONAL)
    for number, name in enumerate(OUTPUTS, start=16):
        message.field.add(name=name, number=number, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("reader.Response"))


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_that_declares_bytes_sees_little_endian_int32_arrays(server, pb, mode):
    lengths = {"extend_seq_lens": [3, 0, 1000], "seq_lens": [1, 5, 70_000], "nsa_index_topk": 2048}
    request = pb.ExpandRequest(**lengths, mode=MODES[mode], outputs=OUTPUT_NUMBERS.values())
    response_class = bytes_response_class()
    with channel(server.address) as on:
        method = on.unary_unary(EXPAND, pb.ExpandRequest.SerializeToString, response_class.FromString)
        response = method(request, timeout=TIMEOUT_S)
    expected = expand(**lengths, mode=mode)
    assert response.total_tokens == 1003
    for name in OUTPUTS:
        array = np.frombuffer(getattr(response, name), dtype="<i4")
        assert np.array_equal(array, expected[name]), f"{name}: got {array}, want {expected[name]}"


def test_a_plain_http2_load_generator_is_served(server, pb, tmp_path):
    request = pb.ExpandRequest(extend_seq_lens=[3, 2], seq_lens=[10, 4], nsa_index_topk=2048, mode=MODES["CAUSAL"])
    body = tmp_path / "request.grpc"
    body.write_bytes(frame(request.SerializeToString()))
    handled = {"grpc_method": "Expand", "grpc_code": "OK"}
    before = server.settled_metrics().total("grpc_server_handled_total", **handled)

    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    load = ["-n", "2000", "-c", "4", "-m", "16", "-d", str(body)]
    done = subprocess.run(
        [tool("h2load"), *load, *headers, f"http://{server.address}{EXPAND}"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"requests: 2000 total, .* 2000 succeeded, 0 failed, 0 errored, 0 timeout", done.stdout), (
        done.stdout
    )
    assert re.search(r"status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx", done.stdout), done.stdout
    after = server.settled_metrics().total("grpc_server_handled_total", **handled)
    assert after - before == 2000, "calls that the server answered OK"


@pytest.fixture(params=["address", "health_address"], ids=["main port", "health port"])
def port(request):
    """The name of the Server attribute with the address to ask for health."""
    return request.param


each_service = pytest.mark.parametrize("service", ["", SERVICE], ids=["whole server", SERVICE])


@each_service
def test_health_check_says_serving(server, port, service):
    with channel(getattr(server, port)) as on:
        request = health_pb2.HealthCheckRequest(service=service)
        response = health_pb2_grpc.HealthStub(on).Check(request, timeout=TIMEOUT_S)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_health_check_of_an_unknown_service_is_not_found(server, port):
    with channel(getattr(server, port)) as on:
        refusal = refused(health_pb2_grpc.HealthStub(on).Check, health_pb2.HealthCheckRequest(service="nsa.Nothing"))
    assert refusal.code == grpc.StatusCode.NOT_FOUND


@each_service
def test_health_watch_says_not_serving_as_soon_as_the_server_drains(stubs, port, service):
    # A call in flight keeps the server draining long enough to be watched.
    with Server("--batch_delay=1s") as server, channel(server.address) as caller, channel(getattr(server, port)) as on:
        watch = health_pb2_grpc.HealthStub(on).Watch(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        call = stubs.rpc.MetadataServiceStub(caller).Expand.future(
            stubs.pb.ExpandRequest(extend_seq_lens=[1], seq_lens=[1], nsa_index_topk=1), TIMEOUT_S
        )
        eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 1, "the call is in flight")
        server.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        assert list(call.result().seqlens_expanded) == [1]
        assert server.wait() == 0, server.log


def test_reflection_lists_the_service_where_it_is_switched_on():
    with Server("--reflection") as server, channel(server.address) as on:
        database = ProtoReflectionDescriptorDatabase(on)
        assert SERVICE in database.get_services()
        pool = descriptor_pool.DescriptorPool(database)
        methods = pool.FindServiceByName(SERVICE).methods_by_name
        assert set(methods) == {"Expand", "ExpandStream", "GetServerInfo"}


def test_reflection_is_unimplemented_unless_switched_on(server):
    with channel(server.address) as on:
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(on).get_services()
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_an_unknown_method_is_unimplemented(server):
    with channel(server.address) as on:
        refusal = refused(on.unary_unary(f"/{SERVICE}/Shrink"), b"")
    assert refusal.code == grpc.StatusCode.UNIMPLEMENTED

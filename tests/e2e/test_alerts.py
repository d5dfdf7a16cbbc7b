"""Each alert of deploy/prometheus, seen firing in a real Prometheus because a real server was put into the state it is for."""

import contextlib
import datetime
import re
import threading

import grpc

import wire
from calls import TIMEOUT_S, channel
from certificates import Authority
from programs import REPOSITORY, TEST_SERVER, Server, eventually
from prometheus import Prometheus
from reference import MODES

JOB = "nsa-metadata-server"
RULES = (REPOSITORY / "deploy" / "prometheus" / "rules.yaml").read_text()
# They fire as soon as what they ask for is so.
AT_ONCE = re.sub(r"^ +for: .*\n", "", RULES, flags=re.MULTILINE)
FIRES_S = 60


def alerts(server, folder, job=JOB):
    return Prometheus([server.metrics_address], folder, job=job, rules=AT_ONCE)


def await_firing(prometheus, *names):
    return eventually(lambda: (firing := prometheus.firing()).keys() >= set(names) and firing, f"{names} fire", FIRES_S)


def request(pb, lengths=(3, 2)):
    return pb.ExpandRequest(extend_seq_lens=lengths, seq_lens=lengths, nsa_index_topk=2048, mode=MODES["CAUSAL"])


@contextlib.contextmanager
def calling(server, stubs, request, threads=1, timeout=TIMEOUT_S):
    """Makes one call after another, whatever becomes of them."""
    stop = threading.Event()

    def go():
        with channel(server.address) as on:
            stub = stubs.rpc.MetadataServiceStub(on)
            while not stop.is_set():
                with contextlib.suppress(grpc.RpcError):
                    stub.Expand(request, timeout=timeout)

    running = [threading.Thread(target=go) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join()


def test_a_healthy_server_that_is_called_alarms_nobody(stubs, pb, tmp_path):
    with Server() as server, alerts(server, tmp_path) as prometheus, calling(server, stubs, request(pb)):
        evaluations = 'count_over_time(nsa_metadata:calls:rate5m{grpc_method="Expand",grpc_code="OK"}[5m]) >= 5'
        eventually(lambda: prometheus.query(evaluations), "the rules are evaluated, five times with calls", FIRES_S)
        assert prometheus.firing() == {}


def test_calls_that_fail_and_a_queue_that_fills(stubs, pb, tmp_path):
    flags = ["--batch_time=200ms", "--lanes=1", "--max_batch_requests=1", "--max_queue_requests=5", "--caller_share=1"]
    with Server(*flags, program=TEST_SERVER) as server, alerts(server, tmp_path) as prometheus, calling(server, stubs, request(pb), threads=12):
        firing = await_firing(prometheus, "NsaMetadataFailedCallsFast", "NsaMetadataFailedCalls", "NsaMetadataFailedCallsSteadily", "NsaMetadataQueueFilling",
                              "NsaMetadataRefusing")
    assert firing["NsaMetadataFailedCallsFast"]["severity"] == "page"


def test_calls_that_are_slow(stubs, pb, tmp_path):
    with Server("--batch_time=30ms", program=TEST_SERVER) as server, alerts(server, tmp_path) as prometheus, calling(server, stubs, request(pb)):
        await_firing(prometheus, "NsaMetadataSlowCallsFast", "NsaMetadataSlowCalls", "NsaMetadataSlowCallsSteadily")


def test_an_output_budget_that_fills_and_readers_that_are_cut(stubs, pb, tmp_path):
    flags = ["--output_budget_bytes=4194304", "--max_reply_bytes=1048576", "--max_unary_reply_bytes=1048576", "--caller_share=1", "--write_stall_timeout=8s"]
    body = request(pb, [100_000]).SerializeToString()
    with Server(*flags) as server, alerts(server, tmp_path) as prometheus, contextlib.ExitStack() as stack:
        eventually(lambda: prometheus.query("up == 1"), "it is scraped", FIRES_S)
        for _ in range(8):  # readers that don't read
            peer = stack.enter_context(wire.connect(server.address, receive_buffer=4096))
            peer.sendall(wire.PREFACE + wire.settings((1 << 31) - 1) + wire.window_update(0, (1 << 31) - 1 - 65_535) + wire.call(1, body))
        await_firing(prometheus, "NsaMetadataOutputBudgetFilling")
        firing = await_firing(prometheus, "NsaMetadataConnectionsEnded")
    assert firing["NsaMetadataConnectionsEnded"]["reason"] == "stalled"


def test_a_budget_of_lengths_that_fills(stubs, pb, tmp_path):
    # Room for two of these: one is computed, one waits.
    flags = ["--batch_time=200ms", "--lanes=1", "--max_batch_requests=1", "--max_sequences=1000", "--lengths_budget_bytes=16000", "--caller_share=1"]
    many = request(pb, [1] * 1000)
    with Server(*flags, program=TEST_SERVER) as server, alerts(server, tmp_path) as prometheus, calling(server, stubs, many, threads=8):
        await_firing(prometheus, "NsaMetadataLengthsBudgetFilling")


def test_connections_near_their_limit_and_over_it(tmp_path):
    with Server("--max_connections=10") as server, alerts(server, tmp_path) as prometheus, contextlib.ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(wire.connect(server.address)).sendall(wire.PREFACE + wire.settings())
        await_firing(prometheus, "NsaMetadataConnectionsNearLimit")
        for _ in range(3):
            stack.enter_context(wire.connect(server.address))
        await_firing(prometheus, "NsaMetadataConnectionsRefused")


def test_descriptors_near_their_limit(tmp_path):
    with Server("--max_connections=1000", nofile=128) as server, alerts(server, tmp_path) as prometheus, contextlib.ExitStack() as stack:
        for _ in range(112 - server.descriptors()):
            stack.enter_context(wire.connect(server.address)).sendall(wire.PREFACE + wire.settings())
        await_firing(prometheus, "NsaMetadataDescriptorsNearLimit")


def test_a_gpu_that_fails_and_the_cpu_in_its_place(stubs, pb, tmp_path):
    with Server("--fail_at=2000", program=TEST_SERVER) as server, alerts(server, tmp_path) as prometheus:
        eventually(lambda: prometheus.query('nsa_metadata_backend_active{backend="cuda"} == 1'), "the device is seen at work", FIRES_S)
        with calling(server, stubs, request(pb)):
            firing = await_firing(prometheus, "NsaMetadataGpuFault", "NsaMetadataRunningOnCpu")
    assert firing["NsaMetadataGpuFault"]["reason"] == "device"


def test_a_certificate_that_expires_and_one_that_is_broken(tmp_path):
    authority = Authority()
    certificate, key = authority.issue("localhost", lasts=datetime.timedelta(hours=5)).write(tmp_path, "server")
    flags = [f"--tls_certificate={certificate}", f"--tls_key={key}", "--reload_period=100ms"]
    with Server(*flags) as server, alerts(server, tmp_path) as prometheus:
        await_firing(prometheus, "NsaMetadataCertificateExpires", "NsaMetadataCertificateExpiresSoon")
        good = key.read_text()
        key.write_text("no key")
        await_firing(prometheus, "NsaMetadataReloadFailed")
        key.write_text(good)
        eventually(lambda: "NsaMetadataReloadFailed" not in prometheus.firing(), "it ends with the fault", FIRES_S)


def test_a_server_that_is_started_again_and_again(tmp_path):
    with contextlib.ExitStack() as stack:
        server = Server()
        with server:
            prometheus = stack.enter_context(alerts(server, tmp_path))
            eventually(lambda: prometheus.query("up == 1"), "it is scraped", FIRES_S)
        for again in range(1, 4):
            with Server(f"--metrics_listen={server.metrics_address}"):
                eventually(lambda: prometheus.query(f'changes(process_start_time_seconds{{job="{JOB}"}}[30m]) == {again}'), "its start is seen", FIRES_S)
                if again == 3:
                    await_firing(prometheus, "NsaMetadataRestarted", "NsaMetadataRestarting")


def test_a_server_that_is_gone(tmp_path):
    with Server() as server, alerts(server, tmp_path) as prometheus:
        eventually(lambda: prometheus.query("up == 1"), "it is scraped", FIRES_S)
        server.stop()
        await_firing(prometheus, "NsaMetadataDown", "NsaMetadataAbsent")


def test_every_alert_is_among_these():
    text = open(__file__).read()
    names = re.findall(r"- alert: (\w+)", RULES)
    assert len(names) > 15
    assert [name for name in names if f'"{name}"' not in text] == []

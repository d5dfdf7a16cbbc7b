"""The metrics as Prometheus, promtool and a caller who keeps count see them; the probes over HTTP."""

import collections
import math
import queue
import re
import socket
import subprocess
import urllib.request

import grpc
import pytest

from calls import SERVICE, TIMEOUT_S, channel, raw_expand
from certificates import Authority
from programs import REPOSITORY, Server, environment, eventually, tool
from prometheus import Prometheus
from reference import MODES

P99 = "histogram_quantile(0.99, sum by (le) (rate(grpc_server_handling_seconds_bucket[30s])))"
STAGES = {"parse", "admit", "queue", "pack", "device", "frame", "send"}
# go-grpc-prometheus's spelling of the codes that occur here.
CODE_LABELS = {grpc.StatusCode.OK: "OK", grpc.StatusCode.INVALID_ARGUMENT: "InvalidArgument"}


@pytest.fixture
def own_server():
    """A server of the test's own: its counts begin at 0."""
    with Server() as running:
        yield running


def good(pb):
    return pb.ExpandRequest(extend_seq_lens=[3, 2], seq_lens=[10, 4], nsa_index_topk=2048, mode=MODES["CAUSAL"])


def test_prometheus_computes_a_latency_quantile(server, pb, tmp_path):
    with Prometheus([server.metrics_address], tmp_path) as prometheus, channel(server.address) as on:

        def quantile_under_load():
            for _ in range(20):
                raw_expand(on)(good(pb).SerializeToString(), timeout=TIMEOUT_S)
            return [value for value in prometheus.query(P99) if math.isfinite(value)]

        (p99,) = eventually(quantile_under_load, f"a finite value of {P99}", timeout_s=60)
        assert 0 < p99 < 10, "seconds"
        assert prometheus.query('up{job="nsa-metadata"}') == [1]
        assert prometheus.query("nsa_metadata_build_info") == [1]


def test_promtool_finds_nothing_to_criticise(server, pb):
    with channel(server.address) as on:
        raw_expand(on)(good(pb).SerializeToString(), timeout=TIMEOUT_S)
    _, page = server.get("/metrics")
    check = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=page,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, "")


def exported(page):
    """{name: (type, names of its labels)} of a metrics page."""
    families = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE):
        suffix = "_count" if kind == "histogram" else ""
        series = re.findall(rf"^{name}{suffix}(?:\{{(.*)\}})? ", page, re.MULTILINE)
        assert series, f"{name} has no series"
        families[name] = kind, {label for labels in series for label in re.findall(r'(\w+)="', labels)}
    return families


def test_the_list_of_metrics_is_what_a_server_exports(tmp_path):
    certificate, key = Authority().issue("localhost").write(tmp_path, "server")
    with Server(f"--tls_certificate={certificate}", f"--tls_key={key}") as server:
        _, page = server.get("/metrics")
    with Server() as server:
        _, page_without_tls = server.get("/metrics")
    text = (REPOSITORY / "deploy" / "prometheus" / "METRICS.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \| (.*?) ?\| (.+) \|$", text, re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    assert len(listed) == len(rows), "a name is there once"
    assert listed == exported(page)
    assert {name for name, _, _, what in rows if "--tls_certificate" in what} == listed.keys() - exported(page_without_tls).keys()


def test_counts_equal_the_callers_own(own_server, stubs, pb):
    own = {"Expand": collections.Counter(), "GetServerInfo": collections.Counter()}
    bad = pb.ExpandRequest(extend_seq_lens=[1], seq_lens=[-1], nsa_index_topk=1)
    with channel(own_server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        sent = []
        for i in range(500):
            sent.append(("Expand", stub.Expand.future(bad if i % 7 == 0 else good(pb), TIMEOUT_S)))
            if i % 10 == 0:
                sent.append(("GetServerInfo", stub.GetServerInfo.future(pb.GetServerInfoRequest(), TIMEOUT_S)))
        for method, call in sent:
            own[method][call.code()] += 1
    assert own["Expand"][grpc.StatusCode.INVALID_ARGUMENT] == 72

    scrape = own_server.settled_metrics()
    for method, codes in own.items():
        labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": method}
        assert scrape.total("grpc_server_started_total", **labels) == codes.total(), method
        wanted = {CODE_LABELS[code]: count for code, count in codes.items()}
        assert scrape.by("grpc_code", "grpc_server_handled_total", **labels) == wanted, method
        assert scrape.total("grpc_server_handling_seconds_count", **labels) == codes.total(), method
    ok = own["Expand"][grpc.StatusCode.OK]
    assert scrape.total("nsa_metadata_batch_requests_sum") == ok
    assert scrape.total("nsa_metadata_batch_tokens_sum") == ok * 5
    assert scrape.total("nsa_metadata_batch_sequences_sum") == ok * 2
    batches = scrape.total("nsa_metadata_kernel_launches_total")
    assert scrape.total("nsa_metadata_batch_closed_total") == batches
    for stage in STAGES:
        wanted = batches if stage in ("pack", "device") else ok
        assert scrape.total("nsa_metadata_stage_seconds_count", stage=stage) == wanted, stage


def test_a_stream_that_is_cut_while_nothing_is_in_flight_is_counted_as_cancelled(own_server, stubs, pb):
    def handled(code):
        return own_server.metrics().total("grpc_server_handled_total", grpc_method="ExpandStream", grpc_code=code)

    items = queue.SimpleQueue()
    items.put(pb.ExpandStreamRequest(expand=good(pb)))
    with channel(own_server.address) as on:
        answers = stubs.rpc.MetadataServiceStub(on).ExpandStream(iter(items.get, None), timeout=TIMEOUT_S)
        assert list(next(answers).expansion.seqlens_expanded)
        answers.cancel()
        items.put(None)
        eventually(lambda: handled("Canceled") == 1, "it is counted")
    assert handled("OK") == 0


def test_each_stage_is_observed_once_for_each_answer(own_server, pb):
    with channel(own_server.address) as on:
        for _ in range(50):  # one after another: each is a batch of its own
            raw_expand(on)(good(pb).SerializeToString(), timeout=TIMEOUT_S)
    counts = own_server.settled_metrics().by("stage", "nsa_metadata_stage_seconds_count")
    assert counts == dict.fromkeys(STAGES, 50)


@pytest.mark.parametrize(
    ("histogram", "first", "count"),
    [("grpc_server_handling_seconds", 12.5e-6, 20), ("nsa_metadata_stage_seconds", 0.5e-6, 24)],
)
def test_time_buckets_double_from_their_first(server, histogram, first, count):
    bounds = {float(sample.labels["le"]) for sample in server.metrics().samples(f"{histogram}_bucket")}
    assert sorted(bounds) == pytest.approx([first * 2**n for n in range(count)] + [math.inf], rel=1e-6)


def test_limits_in_the_metrics_are_those_of_server_info(server, stubs, pb):
    with channel(server.address) as on:
        info = stubs.rpc.MetadataServiceStub(on).GetServerInfo(pb.GetServerInfoRequest(), timeout=TIMEOUT_S)
    assert info.limits.max_tokens == 4_194_304
    wanted = {}
    for field, value in info.limits.ListFields():
        is_duration = field.message_type is not None
        wanted[field.name] = value.ToTimedelta().total_seconds() if is_duration else value
    assert server.metrics().by("name", "nsa_metadata_limit") == wanted


@pytest.mark.parametrize(
    ("path", "status"),
    [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/", 200), ("/status.json", 200), ("/nothing", 404), ("/metrics/more", 404)],
)
def test_http_paths(server, path, status):
    assert server.get(path)[0] == status


def readiness(server):
    """The status of /readyz; None where nobody listens."""
    try:
        return server.get("/readyz")[0]
    except OSError:
        return None


def test_readyz_says_no_while_the_server_drains(stubs, pb):
    # A call in flight keeps the server draining.
    with Server("--batch_delay=2s") as server, channel(server.address) as on:
        assert readiness(server) == 200
        call = stubs.rpc.MetadataServiceStub(on).Expand.future(good(pb), TIMEOUT_S)
        eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 1, "the call is in flight")
        server.terminate()
        eventually(lambda: readiness(server) != 200, "/readyz no longer says 200", timeout_s=1.5)
        assert readiness(server) in (503, None)
        assert not call.done(), "it was still draining"
        assert call.result().total_tokens == 5
        assert server.wait() == 0, server.log

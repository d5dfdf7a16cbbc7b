"""What the metrics port shows to people: the page's numbers are those of /metrics, and it needs nothing from elsewhere."""

import json
import re
import urllib.request
from html.parser import HTMLParser

import grpc
import pytest

from calls import TIMEOUT_S, channel
from programs import Server, eventually
from reference import MODES


@pytest.fixture(scope="module")
def own_server():
    with Server() as running:
        yield running


def fetch(server, path):
    with urllib.request.urlopen(f"http://{server.metrics_address}{path}", timeout=TIMEOUT_S) as reply:
        return reply.headers, reply.read().decode()


def status_of(server):
    return json.loads(fetch(server, "/status.json")[1])


def line_of(status, chart, line):
    lines = {one["name"]: one["values"] for found in status["charts"] if found["title"] == chart for one in found.get("lines", [])}
    return lines.get(line, [])


class References(HTMLParser):
    """What a page asks for, or leads to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [(tag, value) for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag in ("link", "iframe", "img", "object"):
            self.found.append((tag, dict(attributes)))


def test_the_page_is_one_piece(own_server):
    headers, page = fetch(own_server, "/")
    assert headers["Content-Type"].startswith("text/html")
    references = References()
    references.feed(page)
    assert set(references.found) == {("a", "/metrics")}
    # And a browser is told to take nothing else.
    assert "default-src 'none'" in headers["Content-Security-Policy"] and "connect-src 'self'" in headers["Content-Security-Policy"]
    assert re.findall(r"@import|url\((?!data:)", page) == []
    assert "Dygraph" in page, "the library is inside"


def test_the_status_says_what_the_server_is(own_server, stubs, pb):
    with channel(own_server.address) as on:
        info = stubs.rpc.MetadataServiceStub(on).GetServerInfo(pb.GetServerInfoRequest(), timeout=TIMEOUT_S)
    status = status_of(own_server)
    assert status["version"] == info.version and status["revision"] == info.revision and status["device"] == info.device
    assert status["ready"] is True and status["backend"] in ("cpu", "cuda")
    assert int(status["limits"]["maxTokens"]) == info.limits.max_tokens
    assert status["charts"][0]["title"] == "Calls"


def test_its_totals_are_those_of_the_metrics_and_a_load_moves_its_charts(own_server, stubs, pb):
    good = pb.ExpandRequest(extend_seq_lens=[3, 2], seq_lens=[10, 4], nsa_index_topk=2048, mode=MODES["CAUSAL"])
    bad = pb.ExpandRequest(extend_seq_lens=[3], seq_lens=[10, 4], nsa_index_topk=2048, mode=MODES["CAUSAL"])
    with channel(own_server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        for _ in range(300):
            stub.Expand(good, timeout=TIMEOUT_S)
        for _ in range(7):
            with pytest.raises(grpc.RpcError):
                stub.Expand(bad, timeout=TIMEOUT_S)
        assert len(list(stub.ExpandStream(iter([pb.ExpandStreamRequest(expand=good)] * 3), timeout=TIMEOUT_S))) == 3

    def agree():
        counted = {}
        metrics = own_server.metrics()
        for total in (status := status_of(own_server))["totals"]:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', total.get("labels", "")))
            counted[total["name"], total.get("labels", "")] = (total["value"], metrics.total(total["name"], **labels))
        same = all(shown == scraped for shown, scraped in counted.values())
        return (status, counted) if same and len(counted) > 5 else None

    status, counted = eventually(agree, "all totals are those of /metrics")
    handled = {name: shown for name, (shown, _) in counted.items() if name[0] == "grpc_server_handled_total"}
    assert sum(handled.values()) >= 308, handled
    assert sum(line_of(status, "Calls", "OK")) * 2 == pytest.approx(handled_ok(handled), rel=0.1), "calls a second, for 2 s each"
    assert max(line_of(status, "Refusals", "shape_mismatch") or [0]) > 0 or any(
        max(line["values"]) > 0 for chart in status["charts"] if chart["title"] == "Refusals" for line in chart["lines"])
    for chart in ("Latency of calls", "Stages, p99", "Requests a batch"):
        values = [v for found in status["charts"] if found["title"] == chart for line in found["lines"] for v in line["values"]]
        assert any(isinstance(v, (int, float)) and v > 0 for v in values), chart
    assert len(line_of(status, "Connections", "Connections")) == len(status["times"])


def handled_ok(handled):
    return sum(value for (_, labels), value in handled.items() if 'grpc_code="OK"' in labels)

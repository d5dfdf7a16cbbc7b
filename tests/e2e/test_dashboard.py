"""The dashboard and the runbook: every query of theirs, put to a real Prometheus that scrapes a server under load, has an answer."""

import contextlib
import json
import re
import threading

import grpc

from calls import TIMEOUT_S
from certificates import Authority
from programs import CLIENT, REPOSITORY, SERVER, TEST_SERVER, Server, eventually, run
from prometheus import Prometheus
from reference import MODES

DASHBOARD = json.loads((REPOSITORY / "deploy" / "grafana" / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# As Grafana would: all jobs, and four scrapes.
VARIABLES = {"$job": ".*", "$__rate_interval": "10s"}
# Of what happened just now, which may be over.
EVENTS = [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]


RUNBOOK = (REPOSITORY / "deploy" / "prometheus" / "RUNBOOK.md").read_text()


def queries():
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']}, {target['refId']}", target["expr"]
    # And what whoever is called at night is told to look at.
    for code in re.findall(r"`([^`]*)`", RUNBOOK):
        if re.search(r"\b(grpc_server|nsa_metadata)_", code):
            # A histogram by its own name has none.
            yield f"RUNBOOK.md: {code}", re.sub(r"^(nsa_metadata_stage_seconds)", r"\1_count", code)


def put(expression):
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


@contextlib.contextmanager
def traffic(server, stubs, pb, credentials):
    """Calls of every kind: answered, refused, items of streams."""
    stop = threading.Event()
    good = pb.ExpandRequest(extend_seq_lens=[3, 2], seq_lens=[10, 4], nsa_index_topk=2048, mode=MODES["CAUSAL"])
    bad = pb.ExpandRequest(extend_seq_lens=[3], seq_lens=[10, 4], nsa_index_topk=2048, mode=MODES["CAUSAL"])

    def go():
        with grpc.secure_channel(server.address, credentials, [("grpc.ssl_target_name_override", "localhost")]) as on:
            stub = stubs.rpc.MetadataServiceStub(on)
            while not stop.is_set():
                stub.Expand(good, timeout=TIMEOUT_S)
                list(stub.ExpandStream(iter([pb.ExpandStreamRequest(expand=good)]), timeout=TIMEOUT_S))
                with contextlib.suppress(grpc.RpcError):
                    stub.Expand(bad, timeout=TIMEOUT_S)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_every_query_has_an_answer(stubs, pb, tmp_path):
    authority = Authority()
    certificate, key = authority.issue("localhost").write(tmp_path, "server")
    authority_file = tmp_path / "ca.crt"
    authority_file.write_bytes(authority.certificate)
    # A device that fails, so that faults are counted by their reasons.
    flags = ["--fail_at=50", f"--tls_certificate={certificate}", f"--tls_key={key}"]
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    with Server(*flags, program=TEST_SERVER) as server, Prometheus([server.metrics_address], tmp_path) as prometheus:
        with traffic(server, stubs, pb, credentials):
            # What the runbook says first.
            proven = run(CLIENT, "doctor", f"--target={server.address}", f"--tls_ca={authority_file}", "--tls_server_name=localhost")
            assert proven.returncode == 0, proven.stdout + proven.stderr
            unanswered = dict(queries())
            assert len(unanswered) > 30

            def all_answered():
                for name in [name for name, query in unanswered.items() if prometheus.query(put(query))]:
                    del unanswered[name]
                return unanswered == {}

            eventually(all_answered, f"all queries have an answer; not yet: {unanswered}", 60)
            for expression in EVENTS:
                prometheus.query(put(expression))  # which fails if it can't be parsed


def test_every_flag_the_runbook_names_is_there():
    known = "".join(run(program, *how).stdout for program, how in ((SERVER, ["--help"]), (CLIENT, ["doctor", "--help"])))
    # kubectl's own are tests/deploy's.
    named = set(re.findall(r"(--\w+)", re.sub(r"`kubectl [^`]+`", "", RUNBOOK)))
    assert len(named) > 5
    assert {flag for flag in named if flag not in known} == set()


def test_panels_say_what_they_are_and_ask_the_chosen_source():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}" and "$job" in target["expr"]
            # A legend names labels that the query keeps.
            kept = set(re.findall(r"by \(([^)]*)\)", target["expr"]))
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert not kept or any(label in names for names in kept), f"{panel['title']}: {label}"


def test_rows_do_not_overlap():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells

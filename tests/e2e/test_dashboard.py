"""The dashboard and the runbook: every query of theirs, put to a real Prometheus that scrapes a server under load, has an answer, of that server alone."""

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
# As the rules and the runbook have it; and what else a Prometheus scrapes.
JOB, FOREIGN = "nsa-metadata-server", "another"
# Of what happened just now, which may be over.
EVENTS = {annotation["name"]: annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]}


RUNBOOK = (REPOSITORY / "deploy" / "prometheus" / "RUNBOOK.md").read_text()


def panel_queries():
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']}, {target['refId']}", target["expr"]


def queries():
    yield from panel_queries()
    # And what whoever is called at night is told to look at.
    for code in re.findall(r"`([^`]*)`", RUNBOOK):
        if re.search(r"\b(grpc_server|nsa_metadata)_", code):
            # A histogram by its own name has none.
            yield f"RUNBOOK.md: {code}", re.sub(r"^(nsa_metadata_stage_seconds)", r"\1_count", code)


def shown():
    """All that the dashboard asks for: its panels and its events."""
    yield from panel_queries()
    yield from EVENTS.items()


def jobs_of(prometheus, expression):
    """The jobs of all series that an expression looks at, whether it adds them up or not."""
    return {job for selector in re.findall(r"\w+\{[^{}]*\}", expression) for job in prometheus.label_values("job", selector)}


def all_jobs(prometheus):
    """What Grafana puts in place of $job when all are chosen, as they are at first."""
    (variable,) = (one for one in DASHBOARD["templating"]["list"] if one["name"] == "job")
    assert variable["current"]["value"] == "$__all"
    if "allValue" in variable:
        return variable["allValue"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
    return "|".join(prometheus.label_values(label, metric))


def put(expression, jobs):
    # Four scrapes or more.
    return expression.replace("$job", jobs).replace("$__rate_interval", "10s")


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
    with Server(*flags, program=TEST_SERVER) as server, Prometheus([server.metrics_address], tmp_path, job=JOB, own_job=FOREIGN) as prometheus:
        eventually(lambda: sorted(prometheus.label_values("job", "up")) == sorted([JOB, FOREIGN]) and all_jobs(prometheus), "both are scraped", 30)
        jobs = all_jobs(prometheus)
        with traffic(server, stubs, pb, credentials):
            # What the runbook says first.
            proven = run(CLIENT, "doctor", f"--target={server.address}", f"--tls_ca={authority_file}", "--tls_server_name=localhost")
            assert proven.returncode == 0, proven.stdout + proven.stderr
            unanswered = dict(queries())
            assert len(unanswered) > 30

            def all_answered():
                for name in [name for name, query in unanswered.items() if prometheus.query(put(query, jobs))]:
                    del unanswered[name]
                return unanswered == {}

            eventually(all_answered, f"all queries have an answer; not yet: {unanswered}", 60)
            for expression in EVENTS.values():
                prometheus.query(put(expression, jobs))  # which fails if it can't be parsed
            assert prometheus.query(put(dict(panel_queries())["Servers, A"], jobs)) == [1]
            foreign = {name: query for name, query in shown() if FOREIGN in jobs_of(prometheus, put(query, jobs))}
            assert foreign == {}, "of processes that are not the service's"


def test_calls_are_counted_of_the_services_own_services():
    # grpc_server_* are go-grpc-prometheus's names too.
    for name, query in shown():
        for matchers in re.findall(r"grpc_server_\w+\{([^{}]*)\}", query):
            assert "grpc_service=" in matchers or re.search(r'grpc_method=~"Expand\|ModelInfer"', matchers), f"{name}: {query}"


def test_the_runbooks_doctor_examines_a_server_from_its_own_pod(tmp_path):
    # As the Secret of components/tls is mounted, and its policy.
    authority = Authority()
    authority.issue("nsa-metadata-server.NAMESPACE").write(tmp_path, "tls")
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    policy = REPOSITORY / "deploy" / "kubernetes" / "components" / "tls" / "policy.json"
    tls = [f"--tls_certificate={tmp_path}/tls.crt", f"--tls_key={tmp_path}/tls.key", f"--tls_client_ca={tmp_path}/ca.crt", f"--authorization_policy={policy}"]
    commands = re.findall(r"`kubectl exec POD -- nsa-metadata ([^`]+)`", RUNBOOK)
    assert len(commands) == 2
    for command, flags in zip(commands, ([], tls)):
        with Server(*flags) as server:
            command = command.replace("127.0.0.1:50051", server.address).replace("/etc/nsa-metadata/tls", str(tmp_path))
            done = run(CLIENT, *command.split())
            assert done.returncode == 0, done.stdout + done.stderr


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

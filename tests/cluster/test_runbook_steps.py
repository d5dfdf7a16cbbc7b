"""The steps of deploy/prometheus/RUNBOOK.md that ask the cluster, each taken where the runbook sends people to it."""

import re
import socket
import subprocess
import urllib.request

from cluster import KUBECTL, NODES, REPOSITORY
from deployed import NAME, Deployed

RUNBOOK = (REPOSITORY / "deploy" / "prometheus" / "RUNBOOK.md").read_text()
STEPS = {
    "debug": "debug POD --profile=restricted --image=busybox -it -- netstat -tn",
    "delete": "delete pod POD",
    "describe": "describe pod POD",
    "doctor": "exec POD -- nsa-metadata doctor --target=127.0.0.1:50051",
    "doctor by TLS": "exec POD -- nsa-metadata doctor --target=127.0.0.1:50051 --tls_ca=/etc/nsa-metadata/tls/ca.crt"
    " --tls_certificate=/etc/nsa-metadata/tls/tls.crt --tls_key=/etc/nsa-metadata/tls/tls.key --tls_server_name=nsa-metadata-server.NAMESPACE",
    "drain": "drain NODE --ignore-daemonsets --delete-emptydir-data",
    "endpoints": "get pods,endpointslices",
    "log": "logs POD",
    "log before": "logs POD --previous",
    "page": "port-forward POD 9464",
    "scale": "scale deployment/nsa-metadata-server --replicas=NUMBER",
}


def step(name, **stands_for):
    text = STEPS[name]
    for word, value in stands_for.items():
        text = text.replace(word, value)
    return text.split()


def test_these_are_all_that_the_runbook_has():
    assert set(re.findall(r"`kubectl ([^`]+)`", RUNBOOK)) == set(STEPS.values())


def test_the_status_page_is_there_through_a_forwarded_port(plain):
    with plain.following(*step("page", POD=plain.two_ready()[0])) as said:
        assert "127.0.0.1:9464" in said.readline()
        with urllib.request.urlopen("http://localhost:9464/", timeout=10) as page:
            assert "<title>nsa-metadata" in page.read().decode()


def test_doctor_compares_what_a_pod_computes(plain):
    assert "500 expansions, 0 wrong" in plain.kubectl(*step("doctor", POD=plain.two_ready()[0]))


def test_doctor_calls_by_the_servers_own_certificate(secured):
    assert "500 expansions, 0 wrong" in secured.kubectl(*step("doctor by TLS", POD=secured.two_ready()[0], NAMESPACE=secured.namespace))


def test_more_replicas_become_ready(plain):
    plain.two_ready()
    plain.kubectl(*step("scale", NUMBER="3"))
    plain.become("three ready servers", lambda: len(plain.ready()) == 3)
    plain.kubectl(*step("scale", NUMBER="2"))
    plain.two_ready()


def test_a_container_beside_the_server_sees_its_connections(plain):
    name = plain.two_ready()[0]
    address = plain.pod(name)["status"]["podIP"]
    with socket.create_connection((address, 50051), timeout=10) as connection:
        # One that begins as HTTP/2 does, or it is ended after --handshake_timeout.
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        # 1.20's own kubectl, as today's no longer speaks of these containers as 1.20 did; it has no profiles. No registry to ask for the image either.
        words = [word for word in step("debug", POD=name) if word != "--profile=restricted"]
        seen = plain.kubectl(*words[:2], "--image-pull-policy=IfNotPresent", *words[2:], program=KUBECTL, stdin=subprocess.DEVNULL)
        peer = "{}:{}".format(*connection.getsockname())
    assert [line for line in seen.splitlines() if line.split()[3:] == [f"{address}:50051", peer, "ESTABLISHED"]], seen


def test_a_pod_says_why_its_server_ended(plain):
    name = plain.two_ready()[0]
    restarts = plain.container(name)["restartCount"]
    log = plain.kubectl(*step("log", POD=name))
    assert " serving: " in log
    plain.kill(name)
    plain.become("another start", lambda: plain.container(name)["restartCount"] == restarts + 1)
    plain.two_ready()
    assert plain.kubectl(*step("log before", POD=name)) == log
    said = plain.kubectl(*step("describe", POD=name))
    assert re.search(r"Last State: +Terminated\n +Reason: +Error\n +Exit Code: +137\n", said), said


def test_a_pod_says_that_its_memory_was_not_enough(cluster):
    with Deployed(cluster, "small", change=lambda deployed: deployed.set_memory("16Mi")) as deployed:

        def killed():
            return [
                pod["metadata"]["name"]
                for pod in deployed.pods()
                for status in pod["status"].get("containerStatuses", [])
                if status["lastState"].get("terminated", {}).get("reason") == "OOMKilled"
            ]

        name = deployed.become("a server that was killed", killed)[0]
        said = deployed.kubectl(*step("describe", POD=name))
        assert re.search(r"Last State: +Terminated\n +Reason: +OOMKilled\n", said), said


def test_a_pods_log_says_why_it_computes_on_the_cpu(cluster):
    with Deployed(cluster, "without-gpu", change=lambda deployed: deployed.set_flag("backend", "auto")) as deployed:
        deployed.roll_out()
        said = deployed.kubectl(*step("log", POD=deployed.two_ready()[0]))
        assert re.search(r" info computing on the CPU, \d+ cores: \S.*", said.splitlines()[0]), said


def test_a_pod_that_has_to_have_a_gpu_says_in_its_log_that_it_has_none(cluster):
    with Deployed(cluster, "needs-gpu", change=lambda deployed: deployed.set_flag("backend", "cuda")) as deployed:
        name = deployed.become("a pod", deployed.pods)[0]["metadata"]["name"]
        # Of a container that was just removed kubectl says that it can't get its log.
        deployed.become("why it ended", lambda: " error --backend=cuda: " in deployed.kubectl(*step("log before", POD=name)))


def test_a_deleted_pod_is_replaced(plain):
    plain.kubectl(*step("delete", POD=plain.two_ready()[0]))
    plain.two_ready()


def test_a_drained_nodes_server_goes_to_the_other_node(plain):
    node = plain.pod(plain.two_ready()[0])["spec"]["nodeName"]
    (other,) = set(NODES) - {node}
    try:
        plain.kubectl(*step("drain", NODE=node))
        plain.two_ready()
        assert {pod["spec"]["nodeName"] for pod in plain.pods()} == {other}
    finally:
        plain.kubectl("uncordon", node)


def test_endpoints_are_the_ready_pods(plain):
    addresses = {plain.pod(name)["status"]["podIP"] for name in plain.two_ready()}

    def listed():
        said = plain.kubectl(*step("endpoints"))
        slices = re.findall(rf"^endpointslice\S+/{NAME}\S+ +IPv4 +\S+ +(\S+)", said, re.MULTILINE)
        return [set(each.split(",")) for each in slices] == [addresses]

    plain.become(f"slices that name {addresses}", listed)

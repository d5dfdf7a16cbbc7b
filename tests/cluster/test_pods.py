"""Pods of the manifests under a kubelet: what they may do, how they end, and what reaches them while they run."""

import json
from pathlib import Path

from cluster import NODES, Failed
from deployed import NAME, Deployed

EXPAND = ["nsa-metadata", "expand", "--json", "--mode=causal", "--extend_seq_lens=2,3", "--seq_lens=10,5", "--nsa_index_topk=4"]
EXPANDED = {"seqlens_expanded": [9, 10, 3, 4, 5], "nsa_cache_seqlens": [4, 4, 3, 4, 4]}


def expand(deployed, pod, *flags):
    """What the client in the pod's image gets."""
    said = json.loads(deployed.kubectl("exec", pod, "--", *EXPAND, *flags))
    return {name: said[name] for name in EXPANDED}


def test_servers_spread_over_the_nodes_though_one_is_half_full(cluster):
    filler = {"name": "filler", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"], "resources": {"requests": {"cpu": "1"}}}
    deployed = Deployed(cluster, "spread")
    deployed.apply([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "filler"}, "spec": {"nodeName": NODES[0], "containers": [filler]}}])
    deployed.become("a filler", lambda: deployed.ready() == ["filler"])
    with deployed:
        deployed.roll_out()
        nodes = [pod["spec"]["nodeName"] for pod in deployed.pods() if pod["metadata"]["name"] != "filler"]
        assert sorted(nodes) == sorted(NODES)


def test_a_server_runs_as_nobody_in_particular_and_may_do_nothing_more(plain):
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{plain.process(plain.two_ready()[0])}/status").read_text().splitlines())
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    # By the runtime's own profile.
    assert status["Seccomp"] == "2"


def test_a_servers_root_is_read_only(plain):
    mounts = [line.split() for line in Path(f"/proc/{plain.process(plain.two_ready()[0])}/mounts").read_text().splitlines()]
    (options,) = (mount[3] for mount in mounts if mount[1] == "/")
    assert "ro" in options.split(","), options


def test_a_pod_calls_the_other(plain):
    one, other = plain.two_ready()
    assert expand(plain, one, f"--target={plain.pod(other)['status']['podIP']}:50051") == EXPANDED


def test_a_deleted_pod_drains_and_is_replaced(plain):
    name = plain.two_ready()[0]
    with plain.following("logs", "--follow", name) as log:
        assert " serving: " in log.readline()
        plain.kubectl("delete", "pod", name, "--wait=false")
        said = log.read().splitlines()
    assert [line for line in said if line.endswith(" signal 15")], said
    assert [line for line in said if line.endswith(" drained")], said
    plain.two_ready()


def test_a_changed_flag_rolls_the_pods(plain):
    before = set(plain.two_ready())
    plain.set_flag("max_queue_requests", "123")
    plain.roll_out()
    after = set(plain.two_ready())
    assert not before & after
    assert {plain.metric(name, 'nsa_metadata_limit{name="max_queue_requests"}') for name in after} == {123}


def test_a_renewed_certificate_is_taken_up_without_a_restart(secured, authority):
    series = 'nsa_metadata_tls_reloads_total{result="ok"}'
    before = {name: secured.metric(name, series) for name in secured.two_ready()}
    secured.put_certificate(authority)
    for name, reloads in before.items():
        secured.become("the new pair", lambda name=name, reloads=reloads: secured.metric(name, series) > reloads)
        assert secured.container(name)["restartCount"] == 0


def test_a_changed_policy_holds_without_a_restart(secured):
    name = secured.two_ready()[0]
    folder = "/etc/nsa-metadata/tls"
    files = [f"--tls_ca={folder}/ca.crt", f"--tls_certificate={folder}/tls.crt", f"--tls_key={folder}/tls.key"]
    call = [*files, f"--tls_server_name={NAME}.{secured.namespace}", "--target=127.0.0.1:50051"]
    assert expand(secured, name, *call) == EXPANDED
    policy = secured.one("ConfigMap", f"{NAME}-policy")
    rules = policy["data"]["policy.json"]

    def denied():
        try:
            return not expand(secured, name, *call)
        except Failed as error:
            return "PERMISSION_DENIED" in str(error)

    def served():
        return expand(secured, name, *call) == EXPANDED

    policy["data"]["policy.json"] = json.dumps({"rules": [{"methods": ["*"], "callers": ["somebody-else"]}]})
    secured.apply([policy])
    secured.become("a refusal by the new policy", denied)
    policy["data"]["policy.json"] = rules
    secured.apply([policy])
    secured.become("the old policy again", served)
    assert secured.container(name)["restartCount"] == 0

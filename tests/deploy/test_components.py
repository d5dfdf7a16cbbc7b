"""The components: each alone over an overlay is valid, and says what the server, its Service and its metrics say."""

import importlib.util
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

import schemas
from manifests import KUBERNETES, Manifests, quantity
from programs import PREFIX, REPOSITORY, run

COMPONENTS = ["tls", "network-policy", "monitoring", "autoscaling", "gpu", "edge-proxy", "edge-proxy/gateway-api", "edge-proxy/monitoring"]
SERVER = {"app.kubernetes.io/name": "nsa-metadata-server"}
PROXY = {"app.kubernetes.io/name": "nsa-metadata-edge-proxy"}
ENVOY = yaml.safe_load((KUBERNETES / "components" / "edge-proxy" / "envoy.yaml").read_text())


@pytest.fixture(scope="module")
def production():
    return Manifests("overlays/production")


@pytest.fixture(scope="module")
def edge():
    return Manifests("overlays/edge")


def test_all_components_are_looked_at():
    found = {str(path.parent.relative_to(KUBERNETES / "components")) for path in (KUBERNETES / "components").rglob("kustomization.yaml")}
    assert found == {*COMPONENTS, "autoscaling/queue"}
    assert all((KUBERNETES / "components" / one / "README.md").exists() for one in found)


@pytest.mark.parametrize("components", [[one] for one in COMPONENTS] + [["autoscaling", "autoscaling/queue"]], ids="+".join)
def test_each_is_valid_alone(components):
    manifests = Manifests.of("base", *components)
    for thing in manifests.objects:
        for version in schemas.VERSIONS:
            schemas.validate(thing, version)


def test_all_go_together_on_gpu_nodes():
    together = Manifests.of("overlays/gpu", "tls", "network-policy", "monitoring", "autoscaling", "autoscaling/queue")
    assert together.environment[f"{PREFIX}BACKEND"] == "cuda"
    assert {volume["name"] for volume in together.pod["volumes"]} == {"tls", "policy", "cuda-cache"}


# tls


def test_certificates_are_mounted_where_the_flags_look(production):
    environment = production.environment
    assert environment[f"{PREFIX}ALLOW_PLAINTEXT"] == "false"
    mounts = {mount["mountPath"]: mount for mount in production.container["volumeMounts"]}
    files = {"TLS_CERTIFICATE": "tls.crt", "TLS_KEY": "tls.key", "TLS_CLIENT_CA": "ca.crt", "AUTHORIZATION_POLICY": "policy.json"}
    for flag, name in files.items():
        path = Path(environment[PREFIX + flag])
        assert path.name == name
        # With subPath a renewed file would not show up.
        assert mounts[str(path.parent)]["readOnly"] and "subPath" not in mounts[str(path.parent)]


def test_a_key_is_its_groups_only(production):
    (secret,) = (volume["secret"] for volume in production.pod["volumes"] if "secret" in volume)
    assert not secret["defaultMode"] & (stat.S_IROTH | stat.S_IWGRP)
    assert production.pod["securityContext"]["fsGroup"] == production.pod["securityContext"]["runAsGroup"]


def test_the_policys_map_keeps_its_name_so_that_a_change_rolls_no_pod(production):
    (mapped,) = (volume["configMap"]["name"] for volume in production.pod["volumes"] if "configMap" in volume)
    assert json.loads(production.one("ConfigMap", mapped)["data"]["policy.json"])["rules"]
    assert mapped == "nsa-metadata-server-policy"


# network-policy


def test_calls_scrapes_and_nothing_else_come_in(production):
    policy = production.one("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == SERVER
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"} and policy["egress"] == []
    ports = {port["name"] for port in production.container["ports"]}
    let_in = [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert sorted(let_in) == ["grpc", "metrics"] and set(let_in) < ports
    assert all(rule["from"] for rule in policy["ingress"]), "an ingress rule without from lets everybody in"


# monitoring


def test_scrapes_go_to_the_services_metrics_port(production):
    monitor, service = production.one("ServiceMonitor")["spec"], production.one("Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} == {"metrics"} < {port["name"] for port in service["spec"]["ports"]}


def test_the_operators_rules_are_the_rules(production, edge):
    spec = importlib.util.spec_from_file_location("operator_rules", REPOSITORY / "deploy" / "prometheus" / "prometheusrule.py")
    operator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(operator)
    for manifests, of in ((production, "server"), (edge, "server"), (edge, "edge-proxy")):
        rules, written = operator.OF[of]
        assert written.read_text() == operator.operator_rules(of), f"run deploy/prometheus/prometheusrule.py --of={of}"
        assert manifests.one("PrometheusRule", f"nsa-metadata-{of}")["spec"] == yaml.safe_load(rules.read_text())


def test_the_dashboard_comes_as_grafanas_sidecar_wants_it(production):
    board = production.one("ConfigMap", "nsa-metadata-server-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = board["data"].values()
    assert json.loads(text) == json.loads((REPOSITORY / "deploy" / "grafana" / "dashboard.json").read_text())


# autoscaling


def test_more_pods_come_by_cpu_first(production):
    scaler = production.one("HorizontalPodAutoscaler")["spec"]
    deployment = production.one("Deployment")
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"], "applying again would set back what the autoscaler did"
    assert scaler["metrics"][0]["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
    # One may be lost, and the rest still serve.
    assert scaler["minReplicas"] >= 2
    assert production.container["resources"]["requests"]["cpu"]


def test_the_adapter_makes_the_metrics_that_the_autoscaler_asks_for():
    scaler = Manifests.of("base", "autoscaling", "autoscaling/queue").one("HorizontalPodAutoscaler")["spec"]
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["metrics"] if metric["type"] == "Pods"}
    adapter = yaml.safe_load((KUBERNETES / "components/autoscaling/queue/prometheus-adapter.yaml").read_text())
    assert asked == {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
    assert len(asked) == 2
    # The adapter gives thousandths, and cuts off what is smaller.
    for metric in scaler["metrics"][1:]:
        assert quantity(metric["pods"]["target"]["averageValue"]) >= 0.5


# edge-proxy


def proxy_pod(edge):
    return edge.one("Deployment", "nsa-metadata-edge-proxy")["spec"]["template"]["spec"]


def listener(name):
    (found,) = (one for one in ENVOY["static_resources"]["listeners"] if one["name"] == name)
    return found


def upstream():
    (found,) = (one for one in ENVOY["static_resources"]["clusters"] if one["name"] == "nsa-metadata-server")
    return found


def test_the_proxy_is_as_hardened_as_the_server(edge):
    pod = proxy_pod(edge)
    (container,) = pod["containers"]
    assert container["securityContext"] == edge.container["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert edge.one("PodDisruptionBudget", "nsa-metadata-edge-proxy")["spec"]["maxUnavailable"] == 1


def test_the_proxys_ports_are_its_configurations(edge):
    (container,) = proxy_pod(edge)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {name: listener(name)["address"]["socket_address"]["port_value"] for name in ("grpc", "admin")}
    assert all(listener(name)["address"]["socket_address"]["address"] == "0.0.0.0" for name in ports)
    # All that it can be told to do is for the pod itself.
    assert ENVOY["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    (port,) = edge.one("Service", "nsa-metadata-edge-proxy")["spec"]["ports"]
    assert port["targetPort"] == "grpc"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/ready", "port": "admin"}


def test_the_proxy_calls_the_service_by_its_ports(edge):
    (endpoints,) = upstream()["load_assignment"]["endpoints"]
    (endpoint,) = (one["endpoint"] for one in endpoints["lb_endpoints"])
    ports = {port["name"]: port["containerPort"] for port in edge.container["ports"]}
    assert endpoint["address"]["socket_address"] == {"address": edge.one("Service")["metadata"]["name"], "port_value": ports["grpc"]}
    assert endpoint["health_check_config"]["port_value"] == ports["health"]
    (check,) = upstream()["health_checks"]
    assert check["grpc_health_check"]["service_name"] == edge.container["readinessProbe"]["grpc"]["service"]


def test_the_proxys_files_are_mounted_where_it_looks(edge):
    pod = proxy_pod(edge)
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (mapped,) = (volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume)
    files = edge.one("ConfigMap", mapped)["data"]
    named = set(re.findall(r"(?:path|filename): ([^ }\n]+)", "\n".join(files.values()))) - {"/ready", "/stats/prometheus"}
    secret = {f"{mounts['tls']}/{name}" for name in ("tls.crt", "tls.key", "ca.crt")} | {mounts["tls"]}
    assert named == secret | {f"{mounts['configuration']}/{name}" for name in ("certificate.yaml", "validation.yaml")}
    assert container["args"][:2] == ["--config-path", f"{mounts['configuration']}/envoy.yaml"] and "envoy.yaml" in files


def test_scrapes_of_the_proxies_go_where_they_answer_and_are_the_job_of_the_rules(edge):
    monitor = edge.one("PodMonitor", "nsa-metadata-edge-proxy")["spec"]
    labels = edge.one("Deployment", "nsa-metadata-edge-proxy")["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    (manager,) = listener(endpoint["port"])["filter_chains"][0]["filters"]
    (host,) = manager["typed_config"]["route_config"]["virtual_hosts"]
    assert endpoint["path"] in {route["match"]["path"] for route in host["routes"]}
    (port,) = (rule["ports"] for rule in edge.one("NetworkPolicy", "nsa-metadata-edge-proxy")["spec"]["ingress"] if "from" in rule)
    assert port == [{"port": endpoint["port"]}]
    asked = set(re.findall(r'\bjob="([^"]*)"', (REPOSITORY / "deploy" / "prometheus" / "proxy-rules.yaml").read_text()))
    assert asked == {labels[monitor["jobLabel"]]}


def test_the_proxys_memory_is_more_than_its_heap_may_be(edge):
    (container,) = proxy_pod(edge)["containers"]
    monitors = {one["name"].rsplit(".", 1)[1]: one["typed_config"] for one in ENVOY["overload_manager"]["resource_monitors"]}
    assert quantity(container["resources"]["limits"]["memory"]) >= 1.25 * monitors["fixed_heap"]["max_heap_size_bytes"]


def test_the_service_believes_the_proxy_who_calls(edge):
    environment = edge.environment
    (manager,) = listener("grpc")["filter_chains"][0]["filters"]
    (host,) = manager["typed_config"]["route_config"]["virtual_hosts"]
    assert environment[f"{PREFIX}CALLER_METADATA"] in {one["header"]["key"] for one in host["request_headers_to_add"]}
    assert environment[f"{PREFIX}TRUSTED_PROXIES"]


def test_the_proxies_reach_the_servers_and_their_health(edge):
    labels = edge.one("Deployment", "nsa-metadata-edge-proxy")["spec"]["template"]["metadata"]["labels"]
    let_in = edge.one("NetworkPolicy", "nsa-metadata-server-proxied")["spec"]
    assert let_in["podSelector"]["matchLabels"] == SERVER
    (rule,) = let_in["ingress"]
    assert rule["from"][0]["podSelector"]["matchLabels"] == PROXY and PROXY.items() <= labels.items()
    named = {port["name"]: port["containerPort"] for port in edge.container["ports"]}
    assert [port["port"] for port in rule["ports"]] == ["grpc", "health"]
    out = edge.one("NetworkPolicy", "nsa-metadata-edge-proxy")["spec"]["egress"]
    assert [port["port"] for port in out[0]["ports"]] == [named["grpc"], named["health"]]


def let_in(manifests):
    """Each port of the servers, and who reaches it by all policies together."""
    policies = [thing["spec"] for thing in manifests.all("NetworkPolicy") if thing["spec"]["podSelector"]["matchLabels"].items() <= SERVER.items()]
    assert policies and all("Ingress" in policy["policyTypes"] for policy in policies)
    reached = {}
    for rule in (rule for policy in policies for rule in policy["ingress"]):
        assert rule.get("from") and rule.get("ports"), "a rule without one of them lets everybody in, or to every port"
        for port in rule["ports"]:
            reached.setdefault(port["port"], []).extend(rule["from"])
    return reached


def test_behind_the_proxies_nobody_but_they_reach_the_servers_calls(edge, production):
    proxies, prometheus = {"podSelector": {"matchLabels": PROXY}}, {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    callers = {"podSelector": {"matchLabels": {"nsa-metadata-server/caller": "true"}}}
    assert let_in(production) == {"grpc": [callers], "metrics": [prometheus]}
    assert let_in(edge) == {"grpc": [proxies], "health": [proxies], "metrics": [prometheus]}
    assert edge.one("NetworkPolicy")["spec"]["egress"] == []
    # As its README says: by itself the component keeps all others out, and network-policy beside it lets callers in.
    assert let_in(Manifests.of("overlays/cpu", "edge-proxy")) == {"grpc": [proxies], "health": [proxies]}
    assert callers in let_in(Manifests.of("overlays/cpu", "edge-proxy", "network-policy"))["grpc"]


@pytest.mark.parametrize("components", [["edge-proxy", "tls"], ["tls", "edge-proxy"]], ids="+".join)
def test_a_proxy_that_calls_in_plain_text_is_refused_beside_servers_that_take_none(components):
    with pytest.raises(AssertionError, match="either-tls-or-edge-proxy"):
        Manifests.of("overlays/cpu", *components)
    assert not [thing for thing in Manifests.of("overlays/cpu", components[0]).objects if "either" in thing["metadata"]["name"]], "it is not applied"


def test_proxies_are_as_many_as_their_cpu_asks_for(edge):
    scaler = edge.one("HorizontalPodAutoscaler", "nsa-metadata-edge-proxy")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "nsa-metadata-edge-proxy" and scaler["minReplicas"] >= 2
    assert "replicas" not in edge.one("Deployment", "nsa-metadata-edge-proxy")["spec"]
    assert scaler["metrics"][0]["resource"]["name"] == "cpu"


@pytest.mark.parametrize("components", [["edge-proxy", "monitoring"], ["monitoring", "edge-proxy"]], ids="+".join)
def test_in_either_order_each_object_keeps_its_own_labels(components):
    together = Manifests.of("overlays/cpu", *components)
    for kind in ("Deployment", "PodDisruptionBudget", "Service"):
        for thing in together.all(kind):
            assert thing["metadata"]["labels"]["app.kubernetes.io/name"] == thing["metadata"]["name"]
    selector = together.one("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    matched = [thing["metadata"]["name"] for thing in together.all("Service") if selector.items() <= thing["metadata"]["labels"].items()]
    assert matched == ["nsa-metadata-server"]


def test_both_protocols_and_nothing_else_are_routed(edge):
    (manager,) = listener("grpc")["filter_chains"][0]["filters"]
    ((route,),) = (host["routes"] for host in manager["typed_config"]["route_config"]["virtual_hosts"])
    allowed = re.compile(route["match"]["safe_regex"]["regex"])
    for path in ("/nsa.metadata.v1.MetadataService/Expand", "/inference.GRPCInferenceService/ModelInfer"):
        assert allowed.fullmatch(path)
    for path in ("/grpc.health.v1.Health/Check", "/nsa.metadata.v1.MetadataService/", "/xnsa.metadata.v1.MetadataService/Expand", "/metrics"):
        assert not allowed.fullmatch(path), path


def test_a_proxy_drains_before_it_ends(edge, tmp_path):
    pod = proxy_pod(edge)
    (container,) = pod["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    slept = int(re.search(r"sleep (\d+)", command[-1])[1])
    assert pod["terminationGracePeriodSeconds"] > slept
    arguments = dict(zip(container["args"][::2], container["args"][1::2]))
    assert int(arguments["--drain-time-s"]) < slept and arguments["--drain-strategy"] == "immediate"
    # That Envoy's admin interface would get just that: something that reads it, in its place.
    received = tmp_path / "received"
    listening = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
peer, said = listener.accept()[0], b""
while not said.endswith(b"\\r\\n\\r\\n"):
    said += peer.recv(4096)
sys.stdout.write(said.decode())
peer.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
"""
    with subprocess.Popen(["python3", "-c", listening], stdout=subprocess.PIPE, text=True) as admin:
        port = admin.stdout.readline().strip()
        script = command[-1].replace("/9901", f"/{port}").replace(f"sleep {slept}", f"touch {received}")
        run(*command[:-1], script, env=os.environ)
        asked = admin.stdout.read()
    assert asked.startswith("POST /drain_listeners?graceful&skip_exit HTTP/1.1\n") or asked.startswith("POST /drain_listeners?graceful&skip_exit HTTP/1.1\r\n")
    assert received.exists()


def test_a_gateways_route_is_the_service_and_only_its_calls():
    routed = Manifests.of("overlays/cpu", "edge-proxy/gateway-api")
    (rule,) = routed.one("GRPCRoute")["spec"]["rules"]
    service = routed.one("Service")
    assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}]
    services = [match["method"] for match in rule["matches"]]
    assert services == [{"service": "nsa.metadata.v1.MetadataService"}, {"service": "inference.GRPCInferenceService"}]

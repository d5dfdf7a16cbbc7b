"""Base and overlays: valid for every Kubernetes from 1.30, hardened, and in agreement with the server they run."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

import schemas
from manifests import KUBERNETES, Manifests, code_blocks, quantity
from programs import PREFIX, REPOSITORY, SERVER, log_until_serving, port_of, run, server_flags, server_version

FOLDERS = {"base": "base", "cpu": "overlays/cpu", "gpu": "overlays/gpu", "production": "overlays/production", "edge": "overlays/edge"}
# Beside what serves.
MORE = ["ConfigMap", "HorizontalPodAutoscaler", "NetworkPolicy", "PrometheusRule", "ServiceMonitor"]
OF_PROXIES = ["ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "NetworkPolicy", "PodDisruptionBudget", "Service"]
SERVING = ["ConfigMap", "Deployment", "PodDisruptionBudget", "Service", "ServiceAccount"]
NAME = {"app.kubernetes.io/name": "nsa-metadata-server"}
HEALTH_SERVICE = "nsa.metadata.v1.MetadataService"
# What the kernel was measured to hold for a connection whose caller doesn't read.
STUCK_CONNECTION_BYTES = 630_000
# The server itself, without replies: its resident memory under the tests' loads stays well below.
PROCESS_BYTES = 100 << 20
# max_undelivered_bytes, and what they take where they are small header fields (SECURITY.md).
UNDELIVERED_MEMORY_BYTES = 25 * (4 << 20)


@pytest.fixture(scope="module", params=FOLDERS)
def overlay(request):
    return request.param


@pytest.fixture(scope="module")
def manifests(overlay):
    return Manifests(FOLDERS[overlay])


@pytest.fixture(scope="module")
def cpu():
    return Manifests(FOLDERS["cpu"])


@pytest.fixture(scope="module")
def gpu():
    return Manifests(FOLDERS["gpu"])


@pytest.fixture(scope="module")
def flags():
    return server_flags()


# Schemas


def test_the_oldest_kubernetes_is_among_those_checked():
    assert schemas.VERSIONS[0].startswith("1.30")


@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_every_object_is_strictly_valid(manifests, version):
    for thing in manifests.objects:
        schemas.validate(thing, version)


@pytest.mark.parametrize("kind", ["Service", "ServiceMonitor", "HorizontalPodAutoscaler"])
def test_an_unknown_field_would_be_found(kind):
    one = Manifests(FOLDERS["production"]).one(kind)
    with pytest.raises(schemas.ValidationError):
        schemas.validate({**one, "spec": {**one["spec"], "specification": {}}}, schemas.VERSIONS[-1])


def test_there_are_just_these_objects(overlay, manifests):
    more = {"production": [*MORE, "ConfigMap"], "edge": MORE + OF_PROXIES + ["PodMonitor", "PrometheusRule"]}
    assert manifests.kinds() == sorted(SERVING + more.get(overlay, []))
    proxies = {"app.kubernetes.io/name": "nsa-metadata-edge-proxy"}
    for thing in manifests.objects:
        labels = thing["metadata"].get("labels", {}).items()
        assert thing["kind"] == "ConfigMap" or labels >= NAME.items() or overlay == "edge" and labels >= proxies.items()


# Agreement with the server


def test_every_flag_is_one_of_the_servers(manifests, flags):
    ours = [name for name in manifests.environment if name.startswith(PREFIX)]
    assert ours
    for name in ours:
        assert name.removeprefix(PREFIX).lower() in flags, name
    for argument in manifests.container.get("args", []):
        assert argument.removeprefix("--").split("=")[0] in flags, argument


def files_in(manifests, folder):
    """Writes what the pod has mounted, and returns the environment with their paths here. A certificate of openssl's is the secret."""
    environment = manifests.environment
    mounts = {mount["name"]: mount["mountPath"] for mount in manifests.container.get("volumeMounts", [])}
    for volume in manifests.pod.get("volumes", []):
        here = Path(folder, volume["name"])
        here.mkdir()
        if "configMap" in volume:
            for name, text in manifests.one("ConfigMap", volume["configMap"]["name"])["data"].items():
                (here / name).write_text(text)
        elif "secret" in volume:
            pair = ["-keyout", here / "tls.key", "-out", here / "tls.crt"]
            run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost", *pair)
            (here / "ca.crt").write_bytes((here / "tls.crt").read_bytes())
        environment = {name: value.replace(mounts[volume["name"]], str(here)) for name, value in environment.items()}
    return environment


def test_the_server_starts_with_these_flags(manifests, tmp_path):
    # Loopback, free ports, and no card are what this machine can give; everything else is as deployed.
    environment = {
        **files_in(manifests, tmp_path),
        **{f"{PREFIX}{what}": "127.0.0.1:0" for what in ("LISTEN", "HEALTH_LISTEN", "METRICS_LISTEN")},
        f"{PREFIX}BACKEND": "cpu",
    }
    with subprocess.Popen([SERVER], env=environment, stderr=subprocess.PIPE, text=True) as server:
        log_until_serving(server)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


def test_the_backend_is_the_overlays(overlay, manifests):
    expected = {"base": None, "cpu": "cpu", "gpu": "cuda", "production": "cpu", "edge": "cpu"}
    assert manifests.environment.get(f"{PREFIX}BACKEND") == expected[overlay]


def test_a_failed_card_restarts_the_pod(gpu):
    assert gpu.environment[f"{PREFIX}ON_GPU_FAULT"] == "exit"


def test_ports_are_the_servers(manifests, flags):
    ports = {port["name"]: port["containerPort"] for port in manifests.container["ports"]}
    for name, flag in {"grpc": "listen", "health": "health_listen", "metrics": "metrics_listen"}.items():
        address = manifests.environment[PREFIX + flag.upper()]
        assert address.startswith("0.0.0.0:")
        assert ports.pop(name) == port_of(address) == port_of(flags[flag]), flag
    assert not ports


def test_image_is_of_this_version_and_names_no_registry(manifests):
    assert manifests.container["image"] == f"nsa-metadata-server:{server_version()}"


def test_a_node_is_told_to_pull_the_image_that_was_pushed(tmp_path):
    text = (KUBERNETES / "README.md").read_text()
    pushed = re.search(r"buildah push nsa-metadata-server:\S+ docker://(\S+)", text)[1]
    (applied,) = re.findall(r"kubectl apply -k (\S+)", text)
    overlays = [block for block in code_blocks(text) if block.strip().startswith("resources:")]
    assert len(overlays) == 2 and f"`{applied}/kustomization.yaml`" in text
    for number, block in enumerate(overlays):
        # As in that folder of the checkout; here in the test's own.
        own, folder = yaml.safe_load(block), tmp_path / str(number)
        folder.mkdir()
        for kind in own.keys() & {"resources", "components"}:
            own[kind] = [os.path.relpath(REPOSITORY / applied / path, folder.resolve()) for path in own[kind]]
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
        assert Manifests(folder).container["image"] == pushed


def test_a_thread_for_each_core(manifests):
    cores = quantity(manifests.container["resources"]["limits"]["cpu"])
    assert int(manifests.environment[f"{PREFIX}COMPLETION_QUEUES"]) == cores


# Probes and the end


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_are_native_and_on_the_health_port(manifests, flags, probe):
    assert manifests.container[probe]["grpc"]["port"] == port_of(flags["health_listen"])


def test_readiness_asks_for_the_service_and_liveness_for_the_process(manifests):
    assert manifests.container["readinessProbe"]["grpc"]["service"] == HEALTH_SERVICE
    assert not manifests.container["livenessProbe"]["grpc"].get("service")


@pytest.mark.parametrize(("which", "least_s"), [("cpu", 30), ("gpu", 300)])
def test_startup_has_the_time_it_takes(which, least_s, request):
    probe = request.getfixturevalue(which).container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= least_s


def test_a_pod_is_out_of_dns_before_it_stops_and_drains_before_it_is_killed(manifests):
    # The image has no program to sleep with.
    sleep_s = manifests.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = int(manifests.environment[f"{PREFIX}DRAIN_TIMEOUT"].removesuffix("s"))
    assert sleep_s >= 5
    assert drain_s == 30
    lame_duck_s = int(manifests.environment.get(f"{PREFIX}LAME_DUCK", "0s").removesuffix("s"))
    assert manifests.pod["terminationGracePeriodSeconds"] >= sleep_s + lame_duck_s + drain_s + 5


@pytest.mark.parametrize("which", ["production", "edge"])
def test_a_pod_that_was_added_has_its_share_within_minutes(which):
    assert Manifests(FOLDERS[which]).environment[f"{PREFIX}MAX_CONNECTION_AGE"] == "5m"


# Security: the restricted profile, and a little more


def test_pod_is_not_root(manifests):
    security = manifests.pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_container_has_no_privileges_and_a_read_only_root(manifests):
    assert manifests.container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_nothing_of_the_node_is_shared(manifests):
    assert not {"hostNetwork", "hostPID", "hostIPC"} & manifests.pod.keys()
    assert all("hostPort" not in port for port in manifests.container["ports"])
    kinds = [set(volume) - {"name"} for volume in manifests.pod.get("volumes", [])]
    assert all(len(kind) == 1 and kind <= {"emptyDir", "configMap", "secret"} for kind in kinds)


def test_account_is_its_own_and_has_no_token(manifests):
    account = manifests.one("ServiceAccount")
    assert manifests.pod["serviceAccountName"] == account["metadata"]["name"] != "default"
    assert account["automountServiceAccountToken"] is False
    assert manifests.pod["automountServiceAccountToken"] is False


def test_other_services_set_no_flag(manifests):
    assert manifests.pod["enableServiceLinks"] is False


# Resources and placing


def test_cores_are_whole_and_requests_are_limits(manifests):
    resources = manifests.container["resources"]
    assert quantity(resources["limits"]["cpu"]) % 1 == 0
    for what in ("cpu", "memory"):
        assert resources["requests"][what] == resources["limits"][what]


def test_memory_holds_what_the_flags_allow(manifests):
    environment = manifests.environment
    most = (
        int(environment[f"{PREFIX}OUTPUT_BUDGET_BYTES"])
        + int(environment[f"{PREFIX}LENGTHS_BUDGET_BYTES"])
        + int(environment[f"{PREFIX}MAX_CONNECTIONS"]) * STUCK_CONNECTION_BYTES
        + UNDELIVERED_MEMORY_BYTES
        + PROCESS_BYTES
    )
    assert quantity(manifests.container["resources"]["limits"]["memory"]) >= most


def test_gpu_has_memory_for_the_driver(cpu, gpu):
    def memory(manifests):
        return quantity(manifests.container["resources"]["limits"]["memory"])

    assert memory(gpu) >= memory(cpu) + (512 << 20)


def test_replicas_survive_a_disruption(manifests):
    scalers = manifests.all("HorizontalPodAutoscaler")
    assert (scalers[0]["spec"]["minReplicas"] if scalers else manifests.deployment["replicas"]) >= 2
    budget = manifests.one("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    # The default would let a pod that never became ready hold up a node's drain.
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_replicas_spread_over_zones_and_hosts(manifests):
    constraints = manifests.pod["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in constraints] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert all(one["labelSelector"]["matchLabels"] == NAME for one in constraints)


def test_everything_selects_the_pods(manifests):
    assert manifests.deployment["template"]["metadata"]["labels"] == NAME
    assert manifests.deployment["selector"]["matchLabels"] == NAME
    assert manifests.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == NAME
    assert manifests.one("Service")["spec"]["selector"] == NAME


def test_service_is_headless_and_names_ports(manifests):
    service = manifests.one("Service")["spec"]
    assert service["clusterIP"] == "None"
    ports = {port["name"]: port["containerPort"] for port in manifests.container["ports"]}
    for port in service["ports"]:
        assert port["targetPort"] == port["name"]
        # Without a virtual address nothing translates between the two.
        assert port["port"] == ports[port["name"]]


def test_cpu_takes_no_gpu(cpu):
    assert cpu.environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "nvidia.com/gpu" not in cpu.container["resources"]["limits"]


def test_gpu_takes_one_and_goes_where_they_are(gpu):
    assert gpu.container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in gpu.pod["tolerations"]
    # The device plugin says which.
    assert "NVIDIA_VISIBLE_DEVICES" not in gpu.environment


def test_gpu_rolls_without_a_card_to_spare(gpu):
    assert gpu.deployment["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_gpu_keeps_what_the_driver_compiles(gpu):
    path = gpu.environment["CUDA_CACHE_PATH"]
    (volume,) = [mount["name"] for mount in gpu.container["volumeMounts"] if mount["mountPath"] == path]
    (cache,) = [one["emptyDir"] for one in gpu.pod["volumes"] if one["name"] == volume]
    # Over its limit a pod is evicted; the driver has to stop before.
    assert int(gpu.environment["CUDA_CACHE_MAXSIZE"]) < quantity(cache["sizeLimit"])

"""The manifests of deploy/kubernetes for Kubernetes 1.20, which Debian 12 has the source of: older than what they ask for."""

import copy

HEALTH = ["/usr/local/bin/nsa-metadata", "health"]


def _probe(probe):
    """1.20's kubelet asks no gRPC: the image's own client asks the same."""
    asked = probe.pop("grpc")
    service = [f"--service={asked['service']}"] if "service" in asked else []
    probe["exec"] = {"command": [*HEALTH, f"--target=127.0.0.1:{asked['port']}", *service]}
    # It starts a process, on a part of a core.
    probe["timeoutSeconds"] = 5


def _adapt_deployment(deployment):
    pod = deployment["spec"]["template"]["spec"]
    for constraint in pod["topologySpreadConstraints"]:
        del constraint["matchLabelKeys"]
    for container in pod["containers"]:
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            _probe(container[name])
        # 1.20 has no sleep.
        del container["lifecycle"]
        # The nodes share this machine's cores, and a rollout needs room.
        for kind in ("requests", "limits"):
            container["resources"][kind]["cpu"] = "300m"


def adapted(objects):
    """`objects` as rendered, with what 1.20 doesn't know replaced or left out."""
    objects = copy.deepcopy(objects)
    for thing in objects:
        if thing["kind"] == "Deployment":
            _adapt_deployment(thing)
        if thing["kind"] == "PodDisruptionBudget":
            thing["apiVersion"] = "policy/v1beta1"
            del thing["spec"]["unhealthyPodEvictionPolicy"]
    return objects

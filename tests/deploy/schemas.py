"""The schemas of objects: Kubernetes' own from kubernetes-validate; of others' what we use of them, from their documentation."""

import kubernetes_validate
import jsonschema
from kubernetes_validate.utils import all_versions

ValidationError = (kubernetes_validate.ValidationError, jsonschema.ValidationError)
# The first with the preStop sleep on.
OLDEST = (1, 30)
VERSIONS = [version for version in all_versions() if tuple(map(int, version.split(".")[:2])) >= OLDEST]

STRING = {"type": "string", "minLength": 1}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h|d))+$"}


def record(required, **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def items(schema):
    return {"type": "array", "items": schema, "minItems": 1}


def custom(api_version, spec):
    metadata = record(["name"], name=STRING, labels=STRINGS, annotations=STRINGS)
    kind = {"type": "string"}
    return record(["apiVersion", "kind", "metadata", "spec"], apiVersion={"const": api_version}, kind=kind, metadata=metadata, spec=spec)


# https://prometheus-operator.dev/docs/api-reference/api/
RULE = record(["expr"], record=STRING, alert=STRING, expr=STRING, keep_firing_for=DURATION, labels=STRINGS, annotations=STRINGS, **{"for": DURATION})
ENDPOINT = record(["port"], port=STRING, interval=DURATION, scrapeTimeout=DURATION, path=STRING)
# https://gateway-api.sigs.k8s.io/reference/spec/
METHOD = record([], type={"enum": ["Exact"]}, service=STRING, method=STRING)
ROUTE_RULE = record(
    ["backendRefs"],
    matches=items(record(["method"], method=METHOD)),
    backendRefs=items(record(["name", "port"], name=STRING, port={"type": "integer", "minimum": 1, "maximum": 65535})),
)
CUSTOM = {
    "ServiceMonitor": custom(
        "monitoring.coreos.com/v1",
        record(["selector", "endpoints"], selector=record([], matchLabels=STRINGS), endpoints=items(ENDPOINT)),
    ),
    "PodMonitor": custom(
        "monitoring.coreos.com/v1",
        record(["selector", "podMetricsEndpoints"], jobLabel=STRING, selector=record([], matchLabels=STRINGS), podMetricsEndpoints=items(ENDPOINT)),
    ),
    "PrometheusRule": custom(
        "monitoring.coreos.com/v1", record(["groups"], groups=items(record(["name", "rules"], name=STRING, interval=DURATION, rules=items(RULE))))
    ),
    "GRPCRoute": custom(
        "gateway.networking.k8s.io/v1",
        record(["rules"], parentRefs=items(record(["name"], name=STRING, sectionName=STRING)), hostnames=items(STRING), rules=items(ROUTE_RULE)),
    ),
}


def validate(thing, version):
    """Raises one of ValidationError where `thing` is none of Kubernetes `version`'s objects, or has a field too many."""
    if thing["kind"] in CUSTOM:
        jsonschema.validate(thing, CUSTOM[thing["kind"]])
    else:
        assert kubernetes_validate.validate(thing, version, strict=True) == version.rsplit(".", 1)[0]

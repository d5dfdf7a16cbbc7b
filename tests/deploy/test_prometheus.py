"""The rules: promtool takes them, each alert is seen firing by their unit tests, explained in the runbook, and made of metrics that a server has.
And how they come to a Prometheus, with an operator and without."""

import json
import os
import re
import shutil
import subprocess
import urllib.request

import pytest
import yaml

from manifests import KUBERNETES, Manifests, code_blocks
from programs import REPOSITORY, SERVER, log_until_serving, run

FOLDER = REPOSITORY / "deploy" / "prometheus"
MONITORING = KUBERNETES / "components" / "monitoring"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())
FILES = ["rules", "proxy-rules"]
PROXY_RULES = KUBERNETES / "components" / "edge-proxy" / "monitoring"


def alerts_of(file):
    return [rule for group in yaml.safe_load((FOLDER / f"{file}.yaml").read_text())["groups"] for rule in group["rules"] if "alert" in rule]


ALERTS = [alert for file in FILES for alert in alerts_of(file)]
RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
# Of Prometheus itself; and those that a server without TLS has not.
OTHERS = {"up", "nsa_metadata_tls_certificate_expiry_timestamp_seconds"}


@pytest.fixture(scope="module")
def metrics():
    flags = ["--listen=127.0.0.1:0", "--health_listen=127.0.0.1:0", "--metrics_listen=127.0.0.1:0"]
    with subprocess.Popen([SERVER, *flags], stderr=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"metrics=(\S+)", log_until_serving(server)[-1])[1]
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
                return page.read().decode()
        finally:
            server.terminate()


@pytest.mark.parametrize("file", FILES)
def test_promtool_takes_the_rules(file):
    assert shutil.which("promtool"), "the prometheus package is missing"
    run("promtool", "check", "rules", "--lint-fatal", FOLDER / f"{file}.yaml")


@pytest.mark.parametrize("file", FILES)
def test_the_unit_tests_hold(file):
    # Days of samples.
    run("promtool", "test", "rules", FOLDER / f"{file}_test.yaml", timeout_s=300)


@pytest.mark.parametrize("file", FILES)
def test_each_alert_is_seen_firing_and_silent(file):
    tests = [one for group in yaml.safe_load((FOLDER / f"{file}_test.yaml").read_text())["tests"] for one in group.get("alert_rule_test", [])]
    fired = {one["alertname"] for one in tests if one.get("exp_alerts")}
    silent = {one["alertname"] for one in tests if not one.get("exp_alerts")}
    names = {alert["alert"] for alert in alerts_of(file)}
    assert fired == names, "firing"
    assert names - silent == set(), "not firing where nothing is wrong"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_what_and_what_to_do(alert):
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["for"], "one sample is no reason to call somebody"
    assert "{{" in alert["annotations"]["summary"] or alert["alert"].endswith("Absent")
    file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert file == "RUNBOOK.md"
    sections = {part.split("\n", 1)[0].lower(): part for part in re.split(r"^## ", (FOLDER / file).read_text(), flags=re.MULTILINE)[1:]}
    assert anchor in sections, "no such section in RUNBOOK.md"
    assert re.search(rf"\b{alert['alert']}\b", sections[anchor]), "the section that it leads to doesn't name it"


def test_the_rules_are_made_of_what_a_server_exports(metrics):
    exported = set(re.findall(r"^(\w+)(?:\{| )", metrics, re.MULTILINE))
    labels = {name: set(re.findall(r'(\w+)="', "".join(re.findall(rf"^{name}\{{(.*?)\}}", metrics, re.MULTILINE)))) for name in exported}
    texts = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]] + re.findall(r"`([^`]*(?:grpc_|nsa_)[^`]*)`", (FOLDER / "RUNBOOK.md").read_text())
    asked = {}
    for text in texts:
        for name, matchers in re.findall(r"\b((?:grpc_server_|nsa_metadata_)\w+|up)\b(?!:)(?:\{(.*?)\})?", text):
            if f"{name}:" not in text:
                asked.setdefault(name, set()).update(re.findall(r'(\w+)(?:=|!=|=~|!~)"', matchers or ""))
    asked = {name: used for name, used in asked.items() if name not in RECORDED | OTHERS}
    assert len(asked) > 10
    for name, used in asked.items():
        name = name if name in exported else f"{name}_count"  # a histogram, by its own name
        assert name in exported, f"{name} is no metric of the server's"
        assert used <= labels[name] | {"job", "instance"}, f"{name} has no label {used - labels[name]}"


# On their way to a Prometheus


def block_of(path, start):
    (found,) = (block.strip() + "\n" for block in code_blocks(path.read_text()) if block.strip().startswith(start))
    return found


def with_the_runbook_at(address, file="rules"):
    """The rules as they are to be with its address."""
    groups = yaml.safe_load((FOLDER / f"{file}.yaml").read_text())
    for rule in (rule for group in groups["groups"] for rule in group["rules"] if "alert" in rule):
        rule["annotations"]["runbook_url"] = rule["annotations"]["runbook_url"].replace("RUNBOOK.md", address, 1)
        assert rule["annotations"]["runbook_url"].startswith(f"{address}#")
    return groups


def test_the_operators_rules_lead_to_the_runbook_where_it_is_read():
    address = "https://example.org/a/b/RUNBOOK.md"
    before = (MONITORING / "prometheusrule.yaml").read_bytes()
    written = yaml.safe_load(run(FOLDER / "prometheusrule.py", f"--runbook={address}", "--output=-"))
    assert written["kind"] == "PrometheusRule" and written["spec"] == with_the_runbook_at(address)
    assert run(FOLDER / "prometheusrule.py", "--output=-").encode() == before == (MONITORING / "prometheusrule.yaml").read_bytes()


@pytest.mark.parametrize("address", ["RUNBOOK.md", "https://example.org/RUNBOOK.md#section", "https://example.org/a b", ""])
def test_what_is_no_address_of_a_runbook_is_refused(address):
    done = subprocess.run([FOLDER / "prometheusrule.py", f"--runbook={address}", "--output=-"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and repr(address) in done.stderr and done.stdout == ""


@pytest.mark.parametrize(("overlay", "component", "file", "of"), [("production", MONITORING, "rules", "server"), ("edge", PROXY_RULES, "proxy-rules", "edge-proxy")])
def test_an_overlay_takes_the_rules_with_the_runbooks_address(overlay, component, file, of, tmp_path):
    # As the README says it, in a folder of the user's.
    command = block_of(component / "README.md", "deploy/prometheus/prometheusrule.py").replace("OVERLAY", str(tmp_path))
    address = re.search(r"--runbook=(\S+)", command)[1]
    run("bash", "-c", command, cwd=REPOSITORY)
    own = {"resources": [os.path.relpath(KUBERNETES / "overlays" / overlay, tmp_path.resolve())], **yaml.safe_load(block_of(component / "README.md", "patches:"))}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    assert Manifests(tmp_path).one("PrometheusRule", f"nsa-metadata-{of}")["spec"] == with_the_runbook_at(address, file)


def test_the_rules_by_themselves_lead_to_the_runbook_where_it_is_read(tmp_path):
    (command,) = re.findall(r"^#\s+(sed .*)$", (FOLDER / "rules.yaml").read_text(), re.MULTILINE)
    address = re.search(r"https://[^#]+", command)[0]
    run("bash", "-c", command.replace("FILE", str(tmp_path / "rules.yaml")), cwd=FOLDER)
    assert yaml.safe_load((tmp_path / "rules.yaml").read_text()) == with_the_runbook_at(address)
    run("promtool", "check", "rules", "--lint-fatal", tmp_path / "rules.yaml")


def test_without_an_operator_the_servers_are_scraped_as_the_job_that_the_rules_ask_for(tmp_path):
    manifests = Manifests("overlays/edge")
    config = yaml.safe_load(block_of(MONITORING / "README.md", "scrape_configs:"))
    (scraped,) = config["scrape_configs"]
    (found,) = scraped.pop("kubernetes_sd_configs")
    assert found["role"] == "endpointslice"
    # What it would find, as that role labels it: each port of each Service. Debian's promtool is built without the part that asks Kubernetes.
    label = "app.kubernetes.io/name"
    scraped["static_configs"] = [
        {"targets": [f"{service['metadata']['name']}.example.org:{port['port']}"],
         "labels": {f"__meta_kubernetes_service_label_{re.sub(r'[^a-zA-Z0-9_]', '_', label)}": service["metadata"]["labels"][label],
                    "__meta_kubernetes_endpointslice_port_name": port["name"]}}
        for service in manifests.all("Service") for port in service["spec"]["ports"]
    ]
    assert len(scraped["static_configs"]) == 3
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(FOLDER / "rules.yaml", tmp_path)
    run("promtool", "check", "config", tmp_path / "prometheus.yml")
    targets = json.loads(run("promtool", "check", "service-discovery", "--timeout=1s", tmp_path / "prometheus.yml", scraped["job_name"]))
    kept = [target["labels"] for target in targets if target["labels"]]
    assert [labels["__address__"] for labels in kept] == ["nsa-metadata-server.example.org:9464"]
    asked = set(re.findall(r'\bjob="([^"]*)"', (FOLDER / "rules.yaml").read_text()))
    # The operator's job is the Service's name.
    assert {labels["job"] for labels in kept} == asked == {manifests.one("Service")["metadata"]["name"]}
    (endpoint,) = manifests.one("ServiceMonitor")["spec"]["endpoints"]
    assert (scraped["scrape_interval"], scraped["scrape_timeout"]) == (endpoint["interval"], endpoint["scrapeTimeout"])

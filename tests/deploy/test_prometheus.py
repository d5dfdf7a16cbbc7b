"""The rules: promtool takes them, each alert is seen firing by their unit tests, explained in the runbook, and made of metrics that a server has."""

import re
import shutil
import subprocess
import urllib.request

import pytest
import yaml

from programs import REPOSITORY, SERVER, log_until_serving, run

FOLDER = REPOSITORY / "deploy" / "prometheus"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
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


def test_promtool_takes_the_rules():
    assert shutil.which("promtool"), "the prometheus package is missing"
    run("promtool", "check", "rules", "--lint-fatal", FOLDER / "rules.yaml")


def test_the_unit_tests_hold():
    # Days of samples.
    run("promtool", "test", "rules", FOLDER / "rules_test.yaml", timeout_s=300)


def test_each_alert_is_seen_firing_and_silent():
    tests = [one for group in yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"] for one in group.get("alert_rule_test", [])]
    fired = {one["alertname"] for one in tests if one.get("exp_alerts")}
    silent = {one["alertname"] for one in tests if not one.get("exp_alerts")}
    names = {alert["alert"] for alert in ALERTS}
    assert fired == names, "firing"
    assert names - silent == set(), "not firing where nothing is wrong"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_what_and_what_to_do(alert):
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["for"], "one sample is no reason to call somebody"
    assert "{{" in alert["annotations"]["summary"] or alert["alert"] == "NsaMetadataAbsent"
    _, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (\w+)$", (FOLDER / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert anchor in [heading.lower() for heading in headings], "no such section in RUNBOOK.md"


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

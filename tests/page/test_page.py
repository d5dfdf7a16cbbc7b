"""The status page in a real Chromium: it shows what /metrics says, a load moves its charts, and it is readable in both colours and on a phone."""

import re

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from programs import CLIENT, TEST_SERVER, Server, eventually, run, tool

# Points of a chart's line, as Dygraph has them: the page keeps none of its own.
TITLES = ["Calls", "Refusals", "Latency of calls", "Latency of stream items", "Stages, p50", "Stages, p99", "Requests a batch", "Tokens a batch",
          "Requests in the queue", "Lanes at work", "Output blocks in use", "Connections"]


@pytest.fixture(scope="module")
def server():
    # What a batch takes is slow.
    with Server("--batch_time=2ms", "--slow_call_threshold=1ms", program=TEST_SERVER) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    options = Options()
    options.binary_location = tool("chromium")
    # As root, which has no sandbox of its own to give away.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1600"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(tool("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(server, browser):
    browser.get(f"http://{server.metrics_address}/")
    eventually(lambda: browser.execute_script("return document.body.dataset.shown"), "the page has shown a status")
    yield browser
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "favicon" not in entry["message"]]
    assert errors == [], "the browser's console"


def load(server, seconds=3):
    run(CLIENT, "bench", f"--target={server.address}", f"--duration={seconds}s", "--warm_up=0s", "--in_flight=16", timeout_s=60)


def table(page, name):
    return page.execute_script(f"return [...document.getElementById('{name}').rows].map(row => [...row.cells].map(cell => cell.textContent))")


def ink(page, title):
    """How many pixels of a chart's canvas are drawn on."""
    return page.execute_script(
        """const canvas = document.querySelector(`section[data-chart="${arguments[0]}"] canvas`);
           if (!canvas) return 0;
           const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
           let drawn = 0;
           for (let i = 3; i < pixels.length; i += 4) drawn += pixels[i] > 0;
           return drawn;""", title)


def shown_totals(page):
    return {name: float(value.replace(",", "")) for name, value in table(page, "totals")[1:]}


def test_it_has_its_charts_in_order(page):
    assert page.execute_script("return [...document.querySelectorAll('section[data-chart]')].map(s => s.dataset.chart)") == TITLES
    assert page.find_element("id", "state").text == "ready"


def test_its_numbers_are_those_of_metrics(server, page):
    load(server)

    def agree():
        metrics, shown = server.metrics(), shown_totals(page)
        pairs = {name: (value, metrics.total(name.split("{")[0], **dict(re.findall(r'(\w+)="([^"]*)"', name)))) for name, value in shown.items()}
        return pairs if pairs and all(a == b for a, b in pairs.values()) else None

    pairs = eventually(agree, "the page's totals are those of /metrics", 20)
    assert any(name.startswith("grpc_server_handled_total") and 'grpc_code="OK"' in name and value > 100 for name, (value, _) in pairs.items()), pairs


def test_a_load_moves_its_charts(server, page):
    before = {title: ink(page, title) for title in ("Calls", "Latency of calls", "Stages, p99", "Requests a batch")}
    load(server, 5)
    for title, drawn in before.items():
        eventually(lambda title=title, drawn=drawn: ink(page, title) > max(drawn, 0) + 20, f"{title} is drawn on", 10)
    legend = page.execute_script("return document.querySelector('section[data-chart=\"Calls\"] .legend').textContent")
    assert "OK" in legend


def test_slow_calls_are_there_with_their_stages(server, page):
    load(server, 1)
    rows = eventually(lambda: len(table(page, "slow")) > 2 and table(page, "slow"), "slow calls are shown")
    first = dict(zip(rows[0], rows[1]))
    assert first["method"] == "Expand" and first["outcome"] == "ok"
    assert float(first["device"]) >= 2 and float(first["ms"]) >= float(first["device"]), first


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_colours(page, scheme):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    colours = page.execute_script(
        "const s = getComputedStyle(document.body); return ['--text', '--soft', '--paper', '--card'].map(n => s.getPropertyValue(n).trim())")

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    text, soft, paper, card = map(luminance, colours)
    assert (paper < text) == (scheme == "dark")
    for ink_of, back in ((text, paper), (text, card), (soft, paper), (soft, card)):
        low, high = sorted((ink_of, back))
        assert (high + 0.05) / (low + 0.05) >= 4.5, "WCAG's contrast for text"


def test_nothing_is_cut_off_on_a_phone(page):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True})
    try:
        # The charts follow the window once it has told them.
        eventually(lambda: page.execute_script("return document.documentElement.scrollWidth") <= 390, "nothing is wider than the phone")
        widths = page.execute_script("return [...document.querySelectorAll('section[data-chart]')].map(s => s.getBoundingClientRect().width)")
        assert all(300 < width <= 390 for width in widths), widths
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_server_that_is_gone_shows_as_such(browser):
    with Server() as short:
        browser.get(f"http://{short.metrics_address}/")
        eventually(lambda: browser.find_element("id", "state").text == "ready", "the page has shown a status")
    eventually(lambda: browser.find_element("id", "state").text == "does not answer", "the page says so", 10)
    browser.get_log("browser")  # the fetches that failed

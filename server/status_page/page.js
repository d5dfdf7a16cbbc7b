"use strict";
(() => {
  const PERIOD_MS = 2000;
  const LIGHT = ["#0b62c4", "#c2410c", "#1a7f37", "#8e24aa", "#00838f", "#b71c1c", "#6d4c41", "#5f6a00"];
  const DARK = ["#6cb0ff", "#ff9d5c", "#57c478", "#d08cff", "#4dd0e1", "#ff7b72", "#c9a28f", "#c3cf4d"];
  const STAGES = ["parse", "admit", "queue", "pack", "device", "frame", "send"];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const byId = (id) => document.getElementById(id);
  const graphs = new Map();

  // Text only: what callers and files may have had a part in never becomes markup.
  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function number(value) {
    if (!Number.isFinite(value)) return "–";
    if (Number.isInteger(value)) return value.toLocaleString("en");
    if (value >= 100) return value.toFixed(0);
    return value >= 0.1 ? value.toPrecision(3) : value.toFixed(4);
  }

  function fill(id, heads, rows) {
    const table = byId(id);
    table.replaceChildren();
    if (rows.length === 0) {
      table.append(element("caption", "none", "nothing"));
      return;
    }
    const head = table.insertRow();
    for (const [text, isNumber] of heads) head.append(element("th", text, isNumber ? "number" : ""));
    for (const row of rows) {
      const line = table.insertRow();
      row.forEach((value, i) => line.append(element("td", heads[i][1] ? number(value) : value, heads[i][1] ? "number" : "name")));
    }
  }

  function draw(chart, times) {
    let graph = graphs.get(chart.title);
    let before = null;  // the section that comes after it
    const lines = chart.lines || [];
    const names = lines.map((line) => line.name);
    if (graph && graph.names.join() !== names.join()) {
      if (graph.view) graph.view.destroy();
      before = graph.section.nextSibling;
      graph.section.remove();
      graphs.delete(chart.title);
      graph = undefined;
    }
    if (!graph) {
      const section = element("section");
      const title = element("h2", chart.title + " ");
      title.append(element("span", chart.unit || "", "unit"));
      const place = element("div", undefined, "chart");
      const legend = element("div", names.length === 0 ? "none" : undefined, "legend");
      section.dataset.chart = chart.title;
      section.append(title, place, legend);
      byId("charts").insertBefore(section, before);
      graph = { section, place, legend, names };
      graphs.set(chart.title, graph);
    }
    if (names.length === 0 || times.length === 0) return;
    const rows = times.map((time, i) => [time, ...lines.map((line) => {
      const value = line.values[i];
      return Number.isFinite(value) ? value : null;  // "NaN" where there is none
    })]);
    if (graph.view) {
      graph.view.updateOptions({ file: rows });
      return;
    }
    graph.view = new Dygraph(graph.place, rows, {
      labels: ["time", ...names], colors: dark.matches ? DARK : LIGHT, labelsDiv: graph.legend, legend: "always", includeZero: true,
      axisLineColor: "transparent", gridLineColor: getComputedStyle(document.body).getPropertyValue("--line"), connectSeparatedPoints: false,
      drawPoints: true, pointSize: 1, strokeWidth: 1.3, digitsAfterDecimal: 3, axes: { y: { axisLabelWidth: 46 } },
    });
  }

  function show(status) {
    byId("state").textContent = status.ready ? "ready" : "not ready";
    byId("state").className = status.ready ? "" : "bad";
    byId("build").textContent = `version ${status.version} ${status.revision || ""}`;
    byId("device").textContent = `${status.backend}: ${status.device}`;
    const minutes = Math.floor((Date.now() - Date.parse(status.started)) / 60000);
    byId("uptime").textContent = minutes < 120 ? `up for ${minutes} min` : `up for ${Math.floor(minutes / 60)} h`;
    const times = (status.times || []).map((time) => new Date(time));
    for (const chart of status.charts || []) draw(chart, times);
    fill("slow", [["ended, UTC"], ["method"], ["outcome"], ["caller"], ["ms", true], ...STAGES.map((stage) => [stage, true]), ["sequences", true],
      ["tokens", true], ["batch", true], ["its tokens", true], ["kernel"], ["traceparent"]],
    (status.slowCalls || []).map((call) => [call.ended.slice(0, 23).replace("T", " "), call.method, call.outcome, call.caller, call.total,
      ...STAGES.map((stage) => (call.stages || {})[stage] ?? NaN), call.sequences ?? NaN, call.tokens ?? NaN, call.batchRequests ?? NaN,
      call.batchTokens ?? NaN, call.kernel || "", call.traceparent || ""]));
    fill("totals", [["metric"], ["", true]], (status.totals || []).map((total) => [total.name + (total.labels || ""), total.value]));
    fill("limits", [["limit"], ["bytes, or as it says"]], Object.entries(status.limits || {}).map(([name, value]) => [name, String(value)]));
    document.body.dataset.shown = (status.times || []).at(-1) || "";
  }

  async function look() {
    try {
      const reply = await fetch("/status.json", { cache: "no-store" });
      show(await reply.json());
    } catch (error) {
      byId("state").textContent = "does not answer";
      byId("state").className = "bad";
    }
    setTimeout(look, PERIOD_MS);
  }

  dark.addEventListener("change", () => location.reload());
  look();
})();

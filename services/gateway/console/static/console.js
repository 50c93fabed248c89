// What a page does beside htmx: the switch of the theme, charts, what was unfolded stays so, and a word when the gateway is away.
"use strict";

const root = document.documentElement;

// ---- theme

const themes = ["auto", "light", "dark"];
const themeButton = document.getElementById("theme");

function showTheme() {
  const theme = root.dataset.theme || "auto";
  themeButton.textContent = `Theme: ${theme}`;
  themeButton.hidden = false;
}

themeButton.addEventListener("click", () => {
  const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
  if (next === "auto") {
    delete root.dataset.theme;
    localStorage.removeItem("driftline-theme");
  } else {
    root.dataset.theme = next;
    localStorage.setItem("driftline-theme", next);
  }
  showTheme();
  drawCharts(document, true);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawCharts(document, true));
showTheme();

// ---- parts that are sent again

const unfolded = new Map();

document.body.addEventListener("htmx:beforeSwap", (event) => {
  for (const one of event.detail.target.querySelectorAll("details[id]")) unfolded.set(one.id, one.open);
});
document.body.addEventListener("htmx:load", (event) => {
  for (const one of event.detail.elt.querySelectorAll("details[id]")) if (unfolded.has(one.id)) one.open = unfolded.get(one.id);
  drawCharts(event.detail.elt);
});

const away = document.getElementById("away");
let answered = new Date();

function tellAway(gone) {
  if (!gone) answered = new Date();
  away.querySelector("span").textContent = answered.toISOString().slice(11, 19);
  away.hidden = !gone;
}
document.body.addEventListener("htmx:afterRequest", (event) => tellAway(!(event.detail.xhr && event.detail.xhr.status)));

// ---- charts by day: <div class="chart" data-chart='{"x": [seconds], "lines": [{"label", "values", "kind"}], "unit"}'>

const drawn = new Map();

function colour(name) {
  const probe = document.createElement("span");
  probe.className = `ink-${name}`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function seriesOf(line) {
  const ink = colour(line.kind);
  const limit = line.kind === "limit";
  return {
    label: line.label,
    stroke: ink,
    width: limit ? 1 : 1.75,
    dash: limit ? [5, 4] : undefined,
    spanGaps: !limit,
    points: { show: !limit && line.values.length < 60, size: 5, fill: ink },
    value: (chart, value) => (value === null || value === undefined ? "–" : value.toPrecision(4)),
  };
}

const days = (chart, seconds) => seconds.map((one) => new Date(one * 1000).toISOString().slice(5, 10));

function drawChart(place) {
  const given = JSON.parse(place.dataset.chart);
  const axis = { stroke: colour("soft"), grid: { stroke: colour("rule"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const options = {
    width: place.clientWidth,
    height: 220,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    scales: { x: {}, y: given.range ? { range: given.range } : {} },
    axes: [{ ...axis, values: days }, { ...axis, label: given.unit, labelSize: 18, labelFont: axis.font, size: 56 }],
    series: [{ label: "day", value: "{YYYY}-{MM}-{DD}" }, ...given.lines.map(seriesOf)],
    legend: { live: true },
    cursor: { y: false },
  };
  place.replaceChildren();
  drawn.set(place, new uPlot(options, [given.x, ...given.lines.map((line) => line.values)], place));
}

function drawCharts(within, again) {
  for (const place of drawn.keys()) if (!place.isConnected) drawn.delete(place);
  for (const place of within.querySelectorAll(".chart")) if (again || !drawn.has(place)) drawChart(place);
}

addEventListener("resize", () => {
  for (const [place, chart] of drawn) if (place.clientWidth !== chart.width) chart.setSize({ width: place.clientWidth, height: chart.height });
});
drawCharts(document);

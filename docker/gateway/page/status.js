// The page /status: every panel of panels.json is a query to Prometheus, through the gateway. The key stays in this tab.
"use strict";
const REFRESH_MS = 15000, MOST_POINTS = 240, HEIGHT = 180;
const COLOURS = ["#2563eb", "#d97706", "#16a34a", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626", "#475569"];
const BOARDS = { serving: "Serving", capacity: "Capacity", gpu: "GPU", gateway: "Gateway and host" };
const DAY_S = 86400;
const at = id => document.getElementById(id);
const plots = new Map();
let key = sessionStorage.getItem("key") || "", wanted, turn = 0;

async function ask(path, parameters) {
  const headers = key ? { Authorization: "Bearer " + key } : {};
  const reply = await fetch("/monitoring/api/v1/" + path + "?" + new URLSearchParams(parameters || {}), { headers, cache: "no-store" });
  if (reply.status === 401 || reply.status === 403) throw Object.assign(new Error("A metrics-only key is needed: make keys ADD=name METRICS_ONLY=1"), { key: true });
  if (!reply.ok) throw new Error("Prometheus answers " + reply.status + " to " + path);
  return (await reply.json()).data;
}

const name = (legend, labels) => legend.replace(/\{\{(\w+)\}\}/g, (_, label) => labels[label] || "-");

function range() {
  const span = Number(at("span").value), step = Math.max(5, Math.ceil(span / MOST_POINTS)), end = Math.floor(Date.now() / 1000 / step) * step;
  return { start: end - span, end, step };
}

async function series(panel, over) {
  const found = await Promise.all(panel.series.map(async one => (await ask("query_range", { query: one.expr, ...over })).result
    .map(each => ({ label: name(one.legend, each.metric), values: new Map(each.values.map(([t, v]) => [t, Number(v)])) }))));
  return found.flat().filter(one => [...one.values.values()].some(Number.isFinite));
}

function moment(t, span) {
  const when = new Date(t * 1000), two = n => String(n).padStart(2, "0"), clock = two(when.getHours()) + ":" + two(when.getMinutes());
  return span > DAY_S ? two(when.getDate()) + "." + two(when.getMonth() + 1) + ". " + clock : clock;
}

// The legend tells of the moment under the pointer; without one, of the newest that is known, which a phone shows too.
function legend(plot) {
  if (plot.cursor.idx != null) return;
  const [times, ...lines] = plot.data;
  for (let at = times.length - 1; at >= 0; at--) if (lines.some(line => line[at] !== null)) { plot.setLegend({ idx: at }, false); return; }
}

function draw(panel, place, lines, over, marks) {
  const times = [];
  for (let t = over.start; t <= over.end; t += over.step) times.push(t);
  const data = [times, ...lines.map(line => times.map(t => { const v = line.values.get(t); return Number.isFinite(v) ? v : null; }))];
  const labels = [over.end - over.start, ...lines.map(line => line.label)].join("\n"), old = plots.get(panel.title);
  if (old && old.labels === labels && lines.length) { old.marks.splice(0, Infinity, ...marks); old.plot.setData(data); legend(old.plot); return; }
  if (old) { old.plot.destroy(); plots.delete(panel.title); }
  place.replaceChildren(); place.insertAdjacentHTML("beforeend", "<h3></h3>");
  place.firstChild.textContent = panel.title + (panel.unit ? " (" + panel.unit + ")" : "");
  if (!lines.length) { const none = document.createElement("p"); none.textContent = "nothing in this time"; place.append(none); return; }
  const ink = getComputedStyle(document.body).color, grid = { stroke: "rgba(128,128,128,.2)", width: 1 }, kept = [...marks];
  const digits = v => v === null ? "-" : Math.abs(v) >= 100 ? v.toFixed(0) : v.toPrecision(3);
  const plot = new uPlot({
    width: Math.max(200, place.clientWidth - 18), height: HEIGHT, cursor: { sync: { key: "all" } },
    axes: [{ stroke: ink, grid, space: 70, size: 32, values: (_, ticks) => ticks.map(t => moment(t, over.end - over.start)) }, { stroke: ink, grid, size: 56, values: (_, ticks) => ticks.map(v => v === 0 ? "0" : String(Number(v.toPrecision(4)))) }],
    scales: { y: { range: (_, low, high) => [Math.min(0, low || 0), high > 0 ? high * 1.05 : 1] } },
    series: [{ label: "at", value: (_, t) => t === null ? "-" : moment(t, over.end - over.start) }, ...lines.map((line, n) => ({ label: line.label, stroke: COLOURS[n % COLOURS.length], width: 1.5, spanGaps: false, value: (_, v) => digits(v) }))],
    hooks: { setCursor: [legend], draw: [u => {  // what changed: an engine that was started anew
      u.ctx.save(); u.ctx.strokeStyle = "#dc2626"; u.ctx.setLineDash([4, 4]);
      for (const t of kept) { const x = u.valToPos(t, "x", true); u.ctx.beginPath(); u.ctx.moveTo(x, u.bbox.top); u.ctx.lineTo(x, u.bbox.top + u.bbox.height); u.ctx.stroke(); }
      u.ctx.restore();
    }] },
  }, data, place);
  plots.set(panel.title, { plot, labels, marks: kept });
}

function alerts(found) {
  const firing = found.filter(one => one.state === "firing" && one.labels.severity !== "none");
  at("alerts").replaceChildren(...(firing.length ? firing : [null]).map(one => {
    const line = document.createElement("li");
    line.className = one ? "" : "none";
    line.textContent = one ? one.labels.alertname + ": " + one.annotations.means : "No alert fires.";
    return line;
  }));
}

async function refresh() {
  const mine = ++turn;
  try {
    wanted = wanted || await (await fetch("/panels.json")).json();
    const over = range();
    alerts((await ask("alerts")).alerts);
    if (!at("boards").children.length)  // now that something can be shown
      for (const [board, title] of Object.entries(BOARDS)) {
        const part = document.createElement("section"), grid = document.createElement("div"), head = document.createElement("h2");
        head.textContent = title; grid.className = "board"; part.id = board;
        for (const panel of wanted.panels.filter(one => one.board === board)) { panel.place = document.createElement("div"); panel.place.className = "panel"; grid.append(panel.place); }
        part.append(head, grid); at("boards").append(part);
      }
    const marks = (await ask("query_range", { query: wanted.marks.expr, ...over })).result.map(one => one.values[0][0]);
    for (const panel of wanted.panels) {
      const lines = await series(panel, over);
      if (mine !== turn) return;
      draw(panel, panel.place, lines, over, marks);
    }
    at("gpu").hidden = !wanted.panels.some(panel => panel.board === "gpu" && plots.has(panel.title));  // this host has none
    at("ask").hidden = true; at("said").className = ""; at("said").textContent = "as of " + new Date().toLocaleTimeString();
  } catch (error) {
    at("ask").hidden = !error.key; at("said").className = "bad"; at("said").textContent = error.message;
  }
}

at("ask").addEventListener("submit", event => { event.preventDefault(); key = at("key").value.trim(); sessionStorage.setItem("key", key); refresh(); });
at("span").addEventListener("change", refresh);
addEventListener("resize", () => { for (const { plot } of plots.values()) plot.setSize({ width: Math.max(200, plot.root.parentElement.clientWidth - 18), height: HEIGHT }); });
if (location.hash.startsWith("#key=")) {  // a link that an operator keeps; a browser sends nothing of this part to anybody
  key = decodeURIComponent(location.hash.slice(5)); sessionStorage.setItem("key", key); history.replaceState(null, "", location.pathname);
}
refresh();
setInterval(refresh, REFRESH_MS);

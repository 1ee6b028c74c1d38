// The page: asks /state every two seconds, listens to /feed, and follows what the form publishes. Text only ever as text.

import { bar, clock, element, plot, shortly } from "/plot.js";

const STATE_EVERY = 2000, USAGE_EVERY = 5000, LOOK_EVERY = 400, LOOKS = 100, SHOWN = 60;
const at = (id) => document.getElementById(id);
const cells = (id, rows) => at(id).tBodies[0].replaceChildren(...rows);
const row = (...tds) => element("tr", {}, ...tds);
const cell = (content, attributes = {}) => element("td", attributes, content);
const runbook = (name, text) => element("a", { href: `/runbooks/${name}` }, text);

async function ask(path, options) {
  const answer = await fetch(path, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail ?? answer.statusText);
  return body;
}

const send = (path, body) => ask(path, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });

// How it does

function ago(seconds, now) {
  if (seconds === null || seconds === undefined) return "none yet";
  const passed = Math.max(0, now - seconds);
  if (passed < 90) return `${Math.round(passed)} s ago`;
  return passed < 5400 ? `${Math.round(passed / 60)} min ago` : `${Math.round(passed / 3600)} h ago`;
}

function show(state) {
  if (state.starting) return;
  tenants(state.tenants);
  const worst = state.services.some((s) => s.status === "down") ? "down" : state.services.some((s) => s.status !== "ok") ? "degraded" : "ok";
  const open = state.decide.reduce((sum, one) => sum + one.count, 0);
  const verdict = { ok: "everything works", degraded: "works, with something away", down: "something is down" }[worst];
  const said = verdict + (open ? `; ${shortly(open)} waiting for a person` : "");
  if (at("verdict").textContent !== said) at("verdict").textContent = said;
  at("verdict").className = { ok: "good", degraded: "warn", down: "bad" }[worst];
  at("totals").replaceChildren(...Object.entries(state.totals).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, shortly(value)))));
  const history = state.history, to = state.at, from = to - 300;
  const lines = (names) => names.map((name) => ({ name, points: history.filter((p) => p.at >= from).map((p) => [p.at, p[name] ?? 0]) }));
  plot(at("rates"), lines(state.rates), { from, to, what: "Events a second" });
  plot(at("waiting"), lines(state.waiting), { from, to, what: "What waits" });
  cells("services", state.services.map((s) => row(
    cell(element("a", { href: `${s.url}/health` }, s.name)),
    cell(s.status, { class: { ok: "good", degraded: "warn" }[s.status] ?? "bad" }),
    cell(Object.entries(s.checks).map(([name, what]) => `${name}: ${what}`).join("; ")))));
  cells("circuits", state.circuits.map((c) => row(cell(c.what),
    cell(c.state === "closed" ? "closed" : runbook(c.runbook, `${c.state}: what to do`), { class: c.state === "closed" ? "good" : "bad" }))));
  cells("decide", state.decide.map((d) => row(
    cell(d.count ? runbook(d.runbook, `${d.what}: what to do`) : d.what),
    cell(shortly(d.count), { class: d.count ? "n warn" : "n" }))));
  cells("backups", state.backups.map((b) => row(cell(b.stream), cell(ago(b.snapshot_at, state.at)),
    cell(b.archived_to === null ? "none yet" : shortly(b.archived_to), { class: "n" }), cell(shortly(b.waiting), { class: "n" }),
    cell(ago(b.drilled_at, state.at)))));
  if (!at("links").childElementCount) {
    at("links").append("More: ", ...state.links.flatMap((link, n) => [n ? ", " : "", element("a", { href: link.url }, link.what)]));
  }
}

function tenants(names) {
  if (at("tenant").options.length) return;
  at("tenant").append(...names.map((name) => element("option", {}, name)));
}

// Usage

async function usage() {
  const chosen = at("meter").value;
  const found = await ask(`/usage${chosen ? `?meter=${encodeURIComponent(chosen)}` : ""}`);
  if (!at("meter").options.length) {
    at("meter").append(...found.meters.map((slug) => element("option", {}, slug)));
    at("meter").value = found.meter;
  }
  if (!found.from) return;
  const from = Date.parse(found.from) / 1000, to = from + (found.minutes - 1) * 60;
  const series = Object.entries(found.tenants).map(([name, rows]) => {
    const by = new Map(rows.map(([start, value]) => [Date.parse(start) / 1000, value]));
    return { name, points: Array.from({ length: found.minutes }, (_, n) => [from + n * 60, by.get(from + n * 60) ?? 0]) };
  });
  plot(at("usage-plot"), series, { from, to, what: `${found.meter} by tenant and minute` });
}

// As they come

function come(item) {
  const list = at(item.kind);
  list.querySelector(".empty")?.remove();
  const seconds = new Date(item.at * 1000).toLocaleTimeString("en-GB");
  list.prepend(element("li", { class: "new" }, element("details", {},
    element("summary", {}, element("time", {}, seconds), " ", item.what, " ", element("span", { class: "who" }, `${item.tenant} ${item.id}`)),
    element("pre", {}, item.text))));
  while (list.childElementCount > SHOWN) list.lastElementChild.remove();
}

function listen() {
  for (const kind of ["event", "fact", "dead"]) at(kind).replaceChildren(element("li", { class: "empty" }, "none yet"));
  const source = new EventSource("/feed");
  source.onmessage = (message) => come(JSON.parse(message.data));
  source.onopen = () => { for (const kind of ["event", "fact", "dead"]) at(kind).replaceChildren(element("li", { class: "empty" }, "none yet")); };
}

// The form, and the way of its event

let last = null, following = 0;

const step = (text, kind = "") => at("way").append(element("li", { class: kind }, text));

async function publish(event) {
  const mine = ++following;
  at("way").replaceChildren();
  at("trace").replaceChildren();
  let sent;
  try {
    sent = await send("/events", event);
  } catch (error) {
    step(`Not published: ${error.message}`, "bad");
    return;
  }
  const receipt = sent.answer.receipts?.[0];
  if (!receipt) {
    const wrong = sent.answer.invalid_parameters?.map((one) => `${one.field} ${one.rule}`).join("; ");
    step(`Refused with ${sent.status}: ${wrong ?? sent.answer.detail}`, "bad");
    return;
  }
  last = event;
  at("again").disabled = false;
  const place = receipt.stream_sequence ? `${receipt.stream}, sequence ${receipt.stream_sequence}` : receipt.stored;
  step(`Receipt: durable in ${place}${receipt.duplicate ? "; a repeat, so it counts once" : ""}`, "good");
  let counted = false, delivered = false, spans = 0;
  for (let look = 0; look < LOOKS && mine === following; look++) {
    const way = await ask(`/way?${new URLSearchParams({ tenant: event.tenant, id: event.id, trace: sent.trace })}`).catch(() => null);
    if (way && mine === following) {
      if (way.counted && !counted) { counted = true; step(`Counted: in the ledger, as sequence ${way.sequence}`, "good"); }
      if (way.delivered && !delivered) {
        delivered = true;
        step(`Delivered: OpenMeter has it, ${way.delivered_after.toFixed(2)} s after it was stored`, "good");
      }
      if (way.spans.length > spans) { spans = way.spans.length; trace(way.spans, sent.trace); }
      if (delivered && (receipt.duplicate || way.spans.some((span) => span.name.includes("deliver")))) return;
    }
    await new Promise((done) => setTimeout(done, LOOK_EVERY));
  }
  if (mine === following && !delivered) step(counted ? "Not delivered yet: it is owed, in the outbox" : "Not counted yet: it waits in the stream", "warn");
}

function trace(spans, id) {
  const whole = Math.max(...spans.map((span) => span.from + span.for));
  at("trace").replaceChildren(element("table", {}, element("caption", {}, `Its trace, ${id}`),
    element("thead", {}, element("tr", {}, ...["Service", "Step", "When"].map((name) => element("th", { scope: "col" }, name)),
      element("th", { scope: "col", class: "n" }, "Took"))),
    element("tbody", {}, ...spans.map((span) => row(cell(span.service), cell(span.joined ? `${span.name} (a batch it was part of)` : span.name), cell(bar(span.from, span.for, whole)),
      cell(`${span.for.toFixed(1)} ms`, { class: "n" }))))));
}

at("form").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  let data;
  try {
    data = JSON.parse(at("data").value);
    at("data").removeAttribute("aria-invalid");
  } catch {
    at("data").setAttribute("aria-invalid", "true");
    at("way").replaceChildren();
    step("Not published: the data is no JSON", "bad");
    at("data").focus();
    return;
  }
  const event = { tenant: at("tenant").value, type: at("type").value, id: at("id").value, data };
  at("id").value = fresh();
  await publish(event);
});
at("again").addEventListener("click", () => last && publish(last));
at("garbage").addEventListener("click", async () => {
  at("way").replaceChildren();
  await send("/garbage", {}).then(() => step("Published past the door: it becomes a dead letter, below", "warn"), (error) => step(error.message, "bad"));
});
at("meter").addEventListener("change", () => usage());

// Light and dark

const wish = matchMedia("(prefers-color-scheme: dark)");
function theme(dark) {
  at("theme").setAttribute("aria-pressed", String(dark));
}
at("theme").addEventListener("click", () => {
  const dark = at("theme").getAttribute("aria-pressed") !== "true";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  theme(dark);
});

const fresh = () => `page-${Date.now().toString(36)}-${Math.floor(Math.random() * 1e6).toString(36)}`;

async function every(milliseconds, what) {
  for (;;) {
    await what().catch(() => { at("verdict").textContent = "the stack does not answer"; at("verdict").className = "bad"; });
    await new Promise((done) => setTimeout(done, milliseconds));
  }
}

at("id").value = fresh();
theme(wish.matches);
listen();
every(STATE_EVERY, async () => show(await ask("/state")));
every(USAGE_EVERY, async () => { if (at("tenant").options.length) await usage(); });

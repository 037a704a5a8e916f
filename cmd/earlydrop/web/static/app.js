// SPDX-License-Identifier: Apache-2.0
// The page: what the daemon tells, asked for again and again, and what can be undone.
import { $, badge, bytes, clean, clock, count, dateTime, el, fill, meter, short, span } from "./dom.js";
import { Chart } from "./charts.js";
import { called, decision, ends, explained, story, vlan } from "./story.js";

const everyMS = 1000, retryMS = 2000, tokenKey = "earlydrop-token";
const sleep = ms => new Promise(done => setTimeout(done, ms));

// --- The server.

class Refused extends Error {}

// ask asks the server. What it refuses is an error; without a token that is right it asks
// for one, and waits.
async function ask(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(tokenKey);
    const headers = { ...options.headers, ...(token ? { Authorization: "Bearer " + token } : {}) };
    const answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
    if (answer.ok) return answer;
    const error = (await answer.json().catch(() => ({}))).error ?? answer.statusText;
    if (answer.status !== 401 && answer.status !== 429) throw new Refused(error);
    if (token !== sessionStorage.getItem(tokenKey)) continue; // another one was given meanwhile
    await login(token ? error : "");
  }
}

const get = async path => (await ask(path)).json();
const post = async (path, body) => (await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();

let loggingIn = null; // one form for all that wait
function login(error) {
  loggingIn ??= new Promise(done => {
    const form = $("login");
    sessionStorage.removeItem(tokenKey);
    form.hidden = false;
    document.body.classList.add("locked");
    $("login-error").hidden = !error;
    $("login-error").textContent = clean(error);
    form.token.focus();
    form.onsubmit = e => {
      e.preventDefault();
      sessionStorage.setItem(tokenKey, form.token.value.trim());
      form.token.value = "";
      form.hidden = true;
      document.body.classList.remove("locked");
      loggingIn = null;
      done();
    };
  });
  return loggingIn;
}

function say(text, look = "") {
  $("state").className = look;
  if ($("state").textContent !== clean(text)) $("state").textContent = clean(text);
}

// --- Live.

const charts = {
  packets: new Chart($("chart-packets")),
  bytes: new Chart($("chart-bytes"), n => short(n) + "B"),
  flows: new Chart($("chart-flows")),
  classes: new Chart($("chart-classes")),
};
let last = null; // what was measured before
let shown = null; // the last answer
let mayChange = false;

const chosen = () => $("interface").value;
const interfaces = live => live.interfaces.filter(s => !chosen() || s.interface === chosen());
const sum = (list, of) => list.reduce((n, one) => n + (of(one) ?? 0), 0);
// added adds up objects of numbers.
const added = list => list.reduce((all, one) => { for (const [k, n] of Object.entries(one ?? {})) all[k] = (all[k] ?? 0) + n; return all; }, {});

function measure(live) {
  const list = interfaces(live);
  return {
    time: new Date(live.time) / 1000,
    packets: sum(list, s => s.counters.packets_ingress + s.counters.packets_egress),
    dropped: sum(list, s => s.counters.dropped_packets),
    bytes: sum(list, s => s.traffic && s.traffic.rx_bytes + s.traffic.tx_bytes),
    droppedBytes: sum(list, s => s.counters.dropped_bytes),
    flows: sum(list, s => s.counters.tcp_opened + s.counters.udp_opened),
    verdicts: sum(list, s => s.daemon.classified),
    treated: sum(list, s => s.daemon.to_drop),
    classes: added(list.map(s => s.classes)),
  };
}

// rate is what a counter grew by in a second; of one that has begun again there is none.
const rate = (now, before, of) => { const n = (of(now) ?? 0) - (of(before) ?? 0); return n < 0 ? null : n / (now.time - before.time); };

function showRates(live) {
  const now = measure(live);
  if (last && now.time > last.time) {
    charts.packets.add(now.time, { seen: rate(now, last, m => m.packets), dropped: rate(now, last, m => m.dropped) });
    charts.bytes.add(now.time, { carried: rate(now, last, m => m.bytes), dropped: rate(now, last, m => m.droppedBytes) });
    charts.flows.add(now.time, { new: rate(now, last, m => m.flows), verdicts: rate(now, last, m => m.verdicts), "to drop": rate(now, last, m => m.treated) });
    const classes = {};
    for (const name of Object.keys(now.classes)) classes[name] = rate(now, last, m => m.classes[name]);
    charts.classes.add(now.time, classes);
  }
  if (!last || now.time > last.time) last = now;
}

function showInterfaces(live) {
  const all = live.interfaces, select = $("interface"), was = select.value;
  const names = ["", ...all.map(s => s.interface)];
  if ([...select.options].map(o => o.value).join("\n") !== names.join("\n")) {
    select.replaceChildren(...names.map(n => el("option", { value: n }, n || "all")));
    select.value = names.includes(was) ? was : "";
  }
  const list = interfaces(live);
  fill($("interfaces"), ["interface", "state", "mode", "flows", "collecting", "blocked", "p50>", "p99>", "XDP", "policy", "model"], [
    ...list.map(s => [
      s.interface, badge(s.state, s.state === "well" ? "good" : "bad"), badge(s.mode, s.mode === "enforce" ? "bad" : ""),
      meter(s.occupancy.flows, s.capacity.flows, "flows"), meter(s.occupancy.collecting, s.capacity.collecting, "flows that are captured"), meter(s.occupancy.blocked, s.capacity.blocked, "blocks"),
      s.latency ? count(s.latency.p50_us) + " µs" : "–", s.latency ? count(s.latency.p99_us) + " µs" : "–", `${clean(s.xdp)}, ${clean(s.egress)}`, s.policy, s.model]),
    ...(live.waiting ?? []).map(w => [w.interface, badge("waiting", "bad"), w.error ?? "", "", "", "", "", "", "", "", ""]),
  ], "nothing is attached");
  const worries = all.flatMap(s => (s.worries ?? []).map(w => `${clean(s.interface)}: ${clean(w.text)}`));
  if ($("worries").dataset.now !== worries.join("\n")) { // so that a reader is told once
    $("worries").dataset.now = worries.join("\n");
    $("worries").replaceChildren(...worries.map(w => el("li", { class: "worry" }, w)));
  }
  const classes = Object.entries(added(list.map(s => s.classes))).sort((a, b) => b[1] - a[1]);
  fill($("classes"), ["class", "flows>"], classes.map(([name, n]) => [name, count(n)]), "no flow was judged yet");
  const rules = new Map();
  for (const v of list.flatMap(s => s.verdicts ?? [])) {
    const key = JSON.stringify([v.rule, v.decision, v.reason]);
    rules.set(key, { ...v, flows: v.flows + (rules.get(key)?.flows ?? 0) });
  }
  fill($("rules"), ["rule", "decision", "reason", "flows>"], [...rules.values()].sort((a, b) => b.flows - a.flows).map(v => [v.rule, v.decision, v.reason, count(v.flows)]), "nothing was decided yet");
}

const filled = f => `${count(f.used)} of ${count(f.size)}`;

function showGateway(live) {
  const e = live.evidence, pauses = [e.paused_until, e.paused_unproven_until].filter(t => new Date(t) > Date.now());
  $("gateway").replaceChildren(...[
    ["Captures that wait", filled(live.queue)],
    ["Model", `${clean(live.model)}${live.inference ? `, ${count(live.inference.p50_us)} µs a batch, ${count(live.inference.p99_us)} µs at p99` : ""}`],
    ["Pairs known", `${filled(e.undetected)} undetected, ${filled(e.detected)} detected, ${filled(e.treated)} treated`],
    ["Reloads", `${count(live.reloads.done)}${live.reloads.failed ? `, ${count(live.reloads.failed)} failed` : ""}`],
    ["At work since", dateTime(live.since)],
    ...(pauses.length ? [["Rules pause until", dateTime(pauses.sort().at(-1))]] : []),
  ].map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))));
}

const missed = (n, least, write = count) => (least ? "≥ " : "") + write(n);

function showTop(live) {
  const list = $("top-list").value, by = $("top-sort").value;
  const rows = [...live[list] ?? []].sort((a, b) => by === "last" ? (b.last ?? "").localeCompare(a.last ?? "") : b[by] - a[by]);
  const who = { pairs: ["initiator", "server"], servers: ["server"], initiators: ["initiator"] }[list];
  fill($("top"), [...who, "detected>", "blocked>", "dropped>", "packets>", "blocks now>", "class", "rule", "last"], rows.map(l => [
    ...who.map(w => w === "initiator" ? l.initiator.replace(/\/32$/, "") : `${clean(l.proto)} ${clean(l.server)}${vlan(l)}`),
    missed(l.detected, l.detected_missed), count(l.blocked), missed(l.dropped_bytes, l.dropped_bytes_missed, bytes), count(l.dropped_packets), count(l.blocks),
    l.class ?? "", l.rule ?? "", l.last ? clock(l.last) : "",
  ]), "nothing was detected yet");
}

async function pollLive() {
  for (;; await sleep(everyMS)) {
    if (document.hidden || $("pause").checked) continue;
    try {
      const live = await get("api/live");
      mayChange = live.changes;
      say(`daemon ${live.version}, ${live.device}, pid ${live.pid || "?"}`, "good");
      shown = live;
      showInterfaces(live);
      showGateway(live);
      showTop(live);
      showRates(live);
      if (!seeded) seed(live.latest ?? []);
    } catch (e) {
      last = null; // no rate over the gap
      seeded = false;
      say(e instanceof Refused ? e.message : "this page's server does not answer", "bad");
      await sleep(retryMS);
    }
  }
}

$("interface").addEventListener("change", () => { last = null; for (const c of Object.values(charts)) c.clear(); });
for (const id of ["top-list", "top-sort"]) $(id).addEventListener("change", () => shown && showTop(shown));

// --- Events.

const keptEvents = 1000, shownEvents = 100;
const events = []; // the newest first
let leftOut = 0, eventNumber = 0, eventsWanted = false, seeded = false;

// seed takes what was decided before the page followed the events.
function seed(latest) {
  seeded = true;
  const key = e => e.id ?? [e.time, e.src, e.dst, e.revised].join();
  const known = new Set(events.filter(e => e.event === "verdict").map(key));
  events.push(...latest.filter(e => !known.has(key(e))).map(e => ({ ...e, number: ++eventNumber })));
  events.sort((a, b) => new Date(b.time) - new Date(a.time));
  eventsWanted = true;
}

const words = e => {
  switch (e.event) {
    case "block_ended": return `${clean(ends(e))}: ${clean(e.reason)}, dropped ${count(e.dropped_packets)} packets, ${bytes(e.dropped_bytes)}`;
    case "audit": return `${clean(e.action)} ${clean(e.outcome)} by uid ${e.uid}: ${clean(e.asked)} ${clean(e.error)}`;
    case "mode_changed": return `${clean(e.interface)}: ${clean(e.mode)}`;
    case "reloaded": return e.error ? `not reloaded: ${clean(e.error)}` : `policy ${clean(e.policy)}, model ${clean(e.model)}`;
    case "left_out": return `${count(e.passes_left_out)} verdicts that pass`;
    case "limit_reached": return `limit ${clean(e.limit)}: what rules do without evidence pauses`;
    default: return Object.entries(e).filter(([k, v]) => !["event", "time"].includes(k) && typeof v !== "object").map(([k, v]) => `${clean(k)} ${clean(v)}`).join(", ");
  }
};

// eventTable shows events; when writes their time.
function eventTable(table, list, when, nothing) {
  fill(table, ["time", "what", "flow", "class", "confidence>", "rule", "reason"], list.map(e => e.event !== "verdict" ?
    [when(e.time), badge(e.event.replaceAll("_", " ")), words(e), e.class ?? "", "", e.rule ?? "", e.reason ?? ""] :
    [when(e.time), decision(e), el("a", { href: "#flow/" + (e.id ?? e.number) }, ends(e)), called(e), (e.rule_confidence ?? e.confidence).toFixed(3), e.rule ?? "", e.reason]), nothing);
}

function showEvents() {
  const all = $("event-choice").value === "all";
  const list = events.filter(e => all || e.event !== "verdict" && e.event !== "left_out" || e.detected).slice(0, shownEvents);
  eventTable($("events"), list, clock, "nothing yet: events are shown as they come");
  $("left-out").textContent = leftOut ? `${count(leftOut)} more were too many to show` : "";
}

function takeBatch(b) {
  if (b.error) say(b.error, "bad");
  leftOut += b.left_out ?? 0;
  for (const e of b.events ?? []) events.unshift({ ...e, number: ++eventNumber });
  events.length = Math.min(events.length, keptEvents);
  if (b.events && !$("pause").checked) eventsWanted = true;
}

async function follow() {
  for (;; await sleep(retryMS)) {
    try {
      const reader = (await ask("api/events")).body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (text + value).split("\n");
        text = lines.pop();
        for (const line of lines) if (line) takeBatch(JSON.parse(line));
      }
    } catch (e) {
      if (e instanceof Refused) say(e.message, "bad");
    }
  }
}

$("event-choice").addEventListener("change", showEvents);
setInterval(() => { if (eventsWanted && !document.hidden) { eventsWanted = false; showEvents(); } }, 500);

// --- Blocks.

let answered = Promise.resolve(); // the last question

// confirmed asks, one question after another: the browser tells that a dialog was closed with its
// next frame only, and by then it may show the next question, whose answer that would seem.
function confirmed(text) {
  const dialog = $("confirm");
  return answered = answered.then(() => new Promise(done => {
    $("confirm-what").textContent = clean(text);
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  }));
}

// parameters returns what a form asks for; fields that are empty ask for nothing.
function parameters(form, more = {}) {
  const query = new URLSearchParams(more);
  for (const [name, value] of new FormData(form)) if (value.trim()) query.set(name, value.trim());
  return query;
}

const asked = {}; // how often something was asked, by the element that says what came of it

// telling asks for something and shows the answer, and says in an element what came of it, or what
// went wrong. An answer that comes when something else was asked by then is not shown. It
// returns whether all went well.
async function telling(id, ask, show = () => "") {
  const mine = asked[id] = (asked[id] ?? 0) + 1;
  const tell = (how, text) => {
    $(id).className = how;
    $(id).textContent = text;
  };
  try {
    const answer = await ask();
    if (asked[id] === mine) tell("quiet", show(answer));
    return true;
  } catch (e) {
    if (asked[id] === mine) tell("worry", clean(e.message));
    return false;
  }
}

const readOnly = () => mayChange ? "" : "; started without a token, this page changes nothing";
const tags = one => one.vlan || one.inner_vlan ? ` vlan ${one.vlan}.${one.inner_vlan}` : "";
const treatment = one => one.suspended ? badge("suspended", "would") : badge(one.action + (one.rate ? ` ${bytes(one.rate)}/s` : ""), "bad");
const left = one => span((new Date(one.expires) - Date.now()) / 1000);
const undoButton = (what, undo) => mayChange ? el("button", { type: "button", click: undo, "aria-label": `Let ${what} pass again` }, "Undo") : "";

const showBlocks = () => telling("blocks-count", () => get("api/blocks?" + parameters($("blocks-search"), { limit: 200 })), b => {
  const list = b.blocks ?? [];
  fill($("blocks-list"), ["interface", "flow", "action", "class", "rule", "packets>", "dropped>", "since", "ends in>", ""], list.map(one => [
    one.interface, `${clean(one.proto)} ${clean(one.lo)} <> ${clean(one.hi)}${tags(one)}`, treatment(one),
    one.class, one.rule, count(one.packets), bytes(one.bytes), dateTime(one.since), left(one), undoButton(`${one.lo} <> ${one.hi}`, () => lift(one, "blocks-count", showBlocks)),
  ]), "no blocked flow is like this");
  return `${count(list.length)} of ${count(b.matched)} blocked flows${readOnly()}`;
});

async function lift(b, tell, then) {
  if (!await confirmed(`Let ${b.proto} ${b.lo} <> ${b.hi} on ${b.interface} pass again?`)) return;
  const done = await telling(tell, () =>
    post("api/blocks/lift", { interface: b.interface, proto: b.proto, ends: [b.lo, b.hi], vlan: b.vlan, inner_vlan: b.inner_vlan }));
  if (done) await then();
}

$("blocks-search").addEventListener("submit", e => { e.preventDefault(); showBlocks(); });

// --- Pairs.

const showPairs = () => telling("pairs-count", () => get("api/pairs?" + parameters($("pairs-search"))), p => {
  const list = p.pairs ?? [];
  fill($("pairs-list"), ["interface", "initiator", "server", "action", "class", "rule", "connections>", "packets>", "dropped>", "last", "ends in>", ""], list.map(one => [
    one.interface, one.initiator.replace(/\/32$/, ""), `${clean(one.proto)} ${clean(one.server)}${tags(one)}`, treatment(one), one.class, one.rule,
    count(one.connections), count(one.packets), bytes(one.bytes), one.last ? dateTime(one.last) : "", left(one), undoButton(`${one.initiator} to ${one.server}`, () => forget(one)),
  ]), "no treated pair is like this");
  return `${count(list.length)} of ${count(p.matched)} treated pairs${readOnly()}`;
});

async function forget(p) {
  if (!await confirmed(`Let ${p.initiator} connect to ${p.server} again, and forget what was detected of them?`)) return;
  const done = await telling("pairs-count", () =>
    post("api/pairs/forget", { initiator: p.initiator, server: p.server, vlan: p.vlan, inner_vlan: p.inner_vlan }));
  if (done) await showPairs();
}

$("pairs-search").addEventListener("submit", e => { e.preventDefault(); showPairs(); });

// --- History.

let past = []; // what was found, the newest first

function search(more) {
  const query = parameters($("history-search")), [what, value] = (query.get("what") ?? "").split("="), hours = Number(query.get("hours"));
  query.delete("what");
  query.delete("hours");
  if (what) query.set(what, value);
  if (hours) query.set("since", new Date(Date.now() - hours * 3600e3).toISOString());
  if (more && past.length) query.set("before", past.at(-1).id);
  $("history-more").hidden = true;
  const begin = performance.now();
  return telling("history-count", () => get("api/history?" + query), found => {
    past = more ? [...past, ...found.events] : found.events;
    eventTable($("history-list"), past, dateTime, "the history has nothing like this");
    $("history-more").hidden = !found.more;
    return `${past.length === 1 ? "1 event" : count(past.length) + " events"}${found.more ? " and more" : ""}, ${count(performance.now() - begin)} ms`;
  });
}

$("history-search").addEventListener("submit", e => { e.preventDefault(); search(false); });
$("history-more").addEventListener("click", () => search(true));

// --- One flow.

// explanationOf asks what a verdict depends on. A capture is written within seconds.
async function explanationOf(v) {
  for (let tries = 1; ; tries++) {
    try {
      return await get("api/explain?" + new URLSearchParams({ id: v.id }));
    } catch (e) {
      if (!(e instanceof Refused) || tries === 3 || Date.now() - new Date(v.time) > 5000) throw e;
      await sleep(retryMS);
    }
  }
}

async function showFlow(name) {
  const here = $("flow");
  const is = e => e.event === "verdict" && (e.id ?? String(e.number)) === name;
  try {
    const v = events.find(is) ?? past.find(is) ?? (await get("api/history?" + new URLSearchParams({ id: name }))).events.find(e => e.event === "verdict");
    if (!v) throw new Refused("this event is no verdict on a flow");
    const known = await get("api/why?" + new URLSearchParams({ of: v.src })).catch(() => null);
    if (location.hash !== "#flow/" + name) return; // another one was chosen meanwhile
    const told = el("p", { id: "flow-told", role: "status" });
    const why = el("div", { id: "flow-explained" }, el("p", { class: "quiet" }, v.id ? "asking what the verdict depends on…" : ""));
    here.replaceChildren(...story(v, known, mayChange ? b => lift(b, "flow-told", () => showFlow(name)) : null), told, why);
    if (!v.id) return;
    const parts = await explanationOf(v).then(x => explained(x, v),
      e => [el("p", { class: "quiet" }, `What the verdict depends on can't be shown: ${e instanceof Refused ? clean(e.message) : "this page's server does not answer"}`)]);
    why.replaceChildren(...parts.filter(Boolean));
  } catch (e) {
    here.replaceChildren(el("p", { class: "worry" }, e instanceof Refused ? e.message : "this page's server does not answer"));
  }
}

// --- Views: the address says which one is shown.

function route() {
  const [name, rest] = location.hash.slice(1).split("/");
  const view = document.querySelector(`section[data-view][id="${CSS.escape(name || "live")}"]`) ?? $("live");
  for (const s of document.querySelectorAll("section[data-view]")) s.hidden = s !== view;
  for (const a of document.querySelectorAll("nav a")) {
    if (a.hash === "#" + view.id) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  if (view.id === "blocks") showBlocks();
  if (view.id === "pairs") showPairs();
  if (view.id === "history") search(false);
  if (view.id === "flow") showFlow(rest);
}

addEventListener("hashchange", route);
route();
showEvents();
pollLive();
follow();

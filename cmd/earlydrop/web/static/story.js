// SPDX-License-Identifier: Apache-2.0
// What is told of one flow.
import { badge, bytes, clean, count, dateTime, el, fill, span } from "./dom.js";

// A verdict that drops nothing says what it would have done.
export function decision(v) {
  const treats = ["drop", "reset", "limit"].includes(v.decision);
  if (v.error) return badge(v.decision + " failed", "bad");
  if (treats && !v.enforced) return badge("would " + v.decision, "would");
  return badge(v.decision, treats ? "bad" : v.decision === "log" ? "would" : "");
}

export const called = v => v.rule_classes?.length ? v.rule_classes.join("|") : v.class;
export const vlan = v => v.vlan || v.inner_vlan ? ` vlan ${v.vlan ?? 0}.${v.inner_vlan ?? 0}` : "";
export const ends = v => `${v.proto} ${v.src} > ${v.dst}${vlan(v)}`;

const facts = rows => el("dl", {}, rows.filter(([, text]) => text != null && text !== "").map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));

const notes = v => [["mid_stream", "captured from its middle"], ["resumed", "may have been there before"], ["one_way", "one direction alone was seen"],
  ["scant", "few payload bytes"], ["missing_start", "the first bytes of a side are missing"], ["provisional", "provisional: it is judged again when payload follows"],
  ["variant", "a range came twice, with different bytes"]].filter(([name]) => v[name]).map(([, text]) => text).join(", ");

// since the verdict: what is known of the flow and its pair now. known is the daemon's answer
// about the initiator, null where there is none; undo is what lifts a block, null where
// nobody may.
function since(v, known, undo) {
  const same = d => d.src === v.src && d.dst === v.dst && d.proto === v.proto && (d.vlan ?? 0) === (v.vlan ?? 0) && (d.inner_vlan ?? 0) === (v.inner_vlan ?? 0);
  const latest = known?.decisions?.find(same), own = known?.decisions?.find(d => same(d) && d.time === v.time);
  const pair = known?.pairs?.find(p => p.server === v.dst && (p.vlan ?? 0) === (v.vlan ?? 0));
  const block = latest?.block, ended = own?.block_ended ?? latest?.block_ended;
  const rows = [];
  if (v.policy_line) rows.push(["Policy", `line ${v.policy_line}${known ? ` of ${clean(known.policy)}${own?.before_reload ? ", which was read again since" : ""}` : ""}`]);
  if (block) rows.push(["Now", [badge(block.suspended ? "suspended" : block.action, block.suspended ? "would" : "bad"),
    ` dropped ${count(block.packets)} packets, ${bytes(block.bytes)}; ends in ${span((new Date(block.expires) - Date.now()) / 1000)} `, undo && el("button", { type: "button", click: () => undo(block) }, "Undo")]]);
  else if (ended) rows.push(["Block ended", `${dateTime(ended.time)}, ${clean(ended.reason)}: dropped ${count(ended.dropped_packets)} packets, ${bytes(ended.dropped_bytes)}`]);
  else if (latest) rows.push(["Now", "not blocked"]);
  if (pair) rows.push(["Its pair", `${count(pair.detected)} of ${count(pair.judged)} flows detected` + (pair.until && new Date(pair.until) > Date.now() ? `; treated by ${clean(pair.rule)} until ${dateTime(pair.until)}` : "; not treated")]);
  if (!latest) rows.push(["Now", "the daemon does not remember this flow any more"]);
  return facts(rows);
}

// story returns what a verdict says, and what came of it.
export function story(v, known, undo) {
  const scores = Object.entries(v.scores ?? {}).sort((a, b) => b[1] - a[1]);
  const evidence = v.evidence_judged ? `${count(v.evidence_flows)} of ${count(v.evidence_judged)} judged flows of the pair were detected` : "";
  return [
    el("h2", {}, ends(v)),
    el("p", {}, decision(v), " ", badge(`${called(v)} ${(v.rule_confidence ?? v.confidence)?.toFixed(4) ?? ""}`)),
    el("div", { class: "columns" },
      el("div", {}, el("h3", {}, "Verdict"), facts([
        ["Time", dateTime(v.time)], ["Interface", v.interface], ["Mode", v.mode], ["Class", `${clean(v.class)} (likeliest: ${clean(v.likeliest)})`],
        ["Rule", v.rule], ["Reason", v.reason], ["Evidence", evidence], ["Scope", v.scope],
        ["Blocked for", v.ttl_seconds ? span(v.ttl_seconds) : ""], ["Limit", v.rate ? bytes(v.rate) + "/s" : ""], ["It passes", v.error],
        ["Signals", v.signals?.join(", ")], ["Notes", notes(v)], ["Model", v.model],
      ])),
      el("div", {}, el("h3", {}, "What came of it"), since(v, known, undo)),
      el("div", {}, el("h3", {}, "Scores"), el("table", { class: "scores" }, el("tbody", {}, scores.map(([label, p]) =>
        el("tr", {}, el("th", { scope: "row" }, label), el("td", {}, el("meter", { min: 0, max: 1, value: p, "aria-label": label })), el("td", { class: "number" }, p.toFixed(4))))))),
      el("div", {}, el("h3", {}, "Capture"), facts([
        ["Began", dateTime(v.start)], ["Packets", count(v.packets)], ["On the wire", bytes(v.bytes)],
        ["Seen by the model", `${count(v.captured)} bytes${v.complete ? "" : ", not all 1024"}`], ["Handed over", v.handed_over],
        ["Verdict after", v.verdict_ms ? v.verdict_ms.toFixed(1) + " ms from the first packet" : ""], ["Latency", v.latency_us ? count(v.latency_us) + " µs from the hand-over" : ""],
      ])),
    ),
  ];
}

// picture returns a map with its packets and parts. The pixels are drawn from what the answer
// holds: nothing is loaded.
function picture(map, side) {
  const canvas = el("canvas", { width: side, height: side });
  const data = Uint8Array.from(atob(map.pixels.slice(map.pixels.indexOf(",") + 1)), c => c.charCodeAt(0));
  createImageBitmap(new Blob([data], { type: "image/png" })).then(image => canvas.getContext("2d").drawImage(image, 0, 0));
  const svg = el("svg:svg", { viewBox: `0 0 ${side} ${side}`, role: "img", "aria-label": map.title },
    (map.begins ?? []).map(b => [
      b.lines.map(l => el("svg:line", { x1: l.Min.X, y1: l.Min.Y, x2: l.Max.X, y2: l.Max.Y, stroke: b.color, "stroke-width": 0.2 })),
      el("svg:text", { x: b.at.X, y: b.at.Y, dx: 0.1, dy: 0.9, fill: b.color }, b.number)]),
    (map.parts ?? []).map(p => el("svg:g", { class: "part" }, el("svg:title", {}, p.text),
      p.runs.map(r => el("svg:rect", { x: r.Min.X, y: r.Min.Y, width: r.Max.X - r.Min.X, height: r.Max.Y - r.Min.Y })))));
  return el("figure", {}, el("figcaption", {}, map.title), el("div", { class: "map" }, canvas, svg));
}

const box = color => { const b = el("span", { class: "box" }); b.style.background = color; return b; };
const signed = n => (n < 0 ? "" : "+") + n.toFixed(4);

// explained returns what the verdict depends on.
export function explained(x, v) {
  const changed = x.model !== v.model || x.class !== v.class;
  return [
    el("h3", {}, "What the verdict depends on"),
    changed ? el("p", { class: "worry" }, `The model that explains is ${clean(x.model)}, and says ${clean(x.class)} ${x.confidence.toFixed(4)}.`) : null,
    el("p", {}, `-${clean(x.scale)} `, x.steps.map(box), ` +${clean(x.scale)}: by how much the probability of `, el("b", {}, x.about), " falls without it"),
    el("p", {}, box(x.unseen), " not seen by the model, ", box(x.initiator), " packet of the initiator, ", box(x.responder), " of the responder"),
    el("div", { class: "maps" }, x.maps.map(m => picture(m, x.side))),
    el("div", { class: "columns" },
      el("div", {}, el("h3", {}, "Effects"), el("div", { class: "scroll" }, table(["effect", "what", "value"],
        [...x.groups, ...x.singular.slice(0, 15)].map(p => [signed(p.effect), p.name, p.value ?? ""])))),
      el("div", {}, el("h3", {}, "Packets"), el("div", { class: "scroll" }, table(["packet>", "from", "after>", "on the wire>", "payload>", "captured>"],
        x.packets.map(p => [p.number, p.from_initiator ? "initiator" : "responder", p.ms.toFixed(1) + " ms", bytes(p.wire), bytes(p.payload), bytes(p.captured)]))))),
  ];
}

function table(head, rows) {
  const t = el("table");
  fill(t, head, rows, "");
  return t;
}

// SPDX-License-Identifier: Apache-2.0
// What is told of one flow.
import { badge, bytes, clean, count, dateTime, el, span } from "./dom.js";

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

// story returns what a verdict says.
export function story(v) {
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

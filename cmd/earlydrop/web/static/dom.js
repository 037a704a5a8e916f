// SPDX-License-Identifier: Apache-2.0
// What the page is made with. Whatever comes from the daemon becomes text, never markup.

export const $ = id => document.getElementById(id);

// Characters that move or hide others, so that a name could look like something else.
const misleading = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

// clean shows such characters as what they are.
export const clean = text => String(text ?? "").replace(misleading, c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

// el makes an element. Children are elements or text.
export function el(tag, attributes = {}, ...children) {
  const e = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") e.addEventListener(name, value);
    else if (value === true) e.setAttribute(name, "");
    else if (value !== false && value != null) e.setAttribute(name, clean(value));
  }
  e.append(...children.flat(Infinity).filter(c => c != null).map(c => c instanceof Node ? c : clean(c)));
  return e;
}

// fill replaces what is in a table. head has the columns' names, one that ends with ">" is of
// numbers; rows are lists of cells.
export function fill(table, head, rows, nothing) {
  const number = head.map(h => h.endsWith(">"));
  const line = (tag, cells) => cells.map((c, i) => el(tag, { class: number[i] ? "number" : null, scope: tag === "th" ? "col" : null }, c));
  const names = head.map(h => h.replace(/>$/, ""));
  const body = rows.length ? rows.map(r => el("tr", {}, line("td", r))) : [el("tr", {}, el("td", { colspan: head.length, class: "quiet" }, nothing))];
  table.replaceChildren(el("thead", {}, el("tr", {}, line("th", names))), el("tbody", {}, body));
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const count = n => whole.format(n ?? 0);

// short writes a number in few characters.
export function short(n) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (Math.abs(n) >= size) return (n / size).toPrecision(3) + " " + unit;
  return n >= 10 || Number.isInteger(n) ? whole.format(n) : n.toPrecision(2);
}

export function bytes(n) {
  let unit = 0;
  while (n >= 1024 && unit < 5) { n /= 1024; unit++; }
  return (unit ? n.toFixed(1) : whole.format(n ?? 0)) + " " + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
}

export const clock = time => { const d = new Date(time); return isNaN(d) ? "" : d.toLocaleTimeString("en-GB", { hour12: false }); };
export const dateTime = time => { const d = new Date(time); return isNaN(d) ? "" : d.toLocaleDateString("sv") + " " + clock(time); };

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return s + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  return s < 2 * 86400 ? Math.round(s / 3600) + " h" : Math.round(s / 86400) + " d";
}

export const badge = (text, look) => el("span", { class: "badge " + (look ?? "") }, text);

// meter shows how full something is.
export function meter(used, size, what) {
  const m = el("meter", { min: 0, max: size || 1, value: used, high: 0.9 * size, low: 0.7 * size, optimum: 0, "aria-label": what });
  return el("span", { class: "meter", title: `${what}: ${count(used)} of ${count(size)}` }, m, ` ${size ? Math.round(100 * used / size) : 0} %`);
}

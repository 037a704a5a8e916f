// SPDX-License-Identifier: Apache-2.0
// Charts of rates over the last minutes, drawn by uPlot.
import { short, clean } from "./dom.js";

const colors = ["--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--series-6", "--series-7", "--series-8"];
const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const kept = 600; // points

// Chart shows lines that have names. add gives it the next point of each; a line that was
// not there before begins with it.
export class Chart {
  constructor(box, write = short) {
    this.box = box;
    this.write = write;
    this.times = [];
    this.lines = new Map(); // by name
    new ResizeObserver(() => this.resize()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw(true));
  }

  add(time, values) {
    this.times.push(time);
    let changed = false;
    for (const [name, value] of Object.entries(values)) {
      if (!this.lines.has(name) && this.lines.size < colors.length) {
        this.lines.set(name, new Array(this.times.length - 1).fill(null));
        changed = true;
      }
      this.lines.get(name)?.push(value);
    }
    for (const points of this.lines.values()) {
      while (points.length < this.times.length) points.push(null);
      if (points.length > kept) points.shift();
    }
    if (this.times.length > kept) this.times.shift();
    this.draw(changed);
  }

  // clear forgets all points.
  clear() {
    this.times = [];
    this.lines.clear();
    this.draw(true);
  }

  draw(anew) {
    const data = [this.times, ...this.lines.values()];
    if (this.plot && !anew) {
      this.plot.setData(data);
      return;
    }
    this.plot?.destroy();
    this.plot = null;
    if (!this.lines.size || !this.box.clientWidth) return;
    const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line"), width: 1 }, font: "11px system-ui, sans-serif" };
    this.plot = new globalThis.uPlot({
      width: this.box.clientWidth, height: 160,
      scales: { y: { range: (_, __, most) => [0, Math.max(1, most * 1.1)] } },
      axes: [{ ...axis, size: 28, values: (_, ticks) => ticks.map(t => new Date(t * 1000).toLocaleTimeString("en-GB")) , space: 90 },
        { ...axis, size: 68, values: (_, ticks) => ticks.map(t => this.write(t)) }],
      series: [{ value: (_, t) => t == null ? "now" : new Date(t * 1000).toLocaleTimeString("en-GB") },
        ...[...this.lines.keys()].map((name, i) => ({
          label: clean(name), stroke: color(colors[i]), width: 1.5, points: { show: false },
          value: (plot, v, series) => { v ??= plot.data[series].at(-1); return v == null ? "–" : this.write(v); },
        }))],
      cursor: { drag: { x: false, y: false } },
    }, data, this.box);
  }

  resize() {
    if (!this.plot) this.draw(true);
    else if (this.box.clientWidth) this.plot.setSize({ width: this.box.clientWidth, height: 160 });
  }
}

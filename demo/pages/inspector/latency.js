// The time from the node to this page, p50 and p99 of each second, for the last minute. The scale is logarithmic.

import { svg } from '../shared/dom.js';

const SECONDS = 60;
const HEIGHT = 190;
const LEFT = 64;
const RIGHT = 16;
const BOTTOM = 18;
const LINES = [1, 10, 100, 1_000, 10_000];
const WORDS = ['1 ms', '10 ms', '100 ms', '1 s', '10 s'];

/** @param {number[]} sorted @param {number} part */
const quantile = (sorted, part) => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))];
const y = (/** @type {number} */ ms) => (HEIGHT - BOTTOM) * (1 - Math.log10(Math.min(10_000, Math.max(1, ms))) / 4) + 6;
const now = () => performance.now() / 1000;

export class Latency {
  /** @type {Map<number, number[]>} milliseconds, by second */
  #seconds = new Map();
  /** @type {Array<{from: number, to: number}>} when faults were played */
  #faults = [];
  #drawing = svg('svg', { class: 'chart', role: 'img', 'data-testid': 'latency' });

  /** @param {Element} parent */
  constructor(parent) {
    parent.append(this.#drawing);
    setInterval(() => this.#draw(), 1_000);
    new ResizeObserver(() => this.#draw()).observe(parent);
  }

  /** @param {number} ms */
  take(ms) {
    const second = Math.floor(now());
    const values = this.#seconds.get(second) ?? [];
    values.push(Math.max(0, ms));
    this.#seconds.set(second, values);
  }

  /** Marks the time until the returned function is called. */
  mark() {
    const fault = { from: now(), to: Infinity };
    this.#faults.push(fault);
    return () => (fault.to = now());
  }

  #draw() {
    const end = Math.floor(now());
    const width = this.#drawing.parentElement.clientWidth || 600;
    this.#drawing.setAttribute('viewBox', `0 0 ${width} ${HEIGHT + 8}`);
    const x = (/** @type {number} */ second) => LEFT + ((Math.min(end, second) - end + SECONDS) / SECONDS) * (width - LEFT - RIGHT);
    for (const second of this.#seconds.keys()) if (second < end - SECONDS) this.#seconds.delete(second);
    this.#faults = this.#faults.filter(({ to }) => to > end - SECONDS);
    const points = [...this.#seconds].filter(([second]) => second < end).map(([second, values]) => ({ second, sorted: values.sort((a, b) => a - b) }));
    const curve = (/** @type {number} */ part) =>
      points.map(({ second, sorted }, index) => `${index && points[index - 1].second === second - 1 ? 'L' : 'M'}${x(second).toFixed(1)} ${y(quantile(sorted, part)).toFixed(1)}h.1`).join('');
    const grid = LINES.map((ms, index) => {
      const text = svg('text', { x: LEFT - 6, y: y(ms) + 4, 'text-anchor': 'end' });
      text.textContent = WORDS[index];
      return [svg('path', { class: 'grid', d: `M${LEFT} ${y(ms)}H${width - RIGHT}` }), text];
    });
    const bands = this.#faults.map(({ from, to }) => {
      const left = Math.max(LEFT, x(from));
      return svg('rect', { class: 'band', x: left, y: 6, width: Math.max(2, x(to) - left), height: HEIGHT - BOTTOM });
    });
    this.#drawing.replaceChildren(...bands, ...grid.flat(), svg('path', { class: 'curve p99', d: curve(0.99) }), svg('path', { class: 'curve p50', d: curve(0.5) }));
    const newest = points.at(-1)?.sorted;
    this.#drawing.setAttribute('aria-label', newest ? `Latency of the last second: p50 ${Math.round(quantile(newest, 0.5))} ms, p99 ${Math.round(quantile(newest, 0.99))} ms` : 'Latency: no events yet');
  }
}

// One channel: its counters, and a square for each of the newest numbers.

import { h, setText } from '../shared/dom.js';
import { Tally } from './tally.js';

const ROWS = 8;
const STEP = 9;
const SIDE = 7;
const COUNTERS = /** @type {const} */ ({ received: 'received', missing: 'missing', repeated: 'repeated', disordered: 'out of order', recovered: 'recovered' });

export class Lane {
  tally = new Tally();
  #context;
  #values;
  #isDrawn = true;

  /** @param {Element} parent @param {{name: string, title: string, line: string}} lane */
  constructor(parent, { name, title, line }) {
    this.canvas = h('canvas', { class: 'squares', 'aria-hidden': 'true', height: ROWS * STEP });
    this.#context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext('2d'));
    this.#values = Object.fromEntries(Object.keys(COUNTERS).map((counter) => [counter, h('dd', { 'data-testid': `${name}-${counter}` }, '0')]));
    parent.append(
      h(
        'article',
        { class: `card lane of-${name}` },
        h('h2', {}, title),
        h('p', { class: 'faint' }, line),
        this.canvas,
        h('dl', {}, ...Object.entries(COUNTERS).map(([counter, label]) => h('div', { dataset: { counter } }, this.#values[counter], h('dt', {}, label)))),
      ),
    );
    new ResizeObserver(() => this.#resize()).observe(this.canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.changed());
    new MutationObserver(() => this.changed()).observe(document.documentElement, { attributeFilter: ['data-theme'] });
  }

  /** @param {number} n */
  take(n) {
    this.tally.take(n);
    this.changed();
  }

  /** Draws in the next frame: many events may come in one. */
  changed() {
    if (this.#isDrawn) requestAnimationFrame(() => this.#draw());
    this.#isDrawn = false;
  }

  #resize() {
    const scale = devicePixelRatio || 1;
    this.canvas.width = this.canvas.clientWidth * scale;
    this.canvas.height = ROWS * STEP * scale;
    this.#context.scale(scale, scale);
    this.changed();
  }

  #draw() {
    this.#isDrawn = true;
    const { tally } = this;
    for (const counter of Object.keys(COUNTERS)) {
      setText(this.#values[counter], tally[counter].toLocaleString('en'));
      this.#values[counter].dataset.some = String(tally[counter] > 0);
    }
    const style = getComputedStyle(this.canvas);
    const colours = { live: style.color, recovered: style.getPropertyValue('--recovered'), missing: style.getPropertyValue('--bad') };
    const columns = Math.max(1, Math.floor(this.canvas.clientWidth / STEP));
    const start = Math.max(tally.first, (Math.ceil(tally.last / ROWS) - columns) * ROWS + 1);
    const origin = Math.floor((start - 1) / ROWS);
    this.#context.clearRect(0, 0, this.canvas.clientWidth, ROWS * STEP);
    for (let n = start; n && n <= tally.last; n += 1) {
      const how = tally.seen.get(n) ?? 'missing';
      const [x, y] = [(Math.floor((n - 1) / ROWS) - origin) * STEP, ((n - 1) % ROWS) * STEP];
      this.#context.fillStyle = this.#context.strokeStyle = colours[how];
      if (how === 'missing') this.#context.strokeRect(x + 0.5, y + 0.5, SIDE - 1, SIDE - 1);
      else this.#context.fillRect(x, y, SIDE, SIDE);
    }
  }
}

// One chart, drawn by uPlot: axes with units, the values at the pointer or of the keyboard, and gaps that look like gaps.

import { h, setText } from '../shared/dom.js';
import { METRICS, clockOf, minuteOf, written } from './metrics.js';

/** The library is a plain script: it has no build that is both a module and small. @type {any} */
const { uPlot } = globalThis;
const HEIGHT = 190;
/** All charts show the same second. */
const together = uPlot.sync('board');

/** The value of a colour now: it depends on the theme. @param {string} name */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = ['--accent', '--second'];

export class Chart {
  /** @type {import('./series.js').Gap[]} */
  #gaps = [];
  /** @type {number[]} */
  #seconds = [];
  #metrics;
  #values;
  #when = h('span', { class: 'when' });
  /** The second that the keyboard has chosen. @type {number | undefined} */
  #chosen;

  /** @param {typeof import('./metrics.js').CHARTS[0]} about @param {(second: number | undefined) => void} onChoose */
  constructor({ title, unit, metrics, steps }, onChoose) {
    this.#metrics = metrics;
    this.#values = metrics.map((metric) => h('b', { 'data-testid': 'chart-value', dataset: { metric } }, '–'));
    const legend = metrics.map((metric, index) =>
      h('span', { class: `key key-${index}` }, metrics.length > 1 ? `${METRICS[metric].short} ` : null, this.#values[index]),
    );
    this.plotted = h('div', { class: 'plot', tabindex: '0', role: 'slider', 'aria-label': `${title}, ${unit}`, 'aria-valuemin': '0', 'data-testid': 'plot' });
    this.element = h(
      'figure',
      { class: 'card chart', 'data-testid': 'chart', dataset: { metric: metrics[0] } },
      h('figcaption', {}, h('h2', {}, title), h('span', { class: 'faint' }, unit), h('span', { class: 'legend' }, this.#when, ...legend)),
      this.plotted,
    );
    this.plot = new uPlot(this.#options(steps), [[], ...metrics.map(() => [])], this.plotted);
    this.plotted.addEventListener('keydown', (event) => this.#onKey(event, onChoose));
    this.plotted.addEventListener('blur', () => onChoose(undefined));
    new ResizeObserver(([{ contentRect }]) => contentRect.width && this.plot.setSize({ width: Math.floor(contentRect.width), height: HEIGHT })).observe(this.plotted);
  }

  /**
   * @param {import('./series.js').Series} series
   * @param {number} from  seconds
   * @param {number} to
   * @param {import('./series.js').Gap[]} gaps
   */
  show(series, from, to, gaps) {
    this.#seconds = series.seconds(from, to);
    this.#gaps = gaps;
    this.element.dataset.gaps = String(gaps.length);
    this.plot.setData([this.#seconds, ...this.#metrics.map((metric) => series.values(metric, this.#seconds))]);
    this.plotted.setAttribute('aria-valuemax', String(this.#seconds.length - 1));
    this.choose(this.#chosen);
  }

  /** Draws again, as in another theme. */
  redraw() {
    this.plot.redraw();
  }

  /** Shows the values of a second, as the pointer does. @param {number | undefined} second */
  choose(second) {
    this.#chosen = second;
    if (second === undefined) this.plot.setCursor({ left: -10, top: -10 });
    else this.plot.setCursor({ left: this.plot.valToPos(second, 'x'), top: 0 });
    this.#showValues();
  }

  /** @param {KeyboardEvent} event @param {(second: number | undefined) => void} onChoose */
  #onKey(event, onChoose) {
    const last = this.#seconds.at(-1) ?? 0;
    const at = this.#chosen ?? last;
    const step = event.shiftKey ? 10 : 1;
    /** @type {Record<string, number | undefined>} */
    const targets = { ArrowLeft: at - step, ArrowRight: at + step, Home: this.#seconds[0], End: last, Escape: undefined };
    if (!(event.key in targets)) return;
    event.preventDefault();
    const target = targets[event.key];
    onChoose(target === undefined ? undefined : Math.min(Math.max(target, this.#seconds[0] ?? 0), last));
  }

  #showValues() {
    const { idx } = this.plot.cursor;
    const isChosen = idx !== null && idx !== undefined && idx < this.#seconds.length && this.plot.cursor.left >= 0;
    const index = isChosen ? idx : this.#seconds.length - 1;
    this.#metrics.forEach((metric, row) => {
      const shown = isChosen ? this.plot.data[row + 1][index] : this.plot.data[row + 1].findLast((/** @type {any} */ value) => value !== null);
      setText(this.#values[row], written(metric, shown));
    });
    const when = isChosen ? clockOf(this.#seconds[index]) : '';
    setText(this.#when, when);
    this.plotted.setAttribute('aria-valuenow', String(Math.max(index, 0)));
    const words = this.#metrics.map((metric, row) => `${METRICS[metric].short} ${this.#values[row].textContent}`).join(', ');
    this.plotted.setAttribute('aria-valuetext', `${when || 'Newest'}: ${words}`);
  }

  /** @param {boolean} steps */
  #options(steps) {
    const font = '12px system-ui, sans-serif';
    const axis = { stroke: () => colour('--faint'), font, grid: { stroke: () => colour('--line'), width: 1 }, ticks: { show: false } };
    const lines = this.#metrics.map((_, index) => ({
      stroke: () => colour(COLOURS[index]),
      fill: index || this.#metrics.length > 1 ? undefined : () => colour('--accent-soft'),
      width: 1.6,
      points: { show: false },
      paths: steps ? uPlot.paths.stepped({ align: 1 }) : undefined,
    }));
    return {
      width: 400,
      height: HEIGHT,
      padding: [8, 12, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: together.key }, drag: { x: false, y: false }, points: { size: 7 }, y: false },
      scales: { x: { time: true, range: () => [this.#seconds[0] ?? 0, this.#seconds.at(-1) ?? 60] }, y: { range: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number | null} */ most) => [0, (most || 1) * 1.12] } },
      series: [{}, ...lines],
      axes: [
        { ...axis, space: 56, size: 30, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map(ticks.some((tick) => tick % 60) ? clockOf : minuteOf) },
        { ...axis, space: 34, size: 46, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((tick) => tick.toLocaleString('en')) },
      ],
      hooks: { drawClear: [(/** @type {any} */ plot) => this.#drawGaps(plot)], setCursor: [() => this.#showValues()] },
    };
  }

  /** Hatches the seconds without samples. @param {any} plot */
  #drawGaps(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const { from, to } of this.#gaps) {
      const [left, right] = [plot.valToPos(from - 1, 'x', true), plot.valToPos(to + 1, 'x', true)];
      ctx.fillStyle = colour('--sunken');
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
      ctx.save();
      ctx.beginPath();
      ctx.rect(left, bbox.top, right - left, bbox.height);
      ctx.clip();
      ctx.strokeStyle = colour('--line-strong');
      ctx.lineWidth = devicePixelRatio;
      ctx.beginPath();
      for (let x = left - bbox.height; x < right; x += 9 * devicePixelRatio) {
        ctx.moveTo(x, bbox.top + bbox.height);
        ctx.lineTo(x + bbox.height, bbox.top);
      }
      ctx.stroke();
      ctx.restore();
    }
    ctx.restore();
  }
}

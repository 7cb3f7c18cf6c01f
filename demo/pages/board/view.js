// The board on the page: large numbers, charts or a table, the time range, and how old the data is.

import { byId, h, setText } from '../shared/dom.js';
import { Chart } from './chart.js';
import { CHARTS, METRICS, ageOf, clockOf } from './metrics.js';
import { Series } from './series.js';

const RANGES = [1, 5, 15];
/** Age (ms) from which a number is shown as old: some values were missed. */
const OLD = 2_500;
const ROWS = 30;
/** How long "Go offline" lasts (ms). */
const OUTAGE = 10_000;

export class Board {
  #series = new Series();
  /** @type {Map<string, {element: HTMLElement, value: HTMLElement, age: HTMLElement, at: number}>} */
  #tiles = new Map();
  #minutes = 5;
  /** @type {number | undefined} the second at which the board was paused */
  #pausedAt;
  #isConnected = false;
  #isTable = false;
  #hasOlder = false;
  #loading = false;
  /** Difference between the shop's clock and ours (ms), from the event that came fastest. */
  #skew = -Infinity;
  #older;
  #charts;

  /** @param {{older: (count: number) => Promise<number>}} of  `older` reads earlier samples */
  constructor({ older }) {
    this.#older = older;
    this.#charts = CHARTS.map((about) => new Chart(about, (second) => this.#choose(second)));
    byId('charts').append(...this.#charts.map(({ element }) => element));
    byId('tiles').append(...Object.keys(METRICS).map((metric) => this.#tile(metric)));
    byId('columns').append(...['Time', ...Object.values(METRICS).map(({ short, unit }) => `${short} (${unit})`)].map((title) => h('th', { scope: 'col' }, title)));
    this.#startTools();
    setInterval(() => document.hidden || this.#tick(), 500);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#redraw());
    new MutationObserver(() => this.#redraw()).observe(document.documentElement, { attributeFilter: ['data-theme'] });
  }

  /** @param {import('./metrics.js').Sample[]} samples @param {{status: string, hasOlder: boolean}} list */
  showSamples(samples, { status, hasOlder }) {
    this.#series = new Series(samples);
    this.#hasOlder = hasOlder;
    byId('charts').setAttribute('aria-busy', String(status === 'loading'));
    if (status === 'live') void this.#loadRange();
    this.#show();
  }

  /** @param {ReadonlyMap<string, {data: {metric: string, value: number, at: number}}>} values */
  showNewest(values) {
    for (const [metric, { data }] of values) {
      const tile = this.#tiles.get(metric);
      if (!tile) continue;
      this.#skew = Math.max(this.#skew, data.at - Date.now());
      tile.at = data.at;
      setText(tile.value, METRICS[metric].show(data.value));
    }
    this.#showAges();
  }

  /** @param {number} count */
  showWatchers(count) {
    setText(byId('watchers'), count > 1 ? `${count} people watch` : '');
  }

  /** @param {boolean} isConnected */
  showConnection(isConnected) {
    this.#isConnected = isConnected;
    this.#tick();
  }

  // --- time ---------------------------------------------------------------------------------------------------------------

  /** The shop's time in ms. */
  get #now() {
    return Date.now() + (Number.isFinite(this.#skew) ? this.#skew : 0);
  }

  /** The newest second on the charts. */
  get #end() {
    return this.#pausedAt ?? Math.floor(this.#now / 1000);
  }

  get #start() {
    return this.#end - this.#minutes * 60;
  }

  #tick() {
    this.#showAges();
    if (this.#pausedAt === undefined) this.#show();
  }

  /** Reads earlier samples, if the range begins before those that are here. */
  async #loadRange() {
    if (this.#loading || !this.#hasOlder || this.#series.first <= this.#start) return;
    this.#loading = true;
    await this.#older(Math.min(900, this.#series.first - this.#start)).catch(() => 0); // the list reads on after the next connect
    this.#loading = false;
  }

  // --- what is shown --------------------------------------------------------------------------------------------------------

  #show() {
    const [from, to] = [this.#start, this.#end];
    const notes = this.#series.notes(from, to);
    byId('notes').replaceChildren(...notes.map(({ second, note }) => h('li', {}, h('time', {}, clockOf(second)), ` ${note}`)));
    byId('no-notes').hidden = notes.length > 0;
    if (this.#isTable) this.#showRows(from, to);
    else {
      const gaps = this.#series.gaps(from, to);
      for (const chart of this.#charts) chart.show(this.#series, from, to, gaps);
    }
  }

  /** Of each row the newest sample; a row without a sample says so. @param {number} from @param {number} to */
  #showRows(from, to) {
    const step = (this.#minutes * 60) / ROWS;
    const last = to - (to % step);
    const key = `${last} ${step} ${this.#series.first} ${this.#series.last}`;
    if (byId('rows').dataset.key === key) return;
    byId('rows').dataset.key = key;
    const seconds = Array.from({ length: ROWS }, (_, index) => last - index * step).filter((second) => second >= from);
    const cells = (/** @type {number} */ second) => Object.keys(METRICS).map((metric) => h('td', {}, this.#cell(metric, second)));
    byId('rows').replaceChildren(...seconds.map((second) => h('tr', {}, h('th', { scope: 'row' }, clockOf(second)), ...cells(second))));
  }

  /** @param {string} metric @param {number} second */
  #cell(metric, second) {
    const value = this.#series.at(second)?.[metric];
    return value === undefined ? '–' : METRICS[metric].show(value);
  }

  /** @param {string} metric */
  #tile(metric) {
    const { label, unit } = METRICS[metric];
    const [value, age] = [h('b', { 'data-testid': 'tile-value' }, '–'), h('span', { class: 'tile-age' })];
    const element = h('div', { class: 'card tile', 'data-testid': 'tile', dataset: { metric, old: 'true' } }, h('dt', {}, label), h('dd', {}, value, h('span', { class: 'unit' }, unit), age));
    this.#tiles.set(metric, { element, value, age, at: 0 });
    return element;
  }

  /** A number that gets no newer one turns grey, and says how old it is. */
  #showAges() {
    for (const { element, age, at } of this.#tiles.values()) {
      const ms = this.#now - at;
      element.dataset.old = String(ms > OLD);
      setText(age, at && ms > OLD ? `${ageOf(ms)} old` : '');
    }
    const { last } = this.#series;
    const ms = this.#now - (last + 1) * 1000; // a sample is complete at the end of its second
    const isOld = ms > OLD + 1000;
    const paused = this.#pausedAt === undefined ? '' : `Paused at ${clockOf(this.#pausedAt)}. `;
    byId('age').dataset.old = String(isOld);
    setText(byId('age'), paused + (!Number.isFinite(last) ? 'No samples yet' : isOld ? `${this.#isConnected ? 'No new samples' : 'No connection'}: newest sample ${clockOf(last)}, ${ageOf(ms)} old` : `Newest sample ${clockOf(last)}`));
  }

  #redraw() {
    for (const chart of this.#charts) chart.redraw();
  }

  /** Shows a second on all charts. @param {number | undefined} second */
  #choose(second) {
    for (const chart of this.#charts) chart.choose(second);
  }

  // --- tools ----------------------------------------------------------------------------------------------------------------

  #startTools() {
    for (const minutes of RANGES) {
      const input = h('input', { type: 'radio', name: 'range', value: minutes, checked: minutes === this.#minutes, onchange: () => this.#setRange(minutes) });
      byId('ranges').append(h('label', {}, input, h('span', {}, `${minutes} min`)));
    }
    byId('pause').addEventListener('click', () => this.#togglePause());
    byId('as-table').addEventListener('click', () => this.#toggleTable());
    byId('cut').addEventListener('click', () => this.#goOffline());
    document.addEventListener('keydown', (event) => this.#onKey(event));
  }

  /** @param {KeyboardEvent} event */
  #onKey({ key, ctrlKey, metaKey, altKey, target }) {
    if (ctrlKey || metaKey || altKey || /** @type {Element} */ (target).matches('input[type=text], textarea')) return;
    /** @type {Record<string, () => void>} */
    const actions = { p: () => this.#togglePause(), t: () => this.#toggleTable(), 1: () => this.#setRange(1), 5: () => this.#setRange(5), f: () => this.#setRange(15) };
    actions[key]?.();
  }

  /** @param {number} minutes */
  #setRange(minutes) {
    this.#minutes = minutes;
    const input = /** @type {HTMLInputElement} */ (document.querySelector(`input[name=range][value="${minutes}"]`));
    input.checked = true;
    void this.#loadRange();
    this.#show();
  }

  #togglePause() {
    this.#pausedAt = this.#pausedAt === undefined ? this.#end : undefined;
    const isPaused = this.#pausedAt !== undefined;
    byId('pause').setAttribute('aria-pressed', String(isPaused));
    setText(byId('pause'), isPaused ? 'Continue' : 'Pause');
    this.#show();
    this.#showAges();
  }

  #toggleTable() {
    this.#isTable = !this.#isTable;
    byId('as-table').setAttribute('aria-pressed', String(this.#isTable));
    byId('table').hidden = !this.#isTable;
    byId('charts').hidden = this.#isTable;
    this.#show();
  }

  /** Says to the client what a browser says when the network goes and comes back. */
  #goOffline() {
    const button = /** @type {HTMLButtonElement} */ (byId('cut'));
    button.disabled = true;
    dispatchEvent(new Event('offline'));
    setTimeout(() => {
      dispatchEvent(new Event('online'));
      button.disabled = false;
    }, OUTAGE);
  }
}

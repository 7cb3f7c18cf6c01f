// Shows the cursors of others. They arrive 10 to 20 times a second, and move on every frame.

import { h, svg } from '../shared/dom.js';
import { HEIGHT, WIDTH } from './paper.js';

/** Milliseconds in which a cursor gets two thirds of the way to where it is. */
const GLIDE = 55;
/** Milliseconds without news, after which a cursor fades. */
const IDLE = 10_000;
/** Above that, new cursors are not shown. */
const MAX_CURSORS = 100;

/**
 * @typedef {{id: string, name: string, tone: number, x: number, y: number, state: string}} Pointed
 * @typedef {{element: HTMLElement, from: string | null, x: number, y: number, to: Pointed, timer: ReturnType<typeof setTimeout> | undefined}} Cursor
 */

export class Cursors {
  /** @type {Map<string, Cursor>} */
  #cursors = new Map();
  #calm = matchMedia('(prefers-reduced-motion: reduce)');
  #layer;
  #frame = 0;
  #last = 0;

  /** @param {HTMLElement} layer */
  constructor(layer) {
    this.#layer = layer;
    new ResizeObserver(() => this.#wake()).observe(layer);
  }

  /** @param {Pointed} to @param {string | null} from  null for a bot of the backend */
  move(to, from) {
    if (to.state === 'gone') return this.#drop(to.id);
    const known = this.#cursors.get(to.id);
    if (!known && this.#cursors.size >= MAX_CURSORS) return;
    const cursor = known ?? { element: drawn(), from, x: to.x, y: to.y, to, timer: undefined };
    if (!known) {
      this.#cursors.set(to.id, cursor);
      this.#layer.append(cursor.element);
    }
    cursor.to = to;
    const { element } = cursor;
    element.className = `cursor tone-${to.tone}`;
    element.dataset.state = to.state;
    element.dataset.from = from ?? 'bot';
    const label = /** @type {Element} */ (element.lastElementChild);
    if (label.textContent !== to.name) label.textContent = to.name;
    clearTimeout(cursor.timer);
    cursor.timer = setTimeout(() => this.#drop(to.id), IDLE);
    this.#wake();
  }

  /** Drops the cursors of those who have left. @param {Set<string>} users */
  keep(users) {
    for (const [id, { from }] of this.#cursors) if (from !== null && !users.has(from)) this.#drop(id);
  }

  /** @param {string} id */
  #drop(id) {
    const cursor = this.#cursors.get(id);
    clearTimeout(cursor?.timer);
    cursor?.element.remove();
    this.#cursors.delete(id);
  }

  #wake() {
    this.#frame ||= requestAnimationFrame((now) => this.#step(now));
  }

  /** One frame; none follows when all cursors are where they should be. @param {number} now */
  #step(now) {
    const share = this.#calm.matches ? 1 : 1 - Math.exp(-Math.min(now - this.#last, 100) / GLIDE);
    this.#last = now;
    this.#frame = 0;
    const { clientWidth, clientHeight } = this.#layer;
    for (const cursor of this.#cursors.values()) {
      const { element, to } = cursor;
      cursor.x += (to.x - cursor.x) * share;
      cursor.y += (to.y - cursor.y) * share;
      if (Math.abs(to.x - cursor.x) + Math.abs(to.y - cursor.y) > 0.5) this.#wake();
      element.style.transform = `translate(${(cursor.x / WIDTH) * clientWidth}px, ${(cursor.y / HEIGHT) * clientHeight}px)`;
      element.dataset.side = to.x > WIDTH * 0.8 ? 'left' : 'right';
    }
  }
}

const drawn = () => h('div', {}, svg('svg', { viewBox: '0 0 18 22' }, svg('path', { d: 'M2 1.5v16.8l4.6-4.4 3 6.6 3.2-1.4-3-6.5h6.3L2 1.5Z' })), h('span', { class: 'label' }));

// The map: the town, the couriers on it, the way of the marked order, and a view that may follow a courier.

import { byId, h, setText, svg } from '../shared/dom.js';
import { span } from './clock.js';
import { Motion } from './motion.js';
import { drawTown, HEIGHT, pathOf, WIDTH } from './town.js';

/** How much closer the view is while it follows a courier. */
const ZOOM = 2.2;

/** @typedef {{element: HTMLElement, motion: Motion, event: any, seen: number, isLost: boolean}} Marker */

export class TownMap {
  #town = /** @type {any} */ (byId('town'));
  #layer = byId('layer');
  #route = svg('path', { class: 'route' });
  /** @type {Map<string, Marker>} */
  #markers = new Map();
  #isLive = false;
  /** @type {string | undefined} */
  #followed;
  /** @type {any} the marked order */
  #order;
  #pins = [pin('pickup', 'Kitchen'), pin('dropoff', 'Customer')];
  #view = { x: WIDTH / 2, y: HEIGHT / 2, width: WIDTH, height: HEIGHT };
  #size = { width: 1, height: 1 };
  #calm = matchMedia('(prefers-reduced-motion: reduce)');
  #frame = 0;
  #last = 0;
  #clock;
  #on;

  /**
   * @param {import('./clock.js').Clock} clock
   * @param {{onCourier: (courier: string) => void, onFollow: (courier: string | undefined) => void}} on
   */
  constructor(clock, on) {
    this.#clock = clock;
    this.#on = on;
    void drawTown(this.#town).then(() => this.#town.append(this.#route));
    new ResizeObserver(([{ contentRect }]) => {
      this.#size = { width: contentRect.width, height: contentRect.height };
      Object.assign(this.#view, this.#wanted());
      this.#wake();
    }).observe(byId('map'));
    this.#layer.append(...this.#pins);
    byId('whole').addEventListener('click', () => this.follow(undefined));
    document.addEventListener('keydown', ({ key }) => key === 'Escape' && this.follow(undefined));
    setInterval(() => this.#tell(), 1_000);
  }

  /** @param {ReadonlyMap<string, any>} couriers @param {ReadonlyMap<string, any>} phones @param {boolean} isLive */
  show(couriers, phones, isLive) {
    this.#isLive = isLive;
    for (const [id, marker] of this.#markers) if (!couriers.has(id)) this.#drop(id, marker);
    for (const [id, event] of couriers) this.#place(id, event, phones.get(id));
    this.#tell();
    this.#wake();
  }

  /** Shows the way of an order. @param {any} order */
  mark(order) {
    this.#order = order;
    const way = order?.route ? pathOf(order.route) : '';
    if (this.#route.getAttribute('d') !== way) this.#route.setAttribute('d', way);
    for (const one of this.#pins) one.hidden = !order;
    for (const [id, { element }] of this.#markers) element.dataset.marked = String(id === order?.courier);
    this.#wake();
  }

  /** Moves the view with a courier, or shows the whole town. @param {string | undefined} courier */
  follow(courier) {
    if (courier === this.#followed) return;
    this.#followed = courier;
    byId('whole').hidden = !courier;
    this.#on.onFollow(courier);
    this.#wake();
  }

  /** @param {string} id @param {any} event @param {any} phone  undefined: it has no network */
  #place(id, event, phone) {
    const { name, vehicle, x, y, heading, path } = event.data;
    let marker = this.#markers.get(id);
    if (!marker) {
      const element = courier(id, name, vehicle, () => this.#on.onCourier(id));
      marker = { element, motion: new Motion([x, y], heading), event, seen: 0, isLost: false };
      this.#markers.set(id, marker);
      this.#layer.append(element);
      element.dataset.marked = String(id === this.#order?.courier);
    } else if (marker.event !== event) {
      marker.motion.go(path);
      marker.event = event;
    }
    marker.seen = Math.max(marker.seen, event.at, phone?.at ?? 0);
    marker.isLost = this.#isLive && !phone;
  }

  /** @param {string} id @param {Marker} marker */
  #drop(id, { element }) {
    element.remove();
    this.#markers.delete(id);
    if (id === this.#followed) this.follow(undefined);
  }

  /** What the labels and the notice say; each second. */
  #tell() {
    const now = this.#clock.now();
    let newest = 0;
    for (const { element, event, seen, isLost } of this.#markers.values()) {
      newest = Math.max(newest, seen);
      const ago = `last seen ${span(now - seen)} ago`;
      element.dataset.lost = String(isLost || !this.#isLive);
      setText(/** @type {Element} */ (element.querySelector('.label')), isLost ? `${event.data.name}, ${ago}` : event.data.name);
    }
    const isOld = !this.#isLive && newest > 0;
    byId('notice').hidden = !isOld;
    if (isOld) setText(byId('notice'), `No connection. The positions are ${span(now - newest)} old.`);
  }

  #wake() {
    this.#frame ||= requestAnimationFrame((now) => this.#step(now));
  }

  /** One frame; none follows when everything stands still. @param {number} now */
  #step(now) {
    const elapsed = Math.min(now - this.#last, 100);
    this.#last = now;
    this.#frame = 0;
    for (const { motion } of this.#markers.values()) {
      if (this.#calm.matches) motion.finish();
      else motion.step(elapsed);
      if (motion.isMoving) this.#wake();
    }
    this.#look(elapsed);
    const { x, y, width, height } = this.#view;
    const [left, top] = [x - width / 2, y - height / 2];
    this.#town.setAttribute('viewBox', `${left.toFixed(1)} ${top.toFixed(1)} ${width.toFixed(1)} ${height.toFixed(1)}`);
    this.#town.style.setProperty('--unit', (width / this.#size.width).toFixed(3));
    this.#town.dataset.far = String(width > 2 * this.#size.width);
    const put = (/** @type {HTMLElement} */ element, /** @type {[number, number]} */ [px, py]) => {
      element.style.transform = `translate(${((px - left) / width) * this.#size.width}px, ${((py - top) / height) * this.#size.height}px)`;
    };
    for (const { element, motion } of this.#markers.values()) {
      put(element, motion.at);
      /** @type {HTMLElement} */ (element.firstElementChild).style.transform = `rotate(${motion.heading.toFixed(1)}deg)`;
    }
    if (this.#order) for (const one of this.#pins) put(one, this.#order[String(one.dataset.kind)]);
  }

  /** Moves the view to where it should be. @param {number} elapsed */
  #look(elapsed) {
    const wanted = this.#wanted();
    const share = this.#calm.matches ? 1 : 1 - Math.exp(-elapsed / 260);
    for (const key of /** @type {const} */ (['x', 'y', 'width', 'height'])) {
      const difference = wanted[key] - this.#view[key];
      this.#view[key] += difference * share;
      if (Math.abs(difference) > 0.3) this.#wake();
    }
  }

  #wanted() {
    const { width, height } = this.#size;
    const scale = Math.max(WIDTH / width, HEIGHT / height);
    const marker = this.#markers.get(this.#followed ?? '');
    if (!marker) return { x: WIDTH / 2, y: HEIGHT / 2, width: width * scale, height: height * scale };
    const [x, y] = marker.motion.at;
    return { x, y, width: (width * scale) / ZOOM, height: (height * scale) / ZOOM };
  }
}

/** @param {string} id @param {string} name @param {string} vehicle @param {() => void} onclick */
function courier(id, name, vehicle, onclick) {
  const arrow = svg('svg', { class: 'heading', viewBox: '-20 -20 40 40', 'aria-hidden': 'true' }, svg('path', { d: 'M10 -8 18 0 10 8Z' }));
  return h('button', { type: 'button', class: `courier ${vehicle}`, 'data-testid': 'courier', dataset: { courier: id }, onclick }, arrow, h('span', { class: 'face', 'aria-hidden': 'true' }, name[0]), h('span', { class: 'label' }, name), h('span', { class: 'sr' }, `, ${vehicle}`));
}

/** @param {'pickup' | 'dropoff'} kind @param {string} label */
function pin(kind, label) {
  const shape = svg('svg', { viewBox: '0 0 24 30', 'aria-hidden': 'true' }, svg('path', { d: 'M12 29S2 18.5 2 11.5a10 10 0 0 1 20 0C22 18.5 12 29 12 29Z' }), svg('circle', { cx: 12, cy: 11.5, r: 4 }));
  return h('div', { class: 'pin', dataset: { kind }, title: label, hidden: true }, shape);
}

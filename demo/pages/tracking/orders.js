// The list of orders with its filter, and the details of the selected one.

import { byId, h, setText } from '../shared/dom.js';
import { span, timeOf } from './clock.js';

/** @type {Record<string, string>} */
const STATUS = { accepted: 'Accepted', picked_up: 'Picked up', on_its_way: 'On its way', delivered: 'Delivered' };
/** @type {Record<string, {label: string, has: (status: string) => boolean}>} */
const FILTERS = {
  all: { label: 'All', has: () => true },
  waiting: { label: 'Waiting', has: (status) => status === 'accepted' },
  road: { label: 'On the road', has: (status) => status === 'picked_up' || status === 'on_its_way' },
  delivered: { label: 'Delivered', has: (status) => status === 'delivered' },
};

export class Orders {
  /** @type {any[]} */
  #orders = [];
  /** @type {readonly any[]} */
  #steps = [];
  /** @type {ReadonlyMap<string, any>} */
  #couriers = new Map();
  /** @type {ReadonlyMap<string, any>} */
  #phones = new Map();
  #isLive = false;
  #filter = 'all';
  #selected = decodeURIComponent(location.hash.slice(1));
  /** @type {string | undefined} */
  #followed;
  #spoken = '';
  #clock;
  #on;

  /**
   * @param {import('./clock.js').Clock} clock
   * @param {{onSelect: (order: any) => void, onFollow: (courier: string | undefined) => void}} on
   */
  constructor(clock, on) {
    this.#clock = clock;
    this.#on = on;
    for (const [value, { label }] of Object.entries(FILTERS)) {
      const input = h('input', { type: 'radio', class: 'sr', name: 'filter', value, checked: value === this.#filter, onchange: () => this.#choose(value) });
      byId('filter').append(h('label', { class: 'choice' }, input, h('span', {}, label), h('span', { class: 'count', dataset: { of: value } })));
    }
    setInterval(() => this.#render(), 1_000);
  }

  /**
   * @param {ReadonlyMap<string, any>} facts
   * @param {readonly any[]} steps
   * @param {{couriers: ReadonlyMap<string, any>, phones: ReadonlyMap<string, any>, isLive: boolean}} road
   */
  show(facts, steps, { couriers, phones, isLive }) {
    this.#orders = Array.from(facts.values(), ({ data }) => data).sort((a, b) => rank(a) - rank(b) || (a.order < b.order ? 1 : -1));
    this.#steps = steps;
    this.#couriers = couriers;
    this.#phones = phones;
    this.#isLive = isLive;
    this.#render();
    this.#on.onSelect(this.#order);
  }

  /** Selects the order of a courier, and follows the courier. @param {string} courier */
  selectOf(courier) {
    const order = this.#orders.find((one) => one.courier === courier && one.status !== 'delivered');
    if (order) this.#select(order.order);
    this.#on.onFollow(courier);
  }

  /** @param {string | undefined} courier */
  followed(courier) {
    this.#followed = courier;
    this.#render();
  }

  get #order() {
    return this.#orders.find(({ order }) => order === this.#selected);
  }

  /** @param {string} filter */
  #choose(filter) {
    this.#filter = filter;
    this.#render();
  }

  /** @param {string} order  a second time: none */
  #select(order) {
    this.#selected = order;
    history.replaceState(null, '', order ? `#${order}` : location.pathname + location.search);
    this.#render();
    this.#on.onSelect(this.#order);
    if (order) byId('details').scrollIntoView({ block: 'nearest' });
    else this.#on.onFollow(undefined);
  }

  #render() {
    for (const [name, { has }] of Object.entries(FILTERS)) {
      const count = this.#orders.filter(({ status }) => has(status)).length;
      setText(/** @type {Element} */ (document.querySelector(`[data-of="${name}"]`)), String(count));
    }
    const shown = this.#orders.filter(({ status }) => FILTERS[this.#filter].has(status));
    byId('none').hidden = shown.length > 0;
    update(byId('orders'), shown, (order) => order.order, row, (element, order) => this.#fill(element, order));
    this.#renderDetails();
  }

  /** @param {HTMLElement} element @param {any} order */
  #fill(element, order) {
    const button = /** @type {HTMLElement} */ (element.firstElementChild);
    button.onclick = () => this.#select(order.order === this.#selected ? '' : order.order);
    button.setAttribute('aria-pressed', String(order.order === this.#selected));
    setText(part(element, '.id'), order.order);
    setText(part(element, '.trip'), `${order.kitchen} to ${order.address}`);
    setText(part(element, '.status'), STATUS[order.status]);
    part(element, '.status').dataset.status = order.status;
    setText(part(element, '.eta'), this.#eta(order));
  }

  /** @param {any} order */
  #eta({ status, due, courier }) {
    if (status === 'delivered') return '';
    if (due === undefined) return 'No courier yet';
    const left = due - this.#clock.now();
    const name = this.#couriers.get(courier)?.data.name ?? courier;
    return left > 1_500 ? `${name}, in ${span(left)}` : `${name}, any moment`;
  }

  #renderDetails() {
    const order = this.#order;
    const details = byId('details');
    details.hidden = !order;
    if (!order) return;
    if (details.dataset.order !== order.order) {
      details.dataset.order = order.order;
      details.replaceChildren(...parts(() => this.#select('')));
    }
    const name = this.#couriers.get(order.courier)?.data.name;
    setText(part(details, 'h2'), order.order);
    setText(part(details, '.customer'), `For ${order.customer}, ${order.address}`);
    setText(part(details, '.eta'), this.#eta(order) || 'Delivered');
    part(details, '.lost').hidden = !name || !this.#isLive || this.#phones.has(order.courier) || order.status === 'delivered';
    setText(part(details, '.lost'), `${name}’s phone has no network. The map shows where it was last seen.`);
    const follow = /** @type {HTMLButtonElement} */ (part(details, '.follow'));
    follow.hidden = !name || order.status === 'delivered';
    setText(follow, this.#followed === order.courier ? `Stop following ${name}` : `Follow ${name}`);
    follow.setAttribute('aria-pressed', String(this.#followed === order.courier));
    follow.onclick = () => this.#on.onFollow(this.#followed === order.courier ? undefined : order.courier);
    const done = new Map(this.#steps.filter(({ data }) => data.order === order.order).map(({ data }) => [data.status, data.at]));
    update(part(details, '.timeline'), Object.keys(STATUS), (status) => status, step, (element, status) => {
      const at = done.get(status);
      element.dataset.done = String(at !== undefined);
      setText(part(element, 'time'), at === undefined ? '' : timeOf(at));
    });
    const spoken = `${order.order}: ${STATUS[order.status]}`;
    if (spoken !== this.#spoken) setText(byId('spoken'), (this.#spoken = spoken));
  }
}

/** Open orders first. @param {any} order */
const rank = ({ status }) => (status === 'delivered' ? 1 : 0);

/** @param {Element} element @param {string} selector */
const part = (element, selector) => /** @type {HTMLElement} */ (element.querySelector(selector));

/**
 * Makes the children of a list those of the items, and keeps the elements of items that stay: the focus stays, too.
 * @template T
 * @param {HTMLElement} list @param {T[]} items @param {(item: T) => string} keyOf
 * @param {(item: T) => HTMLElement} make @param {(element: HTMLElement, item: T) => void} fill
 */
function update(list, items, keyOf, make, fill) {
  const old = new Map(Array.from(list.children, (child) => [/** @type {HTMLElement} */ (child).dataset.key, /** @type {HTMLElement} */ (child)]));
  items.forEach((item, index) => {
    const element = old.get(keyOf(item)) ?? make(item);
    old.delete(keyOf(item));
    element.dataset.key = keyOf(item);
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
    fill(element, item);
  });
  for (const element of old.values()) element.remove();
}

const row = () =>
  h(
    'li',
    { 'data-testid': 'order' },
    h('button', { type: 'button', class: 'row' }, h('span', { class: 'id' }), h('span', { class: 'status' }), h('span', { class: 'trip' }), h('span', { class: 'eta' })),
  );

/** @param {string} status */
const step = (status) => h('li', {}, h('span', { class: 'mark', 'aria-hidden': 'true' }), h('span', {}, STATUS[status]), h('time', {}));

/** @param {() => void} onclick */
const parts = (onclick) => [
  h('div', { class: 'details-head' }, h('h2', {}), h('button', { type: 'button', class: 'quiet square', 'aria-label': 'Close the order', onclick }, '✕')),
  h('p', { class: 'customer' }),
  h('p', { class: 'eta', 'data-testid': 'eta' }),
  h('p', { class: 'lost', 'data-testid': 'lost' }),
  h('ol', { class: 'timeline', 'data-testid': 'timeline' }),
  h('button', { type: 'button', class: 'primary follow', 'data-testid': 'follow' }),
];

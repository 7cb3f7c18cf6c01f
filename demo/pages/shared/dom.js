// Helpers that create elements. Text is inserted as text, so customers cannot inject markup.

/**
 * @param {string} tag
 * @param {Record<string, any>} [attributes]  `on…` are listeners, `dataset` is data, null and false are left out
 * @param {...(Node | string | null | undefined)} children
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'dataset') Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** The same for SVG. @param {string} tag @param {Record<string, string | number>} [attributes] @param {...Node} children @returns {any} */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** A symbol `i-<name>` of the page. @param {string} name */
export const icon = (name) => svg('svg', { class: 'icon', 'aria-hidden': 'true' }, svg('use', { href: `#i-${name}` }));

/** @param {string} id */
export const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** Sets a text only if it changed, so that live regions and selections stay unchanged. @param {Element} element @param {string} text */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let toastCount = 0;
/** Shows a notice for a few seconds, and as long as the pointer or the focus is on it. @param {string} text @param {{label: string, run: () => void}} [action] */
export function toast(text, action) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const close = () => {
    clearTimeout(timer);
    item.remove();
  };
  const keep = () => clearTimeout(timer);
  const expire = () => {
    clearTimeout(timer);
    timer = setTimeout(close, 7_000);
  };
  const item = h('div', { class: 'toast', 'data-testid': 'toast', id: `toast-${(toastCount += 1)}` }, h('span', {}, text));
  if (action) {
    const act = () => {
      close();
      action.run();
    };
    item.append(h('button', { type: 'button', class: 'link', onclick: act }, action.label));
  }
  const cross = svg('svg', { class: 'icon', viewBox: '0 0 20 20', 'aria-hidden': 'true' }, svg('path', { d: 'm5.5 5.5 9 9M14.5 5.5l-9 9' }));
  item.append(h('button', { type: 'button', class: 'dismiss', 'aria-label': 'Dismiss', onclick: close }, cross));
  for (const name of ['pointerenter', 'focusin']) item.addEventListener(name, keep);
  for (const name of ['pointerleave', 'focusout']) item.addEventListener(name, expire);
  const region = document.querySelector('.toasts') ?? document.body.appendChild(h('div', { class: 'toasts', role: 'status' }));
  region.append(item);
  while (region.children.length > 3) region.firstElementChild?.remove();
  expire();
}

// What every demo has around its own part: the header, and the fold "How it works" with the real lines of this demo.

import { connectionPill } from './connection.js';
import { h, svg } from './dom.js';

const ICONS = {
  sun: 'M10 6.8a3.2 3.2 0 1 0 0 6.4 3.2 3.2 0 0 0 0-6.4ZM10 2.5v1.7M10 15.8v1.7M2.5 10h1.7M15.8 10h1.7M4.7 4.7l1.2 1.2M14.1 14.1l1.2 1.2M4.7 15.3l1.2-1.2M14.1 5.9l1.2-1.2',
  moon: 'M16.5 11.9A6.9 6.9 0 0 1 8.1 3.5a6.9 6.9 0 1 0 8.4 8.4Z',
  window: 'M11.5 3.5h5v5M16.2 3.8 10 10M8.5 4.5h-4a1 1 0 0 0-1 1v10a1 1 0 0 0 1 1h10a1 1 0 0 0 1-1v-4',
  fold: 'm7.5 5 5 5-5 5',
};

/** An icon of 20 × 20. @param {keyof typeof ICONS} name */
export const drawn = (name) => svg('svg', { class: 'icon', viewBox: '0 0 20 20', 'aria-hidden': 'true' }, svg('path', { d: ICONS[name] }));

/**
 * Puts the header before `<main>`, and the fold behind it.
 * @param {object} demo
 * @param {string} demo.title
 * @param {string} [demo.name]  of the demo in `contract.yaml`, for the fold; none without it
 * @param {import('/client/tidewire.js').Tidewire} [demo.client]  whose state is shown
 * @param {string} [demo.second]  address of the link "Second window"; none without it
 */
export function shell({ title, name, client, second }) {
  document.body.classList.add('demo');
  const home = h('a', { class: 'home', href: '/', 'aria-label': 'All demos' }, h('img', { src: '/demo/shared/icon.svg', alt: '', width: 24, height: 24 }));
  const link = second && h('a', { class: 'quiet second', href: second, target: '_blank', rel: 'noopener', 'data-testid': 'second-window' }, drawn('window'), h('span', { class: 'wide-only' }, 'Second window'));
  document.body.prepend(
    h('header', { class: 'top' }, h('div', { class: 'brand' }, home, h('h1', {}, title)), client ? connectionPill(client) : h('span'), h('div', { class: 'top-end' }, link || null, themeButton())),
  );
  if (name) document.querySelector('main')?.after(fold(name));
}

/** The switch between light and dark. */
export function themeButton() {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : dark.matches);
  const button = h('button', { type: 'button', class: 'quiet square', 'data-testid': 'theme-toggle', onclick: change });
  function change() {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    localStorage.setItem('tidewire.theme', root.dataset.theme);
    show();
  }
  function show() {
    button.setAttribute('aria-label', isDark() ? 'Use light theme' : 'Use dark theme');
    button.replaceChildren(drawn(isDark() ? 'sun' : 'moon'));
  }
  dark.addEventListener('change', show);
  show();
  return button;
}

/** Reads the lines from the files that run, when it is opened. @param {string} name */
function fold(name) {
  const contract = h('code');
  const code = h('code');
  const figure = (caption, text) => h('figure', { class: 'card' }, h('figcaption', {}, caption), h('pre', { tabindex: '0' }, text));
  const columns = h('div', { class: 'how-columns' }, figure('The contract: demo/contract.yaml', contract), figure(`The page: demo/pages/${name}/main.js`, code));
  const details = h('details', { class: 'how', 'data-testid': 'how' }, h('summary', {}, drawn('fold'), 'How it works'), columns);
  details.addEventListener('toggle', async () => {
    if (contract.textContent) return;
    contract.textContent = contractOf(name, await read('/demo/contract.yaml'));
    code.textContent = regionOf(await read(`/demo/${name}/main.js`));
  });
  return details;
}

/** @param {string} address */
async function read(address) {
  const response = await fetch(address);
  return response.ok ? response.text() : `${address}: ${response.status}`;
}

/** The channels below the comment `# Demo: <name>`, up to that of the next demo. @param {string} name @param {string} contract */
export function contractOf(name, contract) {
  const [, ...blocks] = contract.split(/^ *# Demo: /m);
  const block = blocks.find((one) => one.startsWith(`${name}\n`) || one.startsWith(`${name}.`)) ?? '';
  return `channels:\n${block.slice(block.indexOf('\n') + 1).trimEnd()}`;
}

/** The lines between `// #region` and `// #endregion`, or all. @param {string} code */
export function regionOf(code) {
  return (/^\/\/ #region.*\n([^]*?)^\/\/ #endregion/m.exec(code)?.[1] ?? code).trim();
}

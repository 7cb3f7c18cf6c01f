// The faults: a row for each, with what came of it.

import { h, setText } from '../shared/dom.js';

/** Milliseconds in which everything must have arrived after a fault. */
const TIMEOUT = 60_000;

/** In the order of "Play all". Blocked WebSockets come last: the client tries one again after about 20 s. */
export const FAULTS = [
  { name: 'cut', title: 'Cut the network', line: 'Connections break, and new ones fail for 3 s: a tunnel, or another Wi-Fi.' },
  { name: 'reset', title: 'Kill the socket', line: 'A proxy on the way resets the connection (RST), without a close frame.' },
  { name: 'slow', title: 'Slow the reader', line: 'For 5 s the page reads 4 KB/s, while the backend publishes six times as much.' },
  { name: 'revoke', title: 'Revoke the token', line: 'The service ends the connection and refuses its token. The page gets another one.' },
  { name: 'restart', title: 'Restart the node', line: 'The node drains, ends and starts again. The other node takes over.' },
  { name: 'block', title: 'Block WebSockets', line: 'A proxy refuses upgrades. The client goes on over HTTP, and tries a WebSocket again later.' },
];

export class Faults {
  /** @type {Map<string, {button: HTMLButtonElement, row: HTMLElement, cells: HTMLElement[]}>} */
  #rows = new Map();

  /**
   * @param {Element} body  of the table
   * @param {(name: string) => void} play
   */
  constructor(body, play) {
    for (const { name, title, line } of FAULTS) {
      const button = h('button', { type: 'button', class: 'plain', 'data-testid': `fault-${name}`, onclick: () => play(name) }, title);
      const cells = ['Without events', 'Durable: recovered', 'Durable: missing', 'Plain: lost'].map((label) => h('td', { dataset: { label } }, '–'));
      const row = h('tr', { dataset: { fault: name } }, h('th', { scope: 'row' }, button, h('span', {}, line)), ...cells);
      this.#rows.set(name, { button, row, cells });
      body.append(row);
    }
  }

  /** @param {string} [running]  the fault that is played; none: all can be */
  show(running) {
    for (const [name, { button, row }] of this.#rows) {
      button.disabled = running !== undefined;
      row.dataset.state = name === running ? 'running' : row.dataset.state === 'running' ? 'done' : (row.dataset.state ?? '');
    }
  }

  /** @param {string} name @param {{silence: number, recovered: number, missing: number, lost: number}} result */
  result(name, { silence, recovered, missing, lost }) {
    const { cells } = /** @type {any} */ (this.#rows.get(name));
    [`${(silence / 1000).toFixed(1)} s`, recovered, missing, lost].forEach((value, index) => setText(cells[index], value.toLocaleString('en')));
    cells[2].dataset.look = missing ? 'bad' : 'good';
    cells[3].dataset.look = lost ? 'bad' : '';
  }
}

/** Waits for a condition. @param {() => boolean} holds */
export async function until(holds) {
  for (const end = performance.now() + TIMEOUT; !holds(); ) {
    if (performance.now() > end) throw new Error('the events have not arrived after a minute');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

// What is around the canvas: the pen's colours and widths, the people, and the summary.

import { byId, h, setText } from '../shared/dom.js';
import { asOther, client, me } from '../shared/session.js';
import { shell } from '../shared/shell.js';

const TONES = ['Teal', 'Blue', 'Orange', 'Green', 'Pink', 'Sky', 'Amber', 'Violet'];
const WIDTHS = { 5: 'Fine', 10: 'Medium', 20: 'Bold' };

shell({ title: 'Shared canvas', name: 'cursors', client, second: asOther() });

export const page = {
  paper: /** @type {HTMLCanvasElement} */ (byId('paper')),
  cursors: byId('cursors'),
};

/** How this visitor looks to the others. */
export const look = stored();
/** The width of the next line. */
export let width = 10;

/** @returns {{name: string, tone: number}} */
function stored() {
  const sum = [...me].reduce((total, character) => total + character.charCodeAt(0), 0);
  const name = me.split('-').map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join(' ').slice(0, 24);
  return { name, tone: sum % TONES.length, ...JSON.parse(sessionStorage.getItem(`look ${me}`) ?? '{}') };
}

/** @param {{undo: () => void, clear: () => void, changed: () => void}} on */
export function listenToTools({ undo, clear, changed }) {
  const keep = () => {
    sessionStorage.setItem(`look ${me}`, JSON.stringify(look));
    changed();
  };
  const radio = (/** @type {string} */ name, /** @type {string | number} */ value, /** @type {string} */ label, /** @type {boolean} */ checked, /** @type {() => void} */ onchange) =>
    h('label', { class: `choice tone-${value}`, title: label, dataset: { value } }, h('input', { type: 'radio', class: 'sr', name, value, checked, onchange }), h('span', { class: 'sample' }), h('span', { class: 'sr' }, label));
  byId('colours').append(
    ...TONES.map((label, tone) =>
      radio('tone', tone, label, tone === look.tone, () => {
        look.tone = tone;
        keep();
      }),
    ),
  );
  byId('widths').append(
    ...Object.entries(WIDTHS).map(([value, label]) => radio('width', value, label, Number(value) === width, () => (width = Number(value)))),
  );
  const name = /** @type {HTMLInputElement} */ (byId('name'));
  name.value = look.name;
  name.addEventListener('change', () => {
    name.value = look.name = name.value.trim().slice(0, 24) || look.name;
    keep();
  });
  byId('undo').addEventListener('click', undo);
  byId('clear').addEventListener('click', clear);
  /** @type {HTMLAnchorElement} */ (byId('second')).href = asOther();
}

/** @param {{members: readonly any[], count: number}} presence @param {import('./cursors.js').Cursors} cursors */
export function showPeople({ members, count }, cursors) {
  cursors.keep(new Set(members.map(({ user }) => user)));
  setText(byId('count'), String(count || ''));
  byId('alone').hidden = count !== 1;
  byId('people').replaceChildren(
    ...members.map(({ user, info = {} }) => {
      const name = String(info.name ?? user);
      return h('li', { dataset: { user } }, h('span', { class: `avatar tone-${info.tone ?? 0}`, 'aria-hidden': 'true' }, initials(name)), h('span', { class: 'who' }, name), user === me ? h('span', { class: 'faint' }, 'you') : null);
    }),
  );
}

/** @param {string} name */
const initials = (name) => name.split(' ').filter(Boolean).map((word) => word[0]).slice(0, 2).join('').toUpperCase();

/** @param {number} lines @param {number} own @param {number} waiting  lines that wait for a connection */
export function showSummary(lines, own, waiting) {
  const count = lines === 1 ? '1 line' : `${lines} lines`;
  setText(byId('summary'), lines === 0 ? 'Nothing is drawn yet.' : `${count}, ${own} by you. Each stays for half an hour.`);
  setText(byId('unsent'), waiting === 1 ? '1 line is sent when the connection is back' : `${waiting} lines are sent when the connection is back`);
  byId('unsent').hidden = waiting === 0;
  for (const name of ['undo', 'clear']) /** @type {HTMLButtonElement} */ (byId(name)).disabled = own === 0;
}

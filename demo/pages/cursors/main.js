// Shared cursors and a shared canvas.

import '/client/collections/index.js';
import { toast } from '../shared/dom.js';
import { client, me } from '../shared/session.js';
import { Cursors } from './cursors.js';
import { Paper } from './paper.js';
import { listenToPen } from './pen.js';
import { listenToTools, look, page, showPeople, showSummary } from './page.js';

const paper = new Paper(page.paper);
const cursors = new Cursors(page.cursors);

// #region
const canvas = client.channel('canvas:main');
const tab = Math.random().toString(36).slice(2, 10);

// Cursors are signals: kept nowhere, and at most 20 in a second. The newest replaces one that has not been sent.
/** @param {number} x @param {number} y @param {'over' | 'draws' | 'gone'} state */
function point(x, y, state) {
  canvas.signal('canvas.cursor', { id: tab, ...look, x, y, state }, { every: 50 });
}
canvas.on('canvas.cursor', ({ from, data }) => cursors.move(data, from));

// Lines are values by key: `subscribed` has all of them, so a page that opens later shows the whole drawing.
const lines = canvas.map('canvas.line');
/** The lines of this page that the service does not have yet, by id. */
const drafts = new Map();
const unsent = new Set();
let isSending = false;

// A line is published while it grows. One publish at a time: the next one has what was drawn meanwhile.
/** @param {{id: string, points: number[], tone: number, width: number}} line */
async function draw(line) {
  drafts.set(line.id, line);
  unsent.add(line.id);
  show();
  if (isSending) return;
  isSending = true;
  for (const id of unsent) {
    unsent.delete(id);
    const sent = canvas.publish('canvas.line', drafts.get(id)).catch((error) => erase([id], error.message));
    await Promise.all([sent, new Promise((resolve) => setTimeout(resolve, 100))]);
  }
  isSending = false;
}

// A removal takes a line back, for everybody.
/** @param {string[]} ids @param {string} [reason] */
function erase(ids, reason) {
  if (reason) toast(reason);
  for (const id of ids) {
    drafts.delete(id);
    unsent.delete(id);
    if (lines.has(id)) canvas.remove('canvas.line', id).catch((error) => toast(error.message));
  }
  show();
}
const mine = () => [...new Set([...[...lines.entries()].filter(([, { from }]) => from === me).map(([id]) => id), ...drafts.keys()])].sort();
/** A long line has several parts: `line.part`. */
const newest = () => mine().filter((id, _, all) => id.split('.')[0] === all.at(-1)?.split('.')[0]);

lines.subscribe(() => {
  for (const [id, { points }] of drafts) if (lines.get(id)?.data.points.length === points.length) drafts.delete(id);
  show();
});

// Presence has a name and a colour for each visitor, who sets both.
canvas.presence.subscribe(() => showPeople(canvas.presence, cursors));
const introduce = () => canvas.presence.update(look).catch((error) => toast(error.message));

client.connect();
// #endregion

function show() {
  const all = new Map([...lines.entries()].map(([id, { data }]) => [id, data]));
  for (const [id, draft] of drafts) all.set(id, draft);
  paper.show([...all.values()]);
  showSummary(all.size, mine().length, client.state === 'ready' ? 0 : drafts.size);
}

listenToPen(page.paper, { tab, look, point, draw, undo: () => erase(newest()) });
listenToTools({ undo: () => erase(newest()), clear: () => erase(mine()), changed: introduce });
client.on('state', show);
introduce();

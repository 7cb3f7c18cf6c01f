// The demos, in the order of their cards. The pictures use the colours of the theme.

import { svg } from '../shared/dom.js';

/** @param {string} box @param {...Node} parts */
const draw = (box, ...parts) => svg('svg', { class: 'picture', viewBox: box, 'aria-hidden': 'true', preserveAspectRatio: 'xMidYMid meet' }, ...parts);
const path = (look, d) => svg('path', { class: look, d });
const box = (look, x, y, width, height, rx = 4) => svg('rect', { class: look, x, y, width, height, rx });
const dot = (look, cx, cy, r = 4) => svg('circle', { class: look, cx, cy, r });
const words = (look, x, y, text) => {
  const element = svg('text', { class: look, x, y });
  element.textContent = text;
  return element;
};

/** For the inspector: two channels with the same events, and a cut: above, the events come later; below, they are lost. */
function cut() {
  const parts = [box('band', 176, 14, 84, 112, 0), words('label', 180, 26, 'network cut')];
  for (let n = 0; n < 21; n += 1) {
    const x = 24 + n * 19;
    const lost = x > 176 && x < 262;
    parts.push(box(lost ? 'tick late' : 'tick accent', x, 44, 9, 26, 3));
    parts.push(box(lost ? 'tick gone' : 'tick second', x, 90, 9, 26, 3));
  }
  return draw('0 0 440 140', ...parts);
}

const support = () =>
  draw(
    '0 0 240 110',
    box('sheet', 12, 10, 62, 90, 6), box('line', 20, 20, 34, 5, 2), box('soft', 18, 32, 50, 14), box('line', 20, 54, 40, 4, 2), box('line', 20, 66, 44, 4, 2), box('line', 20, 78, 36, 4, 2),
    box('sheet', 84, 10, 144, 90, 6), box('soft', 94, 22, 72, 16, 7), box('accent', 140, 46, 78, 16, 7), box('soft', 94, 70, 48, 16, 7), dot('faint', 152, 78, 2), dot('faint', 160, 78, 2), dot('faint', 168, 78, 2),
  );

const line = (look, ...points) => svg('polyline', { class: look, points: points.join(' ') });

const board = () =>
  draw(
    '0 0 240 110',
    box('sheet', 12, 10, 66, 28, 6), box('accent', 20, 19, 24, 10, 3), box('sheet', 87, 10, 66, 28, 6), box('soft', 95, 19, 34, 10, 3), box('sheet', 162, 10, 66, 28, 6), box('soft', 170, 19, 28, 10, 3),
    box('sheet', 12, 46, 104, 54, 6), line('stroke', '20,86 32,78 44,82 56,64 68,70 80,60 92,66 108,56'),
    box('sheet', 124, 46, 104, 54, 6), line('stroke', '132,88 150,86 160,87 166,60 172,62 178,86 196,84 220,86'),
  );

const answer = () =>
  draw(
    '0 0 240 110',
    box('accent', 116, 12, 112, 18, 8), box('line', 12, 42, 168, 5, 2), box('line', 12, 55, 182, 5, 2), box('line', 12, 68, 150, 5, 2), box('line', 12, 81, 64, 5, 2), box('accent', 81, 77, 6, 12, 2),
  );

const arrow = (look, x, y) => path(look, `M${x} ${y}l4 16 3.5-6.5 7-1.5Z`);
const cursors = () =>
  draw(
    '0 0 240 110',
    box('sheet', 12, 10, 216, 90, 6), path('stroke', 'M36 78c20-50 50-40 62-16s34 22 50-18'), path('stroke-second', 'M120 84c26 6 56 0 84-40'),
    arrow('accent', 150, 42), box('accent', 164, 62, 34, 12, 6), arrow('second', 204, 42), dot('good', 216, 20, 4),
  );

const tracking = () =>
  draw(
    '0 0 240 110',
    path('road', 'M-4 84H86L132 34H244M86 84h158M132 34V-4M40 114V-4M196 114V-4'), path('stroke', 'M24 84H86L132 34H196'),
    dot('accent', 132, 34, 7), dot('second', 196, 34, 5), dot('good', 24, 84, 5),
  );

/** @type {Array<{name: string, title: string, line: string, hint?: string, picture: () => SVGElement}>} */
export const DEMOS = [
  {
    name: 'inspector',
    title: 'Inspector',
    hint: 'One minute',
    line: 'Cut the network, kill the socket, restart the node: see what is lost elsewhere and not here.',
    picture: cut,
  },
  { name: 'console', title: 'Support console', line: 'A queue of chats, a conversation with typing and presence, and the team’s numbers, for two agents at once.', picture: support },
  { name: 'board', title: 'Live board', line: 'Charts and numbers of a shop. Without a network they say how old they are, and after it nothing is missing.', picture: board },
  { name: 'answer', title: 'Streaming answer', line: 'An answer comes word by word. Reload, go offline or join late: everybody reads the same text.', picture: answer },
  { name: 'cursors', title: 'Shared canvas', line: 'Who is here, where they point, and what they draw on one sheet, while it happens.', picture: cursors },
  { name: 'tracking', title: 'Delivery tracking', line: 'Couriers and orders on a map. A page that was away sees where they are now.', picture: tracking },
];

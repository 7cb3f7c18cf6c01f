// The demos, in the order of their cards. The pictures use the colours of the theme.

import { svg } from '../shared/dom.js';

/** @param {string} box @param {...Node} parts */
const draw = (box, ...parts) => svg('svg', { class: 'picture', viewBox: box, 'aria-hidden': 'true', preserveAspectRatio: 'xMidYMid meet' }, ...parts);
const box = (look, x, y, width, height, rx = 4) => svg('rect', { class: look, x, y, width, height, rx });
const dot = (look, cx, cy, r = 4) => svg('circle', { class: look, cx, cy, r });

const support = () =>
  draw(
    '0 0 240 110',
    box('sheet', 12, 10, 62, 90, 6), box('line', 20, 20, 34, 5, 2), box('soft', 18, 32, 50, 14), box('line', 20, 54, 40, 4, 2), box('line', 20, 66, 44, 4, 2), box('line', 20, 78, 36, 4, 2),
    box('sheet', 84, 10, 144, 90, 6), box('soft', 94, 22, 72, 16, 7), box('accent', 140, 46, 78, 16, 7), box('soft', 94, 70, 48, 16, 7), dot('faint', 152, 78, 2), dot('faint', 160, 78, 2), dot('faint', 168, 78, 2),
  );

/** @type {Array<{name: string, title: string, line: string, hint?: string, picture: () => SVGElement}>} */
export const DEMOS = [
  { name: 'console', title: 'Support console', line: 'A queue of chats, a conversation with typing and presence, and a live board, for two agents at once.', picture: support },
];

// Reads mouse, touch, pen and keyboard as one pen: it points, and it draws lines.

import { width } from './page.js';
import { HEIGHT, WIDTH } from './paper.js';

const STEP = 10;
const FAST = 50;
/** Numbers in one part of a line. */
const MAX_NUMBERS = 400;
/** The distance of two points, below which the second is left out. */
const NEAR = 4;

/**
 * @param {HTMLElement} element
 * @param {object} on
 * @param {string} on.tab
 * @param {{tone: number}} on.look
 * @param {(x: number, y: number, state: 'over' | 'draws' | 'gone') => void} on.point
 * @param {(line: import('./paper.js').Line) => void} on.draw
 * @param {() => void} on.undo
 */
export function listenToPen(element, { tab, look, point, draw, undo }) {
  /** @type {import('./paper.js').Line | undefined} */
  let line;
  let serial = 0;
  let [x, y] = [WIDTH / 2, HEIGHT / 2];

  /** @param {{clientX: number, clientY: number}} event */
  function place({ clientX, clientY }) {
    const box = element.getBoundingClientRect();
    go(((clientX - box.left) / box.width) * WIDTH, ((clientY - box.top) / box.height) * HEIGHT);
  }

  /** @param {number} toX @param {number} toY */
  function go(toX, toY) {
    x = Math.round(Math.min(Math.max(toX, 0), WIDTH));
    y = Math.round(Math.min(Math.max(toY, 0), HEIGHT));
    point(x, y, line ? 'draws' : 'over');
    if (!line) return;
    const [lastX, lastY] = line.points.slice(-2);
    if (Math.hypot(x - lastX, y - lastY) < NEAR) return;
    line = { ...line, points: [...line.points, x, y] };
    draw(line);
    if (line.points.length >= MAX_NUMBERS) start(line.id.split('.')[0], Number(line.id.split('.')[1]) + 1);
  }

  /** Ids sort by time. */
  function down() {
    start(`${Date.now().toString(36)}-${String((serial += 1)).padStart(5, '0')}-${tab}`, 1);
    point(x, y, 'draws');
  }

  /** @param {string} id @param {number} part */
  function start(id, part) {
    line = { id: `${id}.${part}`, points: [x, y], tone: look.tone, width };
    draw(line);
  }

  function up() {
    if (!line) return;
    line = undefined;
    point(x, y, 'over');
  }

  element.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    element.setPointerCapture(event.pointerId);
    place(event);
    down();
  });
  element.addEventListener('pointermove', (event) => {
    const all = event.getCoalescedEvents?.() ?? [];
    for (const one of all.length ? all : [event]) place(one);
  });
  element.addEventListener('pointerup', up);
  element.addEventListener('pointercancel', up);
  element.addEventListener('pointerleave', () => line || point(x, y, 'gone'));
  element.addEventListener('blur', up);
  addEventListener('pagehide', () => point(x, y, 'gone'));

  /** @type {Record<string, [number, number]>} */
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  element.addEventListener('keydown', (event) => {
    const { key, shiftKey, ctrlKey, metaKey, repeat } = event;
    const [right, down_] = arrows[key] ?? [];
    const step = shiftKey ? FAST : STEP;
    if (right !== undefined) go(x + right * step, y + down_ * step);
    else if (key === ' ' && !repeat) line ? up() : down();
    else if (key === 'Escape') up();
    else if (key.toLowerCase() === 'z' && (ctrlKey || metaKey)) undo();
    else if (key !== ' ') return;
    event.preventDefault();
  });
}

// The numbers of the team; each has a curve of the last seconds, with its lowest and highest value.

import { byId, h, setText, svg as element } from '../shared/dom.js';
import { client } from '../shared/session.js';

/**
 * `range`: the smallest range of values that the curve's height shows, so that a small change looks small.
 * @type {Record<string, {label: string, range: number, unit?: string, show?: (value: number) => string}>}
 */
const METRICS = {
  waiting: { label: 'Waiting', range: 4 },
  open: { label: 'In progress', range: 4 },
  first_response: { label: 'First response', range: 12, unit: 'median', show: (value) => `${Math.round(value)}s` },
  rate: { label: 'Messages per minute', range: 10 },
  csat: { label: 'Satisfaction', range: 6, unit: 'last 60 ratings', show: (value) => `${Math.round(value)}%` },
};
const WIDTH = 100;
const HEIGHT = 28;

/** The queue counts these itself, so that no two numbers on the page differ. */
const COUNTED = new Set(['waiting', 'open']);

/** @type {Map<string, {value: HTMLElement, scale: HTMLElement, line: SVGPathElement, area: SVGPathElement}>} */
const tiles = new Map();

for (const [metric, { label, unit }] of Object.entries(METRICS)) {
  const svg = element('svg', { class: 'spark', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  const area = element('path', { class: 'fill' });
  const line = element('path', { class: 'stroke' });
  svg.append(area, line);
  const value = h('span', { class: 'value', 'data-testid': 'metric-value' }, '–');
  const scale = h('dd', { class: 'scale', 'data-testid': 'metric-scale', title: 'Lowest and highest of the last 30 seconds' });
  const tile = h(
    'div',
    { class: 'metric', 'data-testid': 'metric', dataset: { metric } },
    h('dt', {}, label),
    h('dd', {}, value, unit ? h('span', { class: 'unit' }, unit) : null),
  );
  tile.append(svg, scale);
  byId('metrics').append(tile);
  tiles.set(metric, { value, scale, line, area });
}

/** @param {import('/client/messages.js').Event} event */
function show({ data: { metric, value, recent } }) {
  const tile = tiles.get(metric);
  if (!tile) return;
  const { show: write = String } = METRICS[metric];
  if (!COUNTED.has(metric)) setText(tile.value, write(value));
  const [low, high] = [Math.min(...recent), Math.max(...recent)].map(write);
  setText(tile.scale, low === high ? `steady at ${low}` : `${low} to ${high}`);
  const path = curve(recent, METRICS[metric].range);
  tile.line.setAttribute('d', path);
  tile.area.setAttribute('d', `${path}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z`);
}

/** @param {import('./queue.js').Counts} counts */
export function showCounts(counts) {
  for (const [metric, count] of Object.entries(counts)) {
    const tile = tiles.get(metric);
    if (tile) setText(tile.value, String(count));
  }
}

/** @param {number[]} values oldest first @param {number} least */
function curve(values, least) {
  const points = values.length > 1 ? values : [values[0], values[0]];
  const [low, high] = [Math.min(...points), Math.max(...points)];
  const range = Math.max(high - low, least);
  const middle = (low + high) / 2;
  return points
    .map((value, index) => {
      const x = (index / (points.length - 1)) * WIDTH;
      const y = HEIGHT / 2 - ((value - middle) / range) * (HEIGHT - 6);
      return `${index ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`;
    })
    .join('');
}

const board = client.channel('board:main');
board.on('*', show);
board.on('values', (events) => events.forEach(show));

const live = /** @type {HTMLElement} */ (document.querySelector('.live'));
live.hidden = true;
client.on('state', ({ state }) => {
  live.hidden = state !== 'ready';
});

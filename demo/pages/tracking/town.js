// Draws the town: an SVG of its own, no tiles.

import { svg } from '../shared/dom.js';

export const WIDTH = 1200;
export const HEIGHT = 800;
/** Main streets lead out of the town. */
const OUTSKIRTS = 900;

/** @typedef {[number, number]} Point */

/** @param {SVGElement} element */
export async function drawTown(element) {
  const town = await (await fetch('/demo/tracking/town.json')).json();
  const isMain = (/** @type {any} */ { kind }) => kind === 'main';
  const streets = town.streets.map((/** @type {any} */ street) => {
    const line = street.nodes.map((/** @type {number} */ n) => town.nodes[n]);
    return { ...street, named: pathOf(line), path: pathOf(isMain(street) ? withOutskirts(line) : line) };
  });
  const main = streets.filter(isMain);
  const side = streets.filter((/** @type {any} */ street) => !isMain(street));
  const draw = (/** @type {string} */ name, /** @type {string} */ d) => svg('path', { class: name, d });
  const all = (/** @type {any[]} */ list) => list.map(({ path }) => path).join('');
  const river = pathOf(town.river.points);
  element.append(
    svg('rect', { class: 'land', x: -1200, y: -1200, width: 3600, height: 3200 }),
    draw('park', all(town.parks)),
    draw('square', town.square.path),
    ...town.trees.map(([cx, cy, r]) => svg('circle', { class: 'tree', cx, cy, r })),
    draw('bank', river),
    draw('water', river),
    draw('building', town.buildings.join('')),
    draw('casing side', all(side)),
    draw('casing main', all(main)),
    draw('street side', all(side)),
    draw('street main', all(main)),
    svg('defs', {}, ...main.map(({ named }, /** @type {number} */ n) => svg('path', { id: `street-${n}`, d: named })), svg('path', { id: 'river', d: river })),
    ...main.map(({ name }, /** @type {number} */ n) => along(`street-${n}`, name, 'street-name', ['20%', '66%'])),
    along('river', town.river.name, 'water-name', ['44%']),
    ...[...town.parks, town.square].map(({ name, at: [x, y] }) => text(name, x, y, 'place-name')),
    ...town.kitchens.map(({ name, node }) => kitchen(name, town.nodes[node])),
  );
}

/** @param {Point[]} line */
const withOutskirts = (line) => [beyond(line[1], line[0]), ...line, beyond(line[line.length - 2], line[line.length - 1])];

/** @param {Point} from @param {Point} to @returns {Point} */
function beyond([fromX, fromY], [x, y]) {
  const share = OUTSKIRTS / Math.hypot(x - fromX, y - fromY);
  return [Math.round(x + (x - fromX) * share), Math.round(y + (y - fromY) * share)];
}

/** @param {Point[]} points */
export const pathOf = (points) => `M${points.map((point) => point.join(' ')).join('L')}`;

/** A name along a path, at several places of it. @param {string} path @param {string} name @param {string} kind @param {string[]} places */
function along(path, name, kind, places) {
  const element = svg('text', { class: kind });
  for (const startOffset of places) {
    const line = svg('textPath', { href: `#${path}`, startOffset });
    line.textContent = name;
    element.append(line);
  }
  return element;
}

/** @param {string} words @param {number} x @param {number} y @param {string} kind */
function text(words, x, y, kind) {
  const element = svg('text', { class: kind, x, y });
  element.textContent = words;
  return element;
}

/** @param {string} name @param {Point} point */
const kitchen = (name, [x, y]) => svg('g', { class: 'kitchen' }, svg('circle', { cx: x, cy: y, r: 5 }), text(name, x + 9, y + 4, 'kitchen-name'));

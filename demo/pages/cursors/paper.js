// Draws lines on a canvas element, sharp on every screen. Coordinates are those of a sheet of 1500 × 1000 on every window.

export const WIDTH = 1500;
export const HEIGHT = 1000;

/** @typedef {{id: string, points: number[], tone: number, width: number}} Line */

export class Paper {
  /** @type {Line[]} */
  #lines = [];
  /** @type {WeakMap<Line, Path2D>} */
  #paths = new WeakMap();
  #frame = 0;
  #element;

  /** @param {HTMLCanvasElement} element */
  constructor(element) {
    this.#element = element;
    const observer = new ResizeObserver(([entry]) => this.#resize(entry));
    try {
      observer.observe(element, { box: 'device-pixel-content-box' });
    } catch {
      observer.observe(element);
    }
    const redraw = () => this.show(this.#lines);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ['data-theme'] });
  }

  /** @param {Line[]} lines */
  show(lines) {
    this.#lines = lines;
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  /** The pixels of the screen, not those of the style: a zoomed page and a dense screen have more. @param {ResizeObserverEntry} entry */
  #resize({ contentRect, devicePixelContentBoxSize: [size] = [] }) {
    this.#element.width = size?.inlineSize ?? Math.round(contentRect.width * devicePixelRatio);
    this.#element.height = size?.blockSize ?? Math.round(contentRect.height * devicePixelRatio);
    this.#draw();
  }

  #draw() {
    this.#frame = 0;
    const { width, height } = this.#element;
    const context = /** @type {CanvasRenderingContext2D} */ (this.#element.getContext('2d'));
    const tones = inks();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    context.setTransform(width / WIDTH, 0, 0, height / HEIGHT, 0, 0);
    context.lineCap = context.lineJoin = 'round';
    for (const line of this.#lines) {
      context.strokeStyle = tones[line.tone];
      context.lineWidth = line.width;
      context.stroke(this.#pathOf(line));
    }
  }

  /** @param {Line} line */
  #pathOf(line) {
    const path = this.#paths.get(line) ?? pathOf(line.points);
    this.#paths.set(line, path);
    return path;
  }
}

/** The colours of the samples, which the theme sets. */
export const inks = () => Array.from(document.querySelectorAll('#colours .sample'), (sample) => getComputedStyle(sample).backgroundColor);

/** A smooth path: each point bends the line, and the middle between two points is on it. @param {number[]} points  x, y, x, y, … */
function pathOf(points) {
  const path = new Path2D();
  path.moveTo(points[0], points[1]);
  let i = 2;
  for (; i < points.length - 2; i += 2) {
    path.quadraticCurveTo(points[i], points[i + 1], (points[i] + points[i + 2]) / 2, (points[i + 1] + points[i + 3]) / 2);
  }
  path.lineTo(points[i] ?? points[0], points[i + 1] ?? points[1]);
  return path;
}

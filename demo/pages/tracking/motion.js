// Moves a marker along the points that it has passed, so that it takes corners as the streets do.

/** Milliseconds between two positions, and a little more: the marker is never early. */
const INTERVAL = 1_100;
/** Farther away than that, the marker jumps. */
const FAR = 120;

/** @typedef {[number, number]} Point */

export class Motion {
  /** @type {Point[]} where it is, and what is ahead */
  #path;
  #speed = 0;
  heading;

  /** @param {Point} at @param {number} heading  degrees, clockwise from east */
  constructor(at, heading) {
    this.#path = [at];
    this.heading = heading;
  }

  /** @returns {Point} */
  get at() {
    return this.#path[0];
  }

  get isMoving() {
    return this.#path.length > 1;
  }

  /** @param {Point[]} points  since the last position */
  go(points) {
    const path = [...this.#path, ...points];
    const isFar = Math.hypot(points[0][0] - this.at[0], points[0][1] - this.at[1]) > FAR;
    this.#path = isFar ? points.slice(-1) : path;
    this.#speed = lengthOf(this.#path) / INTERVAL;
  }

  /** Is there at once, for those who want no motion. */
  finish() {
    this.#path = this.#path.slice(-1);
  }

  /** @param {number} elapsed ms */
  step(elapsed) {
    let left = this.#speed * elapsed;
    while (this.#path.length > 1) {
      const [[x, y], [toX, toY]] = this.#path;
      const distance = Math.hypot(toX - x, toY - y);
      if (distance > 0) this.#turn((Math.atan2(toY - y, toX - x) * 180) / Math.PI, elapsed);
      if (distance > left) {
        this.#path[0] = [x + ((toX - x) * left) / distance, y + ((toY - y) * left) / distance];
        return;
      }
      left -= distance;
      this.#path.shift();
    }
  }

  /** Turns the shorter way, in about a fifth of a second. @param {number} to @param {number} elapsed */
  #turn(to, elapsed) {
    const difference = ((to - this.heading + 540) % 360) - 180;
    this.heading += difference * Math.min(1, elapsed / 90);
  }
}

/** @param {Point[]} path */
function lengthOf(path) {
  let length = 0;
  for (let i = 1; i < path.length; i += 1) length += Math.hypot(path[i][0] - path[i - 1][0], path[i][1] - path[i - 1][1]);
  return length;
}

// The samples of a time range, second by second. A second without a sample is a gap, never a line.

/** @typedef {import('./metrics.js').Sample} Sample @typedef {{from: number, to: number}} Gap  seconds, both without a sample */

/** Seconds without a sample that are no gap yet: the newest sample is on its way. */
const ON_ITS_WAY = 3;

export class Series {
  /** @type {Map<number, Sample>} */
  #samples = new Map();
  first = Infinity;
  last = -Infinity;

  /** @param {Sample[]} samples */
  constructor(samples = []) {
    for (const sample of samples) {
      this.#samples.set(sample.second, sample);
      this.first = Math.min(this.first, sample.second);
      this.last = Math.max(this.last, sample.second);
    }
  }

  /** @param {number} second */
  at(second) {
    return this.#samples.get(second);
  }

  /** The seconds of a range. @param {number} from @param {number} to */
  seconds(from, to) {
    return Array.from({ length: Math.max(0, to - from + 1) }, (_, index) => from + index);
  }

  /** The values of a metric, null where there is no sample. @param {string} metric @param {number[]} seconds @returns {(number | null)[]} */
  values(metric, seconds) {
    return seconds.map((second) => this.#samples.get(second)?.[metric] ?? null);
  }

  /** Where samples are missing after the first one, up to now. @param {number} from @param {number} now @returns {Gap[]} */
  gaps(from, now) {
    const gaps = [];
    for (let second = Math.max(from, this.first); second <= now; second += 1) {
      if (this.#samples.has(second)) continue;
      const start = second;
      while (second + 1 <= now && !this.#samples.has(second + 1)) second += 1;
      if (second < now || second - start >= ON_ITS_WAY) gaps.push({ from: start, to: second });
    }
    return gaps;
  }

  /** What happened in a range, newest first. @param {number} from @param {number} to */
  notes(from, to) {
    return [...this.#samples.values()].filter(({ second, note }) => note && second >= from && second <= to).sort((a, b) => b.second - a.second);
  }
}

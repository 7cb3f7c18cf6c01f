// The service's time: the clock of this computer may be wrong.

const time = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });

export class Clock {
  #skew = 0;

  /** @param {number} at  of an event that has just been published, in ms */
  heard(at) {
    this.#skew = at - Date.now();
  }

  now() {
    return Date.now() + this.#skew;
  }
}

/** @param {number} at ms */
export const timeOf = (at) => time.format(at);

/** "12 s", "3 min" @param {number} ms */
export function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  return seconds < 90 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
}

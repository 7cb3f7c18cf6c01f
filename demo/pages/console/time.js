const clock = new Intl.DateTimeFormat(undefined, { hour: 'numeric', minute: '2-digit' });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: 'full', timeStyle: 'short' });
const day = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });

/** "9:05": without AM and PM, which `fullTimeOf` says. @param {number} at ms */
export const timeOf = (at) =>
  clock
    .formatToParts(at)
    .filter(({ type }) => type !== 'dayPeriod')
    .map(({ value }) => value)
    .join('')
    .trim();

/** Day and time. @param {number} at ms */
export const fullTimeOf = (at) => full.format(at);

/** @param {number} at ms */
export const dayOf = (at) => (new Date(at).toDateString() === new Date().toDateString() ? 'Today' : day.format(at));

/** Formats a duration briefly. @param {number} ms */
export function span(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}m ${String(seconds % 60).padStart(2, '0')}s`;
  return `${Math.floor(minutes / 60)}h ${String(minutes % 60).padStart(2, '0')}m`;
}

/** Difference between the service's clock and this one, from the newest event, so that waiting times do not depend on the local clock. */
let skew = 0;
/** @param {number} at ms, of a new event */
export function heardAt(at) {
  skew = at - Date.now();
}
export const serviceNow = () => Date.now() + skew;

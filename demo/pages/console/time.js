const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const day = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });

/** @param {number} at ms */
export const timeOf = (at) => clock.format(at);

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

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const day = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });

/** @param {number} at ms */
export const timeOf = (at) => clock.format(at);

/** @param {number} at ms */
export const dayOf = (at) => (new Date(at).toDateString() === new Date().toDateString() ? 'Today' : day.format(at));

/** How long, in few characters. @param {number} ms */
export function span(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}m ${String(seconds % 60).padStart(2, '0')}s`;
  return `${Math.floor(minutes / 60)}h ${String(minutes % 60).padStart(2, '0')}m`;
}

/** The service's clock less this one's, from the newest event: waiting times must not depend on a laptop's clock. */
let skew = 0;
/** @param {number} at ms, of an event that has just come */
export function heardAt(at) {
  skew = at - Date.now();
}
export const serviceNow = () => Date.now() + skew;

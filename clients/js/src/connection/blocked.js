/** Milliseconds that a page, and those that follow it in its tab, remember that WebSockets are blocked. */
const REMEMBERED = 1_800_000;

/** @param {URL} address */
const keyOf = ({ host }) => `tidewire-blocked:${host}`;

/** Remembers for the session of the tab whether WebSockets to a host are blocked. @param {URL} address @param {boolean} blocked */
export function remember(address, blocked) {
  try {
    if (blocked) sessionStorage.setItem(keyOf(address), String(Date.now()));
    else sessionStorage.removeItem(keyOf(address));
  } catch {
    // no storage here: the client remembers it by itself
  }
}

/** Whether that was remembered not long ago. @param {URL} address */
export function isRemembered(address) {
  try {
    return Math.abs(Date.now() - Number(sessionStorage.getItem(keyOf(address)))) < REMEMBERED;
  } catch {
    return false;
  }
}

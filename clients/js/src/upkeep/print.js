/** Errors of a client that are printed in a second. */
const MAX_PRINTED = 30;

/** What was printed, by client. @type {WeakMap<import('../core.js').Core, {since: number, count: number}>} */
const printed = new WeakMap();

/**
 * Prints an error that has no listener.
 * @param {import('../core.js').Core} core
 * @param {import('../errors.js').TidewireError} error
 */
export function print(core, { code, channel, message, help, cause }) {
  const now = core.clock.now();
  let last = printed.get(core);
  if (!last || now - last.since > 1_000) printed.set(core, (last = { since: now, count: 0 }));
  if ((last.count += 1) > MAX_PRINTED) return;
  console.error(`[tidewire] ${code}${channel ? ` ${channel}` : ''}: ${message}. ${help} (tidewire/docs/errors.md#${code})`, ...(cause ? [cause] : []));
}

/**
 * Prints lines of the wire without tokens.
 * @param {true | ((line: string) => void)} debug  the option
 */
export function logger(debug) {
  const print = debug === true ? console.debug : debug;
  return (/** @type {string} */ line) => print(`[tidewire] ${line.replace(/("(?:token|receipt)":")[^"]*/g, '$1…')}`);
}

/**
 * Opens links whose frames are logged.
 * @param {import('../connection/link.js').OpenLink} open
 * @param {(line: string) => void} log
 * @returns {import('../connection/link.js').OpenLink}
 */
export function logged(open, log) {
  return (address, events, hello) => {
    const received = (/** @type {unknown} */ frame) => {
      log(`← ${frame}`);
      events.received(frame);
    };
    const link = open(address, { ...events, received }, hello);
    const send = (/** @type {string} */ frame) => {
      log(`→ ${frame}`);
      link.send(frame);
    };
    return { send, buffered: () => link.buffered(), close: () => link.close() };
  };
}

// What keeps a connection alive, and what a client says and does when something fails. It is loaded beside the first connection.

export { explain } from './explain.js';
export { helpFor, shown } from './help.js';
export { log, print } from './print.js';
export { Upkeep } from './upkeep.js';

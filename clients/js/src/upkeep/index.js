// What keeps a connection alive, and what a client says and does when something fails. It is loaded beside the first connection.

export { explain } from './explain.js';
export { shown } from './help.js';
export { print } from './print.js';
export { readTail } from './tail.js';
export { Upkeep } from './upkeep.js';

import { refusal } from './channels/refusal.js';

/** @typedef {(value: any) => boolean} Check */

const MAX_OFFSET = Number.MAX_SAFE_INTEGER;

/** @param {number} most @returns {Check} */
const text = (most) => (value) => typeof value === 'string' && value.length >= 1 && value.length <= most;
/** @param {number} least @param {number} most @returns {Check} */
const integer = (least, most) => (value) => Number.isInteger(value) && value >= least && value <= most;
/** @type {Check} */
const isId = (value) => typeof value === 'string' && /^[!-~]{1,64}$/.test(value);
/** @type {Check} */
const isSince = (value) => value !== null && typeof value === 'object' && text(64)(value.epoch) && integer(0, MAX_OFFSET)(value.offset) && (value.id === undefined || isId(value.id));

const channel = text(512);
const token = text(8_192);
const offset = integer(0, MAX_OFFSET);

/** The fields of each message: those that it must have, and those that it may have. @type {Record<string, [Record<string, Check>, Record<string, Check>]>} */
const SHAPES = {
  hello: [{}, { token }],
  ready: [{}, {}],
  subscribe: [{ id: isId, channel }, { since: isSince, tail: integer(1, 100), token }],
  unsubscribe: [{ id: isId, channel }, {}],
  history: [{ id: isId, channel }, { limit: integer(1, 1_000), after: offset, before: offset }],
  presence: [{ id: isId, channel }, {}],
  refresh: [{ id: isId, token }, { channel }],
  ping: [{}, { id: isId }],
  call: [{ id: isId, call: text(64), data: () => true }, {}],
  'presence.update': [{ channel, data: () => true }, { id: isId }],
};
const EVENT = /** @type {typeof SHAPES[string]} */ ([{ channel, data: () => true }, { id: isId, key: text(128), if_rev: offset }]);
const REMOVAL = /** @type {typeof SHAPES[string]} */ ([{ channel, key: text(128), removed: (value) => value === true }, { id: isId, if_rev: offset }]);

/** Refuses a message that the protocol does not allow. @param {any} message */
export function checkMessage(message) {
  if (message === null || typeof message !== 'object' || typeof message.type !== 'string') {
    throw refusal('invalid_message', 'a message is an object with a `type`', { path: '$.type' });
  }
  const { type } = message;
  const isEvent = type.includes('.') && type !== 'presence.update';
  if (!isEvent && !Object.hasOwn(SHAPES, type)) {
    throw refusal('unknown_type', `no message has the type '${type.slice(0, 64)}'; event types contain a dot`, { path: '$.type', known: Object.keys(SHAPES).sort() });
  }
  const [required, optional] = !isEvent ? SHAPES[type] : 'removed' in message ? REMOVAL : EVENT;
  for (const field in required) if (!(field in message)) throw refusal('invalid_message', `${type} needs \`${field}\``, { path: `$.${field}` });
  for (const [field, value] of Object.entries(message)) {
    if (field === 'type') continue;
    const check = Object.hasOwn(required, field) ? required[field] : Object.hasOwn(optional, field) ? optional[field] : undefined;
    if (!check) throw refusal('invalid_message', `${type} has no field \`${field}\``, { path: `$.${field}` });
    if (!check(value)) throw refusal('invalid_message', `\`${field}\` of ${type} has a wrong value`, { path: `$.${field}` });
  }
}

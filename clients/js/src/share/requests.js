/**
 * @typedef {{type: string, id?: string, channel?: string, since?: import('../messages.js').Position, tail?: number, [field: string]: any}} Request
 */

/** @param {unknown} value */
const isText = (value) => typeof value === 'string';
/** @param {unknown} value */
const isCount = (value) => value === undefined || (Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0);
/** @param {any} since */
const isPosition = (since) => since === undefined || (isText(since?.epoch) && isCount(since.offset ?? -1) && isText(since.id ?? ''));

/** The fields of each request that a tab may send, and what they must be. @type {Record<string, (message: any) => Record<string, unknown> | undefined>} */
const FIELDS = {
  // @ts-expect-error the prototype, so that no other name is found
  __proto__: null,
  ping: () => ({}),
  unsubscribe: () => ({}),
  presence: () => ({}),
  subscribe: ({ since, tail }) => (isPosition(since) && isCount(tail) ? { since, tail } : undefined),
  call: ({ call, data }) => (isText(call) ? { call, data } : undefined),
  history: ({ after, before, limit }) => (isCount(after) && isCount(before) && isCount(limit) ? { after, before, limit } : undefined),
};

/**
 * What a tab asks of the service, without anything else; undefined for what no client sends. A script of the page may send anything.
 * @param {any} given
 * @returns {Request | undefined}
 */
export function requestOf(given) {
  const { type, id, channel } = given ?? {};
  if (!isText(type) || !(id === undefined || (isText(id) && id.length > 0 && id.length <= 64))) return undefined;
  if (!(type === 'ping' || type === 'call' || (isText(channel) && channel.length <= 128))) return undefined;
  if (type.includes('.')) return { type, id, channel, data: given.data, key: given.key, removed: given.removed, if_rev: given.if_rev };
  const fields = id === undefined ? undefined : FIELDS[type]?.(given);
  return fields && { type, id, channel, ...fields };
}

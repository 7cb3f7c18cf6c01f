import { encodeUser } from '../../names.js';
import { refusal } from './refusal.js';

/**
 * @typedef {'durable' | 'latest' | 'ephemeral'} Delivery
 * @typedef {{entries: number, ttl: number}} Retention  `ttl` in ms
 * @typedef {object} EventRule
 * @property {string} type
 * @property {string} publish  who may
 * @property {Delivery} delivery
 * @property {object} [schema]
 * @property {string} [key]  JSON Pointer; absent without a contract
 * @property {number} [ttl]  ms
 * @property {boolean} removable
 * @property {boolean} echo
 *
 * @typedef {object} ChannelRule
 * @property {string} pattern
 * @property {string} subscribe  who may
 * @property {boolean} presence
 * @property {EventRule} [update]  of presence
 * @property {Retention} [history]
 * @property {Retention} state
 * @property {Map<string, EventRule>} [events]  absent without a contract: all types
 *
 * @typedef {{type: string, schema?: object}} DataRule  `type`: what is checked, for errors
 * @typedef {{name: string, who: string, request: DataRule, reply: DataRule}} CallRule
 *
 * @typedef {{channel: ChannelRule, owner: string | undefined}} Resolved  `owner`: the segment in the place of `{user}`
 *
 * @typedef {{path?: string, instancePath?: string, message?: string}} Fault
 * @typedef {(schema: object, data: unknown) => boolean | Fault[] | null | undefined} Validate
 *   Checks data against a JSON Schema: returns true or no faults if the data is right.
 */

const READERS = ['everyone', 'authenticated', 'grant', 'owner'];
const PUBLISHERS = ['server', 'subscriber', 'authenticated', 'grant', 'owner'];
const DELIVERIES = ['durable', 'latest', 'ephemeral'];
const CALLERS = ['authenticated', 'everyone'];
const NAME = /^[%A-Za-z0-9_.@~=+-]+(:[%A-Za-z0-9_.@~=+-]+)*$/;
const MAX_NAME = 128;
const MAX_KEY = 128;
/** Faults listed in one refusal. */
const MAX_FAULTS = 20;
/** Events and keys that a channel keeps without a contract. */
const MAX_KEPT = 10_000;
const UNITS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** @type {ChannelRule} */
const ANY_CHANNEL = {
  pattern: '{any}',
  subscribe: 'everyone',
  presence: true,
  update: { type: 'presence.update', publish: 'subscriber', delivery: 'ephemeral', removable: false, echo: true },
  history: { entries: MAX_KEPT, ttl: Infinity },
  state: { entries: MAX_KEPT, ttl: Infinity },
};

/** What a contract allows. Without one, every channel and every event. */
export class Contract {
  /** @type {ChannelRule[] | undefined} the most specific first */
  #channels;
  /** @type {Map<string, CallRule> | undefined} absent without a contract: all calls */
  #calls;
  #validate;

  /**
   * @param {any} [document]  the content of a contract file, or an AsyncAPI document of one
   * @param {Validate | false} [validate]
   */
  constructor(document, validate) {
    if (!document) return;
    const { channels: given = {}, calls = {} } = document.asyncapi ? fromAsyncApi(document) : document;
    const channels = Object.entries(given).map(([pattern, rules]) => readChannel(pattern, rules));
    this.#channels = channels.sort((a, b) => (rank(a.pattern) < rank(b.pattern) ? -1 : 1));
    this.#calls = new Map(Object.entries(calls).map(([name, rules]) => [name, readCall(name, rules)]));
    this.#validate = validate || undefined;
    if (validate !== undefined) return;
    const withSchema = channels.find(({ events, update }) => [...(events?.values() ?? []), update].some((rule) => rule?.schema));
    const callWithSchema = [...(this.#calls?.values() ?? [])].find(({ request, reply }) => request.schema || reply.schema);
    if (withSchema || callWithSchema) {
      throw new TypeError(
        `the contract has schemas (${withSchema?.pattern ?? callWithSchema?.name}), which this package cannot check: pass \`validate\`, or \`validate: false\` to accept all data`,
      );
    }
  }

  /** @param {string} name @returns {Resolved} */
  resolve(name) {
    if (name.length > MAX_NAME || !NAME.test(name)) {
      throw refusal('invalid_channel', 'a channel name is segments of letters, digits and _.@~=+- joined by ":", at most 128 bytes', { path: '$.channel' });
    }
    if (!this.#channels) return { channel: ANY_CHANNEL, owner: undefined };
    for (const channel of this.#channels) {
      const match = matchName(channel.pattern, name);
      if (match) return { channel, owner: match.user };
    }
    throw refusal('unknown_channel', 'no pattern of the contract matches this channel', { path: '$.channel' });
  }

  /** The declaration of a call. @param {string} name @returns {CallRule} */
  callOf(name) {
    const rule = this.#calls ? this.#calls.get(name) : readCall(name, { who: 'everyone' });
    if (rule) return rule;
    throw refusal('unknown_call', `the contract declares no call ${name}`, { path: '$.call' });
  }

  /**
   * The declaration of an event type. Without a contract, the message decides: one with a key or `if_rev` is `latest`, one with an id `durable`.
   * @param {ChannelRule} channel
   * @param {{type: string, id?: string, key?: string, if_rev?: number, delivery?: Delivery}} message
   * @returns {EventRule | undefined}
   */
  eventOf({ events }, { type, id, key, if_rev: ifRev, delivery }) {
    if (events) return events.get(type);
    const by = key !== undefined || ifRev !== undefined ? 'latest' : id !== undefined ? 'durable' : 'ephemeral';
    return { type, publish: 'authenticated', delivery: delivery ?? by, removable: true, echo: true };
  }

  /**
   * Refuses data that the schema does not allow.
   * @param {DataRule} rule
   * @param {unknown} data
   */
  checkData({ type, schema }, data) {
    const result = schema && this.#validate ? this.#validate(schema, data) : true;
    if (result === true || result === null || result === undefined || (Array.isArray(result) && result.length === 0)) return;
    const faults = Array.isArray(result) ? result : [{ message: 'the validator refuses it' }];
    const errors = faults.slice(0, MAX_FAULTS).map(({ path, instancePath, message }) => ({ path: path ?? pathOf(instancePath), message: message ?? '' }));
    throw refusal('invalid_data', `data does not match the schema of ${type}`, { path: errors[0].path, errors });
  }
}

/**
 * The key of an event: where the contract's pointer finds it in the data.
 * @param {EventRule} rule
 * @param {any} data
 * @param {string | undefined} given
 * @returns {string | undefined}
 */
export function keyOf({ type, key, delivery }, data, given) {
  if (delivery !== 'latest') {
    if (given === undefined) return undefined;
    throw refusal('invalid_key', `only latest events have a key; ${type} is ${delivery}`, { path: '$.key' });
  }
  if (key === undefined) return given ?? '';
  const path = pathOf(key);
  const found = steps(key).reduce((value, step) => (value !== null && typeof value === 'object' && Object.hasOwn(value, step) ? value[step] : undefined), data);
  if (found === undefined) throw refusal('invalid_key', `data has no ${path}, the key of ${type}`, { path });
  const isKey = typeof found === 'string' || typeof found === 'boolean' || Number.isInteger(found);
  const text = String(found);
  if (!isKey || text.length < 1 || text.length > MAX_KEY) {
    throw refusal('invalid_key', `the key of ${type} is text, a whole number or a truth value of 1 to ${MAX_KEY} characters`, { path });
  }
  if (given !== undefined && given !== text) throw refusal('invalid_key', `key is not the value of ${path}`, { path: '$.key' });
  return text;
}

// --- reading -----------------------------------------------------------------------------------------------------------

/** @param {string} pattern @param {any} given @returns {ChannelRule} */
function readChannel(pattern, given) {
  const { subscribe, presence = false, history, state = { keys: 1_000, ttl: '24h' }, events = {} } = given ?? {};
  const update = presence?.update;
  return {
    pattern,
    subscribe: oneOf(READERS, subscribe, `${pattern}: subscribe`),
    presence: Boolean(presence),
    update: update && readEvent(pattern, 'presence.update', { ...update, delivery: 'ephemeral' }),
    history: history && { entries: history.events, ttl: milliseconds(history.ttl, `${pattern}: history.ttl`) },
    state: { entries: state.keys, ttl: milliseconds(state.ttl, `${pattern}: state.ttl`) },
    events: new Map(Object.entries(events).map(([type, event]) => [type, readEvent(pattern, type, event)])),
  };
}

/** @param {string} pattern @param {string} type @param {any} given @returns {EventRule} */
function readEvent(pattern, type, { publish, delivery, schema, key, ttl, removable = false, echo = true }) {
  const where = `${pattern}: ${type}`;
  return {
    type,
    publish: oneOf(PUBLISHERS, publish, `${where}: publish`),
    delivery: /** @type {Delivery} */ (oneOf(DELIVERIES, delivery, `${where}: delivery`)),
    schema: schemaOf(schema),
    key,
    ttl: ttl === undefined ? undefined : milliseconds(ttl, `${where}: ttl`),
    removable,
    echo,
  };
}

/** @param {string} name @param {any} given @returns {CallRule} */
function readCall(name, given) {
  const { who = 'authenticated', request, reply } = given ?? {};
  return { name, who: oneOf(CALLERS, who, `${name}: who`), request: { type: `${name}.request`, schema: schemaOf(request) }, reply: { type: `${name}.reply`, schema: schemaOf(reply) } };
}

/** A schema that refuses something; undefined for others. @param {any} schema */
function schemaOf(schema) {
  return schema === true || (schema && Object.keys(schema).length === 0) ? undefined : schema;
}

/** The content of the contract file that an AsyncAPI document describes. @param {any} document */
function fromAsyncApi(document) {
  const { channels = {}, components = {} } = document;
  /** @type {Record<string, any>} */
  const declared = {};
  /** @type {Record<string, any>} */
  const calls = {};
  for (const { address, messages = {}, 'x-tidewire': rules } of /** @type {any[]} */ (Object.values(channels))) {
    const sent = Object.fromEntries(
      Object.entries(messages).map(([type, reference]) => {
        const { payload, 'x-tidewire': more } = follow(document, reference);
        return [type, { ...more, schema: withComponents(follow(document, payload), components) }];
      }),
    );
    if (rules.call === undefined) {
      const { subscribe, presence, history, state } = rules;
      const { 'presence.update': update, ...events } = sent;
      declared[address] = { subscribe, presence: update ? { update } : presence, history, state, events };
    } else calls[rules.call] = { who: rules.who, request: sent.request?.schema, reply: sent.reply?.schema };
  }
  return { channels: declared, calls };
}

/** What a reference of the document stands for. @param {any} document @param {any} value @returns {any} */
function follow(document, value) {
  for (let node = value, hops = 0; ; hops += 1) {
    const reference = node?.$ref;
    if (typeof reference !== 'string' || !reference.startsWith('#/') || hops > 10) return node;
    node = steps(reference.slice(1)).reduce((place, step) => place?.[step], document);
  }
}

/** A schema with what its references need. @param {any} schema @param {any} components */
function withComponents(schema, components) {
  return JSON.stringify(schema ?? {}).includes('"#/components/') ? { ...schema, components } : schema;
}

/** @param {string[]} words @param {unknown} word @param {string} where @returns {string} */
function oneOf(words, word, where) {
  if (typeof word === 'string' && words.includes(word)) return word;
  throw new TypeError(`${where} is one of ${words.join(', ')}, not ${JSON.stringify(word)}`);
}

/** A duration in ms: seconds as a number, or a text such as `24h`. @param {unknown} value @param {string} where */
function milliseconds(value, where) {
  if (typeof value === 'number') return value * 1_000;
  const match = /^(\d+)(ms|s|m|h|d)$/.exec(String(value));
  if (!match) throw new TypeError(`${where}: ${JSON.stringify(value)} is not a duration such as 100ms, 5s, 15m, 24h or 7d`);
  return Number(match[1]) * UNITS[/** @type {keyof UNITS} */ (match[2])];
}

// --- names and pointers ----------------------------------------------------------------------------------------------

/** Sorts patterns: the first segment in which two of them differ decides, and a literal wins. @param {string} pattern */
function rank(pattern) {
  return pattern.split(':').map((segment) => (segment.startsWith('{') ? '1' : `0${segment}`)).join('\n');
}

/** The parameters of a name that matches a pattern. @param {string} pattern @param {string} name */
function matchName(pattern, name) {
  const wanted = pattern.split(':');
  const given = name.split(':');
  /** @type {Record<string, string>} */
  const found = {};
  if (wanted.length !== given.length) return undefined;
  for (const [index, segment] of wanted.entries()) {
    const parameter = /^\{(.+)\}$/.exec(segment)?.[1];
    if (!parameter ? segment !== given[index] : given[index].includes('%') && (parameter !== 'user' || !isEncoded(given[index]))) return undefined;
    if (parameter) found[parameter] = given[index];
  }
  return found;
}

/** Whether a segment is a user as `encodeUser` writes it. @param {string} segment */
function isEncoded(segment) {
  try {
    return encodeUser(decodeURIComponent(segment)) === segment;
  } catch {
    return false;
  }
}

/** @param {string} pointer  JSON Pointer */
function steps(pointer) {
  return pointer.split('/').slice(1).map((step) => step.replaceAll('~1', '/').replaceAll('~0', '~'));
}

/** The JSON path of a place in `data`. @param {string} [pointer] */
function pathOf(pointer = '') {
  return steps(pointer).reduce((path, step) => (/^\d+$/.test(step) ? `${path}[${step}]` : `${path}.${step}`), '$.data');
}

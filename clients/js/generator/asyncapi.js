// Reads the AsyncAPI document of a service (`tidewire asyncapi`, GET /api/v1/asyncapi.json).
import { DELIVERIES, EVENT_TYPE, PATTERN } from './contract-file.js';
import { Fault, jsonPath } from './fault.js';
import { compareCodePoints } from './hash.js';
import { isObject, valueAt } from './keywords.js';
import { Model } from './model.js';

const EXTENSION = 'x-tidewire';
const SCHEMAS = '#/components/schemas/';
const NAME = /^[A-Za-z0-9._-]{1,150}$/;

/**
 * @param {string} source
 * @param {any} document
 * @returns {Model}
 */
export function readAsyncApi(source, document) {
  const model = new Model(source);
  const hash = valueAt(document, ['info', EXTENSION, 'contract']);
  if (typeof hash !== 'string' || !/^[0-9a-f]{16}$/.test(hash)) {
    throw new Fault(source, jsonPath(['info', EXTENSION, 'contract']), 'is not the hash of a contract');
  }
  model.hash = hash;
  model.locate = (reference) => locate(source, reference);
  const schemas = mapping(source, document, ['components', 'schemas']);
  for (const [name, schema] of Object.entries(schemas)) {
    if (!NAME.test(name)) throw new Fault(source, jsonPath(['components', 'schemas', name]), 'is not a name of a schema');
    model.components.set(name, schema);
  }
  const channels = mapping(source, document, ['channels']);
  const isCall = (/** @type {string} */ id) => isObject(channels[id]) && isObject(channels[id][EXTENSION]) && Object.hasOwn(channels[id][EXTENSION], 'call');
  model.channels = Object.keys(channels)
    .filter((id) => !isCall(id))
    .map((id) => readChannel(model, document, ['channels', id]))
    .sort((one, other) => compareCodePoints(one.pattern, other.pattern));
  model.calls = Object.keys(channels)
    .filter(isCall)
    .map((id) => readCall(model, document, ['channels', id]))
    .sort((one, other) => compareCodePoints(one.name, other.name));
  return model;
}

/**
 * A call is a channel without an address, with a request and its reply.
 * @param {Model} model
 * @param {any} document
 * @param {string[]} place
 * @returns {import('./model.js').CallModel}
 */
function readCall(model, document, place) {
  const name = valueAt(document, [...place, EXTENSION, 'call']);
  if (typeof name !== 'string' || !EVENT_TYPE.test(name)) throw new Fault(model.source, jsonPath([...place, EXTENSION, 'call']), 'is not the name of a call');
  const [request, reply] = ['request', 'reply'].map((side) => target(model, readMessage(model, document, [...place, 'messages', side]).message.payload));
  return { name, ...(request && { request }), ...(reply && { reply }) };
}

/**
 * What a message of a channel refers to, and where it is.
 * @param {Model} model
 * @param {any} document
 * @param {string[]} place
 */
function readMessage({ source }, document, place) {
  const reference = mapping(source, document, place).$ref;
  const at = typeof reference === 'string' ? reference.replace(/^#\//, '').split('/') : [];
  return { at, message: mapping(source, document, at, place) };
}

/** @param {string} source @param {string} reference */
function locate(source, reference) {
  if (!reference.startsWith(SCHEMAS)) {
    throw new Fault(source, '', `${JSON.stringify(reference.slice(0, 100))} is not a schema of this document, and nothing is fetched`);
  }
  const [component, ...steps] = reference.slice(SCHEMAS.length).split('/');
  return { component, fragment: steps.map((step) => `/${step}`).join('') };
}

/**
 * @param {Model} model
 * @param {any} document
 * @param {string[]} place
 * @returns {import('./model.js').ChannelModel}
 */
function readChannel(model, document, place) {
  const { source } = model;
  const channel = mapping(source, document, place);
  if (typeof channel.address !== 'string' || !PATTERN.test(channel.address)) {
    throw new Fault(source, jsonPath([...place, 'address']), 'is not a channel pattern');
  }
  const messages = mapping(source, document, [...place, 'messages']);
  const events = Object.keys(messages).sort(compareCodePoints).filter((type) => !type.startsWith('presence.'));
  const declared = channel[EXTENSION]?.presence;
  /** @type {import('./model.js').ChannelModel} */
  const found = { pattern: channel.address, events: events.map((type) => readEvent(model, document, [...place, 'messages', type])) };
  if (declared === true) found.presence = null;
  else if (isObject(declared)) found.presence = target(model, declared.update?.schema) ?? null;
  return found;
}

/**
 * @param {Model} model
 * @param {any} document
 * @param {string[]} place
 * @returns {import('./model.js').EventModel}
 */
function readEvent(model, document, place) {
  const { source } = model;
  const type = place[place.length - 1];
  if (!EVENT_TYPE.test(type)) throw new Fault(source, jsonPath(place), 'is not an event type');
  const { at, message } = readMessage(model, document, place);
  const declared = mapping(source, message, [EXTENSION], [...at, EXTENSION]);
  if (!DELIVERIES.has(declared.delivery)) {
    throw new Fault(source, jsonPath([...at, EXTENSION, 'delivery']), 'is one of durable, latest, ephemeral');
  }
  const schema = target(model, message.payload);
  return { type, delivery: declared.delivery, publish: declared.publish !== 'server', ...(schema && { schema }) };
}

/** @param {Model} model @param {any} payload */
function target(model, payload) {
  return isObject(payload) && typeof payload.$ref === 'string' ? model.resolve(payload.$ref, '', ['payload', '$ref']) : undefined;
}

/**
 * @param {string} source
 * @param {any} document
 * @param {string[]} steps
 * @param {string[]} [place]
 * @returns {Record<string, any>}
 */
function mapping(source, document, steps, place = steps) {
  const found = valueAt(document, steps);
  if (!isObject(found) || !steps.length) throw new Fault(source, jsonPath(place), 'is missing, or is no object');
  return found;
}

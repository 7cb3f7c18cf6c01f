// Reads a contract file and the schema files that it refers to. It reads no other files, and fetches nothing. `tidewire check` finds
// every fault of a contract; here only those matter that types cannot be made with.
import { readFileSync, realpathSync, statSync } from 'node:fs';
import { basename, dirname, isAbsolute, join, posix, relative, resolve } from 'node:path';
import { parseText } from './document.js';
import { Fault, jsonPath } from './fault.js';
import { compareCodePoints, hashOf } from './hash.js';
import { findAnchor, isObject, references } from './keywords.js';
import { Model, quote } from './model.js';
import { Names } from './names.js';

const MAX_BYTES = 4_000_000;
const MAX_FILES = 1000;
const FILE = /^[A-Za-z0-9_./-]+$/;
export const PATTERN = /^(?:\{[A-Za-z_]\w*\}|[A-Za-z0-9_.@~=+-]+)(?::(?:\{[A-Za-z_]\w*\}|[A-Za-z0-9_.@~=+-]+))*$/;
export const EVENT_TYPE = /^[a-z0-9_-]+(?:\.[a-z0-9_-]+)+$/;
export const DELIVERIES = new Set(['durable', 'latest', 'ephemeral']);

/**
 * @param {string} path
 * @param {Map<string, string | undefined>} [read] Gets the text of every file; undefined if it cannot be read.
 * @returns {Model}
 */
export function readContractFile(path, read = new Map()) {
  return new Reader(path, read).read();
}

class Reader {
  /** @param {string} path @param {Map<string, string | undefined>} texts */
  constructor(path, texts) {
    this.path = path;
    this.texts = texts;
    this.folder = resolve(dirname(path));
    /** @type {Map<string, any>} The content of schema files, by their path below the folder. */
    this.files = new Map();
    /** @type {Map<string, {file: string, place: readonly (string | number)[]}>} Where each component is. */
    this.origins = new Map();
    this.model = new Model(path);
  }

  read() {
    const { model } = this;
    const contract = this.#open(this.path, this.path);
    const calls = this.#mapping(contract, ['calls'], ['calls'], {});
    const channels = this.#mapping(contract, ['channels'], ['channels'], Object.keys(calls).length ? {} : undefined);
    const declared = Object.keys(channels).sort(compareCodePoints).map((pattern) => this.#channel(channels, pattern));
    const called = Object.keys(calls).sort(compareCodePoints).map((name) => this.#call(calls, name));
    for (const { schemas } of [...declared, ...called]) for (const [place, schema] of schemas) this.#follow(schema, '', this.path, place);
    const names = new Names();
    for (const file of [...this.files.keys()].sort(compareCodePoints)) {
      this.#add(names.give(stem(file)), this.files.get(file), file, []);
    }
    model.hash = hashOf(contract, Object.fromEntries(this.files));
    model.placeOf = (component) => this.origins.get(component)?.place ?? [];
    model.locate = (reference, component) => this.#locate(reference, component);
    const inline = new Map();
    model.channels = declared.map(({ channel, schemas }) => {
      let index = 0;
      const target = () => this.#target(schemas[index++], names, inline);
      for (const event of channel.events) if (event.schema) event.schema = target();
      return channel.presence ? { ...channel, presence: target() } : channel;
    });
    model.calls = called.map(({ call, schemas }) => ({ name: call, ...Object.fromEntries(schemas.map((schema) => [schema[0][2], this.#target(schema, names, inline)])) }));
    return model;
  }

  /**
   * @param {Record<string, any>} calls
   * @param {string} call
   * @returns {{call: string, schemas: [readonly string[], any, string][]}} As of a channel.
   */
  #call(calls, call) {
    const place = ['calls', call];
    if (!EVENT_TYPE.test(call)) throw this.#fault(place, 'is not the name of a call, such as order.quote');
    const spec = this.#mapping(calls, [call], place);
    const sides = ['request', 'reply'].filter((side) => Object.hasOwn(spec, side));
    return { call, schemas: sides.map((side) => [[...place, side], spec[side], `${call}.${side}`]) };
  }

  /**
   * @param {Record<string, any>} channels
   * @param {string} pattern
   * @returns {{channel: import('./model.js').ChannelModel, schemas: [readonly string[], any, string][]}}
   *   The channel, and its schemas in order, each with its place and the wish for a name.
   */
  #channel(channels, pattern) {
    const place = ['channels', pattern];
    if (!PATTERN.test(pattern)) throw this.#fault(place, 'is not a channel pattern');
    const spec = this.#mapping(channels, [pattern], place);
    /** @type {[readonly string[], any, string][]} */
    const schemas = [];
    const pending = { component: '', pointer: [] };
    const events = this.#mapping(spec, ['events'], [...place, 'events'], {});
    /** @type {import('./model.js').ChannelModel} */
    const channel = { pattern, events: [] };
    for (const type of Object.keys(events).sort(compareCodePoints)) {
      const at = [...place, 'events', type];
      const event = this.#mapping(events, [type], at);
      if (!EVENT_TYPE.test(type)) throw this.#fault(at, 'is not an event type, such as chat.message');
      if (!DELIVERIES.has(event.delivery)) throw this.#fault([...at, 'delivery'], 'is one of durable, latest, ephemeral');
      const has = Object.hasOwn(event, 'schema');
      if (has) schemas.push([[...at, 'schema'], event.schema, type]);
      channel.events.push({ type, delivery: event.delivery, publish: event.publish !== 'server', ...(has && { schema: pending }) });
    }
    const update = isObject(spec.presence) ? spec.presence.update : undefined;
    if (isObject(update) && Object.hasOwn(update, 'schema')) {
      schemas.push([[...place, 'presence', 'update', 'schema'], update.schema, 'presence.update']);
      channel.presence = pending;
    } else if (spec.presence === true || isObject(spec.presence)) channel.presence = null;
    return { channel, schemas };
  }

  /**
   * Reads the files that a schema refers to.
   * @param {unknown} schema
   * @param {string} file The file that it is in, relative to the folder; empty for the contract.
   * @param {string} shown The same, for errors.
   * @param {readonly (string | number)[]} place
   */
  #follow(schema, file, shown, place) {
    for (const [at, reference] of references(schema)) {
      const name = reference.split('#', 1)[0];
      if (!name) continue;
      const fault = (/** @type {string} */ reason) => new Fault(shown, jsonPath([...place, ...at]), reason);
      if (!FILE.test(name) || isAbsolute(name)) {
        throw fault(`${quote(reference)} is not a file below the contract's folder, and nothing is fetched`);
      }
      const target = posix.normalize(posix.join(posix.dirname(file), name));
      if (target.startsWith('..') || !this.#isInside(join(this.folder, target))) {
        throw fault(`${quote(name)} is outside the contract's folder`);
      }
      if (target === basename(this.path)) throw fault('a schema cannot refer to the contract file');
      if (this.files.has(target)) continue;
      if (this.files.size >= MAX_FILES) throw fault(`the contract has more than ${MAX_FILES} files`);
      const path = join(dirname(this.path), target);
      const content = this.#open(path, path);
      this.files.set(target, content);
      this.#follow(content, target, path, []);
    }
  }

  /** @param {string} path */
  #isInside(path) {
    try {
      const way = relative(realpathSync(this.folder), realpathSync(path));
      return way !== '' && !way.startsWith('..') && !isAbsolute(way);
    } catch {
      return true; // a file that is not there: opening it says so
    }
  }

  /** @param {string} path @param {string} shown */
  #open(path, shown) {
    let text;
    this.texts.set(path, undefined);
    try {
      const { size } = statSync(path);
      if (size > MAX_BYTES) throw new Error(`has more than ${MAX_BYTES} bytes`);
      text = new TextDecoder('utf-8', { fatal: true }).decode(readFileSync(path));
    } catch (error) {
      const { code, message } = /** @type {NodeJS.ErrnoException} */ (error);
      throw new Fault(shown, '', `cannot be read: ${code === 'ENOENT' ? 'there is no such file' : message}`);
    }
    this.texts.set(path, text);
    return parseText(shown, text);
  }

  /**
   * @param {string} name
   * @param {any} schema
   * @param {string} file
   * @param {readonly (string | number)[]} place
   */
  #add(name, schema, file, place) {
    this.model.components.set(name, schema);
    this.origins.set(name, { file, place });
    return name;
  }

  /**
   * Returns where the schema of an event is: a file, if it is only a reference to one, or a component of its own.
   * @param {[readonly string[], any, string]} declared
   * @param {Names} names
   * @param {Map<string, string>} inline The components of inline schemas, by type and content.
   */
  #target([place, schema, type], names, inline) {
    if (isObject(schema) && Object.keys(schema).length === 1 && typeof schema.$ref === 'string' && !schema.$ref.startsWith('#')) {
      return this.model.resolve(schema.$ref, '', [...place, '$ref']);
    }
    const key = hashOf([type, schema], {});
    const name = inline.get(key) ?? this.#add(names.give(type), schema, '', place);
    inline.set(key, name);
    return { component: name, pointer: [] };
  }

  /** @param {string} reference @param {string} component */
  #locate(reference, component) {
    const [name, fragment = ''] = reference.split('#', 2);
    const from = this.origins.get(component)?.file ?? '';
    let target = component;
    if (name) {
      const file = posix.normalize(posix.join(posix.dirname(from), name));
      target = [...this.origins].find(([, origin]) => origin.file === file)?.[0] ?? '';
    }
    if (!fragment || fragment.startsWith('/')) return { component: target, fragment };
    const place = findAnchor(this.model.components.get(target), fragment);
    const steps = (place ?? ['?']).map((step) => `/${encodeURIComponent(String(step).replaceAll('~', '~0').replaceAll('/', '~1'))}`);
    return { component: target, fragment: steps.join('') };
  }

  /**
   * Returns the mapping at some steps of a value.
   * @param {any} value
   * @param {string[]} steps
   * @param {readonly string[]} [place] Where it is, for errors.
   * @param {Record<string, any>} [absent] What stands for an absent value.
   * @returns {Record<string, any>}
   */
  #mapping(value, steps, place = steps, absent = undefined) {
    const found = isObject(value) && Object.hasOwn(value, steps[0]) ? value[steps[0]] : absent;
    if (!isObject(found)) throw this.#fault(place, 'is a mapping of names to values');
    return found;
  }

  /** @param {readonly string[]} place @param {string} reason */
  #fault(place, reason) {
    return new Fault(this.path, jsonPath(place), reason);
  }
}

/** @param {string} path */
function stem(path) {
  const name = posix.basename(path);
  return name.includes('.') ? name.slice(0, name.lastIndexOf('.')) : name;
}

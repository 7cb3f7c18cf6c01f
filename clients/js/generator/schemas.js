// Makes a JSON Schema harmless and finite for json-schema-to-typescript: it keeps what types can express, and nothing that the library
// could read, run or copy unescaped. A reference becomes the name of another type.
import { isObject, MAX_DEPTH } from './keywords.js';

/** The most values of an enum, and items of a tuple, that a type lists. */
const MAX_LITERALS = 500;
const MAX_TUPLE = 8;
/** Schemas of one contract. */
const MAX_SCHEMAS = 50_000;
const MAX_COMMENT = 2000;
const TYPES = new Set(['null', 'boolean', 'object', 'array', 'string', 'integer', 'number']);
const UNKNOWN = Object.freeze({ tsType: 'unknown' });
const NEVER = Object.freeze({ tsType: 'never' });

/**
 * A schema of json-schema-to-typescript.
 * @typedef {import('json-schema-to-typescript').JSONSchema} LibrarySchema
 */

/** Cleans the schemas of one contract. */
export class Cleaner {
  #left = MAX_SCHEMAS;

  /**
   * @param {import('./model.js').Model} model
   * @param {(target: import('./model.js').Target) => string} nameOf Returns the type of a schema that is referred to.
   */
  constructor(model, nameOf) {
    this.model = model;
    this.nameOf = nameOf;
  }

  /**
   * @param {any} schema
   * @param {string} component The component that contains it.
   * @param {readonly (string | number)[]} place Where it is in the component.
   * @returns {LibrarySchema}
   */
  clean(schema, component, place) {
    if (schema === true) return UNKNOWN;
    if (schema === false) return NEVER;
    if (!isObject(schema)) throw this.model.fault(component, place, 'is no JSON Schema');
    if (place.length > MAX_DEPTH) throw this.model.fault(component, place.slice(0, 8), `is nested more than ${MAX_DEPTH} deep`);
    if (!this.#left--) throw this.model.fault(component, place, `the contract has more than ${MAX_SCHEMAS} schemas`);
    const parts = [...this.#references(schema, component, place), ...this.#own(schema, component, place)];
    const result = parts.length ? (parts.length > 1 ? { allOf: parts } : parts[0]) : UNKNOWN;
    return withComment(result, schema);
  }

  /** @param {Record<string, any>} schema @param {string} component @param {readonly (string | number)[]} place */
  #references(schema, component, place) {
    return ['$ref', '$dynamicRef']
      .filter((keyword) => typeof schema[keyword] === 'string')
      .map((keyword) => ({ tsType: this.nameOf(this.model.resolve(schema[keyword], component, [...place, keyword])) }));
  }

  /**
   * @param {Record<string, any>} schema
   * @param {string} component
   * @param {readonly (string | number)[]} place
   * @returns {LibrarySchema[]}
   */
  #own(schema, component, place) {
    const values = Object.hasOwn(schema, 'const') ? [schema.const] : schema.enum;
    if (Array.isArray(values) && values.length <= MAX_LITERALS) return [{ tsType: union(values.map(literal)) }];
    const parts = this.#typed(schema, component, place);
    for (const keyword of ['anyOf', 'oneOf']) {
      if (Array.isArray(schema[keyword])) parts.push({ anyOf: this.#each(schema[keyword], component, [...place, keyword]) });
    }
    if (Array.isArray(schema.allOf)) parts.push(...this.#each(schema.allOf, component, [...place, 'allOf']));
    const known = parts.filter((part) => part.tsType !== UNKNOWN.tsType);
    return known.length ? known : parts.slice(0, 1);
  }

  /** @param {any[]} schemas @param {string} component @param {readonly (string | number)[]} place */
  #each(schemas, component, place) {
    return schemas.map((schema, index) => this.clean(schema, component, [...place, index]));
  }

  /**
   * Returns one part with what the keyword `type` and the keywords of each type say; none if that is nothing.
   * @param {Record<string, any>} schema
   * @param {string} component
   * @param {readonly (string | number)[]} place
   * @returns {LibrarySchema[]}
   */
  #typed(schema, component, place) {
    const types = [schema.type ?? implied(schema)].flat();
    if (!types.length) return [];
    const unknown = types.find((type) => !TYPES.has(type));
    if (unknown !== undefined) throw this.model.fault(component, [...place, 'type'], 'is no type of JSON Schema');
    /** @type {LibrarySchema[]} */
    const parts = [...new Set(types.map((type) => (type === 'integer' ? 'number' : type)))].map((type) => {
      if (type === 'object') return this.#object(schema, component, place);
      if (type === 'array') return this.#array(schema, component, place);
      return { type };
    });
    return [parts.length > 1 ? { anyOf: parts } : parts[0]];
  }

  /**
   * @param {Record<string, any>} schema
   * @param {string} component
   * @param {readonly (string | number)[]} place
   * @returns {LibrarySchema}
   */
  #object(schema, component, place) {
    const declared = isObject(schema.properties) ? schema.properties : {};
    const required = Array.isArray(schema.required) ? schema.required.filter((name) => typeof name === 'string') : [];
    /** @type {Map<string, LibrarySchema>} */
    const properties = new Map();
    for (const [name, child] of Object.entries(declared)) {
      properties.set(name, this.clean(child, component, [...place, 'properties', name]));
    }
    for (const name of required) if (!properties.has(name)) properties.set(name, UNKNOWN);
    return {
      type: 'object',
      properties: Object.fromEntries(properties),
      required,
      additionalProperties: this.#additional(schema, component, place, properties.size > 0),
    };
  }

  /**
   * Objects are open in JSON Schema unless they say otherwise. A type with an index signature would accept every misspelt name, so only
   * an explicit `additionalProperties` makes one.
   * @param {Record<string, any>} schema
   * @param {string} component
   * @param {readonly (string | number)[]} place
   * @param {boolean} hasProperties
   * @returns {LibrarySchema | boolean}
   */
  #additional(schema, component, place, hasProperties) {
    const { additionalProperties: given, patternProperties } = schema;
    const patterns = isObject(patternProperties) ? Object.entries(patternProperties) : [];
    const members = patterns.map(([pattern, child]) => this.clean(child, component, [...place, 'patternProperties', pattern]));
    if (isObject(given) || (patterns.length && given === undefined)) {
      members.push(this.clean(given ?? true, component, [...place, 'additionalProperties']));
    } else if (given === true || (given === undefined && !hasProperties)) members.push(UNKNOWN);
    if (!members.length) return false;
    // The type of an index signature has to include those of all properties.
    if (hasProperties || members.some((member) => member.tsType === UNKNOWN.tsType)) return UNKNOWN;
    return members.length > 1 ? { anyOf: members } : members[0];
  }

  /**
   * @param {Record<string, any>} schema
   * @param {string} component
   * @param {readonly (string | number)[]} place
   * @returns {LibrarySchema}
   */
  #array(schema, component, place) {
    const rest = Object.hasOwn(schema, 'items') ? this.clean(schema.items, component, [...place, 'items']) : UNKNOWN;
    const prefix = Array.isArray(schema.prefixItems) ? schema.prefixItems : [];
    if (!prefix.length) return { type: 'array', items: rest };
    if (prefix.length > MAX_TUPLE) return { type: 'array', items: UNKNOWN };
    const minItems = Math.min(Number(schema.minItems ?? 0) || 0, prefix.length);
    const lengths = Array.from({ length: prefix.length - minItems + 1 }, (_, index) => minItems + index);
    // One tuple for each length: the library prints optional items without the parentheses that they need in places.
    const tuples = lengths.map((length) => this.#tuple(prefix.slice(0, length), length === prefix.length && rest, component, place));
    return tuples.length > 1 ? { anyOf: tuples } : tuples[0];
  }

  /**
   * @param {any[]} prefix
   * @param {LibrarySchema | false} rest What follows; false if nothing does.
   * @param {string} component
   * @param {readonly (string | number)[]} place
   * @returns {LibrarySchema}
   */
  #tuple(prefix, rest, component, place) {
    if (!prefix.length) return { tsType: '[]' };
    /** @type {any} */
    const items = this.#each(prefix, component, [...place, 'prefixItems']);
    return { type: 'array', items, minItems: prefix.length, additionalItems: rest === NEVER ? false : rest };
  }
}

/**
 * The types that a schema without `type` is about.
 * @param {Record<string, any>} schema
 */
function implied(schema) {
  const keywords = ['properties', 'required', 'additionalProperties', 'patternProperties'];
  if (keywords.some((keyword) => Object.hasOwn(schema, keyword))) return ['object'];
  return Object.hasOwn(schema, 'items') || Object.hasOwn(schema, 'prefixItems') ? ['array'] : [];
}

/** @param {any} value @returns {string} */
function literal(value) {
  const text = JSON.stringify(value, (_, inner) => (typeof inner === 'bigint' ? Number(inner) : inner));
  return text.replaceAll('\u2028', '\\u2028').replaceAll('\u2029', '\\u2029');
}

/** @param {string[]} types */
function union(types) {
  const different = [...new Set(types)];
  return different.length > 1 ? `(${different.join(' | ')})` : (different[0] ?? 'never');
}

/**
 * Adds title and description as a comment.
 * @param {LibrarySchema} result
 * @param {Record<string, any>} schema
 * @returns {LibrarySchema}
 */
function withComment(result, schema) {
  const texts = [schema.title, schema.description].filter((text) => typeof text === 'string' && text.trim());
  const lines = [...(schema.deprecated === true ? ['@deprecated'] : []), ...(texts.length ? [commentText(texts.join('\n\n'))] : [])];
  return lines.length ? { ...result, description: lines.join('\n') } : result;
}

/**
 * Returns text that stays inside a comment, and is no tag of JSDoc.
 * @param {string} text
 */
export function commentText(text) {
  return text
    .slice(0, MAX_COMMENT)
    .replace(/\r\n?|[\u2028\u2029\v\f\x85]/g, '\n')
    .replace(/[\0-\x09\x0e-\x1f\x7f-\x9f\ufeff]/g, ' ')
    .replaceAll('*/', '* /')
    .replace(/^(\s*)@/gm, '$1\\@')
    .replace(/[ \t]+$/gm, '');
}

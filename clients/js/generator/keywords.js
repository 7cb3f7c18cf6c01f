// Walks JSON Schemas as the service does (service/contract/keywords.py).

/** @typedef {readonly (string | number)[]} Place */

/** Keywords whose value maps names to schemas. */
const NAMED = new Set(['properties', 'patternProperties', '$defs', 'definitions', 'dependentSchemas']);
/** Keywords whose value is data and not a schema. */
const DATA = new Set(['const', 'enum', 'default', 'examples']);
/** The deepest nesting of schemas. */
export const MAX_DEPTH = 200;

/**
 * Whether a value is an object of JSON.
 * @param {unknown} value
 * @returns {value is Record<string, any>}
 */
export function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * Yields each value directly in a schema that may be a schema, with its place.
 * @param {unknown} schema
 * @returns {Generator<[Place, any]>}
 */
function* subschemas(schema) {
  if (!isObject(schema)) return;
  for (const [keyword, value] of Object.entries(schema)) {
    if (NAMED.has(keyword) && isObject(value)) {
      for (const [name, child] of Object.entries(value)) yield [[keyword, name], child];
    } else if (!DATA.has(keyword)) {
      yield [[keyword], value];
      if (Array.isArray(value)) for (const [index, child] of value.entries()) yield [[keyword, index], child];
    }
  }
}

/**
 * Yields every $ref and $dynamicRef that is a keyword and not data, with its place.
 * @param {unknown} schema
 * @param {Place} [place]
 * @returns {Generator<[Place, string]>}
 */
export function* references(schema, place = []) {
  if (!isObject(schema) || place.length > MAX_DEPTH) return;
  for (const keyword of ['$ref', '$dynamicRef']) {
    if (Object.hasOwn(schema, keyword) && typeof schema[keyword] === 'string') yield [[...place, keyword], schema[keyword]];
  }
  for (const [at, child] of subschemas(schema)) yield* references(child, [...place, ...at]);
}

/**
 * Returns the place of the schema with this $anchor or $dynamicAnchor.
 * @param {unknown} schema
 * @param {string} name
 * @param {Place} [place]
 * @returns {Place | undefined}
 */
export function findAnchor(schema, name, place = []) {
  if (!isObject(schema) || place.length > MAX_DEPTH) return undefined;
  if (schema.$anchor === name || schema.$dynamicAnchor === name) return place;
  for (const [at, child] of subschemas(schema)) {
    const found = findAnchor(child, name, [...place, ...at]);
    if (found) return found;
  }
  return undefined;
}

/**
 * Parses the fragment of a reference, a JSON Pointer.
 * @param {string} fragment
 * @returns {string[]}
 */
export function parsePointer(fragment) {
  return fragment === '' ? [] : fragment.slice(1).split('/').map((step) => step.replaceAll('~1', '/').replaceAll('~0', '~'));
}

/**
 * Returns the value at a place of a document; undefined if there is none. Only own properties count.
 * @param {any} value
 * @param {Place} steps
 */
export function valueAt(value, steps) {
  for (const step of steps) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, step)) return undefined;
    value = value[step];
  }
  return value;
}

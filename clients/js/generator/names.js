// Names of schemas (as service/contract/export/names.py gives them) and of types.
import { toSafeString } from 'json-schema-to-typescript/dist/src/utils.js';

const MAX_NAME = 100;

/** Gives each schema a name of its own. The same calls in the same order give the same names. */
export class Names {
  #given = new Set();

  /** @param {string} wish */
  give(wish) {
    const safe = wish.replace(/[^A-Za-z0-9._-]+/g, '_').replace(/^[^A-Za-z]+/, '').replace(/_+$/, '');
    const base = safe.slice(0, MAX_NAME) || 'unnamed';
    let name = base;
    for (let number = 2; this.#given.has(name.toLowerCase()); number++) name = `${base}_${number}`;
    this.#given.add(name.toLowerCase());
    return name;
  }
}

/** Gives each type a name of its own. */
export class TypeNames {
  // What the generated file uses or declares by itself, and names that would hide types of the language.
  #given = new Set(['Contract', 'String', 'Number', 'Boolean', 'Object', 'Array', 'Symbol', 'Function', 'Record', 'Promise']);

  /** @param {string} wish */
  give(wish) {
    const base = typeName(wish);
    let name = base;
    for (let number = 2; this.#given.has(name); number++) name = typeName(`${base}${number}`);
    this.#given.add(name);
    return name;
  }
}

/** @param {string} wish */
function typeName(wish) {
  const safe = toSafeString(wish.replace(/[^A-Za-z0-9]+/g, ' ').slice(0, MAX_NAME)) || 'Unnamed';
  return toSafeString(safe); // the library applies it again, and it must change nothing then
}

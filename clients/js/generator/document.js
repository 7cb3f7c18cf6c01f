// Reads YAML and JSON as the service does. Whole numbers become bigints, so that the hash of the contract can be computed.
import { isScalar, parseDocument, visit } from 'yaml';
import { Fault } from './fault.js';

/** The largest file. */
const MAX_CHARACTERS = 4_000_000;
const MAX_ALIASES = 10_000;

/**
 * @param {string} name For errors. A name that ends in `.json` is JSON.
 * @param {string} text
 * @returns {unknown}
 */
export function parseText(name, text) {
  if (text.length > MAX_CHARACTERS) throw new Fault(name, '', `has more than ${MAX_CHARACTERS} characters`);
  return name.endsWith('.json') ? parseJson(name, text) : parseYaml(name, text);
}

/** @param {string} name @param {string} text */
function parseYaml(name, text) {
  const document = parseDocument(text, {
    version: '1.2', schema: 'core', intAsBigInt: true, stringKeys: true, merge: false, logLevel: 'silent',
    // Infinity and NaN are text: JSON lacks them.
    customTags: (tags) => tags.filter((tag) => typeof tag === 'string' || !('test' in tag) || !tag.test?.test('.nan')),
  });
  const [problem] = [...document.errors, ...document.warnings];
  if (problem) throw new Fault(name, '', `is not YAML: ${problem.message.split('\n')[0]}`);
  visit(document, {
    Scalar(_, { value }) {
      if (typeof value === 'number' && !Number.isFinite(value)) throw new Fault(name, '', 'holds a number that is out of range');
    },
  });
  if (document.contents === null || (isScalar(document.contents) && document.contents.value === null)) {
    throw new Fault(name, '', 'is empty');
  }
  try {
    return document.toJS({ maxAliasCount: MAX_ALIASES });
  } catch (error) {
    throw new Fault(name, '', `cannot be read: ${/** @type {Error} */ (error).message}`);
  }
}

/** A character that JSON text cannot contain, and that marks numbers. Real text with it is refused. */
const MARK = '\ufffe';
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?/g;

/** @param {string} name @param {string} text */
function parseJson(name, text) {
  if (text.includes(MARK) || /\\ufffe/i.test(text)) throw new Fault(name, '', 'holds the character U+FFFE');
  try {
    JSON.parse(text);
    const marked = text.replace(TOKEN, (token) => (token.startsWith('"') ? token : `"${MARK}${token}"`));
    return JSON.parse(marked, (_, value) => (typeof value === 'string' && value.startsWith(MARK) ? toNumber(value.slice(1)) : value));
  } catch (error) {
    throw new Fault(name, '', `is not JSON: ${/** @type {Error} */ (error).message.split('\n')[0]}`);
  }
}

/** @param {string} token */
function toNumber(token) {
  if (/^-?\d+$/.test(token)) return BigInt(token);
  const value = Number(token);
  if (!Number.isFinite(value)) throw new Error(`${token.slice(0, 40)} is out of range`);
  return value;
}

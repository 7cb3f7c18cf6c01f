// The hash of a contract, as the service computes it (service/contract/load.py): SHA-256 of the content as Python's json.dumps writes it.
import { createHash } from 'node:crypto';

const LENGTH = 16;

/**
 * Whole numbers are bigints, and all other numbers have a fraction or an exponent in the file.
 * @param {unknown} contract The content of the contract file.
 * @param {Record<string, unknown>} files The content of each schema file, by its path.
 */
export function hashOf(contract, files) {
  return createHash('sha256').update(dump([contract, files])).digest('hex').slice(0, LENGTH);
}

/**
 * @param {any} value
 * @returns {string}
 */
function dump(value) {
  if (typeof value === 'string') return dumpText(value);
  if (typeof value === 'number') return dumpFloat(value);
  if (Array.isArray(value)) return `[${value.map(dump).join(',')}]`;
  if (typeof value === 'object' && value !== null) {
    const keys = Object.keys(value).sort(compareCodePoints);
    return `{${keys.map((key) => `${dumpText(key)}:${dump(value[key])}`).join(',')}}`;
  }
  return String(value);
}

/** @param {string} text */
function dumpText(text) {
  return JSON.stringify(text).replace(/[^\0-\x7f]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/**
 * Writes a number as Python's repr of a float does.
 * @param {number} value
 */
export function dumpFloat(value) {
  const sign = value < 0 || Object.is(value, -0) ? '-' : '';
  const [mantissa, exponentText] = Math.abs(value).toExponential().split('e');
  const digits = mantissa.replace('.', '');
  const exponent = Number(exponentText);
  if (exponent < -4 || exponent >= 16) {
    const fraction = digits.length > 1 ? `.${digits.slice(1)}` : '';
    return `${sign}${digits[0]}${fraction}e${exponent < 0 ? '-' : '+'}${String(Math.abs(exponent)).padStart(2, '0')}`;
  }
  if (exponent < 0) return `${sign}0.${'0'.repeat(-exponent - 1)}${digits}`;
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, '0');
  return `${sign}${whole}.${digits.slice(exponent + 1) || '0'}`;
}

/**
 * Python compares text by code points, JavaScript by UTF-16 units.
 * @param {string} one
 * @param {string} other
 */
export function compareCodePoints(one, other) {
  const left = [...one], right = [...other];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const difference = /** @type {number} */ (left[i].codePointAt(0)) - /** @type {number} */ (right[i].codePointAt(0));
    if (difference) return difference;
  }
  return left.length - right.length;
}

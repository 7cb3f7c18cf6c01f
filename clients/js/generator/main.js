// `tidewire-types`: writes the types of a contract.
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { readAsyncApi } from './asyncapi.js';
import { readContractFile } from './contract-file.js';
import { emit } from './emit.js';
import { Fault } from './fault.js';
import { fetchDescription, isUrl } from './fetch.js';
import { isObject } from './keywords.js';

const HELP = `Usage: tidewire-types [--out FILE] [--watch] CONTRACT|URL

Writes TypeScript types of a contract: from its file, from the address of a service
(https://example.com), or from a document of \`tidewire asyncapi\` (asyncapi.json).

  --out FILE  write to this file, and only if something changes; without it, print
  --watch     write again after each change; needs --out
  --version   print the version
  --help      print this text

A service needs an API key: TIDEWIRE_API__KEY, or TIDEWIRE_API__KEY_FILE with the name of a file.
`;

/**
 * @param {string[]} words
 * @param {string} version
 * @returns {Promise<number>} The exit status: 0, 1 after a failure, 2 for wrong arguments.
 */
export async function main(words, version) {
  let options;
  try {
    options = parseArgs({
      args: words, allowPositionals: true,
      options: {
        out: { type: 'string', short: 'o' }, watch: { type: 'boolean', short: 'w' },
        version: { type: 'boolean' }, help: { type: 'boolean', short: 'h' },
      },
    });
  } catch (error) {
    return wrong(/** @type {Error} */ (error).message);
  }
  const { values, positionals: [source, ...others] } = options;
  if (values.help) process.stdout.write(HELP);
  else if (values.version) process.stdout.write(`${version}\n`);
  else if (source === undefined || others.length) return wrong('name one contract file or address');
  else if (values.watch && !values.out) return wrong('--watch needs --out FILE');
  else if (values.watch) return watch(source, /** @type {string} */ (values.out), version);
  else return run(source, values.out, version);
  return 0;
}

/** @param {string} reason */
function wrong(reason) {
  process.stderr.write(`tidewire-types: ${reason}\n${HELP}`);
  return 2;
}

/**
 * @param {string} source
 * @param {string | undefined} out
 * @param {string} version
 * @param {Map<string, string | undefined>} [read] Gets the text of every file that is read.
 * @returns {Promise<number>} The exit status.
 */
async function run(source, out, version, read = new Map()) {
  try {
    const text = await emit(await readModel(source, read), version);
    if (out === undefined) process.stdout.write(text);
    else if (!existsSync(out) || readFileSync(out, 'utf8') !== text) {
      writeFileSync(`${out}.new`, text);
      renameSync(`${out}.new`, out); // so that no reader sees a file that is half written
      process.stderr.write(`tidewire-types: wrote ${out}\n`);
    }
    return 0;
  } catch (error) {
    const isKnown = error instanceof Fault || /** @type {NodeJS.ErrnoException} */ (error).code !== undefined;
    const { message, stack } = /** @type {Error} */ (error);
    process.stderr.write(`${isKnown ? message : `tidewire-types: ${source}: ${stack}`}\n`);
    return 1;
  }
}

/**
 * @param {string} source
 * @param {Map<string, string | undefined>} read
 */
async function readModel(source, read) {
  if (isUrl(source)) return readAsyncApi(source, await fetchDescription(source));
  const text = source.endsWith('.json') && existsSync(source) ? readFileSync(source, 'utf8') : undefined;
  const document = text === undefined ? undefined : parseQuietly(text);
  if (!isObject(document) || !Object.hasOwn(document, 'asyncapi')) return readContractFile(source, read);
  read.set(source, text);
  return readAsyncApi(source, document);
}

/** @param {string} text @returns {unknown} */
function parseQuietly(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // the reader of contract files says why
  }
}

/** Milliseconds between two looks at the files, and at a service. */
const FILE_INTERVAL = 300;
const SERVICE_INTERVAL = 5000;

/**
 * Writes again after each change of a file that was read, or at intervals for a service. Runs until the process is stopped.
 * @param {string} source
 * @param {string} out
 * @param {string} version
 * @returns {Promise<never>}
 */
async function watch(source, out, version) {
  for (;;) {
    /** @type {Map<string, string | undefined>} */
    const read = new Map();
    await run(source, out, version, read);
    do await setTimeout(isUrl(source) ? SERVICE_INTERVAL : FILE_INTERVAL);
    while (!isUrl(source) && [...read].every(([file, text]) => textOf(file) === text));
  }
}

/**
 * Reads the text, so that no change is missed, whatever an editor or a mounted folder does with files and their times.
 * @param {string} file
 */
function textOf(file) {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}

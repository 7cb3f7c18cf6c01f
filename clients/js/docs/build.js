// Writes docs/api (by TypeDoc, from types/) and docs/errors.md. `npm run build` first.
//
//   node docs/build.js          write them
//   node docs/build.js --check  write nothing; fail if one is out of date

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CLOSE_CODES, ERROR_CODES } from '../src/codes.js';
import { ACTIONS, CLIENT, CLOSES } from './errors.js';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const API = join(ROOT, 'docs', 'api');
const ERRORS = join(ROOT, 'docs', 'errors.md');
/** Places where the client makes an error of its own, or chooses its code. */
const MADE = /(?:TidewireError|#error|[.#]problem|#warn|refusal|[#.]giveUp)\((?:(?:message\.)?id, |entry, )?(.*)|const code = (.*)/g;

/** The codes that the source gives to errors of the client. The service for tests answers as the real one does. */
function ownCodes() {
  const codes = new Set();
  for (const entry of readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' })) {
    if (!entry.endsWith('.js') || entry.startsWith('testing')) continue;
    for (const [, made, chosen] of readFileSync(join(ROOT, 'src', entry), 'utf8').matchAll(MADE)) {
      const [expression] = (made ?? chosen).split(', ');
      for (const [, code] of expression.matchAll(/'([a-z]+(?:_[a-z]+)*)'/g)) codes.add(code);
    }
  }
  return codes;
}

/** @param {string} what @param {Iterable<string>} wanted @param {Record<string, unknown>} found */
function complete(what, wanted, found) {
  const names = new Set(wanted);
  const wrong = [...names].filter((name) => !(name in found)).map((name) => `${name} is missing`);
  wrong.push(...Object.keys(found).filter((name) => !names.has(name)).map((name) => `there is no ${name}`));
  if (wrong.length) throw new Error(`docs/errors.js, ${what}: ${wrong.join(', ')}`);
}

function errorsPage() {
  const stopping = Object.entries(CLOSE_CODES).filter(([, { action }]) => action !== 'reconnect');
  complete('ACTIONS', Object.keys(ERROR_CODES), ACTIONS);
  complete('CLIENT', [...ownCodes()].filter((code) => !(code in ERROR_CODES)), CLIENT);
  complete('CLOSES', stopping.map(([, { name }]) => name), CLOSES);
  const own = Object.entries(CLIENT).map(([code, [meaning, action]]) => `### \`${code}\`\n\n${meaning}\n\n**What to do:** ${action}\n`);
  const service = Object.entries(ERROR_CODES).map(([code, { status, retryable, meaning }]) => {
    return `### \`${code}\`\n\n${meaning} HTTP status ${status}${retryable ? ', retryable' : ''}.\n\n**What to do:** ${ACTIONS[code]}\n`;
  });
  const closes = stopping.map(([code, { name, meaning }]) => `| \`${name}\` | ${code} | ${meaning} | ${CLOSES[name]} |\n`);
  return `<!-- Written by \`npm run docs\` from docs/errors.js and src/codes.js. Do not edit. -->

# Errors of the JavaScript client

An error is a \`TidewireError\`: \`code\`, \`message\`, \`channel\`, \`help\`, \`details\`, and \`retryable\`, which says whether the same request can succeed later.
\`client.explain()\` shows the last ones. After a retryable error, the client tries again by itself.

[Of the client](#of-the-client) · [Of the service](#of-the-service) · [Of a closed connection](#of-a-closed-connection)

## Of the client

${own.join('\n')}
## Of the service

${service.join('\n')}
## Of a closed connection

After these close codes the client does not reconnect as it was. The name is the \`code\` of the error and the \`reason\` of \`client.status\`. After all others it reconnects.

| code | number | meaning | what to do |
|---|---|---|---|
${closes.join('')}`;
}

/** Writes the reference of the API into a folder. @param {string} out */
function writeApi(out) {
  execFileSync(process.execPath, [join(ROOT, 'node_modules', '.bin', 'typedoc'), '--options', join(ROOT, 'docs', 'typedoc.json'), '--out', out], { cwd: ROOT, stdio: ['ignore', 'ignore', 'inherit'] });
  for (const name of readdirSync(out, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.md'))) {
    // TypeDoc resolves the names of a contract before there is one.
    writeFileSync(join(out, name), readFileSync(join(out, name), 'utf8').replaceAll('*extends* `never`', '*extends* `string`'));
  }
  for (const name of ['tidewire', 'collections', 'react', 'testing', 'codes']) {
    const page = readFileSync(join(out, name === 'tidewire' ? 'tidewire.md' : join('tidewire', `${name}.md`)), 'utf8').replaceAll('\\_', '_');
    const types = readFileSync(join(ROOT, 'types', name === 'tidewire' ? 'tidewire.d.ts' : name === 'codes' ? 'codes.d.ts' : join(name, 'index.d.ts')), 'utf8');
    for (const [, exported] of types.matchAll(/^export (?:type|function|interface|const|class) (\w+)/gm)) {
      const isThere = new RegExp(`^###? ${exported}(?:\\(\\))?$`, 'm').test(page);
      if (!isThere && !OTHERWISE.includes(exported)) throw new Error(`docs/entries/${name}.ts does not have ${exported}`);
    }
  }
}

/** Exports that have another name in the reference. */
const OTHERWISE = ['Collection'];

/** @param {string} folder @returns {Record<string, string>} */
function read(folder) {
  return Object.fromEntries(readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.md')).sort().map((name) => [name, readFileSync(join(folder, name), 'utf8')]));
}

if (process.argv[2] === '--check') {
  const scratch = mkdtempSync(join(tmpdir(), 'tidewire-docs-'));
  try {
    writeApi(scratch);
    const isCurrent = JSON.stringify(read(scratch)) === JSON.stringify(read(API)) && readFileSync(ERRORS, 'utf8') === errorsPage();
    if (!isCurrent) throw new Error('docs/api or docs/errors.md is out of date; run `npm run docs`');
  } finally {
    rmSync(scratch, { recursive: true });
  }
} else {
  writeFileSync(ERRORS, errorsPage());
  rmSync(API, { recursive: true, force: true });
  writeApi(API);
}

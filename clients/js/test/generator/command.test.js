// The command `tidewire-types`, as it is in the package: one file without dependencies.
import assert from 'node:assert/strict';
import { execFile, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'tidewire-types-'));
const command = join(folder, 'bin', 'tidewire-types.cjs');
const contract = join(folder, 'contract.yaml');
const TEXT = 'channels: {"room:{room}": {events: {chat.message: {publish: subscriber, delivery: ephemeral, schema: {type: string}}}}}';

before(() => {
  execFileSync(process.execPath, [join(root, 'generator', 'build.js'), join(folder, 'bin')], { cwd: root });
  writeFileSync(contract, TEXT);
});
after(() => rmSync(folder, { recursive: true }));

/**
 * @param {string[]} words
 * @param {Record<string, string>} [environment]
 * @returns {Promise<{status: number, out: string, error: string}>}
 */
function run(words, environment = {}) {
  return new Promise((resolve) => {
    execFile(process.execPath, [command, ...words], { env: { PATH: process.env.PATH, ...environment }, cwd: folder }, (error, out, text) => {
      resolve({ status: error ? Number(error.code) : 0, out, error: text });
    });
  });
}

test('the command prints types, and needs nothing beside its file', async () => {
  const { status, out, error } = await run(['contract.yaml']);
  assert.deepEqual([status, error], [0, '']);
  assert.match(out, /"chat\.message": \{ data: ChatMessage; delivery: "ephemeral"; publish: true \};/);
  assert.match(readFileSync(join(folder, 'bin', 'LICENSES.txt'), 'utf8'), /json-schema-to-typescript [\d.]+ \(MIT\)/);
});

test('wrong arguments have status 2, and faults status 1', async () => {
  for (const words of [[], ['a', 'b'], ['--none'], ['--watch', 'contract.yaml']]) assert.equal((await run(words)).status, 2, words.join(' '));
  const { status, error } = await run(['none.yaml']);
  assert.deepEqual([status, error], [1, 'none.yaml: cannot be read: there is no such file\n']);
});

test('types of a service need its key from the environment', async () => {
  /** @type {(string | undefined)[]} */
  const keys = [];
  const server = createServer(({ headers, url }, response) => {
    keys.push(headers.authorization);
    if (url === '/moved/api/v1/asyncapi.json') return response.writeHead(302, { location: '/api/v1/asyncapi.json' }).end();
    if (headers.authorization !== 'Bearer secret') return response.writeHead(401).end('{}');
    return response.end(JSON.stringify({
      asyncapi: '3.0.0', info: { 'x-tidewire': { contract: '0123456789abcdef' } }, components: { messages: {}, schemas: {} },
      channels: { c: { address: 'room:{room}', messages: {} } },
    }));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)));
  const url = `http://127.0.0.1:${/** @type {import('node:net').AddressInfo} */ (server.address()).port}`;
  try {
    assert.match((await run([url], { TIDEWIRE_API__KEY: 'secret' })).out, /the contract 0123456789abcdef/);
    writeFileSync(join(folder, 'api-key'), 'secret\n');
    assert.equal((await run([`${url}/`], { TIDEWIRE_API__KEY_FILE: 'api-key' })).status, 0);
    assert.match((await run([url])).error, /the API key is missing or wrong/);
    assert.deepEqual(keys, ['Bearer secret', 'Bearer secret', undefined]);
    assert.match((await run([`${url}/moved`], { TIDEWIRE_API__KEY: 'secret' })).error, /which is not followed/);
    assert.equal(keys.length, 4);
    assert.match((await run([url.replace('//', '//user:password@')])).error, /holds a password/);
  } finally {
    server.close();
  }
  assert.match((await run([url], { TIDEWIRE_API__KEY: 'secret' })).error, /no document: /);
});

test('--watch writes again after a change, and goes on after a fault', async () => {
  const out = join(folder, 'contract.d.ts');
  const watching = spawn(process.execPath, [command, '--watch', '--out', out, contract]);
  const lines = createInterface({ input: watching.stderr })[Symbol.asyncIterator]();
  try {
    assert.match((await lines.next()).value, /wrote .*contract\.d\.ts/);
    writeFileSync(contract, 'channels: [');
    assert.match((await lines.next()).value, /is not YAML/);
    writeFileSync(contract, TEXT.replace('chat.message', 'chat.typing'));
    assert.match((await lines.next()).value, /wrote /);
    assert.match(readFileSync(out, 'utf8'), /"chat\.typing": \{ data: ChatTyping;/);
  } finally {
    watching.kill();
  }
});

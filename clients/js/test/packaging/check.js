// The package as an application gets it: packed, installed from the tarball, and used with other tools and settings. `npm run check` builds
// it first, and then runs this.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after, before, describe } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { Worker } from 'node:worker_threads';
import { build } from 'vite';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const MODULES = join(ROOT, 'node_modules');
const ENTRIES = ['tidewire', 'tidewire/codes', 'tidewire/collections', 'tidewire/outbox', 'tidewire/testing', 'tidewire/react', 'tidewire/fallback'];
/** Milliseconds for a command: about ten times what it needs. */
const TIMEOUT = 120_000;

/** A publish and its event, without a network; `tell` gets the text. */
const ROUND_TRIP = `
const service = new TestService({ contract: { channels: { 'room:1': { subscribe: 'authenticated', events: {
  'chat.message': { publish: 'subscriber', delivery: 'durable' } } } } }, validate: false });
const client = new Tidewire(service.url, service.options);
client.channel('room:1').on('chat.message', ({ data }) => { tell(data.text); client.close(); });
client.connect();
client.publish('room:1', 'chat.message', { text: 'hi' });
`;

/** An application's folder, with the package installed. */
let app = '';
let tarball = '';

/** Runs a program of node_modules/.bin; rejects with its output if it fails. @param {string} name @param {string[]} words */
async function tool(name, ...words) {
  try {
    return (await run(process.execPath, [join(MODULES, '.bin', name), ...words], { cwd: app, timeout: TIMEOUT, env: { ...process.env, NO_COLOR: '1' } })).stdout;
  } catch (error) {
    const { stdout, stderr } = /** @type {any} */ (error);
    throw new Error(`${name} ${words.join(' ')}\n${stdout}${stderr}`, { cause: error });
  }
}

before(async () => {
  app = await mkdtemp(join(tmpdir(), 'tidewire-app-'));
  await run('npm', ['pack', '--ignore-scripts', '--pack-destination', app], { cwd: ROOT, timeout: TIMEOUT });
  const name = (await readdir(app)).find((entry) => entry.endsWith('.tgz'));
  assert.ok(name);
  tarball = join(app, name);
  await writeFile(join(app, 'package.json'), JSON.stringify({ name: 'app', private: true, type: 'module' }));
  await run('npm', ['install', '--offline', '--omit=peer', '--no-audit', '--no-fund', tarball], { cwd: app, timeout: TIMEOUT });
  await mkdir(join(app, 'node_modules', '@types'));
  for (const found of ['react', 'react-dom', 'scheduler', '@types/react', '@types/react-dom', 'csstype']) await symlink(join(MODULES, found), join(app, 'node_modules', found));
});

after(() => rm(app, { recursive: true, force: true }));

test('publint and attw find no fault in the package', async () => {
  await tool('publint', 'run', tarball, '--strict');
  // The package has ES modules only: `require` works where Node.js loads them.
  await tool('attw', tarball, '--profile', 'esm-only', '--no-emoji');
});

describe('strict TypeScript applications', { concurrency: 3 }, () => {
  for (const [module, moduleResolution] of [['ESNext', 'bundler'], ['Node16', 'node16'], ['NodeNext', 'nodenext']]) test(`compile with moduleResolution ${moduleResolution}`, async () => {
    const folder = join(app, moduleResolution);
    await mkdir(folder);
    for (const name of ['consumer.ts', 'react.tsx']) await cp(join(ROOT, 'test', 'types', name), join(folder, name));
    const compilerOptions = {
      module, moduleResolution, strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, skipLibCheck: false, skipDefaultLibCheck: true,
      noEmit: true, target: 'ES2022', lib: ['ES2022', 'DOM'], jsx: 'react-jsx', types: [], verbatimModuleSyntax: true,
    };
    await writeFile(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions }));
    await tool('tsc', '--project', folder);
  });
});

test('frameworks with server components take the hooks as code of the browser', async () => {
  const { exports } = JSON.parse(await readFile(join(app, 'node_modules', 'tidewire', 'package.json'), 'utf8'));
  for (const [entry, { default: path }] of Object.entries(exports)) {
    const text = await readFile(join(app, 'node_modules', 'tidewire', path), 'utf8');
    assert.equal(text.startsWith("'use client';\n"), entry === './react', entry);
  }
});

test('a page that is rendered on a server gets the hooks by reference, and its browser gets their code', async () => {
  const root = join(app, 'server-components');
  await mkdir(root);
  await writeFile(join(root, 'page.jsx'), `import { TidewireProvider } from 'tidewire/react';
    import { encodeUser } from 'tidewire';
    export const page = <TidewireProvider url={'/ws?user=' + encodeUser('ann|1')} />;`);
  await writeFile(join(root, 'browser.js'), "export * from 'tidewire/react';");
  /** What frameworks do with a module of the browser: the server keeps the names that it exports. @type {Set<string>} */
  const references = new Set();
  const plugin = {
    name: 'references',
    transform(/** @type {string} */ code, /** @type {string} */ id) {
      if (!/^'use client';/.test(code)) return undefined;
      references.add(id);
      const names = [...code.matchAll(/^export \{ (.*?) \}/gm)].flatMap(([, list]) => list.split(', '));
      return names.map((name) => `export const ${name} = { $$typeof: Symbol.for('react.client.reference'), $$id: ${JSON.stringify(name)} };`).join('\n');
    },
  };
  const options = { root, logLevel: /** @type {const} */ ('error'), configFile: /** @type {const} */ (false) };
  const output = (/** @type {string} */ name) => readFile(join(root, 'dist', name), 'utf8');
  await build({ ...options, plugins: [plugin], resolve: { conditions: ['react-server'] }, ssr: { noExternal: true, resolve: { conditions: ['react-server'] } }, build: { ssr: 'page.jsx', minify: false } });
  assert.deepEqual([...references].map((path) => path.slice(path.lastIndexOf('tidewire/'))), ['tidewire/src/react/index.js']);
  const server = await output('page.js');
  assert.match(server, /react\.client\.reference/);
  assert.doesNotMatch(server, /useSyncExternalStore|useEffect/);
  const { page } = await import(pathToFileURL(join(root, 'dist', 'page.js')).href);
  assert.deepEqual([page.type.$$id, page.props.url], ['TidewireProvider', '/ws?user=ann%7C1']);
  await build({ ...options, build: { lib: { entry: 'browser.js', formats: ['es'], fileName: 'browser' }, rollupOptions: { external: ['react'] }, minify: false } });
  assert.match(await output('browser.js'), /useSyncExternalStore/);
});

test('the page for a start with TypeScript compiles with types of its contract', async () => {
  const page = await readFile(join(ROOT, '..', '..', 'docs', 'start', 'typescript.md'), 'utf8');
  const folder = join(app, 'start');
  await mkdir(folder);
  for (const [, name, text] of page.matchAll(/<!-- file: (\S+) -->\n```\w+\n(.*?)```/gs)) await writeFile(join(folder, name), text);
  const { stdout } = await run(process.execPath, [join(app, 'node_modules', '.bin', 'tidewire-types'), 'contract.yaml'], { cwd: folder, timeout: TIMEOUT });
  await writeFile(join(folder, 'contract.d.ts'), stdout);
  await tool('tsc', '--project', folder, '--skipDefaultLibCheck');
  const room = await readFile(join(folder, 'Room.tsx'), 'utf8');
  await writeFile(join(folder, 'Room.tsx'), room.replace("{ text: 'hi' }", "{ txt: 'hi' }"));
  await assert.rejects(tool('tsc', '--project', folder, '--skipDefaultLibCheck'), /Room\.tsx.*txt/s);
});

test('Node.js imports every entry point, and requires it where it can', async () => {
  const imported = `${ENTRIES.map((entry) => `await import('${entry}');`).join('')}
    const { Tidewire } = await import('tidewire'), { TestService } = await import('tidewire/testing'), tell = console.log;${ROUND_TRIP}`;
  await writeFile(join(app, 'main.mjs'), imported);
  assert.equal((await run(process.execPath, ['main.mjs'], { cwd: app, timeout: TIMEOUT })).stdout, 'hi\n');
  if (!(/** @type {any} */ (process).features.require_module)) return;
  const required = `${ENTRIES.map((entry) => `require('${entry}');`).join('')}
    const { Tidewire } = require('tidewire'), { TestService } = require('tidewire/testing'), tell = console.log;${ROUND_TRIP}`;
  await writeFile(join(app, 'main.cjs'), required);
  assert.equal((await run(process.execPath, ['main.cjs'], { cwd: app, timeout: TIMEOUT })).stdout, 'hi\n');
});

test('Vite builds a page and a worker, and loads the outbox and the fallback on demand', async () => {
  const root = join(app, 'vite');
  await mkdir(root);
  await writeFile(join(root, 'index.html'), '<!doctype html><script type="module" src="/main.js"></script>');
  await writeFile(join(root, 'main.js'), "import { Tidewire } from 'tidewire'; globalThis.client = new Tidewire('/ws'); new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });");
  await writeFile(join(root, 'worker.js'), `import { Tidewire } from 'tidewire'; import { TestService } from 'tidewire/testing'; import { parentPort } from 'node:worker_threads';
    const tell = (text) => parentPort.postMessage(text);${ROUND_TRIP}`);
  await build({ root, logLevel: 'error', configFile: false, worker: { format: 'es', rollupOptions: { external: ['node:worker_threads'] } } });
  const assets = join(root, 'dist', 'assets');
  const names = await readdir(assets);
  for (const part of ['index', 'outbox', 'fallback', 'worker']) assert.ok(names.some((name) => name.startsWith(`${part}-`)), `${part}: ${names}`);
  const page = await readFile(join(assets, names.filter((name) => name.startsWith('index-'))[0]), 'utf8');
  assert.doesNotMatch(page, /indexedDB/);
  const texts = await Promise.all(names.map((name) => readFile(join(assets, name), 'utf8')));
  assert.ok(texts.some((text) => text.includes('Make the function return the token')), 'the help texts register themselves');

  // A thread has no window and no document, like a worker of a page.
  const worker = new Worker(join(assets, names.filter((name) => name.startsWith('worker-'))[0]));
  const [text] = await new Promise((resolve, reject) => {
    worker.once('message', (...values) => resolve(values));
    worker.once('error', reject);
    worker.once('exit', (code) => reject(new Error(`the worker ended with ${code}`)));
  });
  assert.equal(text, 'hi');
  await worker.terminate();
});

for (const version of ['18', '19']) {
  test(`React ${version} renders the hooks on a server`, async () => {
    const root = join(app, `react-${version}`);
    await mkdir(root);
    await writeFile(join(root, 'server.jsx'), `
      import { renderToString } from 'react-dom/server';
      import { TidewireProvider, useList, useConnection } from 'tidewire/react';
      const Room = () => <p>{useConnection().state} {useList('room:1', 'chat.message').status}</p>;
      export const markup = renderToString(<TidewireProvider url="wss://example.com/ws" options={{ anonymous: true }}><Room /></TidewireProvider>);`);
    /** @type {Record<string, string>} */
    const alias = version === '18' ? { 'react-dom': join(MODULES, 'react-dom-18'), react: join(MODULES, 'react-18') } : {};
    await build({ root, logLevel: 'error', configFile: false, ssr: { noExternal: true }, build: { ssr: 'server.jsx' }, resolve: { alias } });
    const { markup } = await import(pathToFileURL(join(root, 'dist', 'server.js')).href);
    assert.match(markup, /connecting.*loading/);
  });
}

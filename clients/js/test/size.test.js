// What each entry point costs a page: minified, compressed, with all that it imports at once.

import assert from 'node:assert/strict';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';

/** Bytes by entry point. @type {Record<string, number>} */
const BUDGETS = { 'tidewire.js': 10_060, 'codes.js': 2_600 };
/** Bytes that an addition costs a page that has `tidewire.js`, and React for its hooks. @type {Record<string, number>} */
const ADDITIONS = {
  'collections/index.js': 3_900,
  'outbox/outbox.js': 4_400,
  'testing/index.js': 21_550, // with all that is loaded later
  'react/index.js': 5_650,
  // Parts of the client that are loaded later.
  'upkeep/index.js': 4_900,
  'sending/publisher.js': 2_300,
  'subscriptions/state.js': 750,
  'subscriptions/own-token.js': 300,
  'fallback/fallback.js': 5_600,
  'share/share.js': 8_800,
};

/** What is imported when it is needed does not count. @type {import('esbuild').Plugin} */
const LATER = {
  name: 'later',
  setup: ({ onResolve }) => onResolve({ filter: /./ }, ({ kind, path }) => (kind === 'dynamic-import' ? { path, external: true } : undefined)),
};

/** The compressed size of a page that imports these. @param {string[]} entries */
async function sizeOf(...entries) {
  const { outputFiles } = await build({
    stdin: { contents: entries.map((entry) => `export * from './${entry}';`).join(''), resolveDir: fileURLToPath(new URL('../src', import.meta.url)) },
    bundle: true,
    plugins: [LATER],
    minify: true,
    format: 'esm',
    target: 'es2022',
    external: ['react'],
    write: false,
  });
  return gzipSync(outputFiles[0].contents, { level: 9 }).length;
}

for (const [entry, budget] of Object.entries({ ...BUDGETS, ...ADDITIONS })) {
  test(`${entry} keeps its budget of ${budget} bytes`, async (t) => {
    const size = entry in BUDGETS ? await sizeOf(entry) : (await sizeOf('tidewire.js', entry)) - (await sizeOf('tidewire.js'));
    t.diagnostic(`${entry}: ${size} bytes min+gzip`);
    assert.ok(size <= budget, `${size} bytes`);
  });
}

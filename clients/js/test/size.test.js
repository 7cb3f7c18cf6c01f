// What each entry point costs a page: minified, compressed, with all that it imports.

import assert from 'node:assert/strict';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';

/** Bytes by entry point. @type {Record<string, number>} */
const BUDGETS = { 'tidewire.js': 14_600, 'codes.js': 2_600 };

for (const [entry, budget] of Object.entries(BUDGETS)) {
  test(`${entry} keeps its budget of ${budget} bytes`, async (t) => {
    const { outputFiles } = await build({
      entryPoints: [fileURLToPath(new URL(`../src/${entry}`, import.meta.url))],
      bundle: true,
      minify: true,
      format: 'esm',
      target: 'es2022',
      write: false,
    });
    const size = gzipSync(outputFiles[0].contents, { level: 9 }).length;
    t.diagnostic(`${entry}: ${size} bytes min+gzip, ${outputFiles[0].contents.length} minified`);
    assert.ok(size <= budget, `${size} bytes`);
  });
}

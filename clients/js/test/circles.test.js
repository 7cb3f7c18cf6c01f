// No file of the client needs itself, neither at once nor through parts that are loaded later.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const ROOT = fileURLToPath(new URL('..', import.meta.url));

test('imports have no circle', async () => {
  const { exports } = JSON.parse(readFileSync(`${ROOT}/package.json`, 'utf8'));
  const { metafile } = await build({
    entryPoints: Object.values(exports).map((entry) => entry.default),
    absWorkingDir: ROOT,
    bundle: true,
    splitting: true,
    format: 'esm',
    outdir: 'unused',
    external: ['react'],
    metafile: true,
    write: false,
  });
  assert.ok(Object.keys(metafile.inputs).length > 60);
  /** @type {Set<string>} that are in no circle */
  const done = new Set();
  /** @param {string} file @param {string[]} way */
  const visit = (file, way) => {
    assert.ok(!way.includes(file), [...way, file].join(' → '));
    if (done.has(file)) return;
    for (const { path, external } of metafile.inputs[file].imports) if (!external) visit(path, [...way, file]);
    done.add(file);
  };
  for (const file of Object.keys(metafile.inputs)) visit(file, []);
});

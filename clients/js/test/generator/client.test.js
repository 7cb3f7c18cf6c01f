// The client with generated types: the example of docs/types.md compiles but for the lines that it marks as errors.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { readContractFile } from '../../generator/contract-file.js';
import { emit } from '../../generator/emit.js';
import { compilerErrors } from './typescript.js';

const page = readFileSync(new URL('../../../../docs/types.md', import.meta.url), 'utf8');

/** @param {RegExp} pattern */
const block = (pattern) => /** @type {RegExpExecArray} */ (pattern.exec(page))[1];

test('the example of the documentation fails where it says so, and nowhere else', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'tidewire-types-'));
  try {
    writeFileSync(join(folder, 'contract.yaml'), block(/<!-- file: contract.yaml -->\n```yaml\n([^]*?)```/));
    const contract = await emit(readContractFile(join(folder, 'contract.yaml')), '0.0.0');
    const app = block(/```ts\n(import [^]*?)```/)
      .replace("'tidewire'", "'../../src/tidewire.js'").replace("'./contract'", "'./contract.js'")
      .replace('{ token }', "{ token: () => 'x' }");
    const marked = app.split('\n').flatMap((line, index) => (line.includes('// error:') ? [index + 1] : []));
    const errors = compilerErrors({ 'contract.ts': contract, 'app.ts': app });
    assert.deepEqual(errors.map((error) => Number(/^app\.ts:(\d+):/.exec(error)?.[1] ?? error)), marked, errors.join('\n'));
    assert.equal(marked.length, 4);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

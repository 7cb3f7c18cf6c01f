// Builds bin/tidewire-types.cjs: the generator and the libraries it uses in one file, so that the package needs no dependencies
// (docs/adr/0043-types-from-the-contract.md). `npm run build:types-command`.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = fileURLToPath(new URL('..', import.meta.url));
const out = resolve(root, process.argv[2] ?? 'bin');

/** What json-schema-to-typescript imports but never calls here: it formats nothing, and reads no files. */
const UNUSED = ['prettier', 'cli-color', 'minimist', 'tinyglobby'];

/** @type {import('esbuild').Plugin} */
const withoutUnused = {
  name: 'without-unused',
  setup(plugin) {
    plugin.onResolve({ filter: new RegExp(`^(?:${UNUSED.join('|')})$`) }, ({ path }) => ({ path, namespace: 'unused' }));
    plugin.onLoad({ filter: /.*/, namespace: 'unused' }, () => ({ contents: 'module.exports = {};' }));
  },
};

const { metafile } = await build({
  absWorkingDir: root,
  entryPoints: ['generator/command.js'],
  outfile: join(out, 'tidewire-types.cjs'),
  bundle: true, minify: true, platform: 'node', target: 'node20', format: 'cjs', metafile: true, legalComments: 'none', lineLimit: 200, logLevel: 'warning',
  banner: { js: '#!/usr/bin/env node\n// Licences of what is in this file: LICENSES.txt' },
  plugins: [withoutUnused],
});

/** The packages in the file. @type {Set<string>} */
const packages = new Set();
for (const input of Object.keys(metafile.inputs)) {
  const found = /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(input);
  if (found) packages.add(found[1]);
}

const licences = [...packages].sort().map((folder) => {
  const { name, version, license } = JSON.parse(readFileSync(join(root, folder, 'package.json'), 'utf8'));
  const file = readdirSync(join(root, folder)).find((entry) => /^licen[cs]e/i.test(entry));
  if (!file) throw new Error(`${name} has no licence file`);
  return `${name} ${version} (${license})\n\n${readFileSync(join(root, folder, file), 'utf8').trim()}\n`;
});
writeFileSync(join(out, 'LICENSES.txt'), `tidewire-types.cjs contains these packages.\n\n${licences.join(`\n${'-'.repeat(80)}\n\n`)}`);

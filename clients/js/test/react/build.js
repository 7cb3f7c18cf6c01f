// Builds the page of tests/browser/test_react.py for React 18 and 19, and the example of the README: node build.js FOLDER

import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const here = fileURLToPath(new URL('.', import.meta.url));
const folder = process.argv[2];
const text = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
const [, readme] = /** @type {string[]} */ (/```jsx\n(.*?)```/s.exec(text));
const [, lists] = /** @type {string[]} */ (/```js\n([^`]*?collections[^]*?)```/.exec(text));
const app = readFileSync(new URL('app.jsx', import.meta.url), 'utf8');
/** @type {Record<string, string>} */
const react18 = { react: 'react-18', 'react-dom': 'react-dom-18' };

/** @param {string} name @param {string} contents @param {Record<string, string>} alias */
function page(name, contents, alias) {
  return build({
    stdin: { contents, loader: 'jsx', resolveDir: here, sourcefile: `${name}.jsx` },
    absWorkingDir: here, // an alias is resolved from there
    outfile: `${folder}/${name}.js`,
    bundle: true,
    format: 'esm',
    target: 'es2022',
    jsx: 'automatic',
    define: { 'process.env.NODE_ENV': '"development"' },
    alias,
  });
}

await Promise.all([page('18', app, react18), page('19', app, {}), page('readme', readme, {}), page('lists', lists, {})]);

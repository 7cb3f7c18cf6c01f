// Reads AsyncAPI documents, one JSON text a line, and prints what the official parser says: one JSON list of faults a line.
import { createInterface } from 'node:readline';
import { Parser } from '@asyncapi/parser';

const parser = new Parser({ __unstable: { resolver: { cache: false, resolvers: [{ schema: 'http', read: refuse }, { schema: 'https', read: refuse }, { schema: 'file', read: refuse }] } } });

/** @param {{toString(): string}} uri @returns {never} */
function refuse(uri) {
  throw new Error(`would have read ${uri}`);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { document, diagnostics } = await parser.parse(line);
  const faults = diagnostics
    .filter(({ severity }) => severity <= 1)
    .map(({ code, message, path }) => `${code}: ${message} (${path.join('.')})`);
  if (document === undefined && !faults.length) faults.push('no document');
  console.log(JSON.stringify(faults));
}

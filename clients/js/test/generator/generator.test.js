// `tidewire-types` makes types that compile, of any contract, and reads nothing but the contract.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { readAsyncApi } from '../../generator/asyncapi.js';
import { readContractFile } from '../../generator/contract-file.js';
import { emit } from '../../generator/emit.js';
import { dumpFloat } from '../../generator/hash.js';
import { commentText } from '../../generator/schemas.js';
import { compilerErrors, declarations } from './typescript.js';

const folder = mkdtempSync(join(tmpdir(), 'tidewire-types-'));
after(() => rmSync(folder, { recursive: true }));

/** @param {string} name @param {unknown} content */
function write(name, content) {
  const path = join(folder, name);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

/** @param {...any} schemas One event type for each. */
function contractOf(...schemas) {
  const events = Object.fromEntries(schemas.map((schema, i) => [`event.e${i}`, { publish: 'server', delivery: 'ephemeral', schema }]));
  return { channels: { 'room:{room}': { subscribe: 'grant', events } } };
}

/** @param {string} path */
const generate = (path) => emit(readContractFile(path), '0.0.0');

/** @param {any} schema Returns the type of the data of one event. */
async function typeOf(schema) {
  const text = await generate(write('one.json', contractOf(schema)));
  return text.slice(text.indexOf('EventE0', text.indexOf('\n}\n'))).replace(/\s+/g, ' ').trim();
}

test('schemas become the types that they allow', async () => {
  /** @type {[any, string][]} */
  const cases = [
    [true, 'EventE0 = unknown'],
    [false, 'EventE0 = never'],
    [{}, 'EventE0 = unknown'],
    [{ type: 'integer' }, 'EventE0 = number'],
    [{ type: ['string', 'null'] }, 'EventE0 = (string | null)'],
    [{ const: 'a' }, 'EventE0 = "a"'],
    [{ enum: ['a', 1, null] }, 'EventE0 = ("a" | 1 | null)'],
    [{ type: 'array', items: { enum: [1, 'a'] } }, 'EventE0 = (1 | "a")[]'],
    [{ type: 'array' }, 'EventE0 = unknown[]'],
    [{ type: 'array', items: { type: 'string' }, minItems: 1e6, maxItems: 1e7 }, 'EventE0 = string[]'],
    [{ type: 'array', prefixItems: [{ type: 'string' }, {}], items: false, minItems: 1 }, 'EventE0 = ([string] | [string, unknown])'],
    [{ type: 'object' }, 'EventE0 { [k: string]: unknown }'],
    [{ type: 'object', additionalProperties: { type: 'number' } }, 'EventE0 { [k: string]: number }'],
    [{ type: 'object', properties: { a: { type: 'string' } } }, 'EventE0 { a?: string }'],
    [{ properties: { a: {} }, required: ['a', 'b'] }, 'EventE0 { a: unknown b: unknown }'],
    [{ type: 'object', properties: { a: { type: 'number' } }, additionalProperties: { type: 'string' } },
      'EventE0 { a?: number [k: string]: unknown }'],
    [{ allOf: [{ properties: { a: {} } }, { properties: { b: {} } }] }, 'EventE0 = ({ a?: unknown } & { b?: unknown })'],
    [{ oneOf: [{ type: 'string' }, { $ref: '#/$defs/n' }], $defs: { n: { type: 'number' } } },
      'EventE0 = (string | EventE0N) export type EventE0N = number'],
    [{ type: 'array', items: { $ref: '#' } }, 'EventE0 = EventE0[]'],
    [{ anyOf: [{ type: 'string' }, { $ref: '#' }] }, 'EventE0 = (string | unknown)'],
    [{ $ref: '#/$defs/a', $defs: { a: { $ref: '#/$defs/b' }, b: { $ref: '#/$defs/a' } } },
      'EventE0 = EventE0A export type EventE0A = EventE0B export type EventE0B = unknown'],
  ];
  for (const [schema, expected] of cases) assert.equal(await typeOf(schema), expected, JSON.stringify(schema));
});

test('calls have types of what is asked and what is replied', async () => {
  write('money.json', { type: 'object', required: ['cents'], properties: { cents: { type: 'integer' } } });
  const calls = {
    'order.quote': { endpoint: 'shop', request: { type: 'string' }, reply: { $ref: 'money.json' } },
    'order.list': { endpoint: 'shop' },
  };
  const text = await generate(write('calls.json', { calls }));
  assert.match(text, /channels: \{\n {2}\};\n {2}calls: \{\n {4}"order\.list": \{ request: unknown; reply: unknown \};\n {4}"order\.quote": \{ request: OrderQuoteRequest; reply: Money \};/);
  assert.match(text, /export type OrderQuoteRequest = string/);
  assert.match(text, /export interface Money \{\s+cents: number\s+\}/);
  assert.doesNotMatch(await generate(write('none.json', contractOf({}))), /calls/);
});

test('descriptions become comments', async () => {
  const text = await generate(write('one.json', contractOf({ title: 'A title', description: 'Some text.', deprecated: true, type: 'string' })));
  assert.match(text, /\/\*\*\n \* @deprecated\n \* A title\n \*\n \* Some text\.\n \*\/\nexport type EventE0 = string/);
});

const EVIL = [
  '*/', '/*', '`', '${x}', '\n', '\r\n', '\u2028', '\\', '"', "'", '//', '__proto__', 'constructor', 'toString', '$ref', '[k: string]', 'a b',
  '', 'export', 'class', '@deprecated', '{keyNameFromDefinition}', 'é', '😀', '*\\/', '*', '/', '};export const x=1;', 'tsType', 'properties', 'title',
];
const name = fc.array(fc.constantFrom(...EVIL), { minLength: 1, maxLength: 2 }).map((parts) => parts.join(''));
const data = fc.letrec((tie) => ({
  any: fc.oneof({ maxDepth: 2 }, fc.constant(null), fc.boolean(), fc.double({ noNaN: true, noDefaultInfinity: true }), name,
    fc.array(tie('any'), { maxLength: 2 }), fc.dictionary(name, tie('any'), { maxKeys: 2 })),
})).any;
const notes = fc.record({
  title: name, description: name, deprecated: fc.boolean(), tsType: name, tsEnumNames: fc.array(name), customName: name, id: name, extends: name,
  nullable: fc.boolean(), default: data, examples: fc.array(data, { maxLength: 2 }), $comment: name, 'x-note': name, format: name,
}, { requiredKeys: [] });
const schemaOf = fc.letrec((tie) => {
  const several = fc.array(tie('schema'), { minLength: 1, maxLength: 3 });
  const named = fc.dictionary(name, tie('schema'), { maxKeys: 3 });
  const shapes = fc.oneof(
    fc.record({ type: fc.constant('object'), properties: named, required: fc.array(name, { maxLength: 2 }), additionalProperties: tie('schema') },
      { requiredKeys: ['properties'] }),
    fc.record({ patternProperties: named }),
    fc.record({ type: fc.constant('array'), items: tie('schema'), maxItems: fc.nat(1e9), minItems: fc.nat(1e9) }, { requiredKeys: ['items'] }),
    fc.record({ prefixItems: several, items: tie('schema'), minItems: fc.nat(4) }, { requiredKeys: ['prefixItems'] }),
    fc.record({ anyOf: several, oneOf: several, allOf: several }, { requiredKeys: [] }),
    fc.record({ not: tie('schema'), if: tie('schema'), then: tie('schema') }),
  );
  return {
    schema: fc.oneof({ maxDepth: 4, withCrossShrink: true },
      fc.boolean(), fc.record({ const: data }), fc.record({ enum: fc.array(data, { minLength: 1, maxLength: 3 }) }),
      fc.record({ type: fc.constantFrom('string', 'integer', 'null', 'object', 'array', ['string', 'null'], ['number', 'object']) }),
      fc.record({ $ref: fc.constantFrom('#', '#/$defs/a', '#/$defs/b', '#/$defs/c') }),
      fc.tuple(notes, shapes).map(([note, shape]) => ({ ...note, ...shape }))),
  };
}).schema;
const rooted = fc.tuple(schemaOf, schemaOf, schemaOf, schemaOf)
  .map(([schema, a, b, c]) => ({ allOf: [schema], $defs: { a, b, c } }));

test('types of any schemas compile, and declare nothing else', async () => {
  await fc.assert(fc.asyncProperty(fc.array(rooted, { minLength: 12, maxLength: 12 }), async (schemas) => {
    const text = await generate(write('random.json', contractOf(...schemas)));
    for (const declared of declarations(text)) assert.match(declared, /^(?:Contract|EventE\d+[ABC]?)$/);
    assert.deepEqual(compilerErrors({ 'contract.ts': text }), []);
    assert.equal(await generate(write('random.json', contractOf(...schemas))), text);
  }), { numRuns: 10 });
});

test('the hostile contract compiles, and declares only types', async () => {
  const text = await generate(new URL('../../../../tests/unit/contracts/hostile.yaml', import.meta.url).pathname);
  assert.deepEqual(compilerErrors({ 'contract.ts': text }), []);
  assert.deepEqual(declarations(text).filter((declared) => /Statement|Declaration|Keyword/.test(declared)), []);
});

test('text in a comment cannot end it, and is no tag', () => {
  fc.assert(fc.property(fc.array(fc.constantFrom('*', '/', '\\', '\n', ' ', '@', 'x', '\u2028', '\0')).map((parts) => parts.join('')), (text) => {
    const safe = commentText(text);
    assert.ok(!safe.includes('*/'));
    assert.doesNotMatch(safe, /^\s*@/m);
  }));
});

test('references to anything but schema files are refused with their place, and nothing is fetched', async () => {
  let requests = 0;
  const server = createServer((_, response) => response.end(`{"requests": ${++requests}}`));
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)));
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  write('outside/secret.json', { type: 'string' });
  mkdirSync(join(folder, 'inside'), { recursive: true });
  symlinkSync(join(folder, 'outside'), join(folder, 'inside', 'link'));
  try {
    for (const [reference, reason] of [
      [`http://127.0.0.1:${port}/x.json`, 'nothing is fetched'], [`//127.0.0.1:${port}/x.json`, 'nothing is fetched'],
      ['file:///etc/passwd', 'nothing is fetched'], ['/etc/passwd', 'nothing is fetched'], ['..\\secret.json', 'nothing is fetched'],
      ['../outside/secret.json', 'outside the contract'], ['x/../../outside/secret.json', 'outside the contract'],
      ['link/secret.json', 'outside the contract'], ['contract.json', 'cannot refer to the contract file'], ['none.json', 'no such file'],
      ['#/$defs/none', 'refers to nothing'], ['#none', 'refers to nothing'], ['#/__proto__', 'refers to nothing'], ['#/%ff', 'percent-encoded'],
    ]) {
      const path = write('inside/contract.json', contractOf({ type: 'object', properties: { 'a b': { $ref: reference } } }));
      await assert.rejects(async () => generate(path), (error) => {
        assert.ok(error instanceof Error && error.message.includes(reason), `${reference}: ${error}`);
        return reason === 'no such file' ||
          error.message.includes('$.channels["room:{room}"].events["event.e0"].schema.properties["a b"].$ref: ');
      });
    }
    assert.equal(requests, 0);
  } finally {
    server.close();
  }
});

test('endless and huge schemas end with an error', async () => {
  let deep = /** @type {any} */ ({ type: 'string' });
  for (let i = 0; i < 1000; i++) deep = { type: 'array', items: deep };
  await assert.rejects(generate(write('deep.json', contractOf(deep))), /nested more than \d+ deep/);
  const wide = { anyOf: Array.from({ length: 60_000 }, () => ({ type: 'string' })) };
  await assert.rejects(generate(write('wide.json', contractOf(wide))), /more than \d+ schemas/);
  const bomb = ['a: &a [1]', ...Array.from({ length: 30 }, (_, i) => `b${i}: &b${i} [${'*a,'.repeat(20)}]`.replaceAll('*a', i ? `*b${i - 1}` : '*a'))];
  await assert.rejects(async () => generate(write('bomb.yaml', bomb.join('\n'))), /cannot be read/);
});

test('faults of a contract name their place', async () => {
  /** @type {[any, RegExp][]} */
  const cases = [
    [{}, /\$\.channels: is a mapping/],
    [{ channels: { 'a b': {} } }, /\$\.channels\["a b"\]: is not a channel pattern/],
    [{ channels: { a: { events: { x: {} } } } }, /\$\.channels\.a\.events\.x: is not an event type/],
    [{ channels: { a: { events: { 'x.y': { delivery: '"; evil' } } } } }, /\.delivery: is one of durable, latest, ephemeral/],
    [{ calls: { quote: {} } }, /\$\.calls\.quote: is not the name of a call/],
    [{ calls: { 'order.quote': 7 } }, /\$\.calls\["order\.quote"\]: is a mapping/],
    [{ calls: { 'order.quote': { request: { type: 'evil' } } } }, /\$\.calls\["order\.quote"\]\.request\.type: is no type of JSON Schema/],
    [contractOf({ type: 'evil' }), /schema\.type: is no type of JSON Schema/],
    [contractOf(5), /\.schema: is no JSON Schema/],
  ];
  for (const [contract, expected] of cases) await assert.rejects(async () => generate(write('faulty.json', contract)), expected);
  await assert.rejects(async () => generate(write('faulty.yaml', 'a: [')), /faulty\.yaml: is not YAML: /);
  await assert.rejects(async () => generate(write('faulty.json', '{')), /faulty\.json: is not JSON: /);
});

test('a hostile document of a service is refused with the place', async () => {
  /** @returns {any} */
  const sound = () => ({
    info: { 'x-tidewire': { contract: '0123456789abcdef' } },
    channels: {
      c: { address: 'room:{room}', messages: { 'a.b': { $ref: '#/components/messages/m' } } },
      q: { address: null, messages: { request: { $ref: '#/components/messages/r' }, reply: { $ref: '#/components/messages/m' } }, 'x-tidewire': { call: 'c.d' } },
    },
    components: {
      messages: { r: { payload: {} }, m: { payload: { $ref: '#/components/schemas/s' }, 'x-tidewire': { delivery: 'latest', publish: 'server' } } },
      schemas: { s: { type: 'string' } },
    },
  });
  assert.match(await emit(readAsyncApi('x', sound()), '0'), /"a\.b": \{ data: S; delivery: "latest"; publish: false \};/);
  assert.match(await emit(readAsyncApi('x', sound()), '0'), /calls: \{\n {4}"c\.d": \{ request: unknown; reply: S \};/);
  /** @type {[(document: any) => void, RegExp][]} */
  const cases = [
    [(d) => { d.info['x-tidewire'].contract = "'); evil()"; }, /\$\.info\["x-tidewire"\]\.contract: is not the hash/],
    [(d) => { d.channels.c.address = '"; evil'; }, /\$\.channels\.c\.address: is not a channel pattern/],
    [(d) => { d.channels.c.messages = { '*/': { $ref: '#/components/messages/m' } }; }, /messages\["\*\/"\]: is not an event type/],
    [(d) => { d.components.messages.m['x-tidewire'].delivery = 'evil'; }, /delivery: is one of durable/],
    [(d) => { d.components.messages.m.payload.$ref = 'http://127.0.0.1:1/x'; }, /nothing is fetched/],
    [(d) => { d.components.schemas.s = { $ref: 'file:///etc/passwd' }; }, /nothing is fetched/],
    [(d) => { d.channels.c.messages['a.b'].$ref = '#/components/messages/__proto__'; }, /is missing, or is no object/],
    [(d) => { d.channels.q['x-tidewire'].call = '"; evil'; }, /call: is not the name of a call/],
    [(d) => { delete d.channels.q.messages.reply; }, /messages\.reply: is missing/],
    [(d) => { delete d.channels; }, /\$\.channels: is missing/],
  ];
  for (const [change, expected] of cases) {
    const document = sound();
    change(document);
    await assert.rejects(async () => emit(readAsyncApi('x', document), '0'), expected);
  }
});

test('floats are written as Python writes them', () => {
  /** @type {[number, string][]} */
  const cases = [
    [1, '1.0'], [-0, '-0.0'], [0.1, '0.1'], [1e16, '1e+16'], [1e15, '1000000000000000.0'], [123456789012345680, '1.2345678901234568e+17'], [1e-4, '0.0001'],
    [1.5e-5, '1.5e-05'], [-2.5e-300, '-2.5e-300'], [5e-324, '5e-324'], [100.25, '100.25'], [1e22, '1e+22'],
  ];
  for (const [value, expected] of cases) assert.equal(dumpFloat(value), expected);
});

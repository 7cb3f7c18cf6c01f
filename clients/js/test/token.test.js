import assert from 'node:assert/strict';
import { test } from 'node:test';

import { systemClock } from '../src/clock.js';
import { TokenSource } from '../src/token.js';

test('a token kept in a file ends in a newline, which is no part of it', async () => {
  assert.equal(await new TokenSource('abc\n', systemClock).get(), 'abc');
  assert.equal(await new TokenSource(() => Promise.resolve(' abc\r\n'), systemClock).get(), 'abc');
});

test('however many ask at once, the application is asked once', async () => {
  let asked = 0;
  const source = new TokenSource(() => `token ${(asked += 1)}`, systemClock);
  assert.deepEqual(await Promise.all([source.get(), source.get(), source.renew()]), ['token 1', 'token 1', 'token 1']);
  source.refused();
  assert.equal(await source.get(), 'token 2');
});

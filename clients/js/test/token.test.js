import assert from 'node:assert/strict';
import { test } from 'node:test';

import { systemClock } from '../src/base/clock.js';
import { TokenSource, checkToken } from '../src/connection/token.js';
import { upkeep } from '../src/parts.js';

const core = { clock: systemClock, loadUpkeep: () => upkeep.get(systemClock) };

test('a token kept in a file ends in a newline, which is no part of it', async () => {
  assert.equal(await new TokenSource('abc\n', core).get(), 'abc');
  assert.equal(await new TokenSource(() => Promise.resolve(' abc\r\n'), core).get(), 'abc');
});

test('however many ask at once, the application is asked once', async () => {
  let asked = 0;
  const source = new TokenSource(() => `token-${(asked += 1)}`, core);
  assert.deepEqual(await Promise.all([source.get(), source.get(), source.renew()]), ['token-1', 'token-1', 'token-1']);
  source.refused();
  assert.equal(await source.get(), 'token-2');
});

const JWT = 'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk';
for (const [given, says] of /** @type {[unknown, RegExp][]} */ ([
  [{ token: JWT }, /returned \{"token":"eyJ…"\}, which is not a token/],
  ['', /returned "",/],
  [undefined, /returned undefined,/],
  [null, /returned null,/],
  [42, /returned 42,/],
  [['a'], /returned \["a"\],/],
  ['undefined', /returned "undefined"/],
  ['<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>', /returned "<!DOCTYPE html>/],
  ['Not Found', /returned "Not Found"/],
  [`{"token": "${JWT}"}`, /returned "\{"token": "eyJ…"\}"/],
  [`Bearer ${JWT}`, /returned "Bearer eyJ…"/],
  ['x y'.repeat(500), /…, which/],
])) {
  test(`${String(given).slice(0, 20)} is not a token, and the error shows it without secrets`, async () => {
    /** @type {any} */
    let error;
    await assert.rejects(checkToken(given, 'the function `token`', core), (thrown) => Boolean((error = thrown)));
    assert.equal(error.code, 'token_failed');
    assert.match(error.message, /^the function `token` returned/);
    assert.match(error.message, says);
    assert.ok(error.message.length < 160 && !error.message.includes(JWT.slice(0, 12)));
  });
}

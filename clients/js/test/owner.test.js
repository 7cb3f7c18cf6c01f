// Which client sends stored publishes: the locks of src/outbox/owner.js.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Owner } from '../src/outbox/owner.js';
import { soon } from './support.js';

/** Web Locks of one name: a lock is granted in a later task, after the one before it is released. */
class Locks {
  held = 0;
  /** @type {Promise<unknown>} */
  #last = Promise.resolve();

  /** @param {string} _name @param {() => Promise<void>} hold */
  request(_name, hold) {
    const granted = this.#last.then(async () => {
      await new Promise((resolve) => setImmediate(resolve));
      this.held += 1;
      await hold();
      this.held -= 1;
    });
    this.#last = granted;
    return granted;
  }
}

test('a client that rests while its lock is asked for can hold it again', async (t) => {
  const locks = new Locks();
  const found = Object.getOwnPropertyDescriptor(globalThis, 'navigator');
  Object.defineProperty(globalThis, 'navigator', { configurable: true, value: { locks } });
  t.after(() => (found ? Object.defineProperty(globalThis, 'navigator', found) : Reflect.deleteProperty(globalThis, 'navigator')));
  const owner = new Owner('database', 'me');
  void owner.live();
  owner.rest();
  await soon(owner.live(), 'the lock');
  assert.equal(locks.held, 1);
  owner.rest();
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(locks.held, 0);
});

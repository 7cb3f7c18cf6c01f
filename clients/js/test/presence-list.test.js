// Who is in a channel, after a client has set what is shown of its user. A client that does not know of it has the same list.

import assert from 'node:assert/strict';
import test from 'node:test';
import { PresenceList } from '../src/subscriptions/presence-list.js';
import { PresenceList as OldPresenceList } from '../../../tests/compatibility/clients/1731161/js/presence-list.js';

const EVENT = { type: 'presence.joined', channel: 'room:1', id: 'j', at: 1, from: 'ben', key: 'ben' };
const BUSY = { ...EVENT, data: { user: 'ben', info: { status: 'busy' }, updated: true } };

for (const [age, List] of Object.entries({ new: PresenceList, old: OldPresenceList })) {
  test(`an update changes the info of a member: ${age} client`, () => {
    const list = new List();
    list.replace({ count: 2, members: [{ user: 'ann', connections: 1 }, { user: 'ben', connections: 2, info: { name: 'Ben' } }] });
    const change = list.apply(BUSY);
    assert.equal(change?.count, 2);
    assert.deepEqual(change?.joined?.info, { status: 'busy' });
    assert.deepEqual(change?.members?.map(({ user, connections, info }) => ({ user, connections, info })), [
      { user: 'ann', connections: 1, info: undefined },
      { user: 'ben', connections: 2, info: { status: 'busy' } },
    ]);
    assert.equal(list.apply({ ...EVENT, type: 'presence.left', data: { user: 'ben' } })?.count, 1);
  });
}

test('an update tells who has set the info, until the token does', () => {
  const list = new PresenceList();
  list.replace({ count: 1, members: [{ user: 'ben', connections: 1 }] });
  assert.equal(list.apply(BUSY)?.joined?.updated, true);
  assert.equal(list.apply({ ...EVENT, data: { user: 'ben', info: {} } })?.joined?.updated, undefined);
});

test('an update changes no count of a channel that is not listed', () => {
  const list = new PresenceList();
  list.replace({ count: 300 });
  assert.equal(list.apply(BUSY)?.count, 300);
  assert.equal(list.apply({ ...EVENT, data: { user: 'eve' } })?.count, 301);
});

test('a list has a bound', () => {
  const list = new PresenceList();
  list.replace({ count: 100_000, members: Array.from({ length: 100_000 }, (_, n) => ({ user: `u-${n}` })) });
  assert.equal(list.apply({ ...EVENT, data: { user: 'eve' } }), undefined);
});

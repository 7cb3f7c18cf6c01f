// Lists, maps and presence. The import adds `list`, `map` and `presence` to channels:
//
//   import 'tidewire/collections';
//   const messages = client.channel('room:42').list('chat.message', { tail: 50 });
//   messages.subscribe(() => render(messages.items));

import { Channel, partsOf } from '../channel.js';
import { channelState } from '../parts.js';
import { List } from './list.js';
import { LiveMap } from './map.js';
import { Presence } from './presence.js';

export { List, LiveMap, Presence };

/**
 * @typedef {import('./collection.js').CollectionStatus} CollectionStatus
 * @typedef {import('./channel-types.js').CollectionOf<any>} Collection
 */
/** @template E @typedef {import('./channel-types.js').ListOptions<E>} ListOptions */
/** @template E @typedef {import('./channel-types.js').ListSnapshot<E>} ListSnapshot */
/** @template E @typedef {import('./channel-types.js').MapOptions<E>} MapOptions */
/** @template E @typedef {import('./channel-types.js').MapSnapshot<E>} MapSnapshot */
/** @template I @typedef {import('./channel-types.js').PresenceSnapshot<I>} PresenceSnapshot */

/** @type {WeakMap<Channel<any, any>, Presence>} */
const presences = new WeakMap();

/** What it will need: the first value or user need not wait for it. @param {Channel<any, any>} channel */
const loadState = (channel) => void channelState.get(partsOf(channel).core.clock);

/** @type {PropertyDescriptorMap & ThisType<Channel<any, any>>} */
const additions = {
  list: {
    /** @param {string | readonly string[]} types @param {any} [options] */
    value(types, options = {}) {
      return new List(this, types, options, partsOf(this).handle);
    },
  },
  map: {
    /** @param {string} type @param {import('./channel-types.js').MapOptions<any>} [options] */
    value(type, options = {}) {
      loadState(this);
      return new LiveMap(this, type, options);
    },
  },
  presence: {
    get() {
      loadState(this);
      const presence = presences.get(this) ?? new Presence(this);
      presences.set(this, presence);
      return presence;
    },
  },
};
for (const addition of Object.values(additions)) addition.configurable = true;
Object.defineProperties(Channel.prototype, additions);

/**
 * Lists, maps and presence. The import adds `list`, `map` and `presence` to channels.
 * @module tidewire/collections
 */
export type { CollectionStatus } from '../../types/collections/collection.js';
export type {
  CollectionOf, Item, ListOf, ListOptions, ListSnapshot, MapItem, MapOf, MapOptions, MapSnapshot, MemberOf, PresenceOf, PresenceSnapshot,
} from '../../types/collections/channel-types.js';

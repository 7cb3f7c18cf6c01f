// The types of collections, and what the import of `tidewire/collections` adds to channels.

import type { Ack, Event, Member, Position } from '../messages.js';
import type { AnyContract, ContractLike, EventOf, PresenceInfo, TypeWith } from '../contract-types.js';
import type { TidewireError } from '../errors.js';
import type { CollectionStatus } from './collection.js';

/** An item of a `snapshot`: an event, or what the application has of one. */
export type Item<E> = Partial<E> & { id: string };

export interface ListOptions<E> {
  /** The number of items to begin with, 50. */
  tail?: number;
  /** The most items, 1 000; the oldest are dropped. */
  max?: number;
  /** What an event is about, its `id` by default. An event with the key of an earlier one takes its place. */
  key?: (event: E) => string;
  /**
   * Reads the first state from the application, instead of the channel's history. Events that arrive meanwhile come after it. With
   * the channel's `position` at which it was read, exactly those that it does not have.
   */
  snapshot?: (context: { signal: AbortSignal }) => Promise<Item<E>[] | { items: Item<E>[]; position?: Position }>;
  /** Closes the list. */
  signal?: AbortSignal;
}

export interface ListSnapshot<E> {
  readonly items: readonly E[];
  readonly status: CollectionStatus;
  readonly hasOlder: boolean;
  readonly error?: TidewireError;
}

/** An item of a map's `snapshot`: an event, or what the application has of one. */
export type MapItem<E> = Partial<E> & { key: string };

export interface MapOptions<E> {
  /**
   * Reads values from the application that the service may no longer have. Where both have a key, the greater `rev` counts; an item without
   * a `rev` is older than everything that the service says. It is read again after each interruption.
   */
  snapshot?: (context: { signal: AbortSignal }) => Promise<MapItem<E>[]>;
  /** Closes the map. */
  signal?: AbortSignal;
}

export interface MapSnapshot<E> {
  readonly values: ReadonlyMap<string, E>;
  readonly status: CollectionStatus;
  readonly error?: TidewireError;
}

/** A user in a channel, with the `info` of the contract. */
export type MemberOf<Info> = Omit<Member, 'info'> & { info?: Info };

export interface PresenceSnapshot<Info> {
  /** Empty if the channel has too many to list. */
  readonly members: readonly MemberOf<Info>[];
  readonly count: number;
  /** Whether `members` lists all users. */
  readonly isListed: boolean;
  readonly status: CollectionStatus;
  readonly error?: TidewireError;
}

/** What all collections have. */
export interface CollectionOf<Snapshot> {
  readonly status: CollectionStatus;
  readonly error?: TidewireError;
  /** Calls back after changes, once for all changes of one task. Returns the function that stops it. */
  subscribe(listener: () => void): () => void;
  /** The state as a frozen object, which is replaced only when something changes. */
  getSnapshot(): Snapshot;
  /** Stops following the channel. The last state stays; the channel is not left. */
  close(): void;
}

export interface ListOf<E> extends CollectionOf<ListSnapshot<E>> {
  /** The events, oldest first: a frozen array, which is replaced only when it changes. */
  readonly items: readonly E[];
  /** Whether the channel keeps older events than those in `items`. */
  readonly hasOlder: boolean;
  /** Reads older items, 50 by default. Resolves with the number of items that were added. */
  loadOlder(count?: number): Promise<number>;
}

export interface MapOf<E> extends CollectionOf<MapSnapshot<E>> {
  /** The newest event of a key. */
  get(key: string): E | undefined;
  has(key: string): boolean;
  /** The `rev` of a key, 0 if it has no value: what `ifRev` takes. */
  rev(key: string): number;
  entries(): IterableIterator<[string, E]>;
  [Symbol.iterator](): IterableIterator<[string, E]>;
  readonly size: number;
  /** A copy, which is replaced only when a value changes. */
  readonly values: ReadonlyMap<string, E>;
}

export interface PresenceOf<Info> extends CollectionOf<PresenceSnapshot<Info>> {
  readonly members: readonly MemberOf<Info>[];
  readonly count: number;
  readonly isListed: boolean;
  /** Sets what presence shows of the user in this channel, where the contract allows it. */
  update(info: Partial<Info>, options?: { timeout?: number; signal?: AbortSignal }): Promise<Ack>;
}

declare module '../channel.js' {
  interface Channel<C extends ContractLike = AnyContract, N extends string = string> {
    /** The newest durable events of these types, in order: history and live events merged. */
    list<T extends TypeWith<C, N, 'durable'>>(types: T | readonly T[], options?: ListOptions<EventOf<C, N, T>>): ListOf<EventOf<C, N, T>>;
    /** The latest values of a type, by key. */
    map<T extends TypeWith<C, N, 'latest'>>(type: T, options?: MapOptions<EventOf<C, N, T>>): MapOf<EventOf<C, N, T>>;
    /** The users in the channel. */
    readonly presence: PresenceOf<PresenceInfo<C, N>>;
  }
}

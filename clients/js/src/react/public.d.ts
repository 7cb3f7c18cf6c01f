// The types of `tidewire/react`. To type channels, events and data, register your contract once:
//
//   declare module 'tidewire/react' {
//     interface Register {
//       contract: Contract;
//     }
//   }

import type { ReactNode } from 'react';
import type { Channel, ChannelOptions, ChannelStatus } from '../channel.js';
import type { CallOptions, Options, Tidewire } from '../client.js';
import type { ListOptions, ListSnapshot, MapOptions, MapSnapshot, PresenceOf, PresenceSnapshot } from '../collections/channel-types.js';
import type { Status } from '../connection/connection.js';
import type { TidewireError } from '../errors.js';
import type { AnyContract, CallName, CallReply, CallRequest, ChannelName, ContractLike, EventOf, EventType, NameIn, PresenceInfo, TypeWith } from '../contract-types.js';

/** What an application adds its contract to. */
export interface Register {}

/** The contract that the application has registered. */
export type RegisteredContract = Register extends { contract: infer C extends ContractLike } ? C : AnyContract;

type C = RegisteredContract;
type Name = ChannelName<C>;

/** How a channel is entered. They count when the first component of a channel is mounted; `token` may be another function in each render. */
export type EnterOptions = Pick<ChannelOptions, 'token' | 'since'>;

/** Gives a client to the components in it, and connects it. */
export function TidewireProvider(
  props: { children?: ReactNode } & (
    | { client: Tidewire<any>; url?: undefined; options?: undefined }
    /** Makes a client, and closes it at the end. Of the options, `token` and `ticket` may change. */
    | { client?: undefined; url: string | URL; options?: Options }
  ),
): ReactNode;

/** The client of the provider. */
export function useTidewire(): Tidewire<C>;

/** The status of the connection, to show it. */
export function useConnection(): Status & { retryNow(): void };

/** Calls the listener with the events of these types, while the component is mounted; with `'*'`, of all types. */
export function useEvents<const N extends Name, const T extends EventType<C, NameIn<C, N>> | '*'>(
  channel: N,
  types: T | readonly T[],
  listener: (event: '*' extends T ? EventOf<C, NameIn<C, N>> : EventOf<C, NameIn<C, N>, T>) => unknown,
  options?: EnterOptions,
): void;

/** The channel, subscribed while the component is mounted. */
export function useChannel<const N extends Name>(
  channel: N,
  options?: EnterOptions,
): Pick<Channel<C, NameIn<C, N>>, 'name' | 'publish' | 'remove' | 'signal' | 'history' | 'members'> & { status: ChannelStatus };

/** The newest durable events of these types, in order: history and live events merged. */
export function useList<const N extends Name, const T extends TypeWith<C, NameIn<C, N>, 'durable'>>(
  channel: N,
  types: T | readonly T[],
  options?: Omit<ListOptions<EventOf<C, NameIn<C, N>, T>>, 'signal'> & EnterOptions,
): ListSnapshot<EventOf<C, NameIn<C, N>, T>> & { loadOlder(count?: number): Promise<number> };

/** The latest values of a type, by key. */
export function useMap<const N extends Name, const T extends TypeWith<C, NameIn<C, N>, 'latest'>>(
  channel: N,
  type: T,
  options?: Omit<MapOptions<EventOf<C, NameIn<C, N>, T>>, 'signal'> & EnterOptions,
): MapSnapshot<EventOf<C, NameIn<C, N>, T>>;

/** Calls the backend when `call` is called. The rest is about the newest call; `data` stays until the next reply. */
export function useCall<const N extends CallName<C>>(
  name: N,
  options?: Omit<CallOptions, 'id' | 'signal'>,
): {
  call(data: CallRequest<C, N>, options?: CallOptions): Promise<CallReply<C, N>>;
  data: CallReply<C, N> | undefined;
  error: TidewireError | undefined;
  pending: boolean;
};

/** The users in the channel. */
export function usePresence<const N extends Name>(
  channel: N,
  options?: EnterOptions,
): PresenceSnapshot<PresenceInfo<C, NameIn<C, N>>> & Pick<PresenceOf<PresenceInfo<C, NameIn<C, N>>>, 'update'>;

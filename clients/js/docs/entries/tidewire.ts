/**
 * The client: connection, channels, publishing and signals.
 * @module tidewire
 */
export { Channel } from '../../types/channel.js';
export type { ChannelEvents, HistoryOptions, PublishOptions, RemoveOptions } from '../../types/channel.js';
export { Tidewire } from '../../types/client.js';
export type { CallOptions, ClientEvents, Options } from '../../types/client.js';
export type { State, Status } from '../../types/connection/connection.js';
export type { Link, LinkEvents, OpenLink } from '../../types/connection/link.js';
export type { Verdict } from '../../types/upkeep/probe.js';
export type { TokenFunction } from '../../types/connection/token.js';
export type { AppState } from '../../types/upkeep/wake.js';
export type { Clock } from '../../types/base/clock.js';
export type {
  AnyContract, CallContract, CallName, CallReply, CallRequest, ChannelName, ContractLike, DataOf, EventContract, EventOf, EventType, NameIn, PresenceInfo, PublishedType, TypeWith,
} from '../../types/contract-types.js';
export { TidewireError } from '../../types/errors.js';
export type { Ack, ErrorMessage, Event, HistoryPage, Limits, Member, Position, Presence, SharedLimits, Welcome } from '../../types/messages.js';
export { encodeUser } from '../../types/names.js';
export type { Kept, OutboxOptions, Published, Uncertain } from '../../types/outbox/outbox.js';
export type { SignalOptions } from '../../types/sending/signals.js';
export type { Info as SubscribedInfo } from '../../types/subscriptions/delivery.js';
export type { PresenceChange } from '../../types/subscriptions/presence-list.js';
export type { ChannelOptions, ChannelState, ChannelStatus } from '../../types/subscriptions/subscription.js';
export type { Removed } from '../../types/subscriptions/values.js';

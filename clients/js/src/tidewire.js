// The public names of the Tidewire client.

export { Channel } from './channel.js';
export { Tidewire } from './client.js';
export { TidewireError } from './errors.js';
export { encodeUser } from './names.js';

/**
 * @typedef {import('./client.js').Options} Options
 * @typedef {import('./client.js').CallOptions} CallOptions
 * @typedef {import('./client.js').ClientEvents} ClientEvents
 * @typedef {import('./connection/connection.js').State} State
 * @typedef {import('./connection/connection.js').Status} Status
 * @typedef {import('./channel.js').ChannelEvents} ChannelEvents
 * @typedef {import('./channel.js').ChannelOptions} ChannelOptions
 * @typedef {import('./channel.js').ChannelState} ChannelState
 * @typedef {import('./channel.js').ChannelStatus} ChannelStatus
 * @typedef {import('./channel.js').PublishOptions} PublishOptions
 * @typedef {import('./channel.js').RemoveOptions} RemoveOptions
 * @typedef {import('./channel.js').HistoryOptions} HistoryOptions
 * @typedef {import('./channel.js').SignalOptions} SignalOptions
 * @typedef {import('./channel.js').SubscribedInfo} SubscribedInfo
 * @typedef {import('./channel.js').Removed} Removed
 * @typedef {import('./channel.js').PresenceChange} PresenceChange
 * @typedef {import('./messages.js').Ack} Ack
 * @typedef {import('./messages.js').Event} Event
 * @typedef {import('./messages.js').HistoryPage} HistoryPage
 * @typedef {import('./messages.js').Member} Member
 * @typedef {import('./messages.js').Position} Position
 * @typedef {import('./messages.js').Presence} Presence
 * @typedef {import('./messages.js').Welcome} Welcome
 * @typedef {import('./connection/link.js').Link} Link
 * @typedef {import('./connection/link.js').LinkEvents} LinkEvents
 * @typedef {import('./connection/link.js').OpenLink} OpenLink
 * @typedef {import('./contract-types.js').AnyContract} AnyContract
 * @typedef {import('./contract-types.js').ContractLike} ContractLike
 */

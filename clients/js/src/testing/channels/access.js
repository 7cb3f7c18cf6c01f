import { encodeUser } from '../../names.js';
import { keyOf } from './contract.js';
import { refusal } from './refusal.js';

/**
 * @typedef {import('./contract.js').Contract} Contract
 * @typedef {import('./contract.js').Resolved} Resolved
 * @typedef {'subscribe' | 'publish' | 'history' | 'presence'} Right
 * @typedef {string | {channel: string, rights: Right[]}} Grant
 * @typedef {{user: string, grants: Grant[], info?: any, ends: number, serial: number, isBackend?: boolean}} Identity
 *   `ends`: ms of the service's clock
 */

/** Who publishes with `TestService.publish`. @type {Identity} */
export const BACKEND = { user: '', grants: [], ends: Infinity, serial: 0, isBackend: true };

/** @param {string} pattern @param {string} channel */
function covers(pattern, channel) {
  const text = pattern.replace(/[.+]/g, '\\$&').replace(/(^|:)\*\*$/, '$1\0').replace(/\*/g, '[^:]*').replace('\0', '.+');
  return new RegExp(`^${text}$`).test(channel);
}

/** @param {Identity} identity @param {Right} right @param {string} channel */
function isGranted({ grants }, right, channel) {
  return grants.some((grant) => (typeof grant === 'string' ? covers(grant, channel) : grant.rights.includes(right) && covers(grant.channel, channel)));
}

/** @param {Identity} identity @param {string | undefined} owner */
const isOwner = ({ user }, owner) => user !== '' && owner === encodeUser(user);

/**
 * Whether an identity has a right to read a channel.
 * @param {Resolved} resolved
 * @param {Identity} identity
 * @param {Right} right
 * @param {string} name
 */
function mayRead({ channel, owner }, identity, right, name) {
  if (channel.subscribe === 'everyone') return true;
  if (channel.subscribe === 'authenticated') return identity.user !== '';
  if (channel.subscribe === 'owner') return isOwner(identity, owner);
  return isGranted(identity, right, name);
}

/**
 * @param {string} rule
 * @param {Resolved} resolved
 * @param {Identity} identity
 * @param {string} name
 * @param {boolean} isSubscribed
 */
function mayPublish(rule, { owner }, identity, name, isSubscribed) {
  if (identity.isBackend) return true;
  if (rule === 'subscriber') return isSubscribed;
  if (rule === 'authenticated') return identity.user !== '';
  if (rule === 'owner') return isOwner(identity, owner);
  return rule === 'grant' && isGranted(identity, 'publish', name);
}

/** Refuses what the contract does not declare, and what an identity may not do: the gate of the service. */
export class Gate {
  #contract;

  /** @param {Contract} contract */
  constructor(contract) {
    this.#contract = contract;
  }

  /** @param {string} name */
  ruleOf(name) {
    return this.#contract.resolve(name).channel;
  }

  /** Refuses a right to read. @param {Identity} identity @param {string} name @param {Right} right */
  authorise(identity, name, right) {
    const resolved = this.#contract.resolve(name);
    const { channel } = resolved;
    if (!mayRead(resolved, identity, right, name)) throw refusal('forbidden', `${right} is not allowed in this channel`, { path: '$.channel', right });
    if (right === 'history' && !channel.history) throw refusal('no_history', `${channel.pattern} keeps no history`, { path: '$.channel' });
    if (right === 'presence' && !channel.presence) throw refusal('no_presence', `${channel.pattern} keeps no presence`, { path: '$.channel' });
    return channel;
  }

  /** @param {Identity} identity @param {string} name @param {Right} right */
  allows(identity, name, right) {
    const resolved = this.#contract.resolve(name);
    const { channel } = resolved;
    const isKept = (right !== 'history' || channel.history) && (right !== 'presence' || channel.presence);
    return Boolean(isKept) && mayRead(resolved, identity, right, name);
  }

  /**
   * Checks a publish, a removal, or a `presence.update`.
   * @param {Identity} identity
   * @param {any} message
   * @param {boolean} isSubscribed
   */
  validate(identity, message, isSubscribed) {
    const { type, channel: name, data, removed } = message;
    const resolved = this.#contract.resolve(name);
    const { channel } = resolved;
    const isUpdate = type === 'presence.update';
    const event = isUpdate ? channel.update : this.#contract.eventOf(channel, message);
    if (!event) {
      const known = [...(channel.events?.keys() ?? [])].sort();
      throw refusal('unknown_event', `${channel.pattern} declares no event '${type.slice(0, 64)}'`, { path: '$.type', known });
    }
    if (isUpdate && identity.user === '') throw refusal('forbidden', 'presence shows only users', { path: '$.type' });
    if (!mayPublish(event.publish, resolved, identity, name, isSubscribed)) {
      if (event.publish === 'subscriber' && mayRead(resolved, identity, 'subscribe', name)) throw notSubscribed(name);
      throw refusal('forbidden', `the contract lets ${event.publish} publish ${type}`, { path: '$.type', right: 'publish' });
    }
    if (isUpdate && !isSubscribed) throw notSubscribed(name);
    if (removed && !event.removable) throw refusal('forbidden', `values of ${type} are not removable`, { path: '$.removed' });
    if (!removed) this.#contract.checkData(event, data);
    const key = removed ? message.key : keyOf(event, data, message.key);
    if (message.if_rev !== undefined && event.delivery !== 'latest') {
      throw refusal('invalid_message', `only latest events have a rev; ${type} is ${event.delivery}`, { path: '$.if_rev' });
    }
    return { channel, event, key };
  }
}

/** @param {string} name */
export function notSubscribed(name) {
  return refusal('not_subscribed', `${name} is not subscribed`, { path: '$.channel' });
}

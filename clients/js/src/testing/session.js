import { bytesOf } from '../sending/sender.js';
import { notSubscribed } from './channels/access.js';
import { checkMessage } from './messages.js';
import { Pipe } from './network.js';
import { refusal } from './channels/refusal.js';

/**
 * @typedef {import('./channels/access.js').Identity} Identity
 * @typedef {import('./node.js').Node} Node
 * @typedef {import('../messages.js').Position} Position
 * @typedef {object} Subscription
 * @property {string} channel
 * @property {string} id  of the `subscribe`
 * @property {Position} since
 * @property {boolean} isResumed  whether the client has named the position
 * @property {number} tail
 * @property {boolean} isLive
 * @property {Identity | undefined} grant  of a token of its own
 * @property {any} [timer]  of that token
 */

const HELLO_TIMEOUT = 5_000;
/** Milliseconds before the end of a token at which the client is told. */
const EXPIRY_NOTICE = 60_000;
/** Milliseconds after it until the connection or the subscription ends. */
const EXPIRY_GRACE = 10_000;

/** One connection, from the service's side. */
export class Session {
  /** @type {Identity | undefined} */
  identity;
  /** @type {Map<string, Subscription>} */
  subscriptions = new Map();
  #node;
  #events;
  #up;
  #down;
  #isReady;
  #knowsRemovals;
  #isClosed = false;
  /** @type {Map<string, AbortController>} by the ids of calls without a reply */
  #calls = new Map();
  /** @type {any} */
  #timer;

  /**
   * @param {string} id
   * @param {Node} node
   * @param {URL} address
   * @param {import('../connection/link.js').LinkEvents} events
   * @param {Identity} [identity]  of a ticket; else the client sends `hello`
   */
  constructor(id, node, address, events, identity) {
    this.id = id;
    this.#node = node;
    this.#events = events;
    const { network, clock } = node;
    this.#up = new Pipe(network, clock, 'service', (message) => this.#receive(message));
    this.#down = new Pipe(network, clock, 'client', (message) => events.received(typeof message === 'string' ? message : JSON.stringify(message)));
    this.#isReady = address.searchParams.get('ready') === '1';
    this.#knowsRemovals = (address.searchParams.get('features') ?? '').split(',').includes('removal');
    const late = () => this.#refuseConnection(refusal('deadline', 'no hello within 5 s'), 4408);
    this.#timer = clock.setTimeout(late, HELLO_TIMEOUT);
    this.#down.then(() => events.opened());
    if (identity) this.#welcome(identity);
  }

  get user() {
    return this.identity?.user ?? '';
  }

  /** Who publishes over this connection, as events show it. */
  get sender() {
    return this.user || `anonymous-${this.id}`;
  }

  /** @param {string} channel @returns {Identity} */
  identityIn(channel) {
    const identity = /** @type {Identity} */ (this.identity);
    const grant = this.subscriptions.get(channel)?.grant;
    return grant ? { ...identity, grants: [...identity.grants, ...grant.grants] } : identity;
  }

  // --- the client's side ------------------------------------------------------------------------------------------------

  /** A frame of the client. @param {string} frame */
  take(frame) {
    const { message, batch } = this.#node.limits;
    if (bytesOf(frame) > message) {
      this.close(1009, `a message has at most ${message} bytes`);
      return;
    }
    let content;
    try {
      content = JSON.parse(frame);
    } catch {
      content = undefined;
    }
    const messages = Array.isArray(content) ? content : [content];
    if (content === undefined || messages.length === 0) this.#refuse(refusal('malformed', 'a frame is a JSON object or a batch of objects', { path: '$' }));
    else if (messages.length > batch) this.#refuse(refusal('invalid_message', `a batch has at most ${batch} messages`, { path: '$' }));
    else for (const one of messages) this.#up.send(one, this.user);
  }

  /** The client has closed the connection. */
  end() {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#node.clock.clearTimeout(this.#timer);
    this.#up.close();
    for (const asking of this.#calls.values()) asking.abort();
    for (const channel of [...this.subscriptions.keys()]) this.drop(channel);
    this.#node.sessions.delete(this);
  }

  // --- to the client ------------------------------------------------------------------------------------------------------

  /** @param {any} message  a text goes out as it is */
  send(message) {
    if (!this.#isClosed) this.#down.send(message, this.user);
  }

  /** Closes the connection; 1006 cuts it, and what is on its way is lost. @param {number} code @param {string} reason */
  close(code, reason) {
    if (this.#isClosed) return;
    this.end();
    if (code === 1006) {
      this.#down.close();
      this.#events.ended(code, reason);
    } else this.#down.then(() => this.#events.ended(code, reason));
  }

  /** The client has gone: nothing reaches it. */
  silence() {
    this.#down.close();
    this.end();
  }

  /**
   * An event for a subscriber.
   * @param {any} event
   */
  deliver(event) {
    const { channel, type, offset, rev, exclude, removed } = event;
    const subscription = this.subscriptions.get(channel);
    if (!subscription?.isLive) return;
    const { gate } = this.#node;
    if (type.startsWith('presence.') && !gate.allows(this.identityIn(channel), channel, 'presence')) return;
    if (removed && !this.#knowsRemovals) return;
    if (exclude === this.id && offset === undefined && rev === undefined) return;
    this.send(event);
  }

  /** Ends a subscription. @param {string} channel @param {'forbidden' | 'removed'} code */
  unsubscribe(channel, code) {
    if (this.drop(channel)) this.send({ type: 'unsubscribed', channel, code });
  }

  /** Tells a live subscription of a new epoch. @param {string} channel */
  resync(channel) {
    if (!this.subscriptions.get(channel)?.isLive) return;
    const { epoch, offset, last, state } = this.#node.channel(channel);
    const recovered = this.#node.gate.ruleOf(channel).history ? false : undefined;
    this.send({ type: 'subscribed', id: null, channel, epoch, offset, events: [], state, last, recovered });
  }

  // --- commands -----------------------------------------------------------------------------------------------------------

  /** @param {any} message */
  #receive(message) {
    const { clock } = this.#node;
    if (this.#isClosed) return;
    this.#node.record({ connection: this.id, user: this.user, at: clock.now(), message });
    try {
      if (!this.identity) this.#hello(message);
      else {
        checkMessage(message);
        this.#node.refuseOnDemand(this.user, message);
        this.#handle(message);
      }
    } catch (error) {
      this.#refuse(error, message?.id);
    }
  }

  /** @param {any} message */
  #handle(message) {
    const { type, id, channel } = message;
    if (type === 'ready') this.#ready();
    else if (type === 'subscribe') this.#subscribe(message);
    else if (type === 'unsubscribe') {
      if (!this.drop(channel)) throw notSubscribed(channel);
      this.send({ type: 'unsubscribed', channel, code: 'requested', id });
    } else if (type === 'history') this.#history(message);
    else if (type === 'presence') {
      this.#node.gate.authorise(this.identityIn(channel), channel, 'presence');
      this.send({ type: 'presence', id, channel, presence: this.#node.presence(channel).view });
    } else if (type === 'refresh') this.#refresh(message);
    else if (type === 'ping') this.send({ type: 'pong', id });
    else if (type === 'call') this.#call(message);
    else if (type === 'hello') throw refusal('invalid_message', 'this connection is authenticated; send refresh to change its token', { path: '$.type' });
    else if (type === 'presence.update') this.#updatePresence(message);
    else this.#publish(message);
  }

  /** @param {any} message */
  #hello(message) {
    const { tokens, isAnonymousAllowed } = this.#node;
    if (message?.type !== 'hello') {
      this.#refuseConnection(refusal('unauthenticated', 'the first message must be hello', { path: '$.type' }), 4400, message?.id);
      return;
    }
    try {
      checkMessage(message);
      this.#node.refuseOnDemand('', message);
      if (message.token === undefined && !isAnonymousAllowed) throw refusal('unauthenticated', 'hello needs a token here', { path: '$.token' });
      this.#welcome(message.token === undefined ? { user: '', grants: [], ends: Infinity, serial: 0 } : tokens.read(message.token));
    } catch (/** @type {any} */ error) {
      this.#refuseConnection(error, error.retryable ? 1013 : 4401);
    }
  }

  /** @param {Identity} identity */
  #welcome(identity) {
    this.identity = identity;
    const { features, limits, heartbeat, tokens, clock } = this.#node;
    const ends = tokens.endOf(identity);
    const { user, ...others } = limits;
    this.send({
      type: 'welcome',
      connection: this.id,
      user: identity.user,
      heartbeat,
      limits: identity.user ? limits : others,
      features,
      expires_in: ends === Infinity ? undefined : Math.max(0, Math.floor((ends - clock.now()) / 1_000)),
    });
    this.watchToken();
  }

  /** Starts the timer of the token's end again. */
  watchToken() {
    const { clock, tokens } = this.#node;
    clock.clearTimeout(this.#timer);
    const ends = this.identity ? tokens.endOf(this.identity) : Infinity;
    if (ends === Infinity) return;
    const expired = () => this.close(4401, 'the token has expired');
    this.#timer = clock.setTimeout(() => {
      this.send({ type: 'expiring', in: Math.max(0, Math.round((ends - clock.now()) / 1_000)) });
      this.#timer = clock.setTimeout(expired, ends + EXPIRY_GRACE - clock.now());
    }, ends - EXPIRY_NOTICE - clock.now());
  }

  #ready() {
    if (this.#isReady) return;
    this.#isReady = true;
    for (const subscription of [...this.subscriptions.values()]) this.#goLive(subscription);
  }

  /** @param {any} message */
  #subscribe({ id, channel, since, tail = 0, token }) {
    const { gate, limits, tokens } = this.#node;
    const grant = token === undefined ? undefined : this.#grant(token);
    const identity = /** @type {Identity} */ (this.identity);
    const rule = gate.authorise(grant ? { ...identity, grants: [...identity.grants, ...grant.grants] } : identity, channel, 'subscribe');
    if (this.subscriptions.has(channel)) throw refusal('already_subscribed', `${channel} is subscribed already`, { path: '$.channel' });
    if (this.subscriptions.size >= limits.subscriptions) {
      throw refusal('too_many_subscriptions', `a connection has at most ${limits.subscriptions} channels`, { path: '$.channel', limit: limits.subscriptions });
    }
    /** @type {Subscription} */
    const subscription = { channel, id, since: since ?? this.#node.channel(channel).position, isResumed: since !== undefined, tail, isLive: false, grant };
    this.subscriptions.set(channel, subscription);
    if (grant) this.#watchGrant(subscription, tokens.endOf(grant));
    if (rule.presence && this.user) this.#node.presence(channel).join(this.user, this.id, identity.info);
    if (this.#isReady) this.#goLive(subscription);
  }

  /** The rights of a token for one subscription. @param {string} token */
  #grant(token) {
    const grant = this.#node.tokens.read(token, true);
    if (grant.user === this.user) return grant;
    throw refusal('forbidden', 'the token must have the user of the connection', { path: '$.token' });
  }

  /** @param {Subscription} subscription @param {number} ends */
  #watchGrant(subscription, ends) {
    const { clock } = this.#node;
    const { channel } = subscription;
    clock.clearTimeout(subscription.timer);
    if (ends === Infinity) return;
    subscription.timer = clock.setTimeout(() => {
      this.send({ type: 'expiring', in: Math.max(0, Math.round((ends - clock.now()) / 1_000)), channel });
      subscription.timer = clock.setTimeout(() => this.unsubscribe(channel, 'forbidden'), ends + EXPIRY_GRACE - clock.now());
    }, ends - EXPIRY_NOTICE - clock.now());
  }

  /** Sends the snapshot, and starts delivery. @param {Subscription} subscription */
  #goLive(subscription) {
    const { id, channel, isResumed, tail } = subscription;
    const { gate } = this.#node;
    const rule = gate.ruleOf(channel);
    const stored = this.#node.channel(channel);
    const identity = this.identityIn(channel);
    const mayRead = gate.allows(identity, channel, 'history');
    const after = stored.after(subscription.since);
    // Without the right to history, a client sees nothing of what came before its subscribe.
    const missed = isResumed && rule.history && !mayRead && after?.length ? undefined : after;
    const isFresh = !isResumed && missed?.length === 0;
    subscription.isLive = true;
    this.send({
      type: 'subscribed',
      id,
      channel,
      epoch: stored.epoch,
      offset: stored.offset,
      events: missed ?? [],
      state: stored.state,
      last: stored.last,
      recovered: !rule.history || isFresh ? undefined : missed !== undefined,
      presence: gate.allows(identity, channel, 'presence') ? this.#node.presence(channel).view : undefined,
      tail: tail && mayRead ? stored.events.slice(-tail) : undefined,
    });
  }

  /** @param {any} message */
  #history({ id, channel, after, before, limit }) {
    this.#node.gate.authorise(this.identityIn(channel), channel, 'history');
    const stored = this.#node.channel(channel);
    const { events, more } = stored.page({ after, before, limit });
    this.send({ type: 'history', id, channel, epoch: stored.epoch, offset: stored.offset, events, more, last: stored.last });
  }

  /** @param {any} message */
  #refresh({ id, token, channel }) {
    if (channel !== undefined) {
      const subscription = this.subscriptions.get(channel);
      if (!subscription) throw notSubscribed(channel);
      if (!subscription.grant) throw refusal('invalid_message', 'the subscription has no token of its own', { path: '$.channel' });
      subscription.grant = this.#grant(token);
      this.#watchGrant(subscription, this.#node.tokens.endOf(subscription.grant));
    } else {
      const identity = this.#node.tokens.read(token);
      if (identity.user !== this.user) throw refusal('forbidden', 'the new token must have the same tenant and user', { path: '$.token' });
      this.#replaceToken(identity);
    }
    this.send({ type: 'ack', id });
  }

  /** @param {Identity} identity */
  #replaceToken(identity) {
    const { gate } = this.#node;
    const sees = (/** @type {string} */ channel) => gate.allows(this.identityIn(channel), channel, 'presence');
    const saw = new Set([...this.subscriptions.keys()].filter(sees));
    this.identity = identity;
    this.watchToken();
    for (const { channel, isLive } of [...this.subscriptions.values()]) {
      if (!gate.allows(this.identityIn(channel), channel, 'subscribe')) this.unsubscribe(channel, 'forbidden');
      else if (gate.ruleOf(channel).presence) {
        if (this.user && identity.info !== undefined) this.#node.presence(channel).join(this.user, this.id, identity.info);
        const view = this.#node.presence(channel).view;
        if (isLive && sees(channel) !== saw.has(channel)) this.send({ type: 'presence', id: null, channel, presence: sees(channel) ? view : null });
      }
    }
  }

  /** @param {any} message */
  #updatePresence({ type, id, channel, data }) {
    this.#node.gate.validate(this.identityIn(channel), { type, channel, data }, this.subscriptions.has(channel));
    this.#node.presence(channel).update(this.user, data);
    if (id !== undefined) this.send({ type: 'ack', id });
  }

  /** @param {any} message */
  #publish(message) {
    const { channel, id } = message;
    const ack = this.#node.accept(this.identityIn(channel), message, this.sender, this.subscriptions.has(channel), this.id);
    if (id !== undefined) this.send({ type: 'ack', id, ...ack });
  }

  /** @param {any} message */
  #call(message) {
    const { id } = message;
    this.#node.calls.take(/** @type {Identity} */ (this.identity), message, { connection: this.id, underWay: this.#calls, most: this.#node.limits.calls }, ({ data, error }) => {
      if (error) this.#refuse(error, id);
      else this.send({ type: 'reply', id, data });
    });
  }

  // --- the end --------------------------------------------------------------------------------------------------------------

  /** Removes a subscription; returns whether there was one. @param {string} channel */
  drop(channel) {
    const subscription = this.subscriptions.get(channel);
    if (!subscription) return false;
    this.#node.clock.clearTimeout(subscription.timer);
    this.subscriptions.delete(channel);
    if (this.user && this.#node.gate.ruleOf(channel).presence) this.#node.presence(channel).leave(this.user, this.id);
    return true;
  }

  /** @param {any} error @param {string} [id] */
  #refuse(error, id) {
    if (typeof error?.code !== 'string') throw error;
    const { code, message, retryable, details } = error;
    this.send({ type: 'error', code, message, retryable, details, id: typeof id === 'string' ? id : undefined });
  }

  /** @param {any} error @param {number} close @param {string} [id] */
  #refuseConnection(error, close, id) {
    this.#refuse(error, id);
    this.close(close, error.message);
  }
}

import { useEffect, useMemo, useState, useSyncExternalStore } from 'react';
import '../collections/index.js';
import { useLatest, useTidewire } from './provider.js';
import { Shared } from './shared.js';

/**
 * @typedef {import('../channel.js').Channel<any, any>} Channel
 * @typedef {import('../channel.js').ChannelOptions} ChannelOptions
 * @typedef {Pick<ChannelOptions, 'token' | 'since'>} EnterOptions
 */

const EMPTY_LIST = Object.freeze({ items: Object.freeze([]), status: 'loading', hasOlder: false, error: undefined });
const EMPTY_MAP = Object.freeze({ values: new Map(), status: 'loading', error: undefined });
const EMPTY_PRESENCE = Object.freeze({ members: Object.freeze([]), count: 0, isListed: true, status: 'loading', error: undefined });
const NOT_CALLED = Object.freeze({ data: undefined, error: undefined, pending: false });
const WAITING = Object.freeze({ state: 'waiting' });
/** The state on a server, and until the page has taken over its markup. */
const STARTING = Object.freeze({ state: 'connecting', reason: 'new', attempt: 0 });

/** The client's status, with `retryNow`. */
export function useConnection() {
  const client = useTidewire();
  const { subscribe, snapshot } = useMemo(() => {
    const read = () => (client.status.state === 'closed' && client.status.reason === 'new' ? STARTING : client.status);
    return { subscribe: (/** @type {() => void} */ listener) => client.on('state', listener), snapshot: read };
  }, [client]);
  const status = useSyncExternalStore(subscribe, snapshot, () => STARTING);
  return useMemo(() => ({ ...status, retryNow: () => client.retryNow() }), [client, status]);
}

/**
 * Calls the listener with the events of these types, while the component is mounted. The listener is that of the last render.
 * @param {string} name
 * @param {string | readonly string[]} types
 * @param {(event: any) => unknown} listener
 * @param {EnterOptions} [options]
 */
export function useEvents(name, types, listener, options) {
  const client = useTidewire();
  const latest = useLatest({ listener, options });
  const key = [types].flat().join(' ');
  useEffect(() => {
    const channel = enter(client, name, latest);
    for (const type of key.split(' ')) channel.on(/** @type {any} */ (type), (event) => latest.current.listener(event));
    return () => channel.leave();
  }, [client, name, key, latest]);
}

/**
 * The channel, subscribed while the component is mounted: its `status`, and what it can do.
 * @param {string} name
 * @param {EnterOptions} [options]
 */
export function useChannel(name, options) {
  const { shared, value, client } = useShared('channel', name, '', { options }, WAITING, (channel) => ({
    channel,
    subscribe: (listener) => channel.on('state', listener),
    getSnapshot: () => channel.status,
  }));
  const actions = useMemo(() => {
    const channel = () => shared.source?.channel ?? unmounted(name);
    return {
      name,
      publish: (/** @type {any[]} */ ...rest) => /** @type {any} */ (client).publish(name, ...rest),
      remove: (/** @type {any[]} */ ...rest) => /** @type {any} */ (client).remove(name, ...rest),
      signal: (/** @type {any[]} */ ...rest) => /** @type {any} */ (client).signal(name, ...rest),
      history: (/** @type {any} */ page) => channel().history(page),
      members: (/** @type {any} */ asked) => channel().members(asked),
    };
  }, [client, name, shared]);
  return useMemo(() => ({ ...actions, status: value }), [actions, value]);
}

/**
 * A list of the channel: its snapshot, and `loadOlder`.
 * @param {string} name
 * @param {string | readonly string[]} types
 * @param {any} [options]
 */
export function useList(name, types, options = {}) {
  const { tail, max, key, snapshot } = options;
  const chosen = [types].flat();
  const parts = `${chosen.join(' ')} ${tail} ${max}`;
  // Functions of the application belong to one component, which may give another one in each render.
  const own = Boolean(key || snapshot);
  const { shared, value } = useShared('list', name, parts, { options, own }, EMPTY_LIST, (channel, latest) => {
    const given = latest.current.options ?? {};
    const list = /** @type {any} */ (channel).list(chosen, {
      tail,
      max,
      key: given.key && ((/** @type {any} */ event) => latest.current.options.key(event)),
      snapshot: given.snapshot && ((/** @type {any} */ context) => latest.current.options.snapshot(context)),
    });
    return list;
  });
  const loadOlder = useMemo(() => async (/** @type {number} */ count) => (await /** @type {any} */ (shared.source)?.loadOlder(count)) ?? 0, [shared]);
  return useMemo(() => ({ ...value, loadOlder }), [value, loadOlder]);
}

/**
 * The latest values of a type, by key.
 * @param {string} name
 * @param {string} type
 * @param {any} [options]
 */
export function useMap(name, type, options) {
  const own = Boolean(options?.snapshot);
  return useShared('map', name, type, { options, own }, EMPTY_MAP, (channel, latest) => {
    const snapshot = own ? (/** @type {any} */ context) => latest.current.options.snapshot(context) : undefined;
    return /** @type {any} */ (channel).map(type, { snapshot });
  }).value;
}

/**
 * The users in the channel, and `update`.
 * @param {string} name
 * @param {EnterOptions} [options]
 */
export function usePresence(name, options) {
  const { shared, value } = useShared('presence', name, '', { options }, EMPTY_PRESENCE, (channel) => /** @type {any} */ (channel).presence);
  const update = useMemo(() => {
    return async (/** @type {any} */ info, /** @type {any} */ asked) => /** @type {any} */ (shared.source ?? unmounted(name)).update(info, asked);
  }, [shared, name]);
  return useMemo(() => ({ ...value, update }), [value, update]);
}

/**
 * Calls the backend when the application says so: `call`, and what became of the newest call.
 * @param {string} name
 * @param {import('../client.js').CallOptions} [options]  those of each call, unless it has its own
 */
export function useCall(name, options) {
  const client = useTidewire();
  const latest = useLatest({ options });
  const [{ of, ...state }, setState] = useState(/** @type {any} */ ({ of: undefined, ...NOT_CALLED }));
  const call = useMemo(() => {
    let newest = 0;
    return (/** @type {any} */ data, /** @type {any} */ own) => {
      const number = (newest += 1);
      const reply = /** @type {any} */ (client).call(name, data, { ...latest.current.options, ...own });
      const become = (/** @type {any} */ change) => {
        if (number === newest) setState((/** @type {any} */ before) => ({ ...(before.of === call ? before : NOT_CALLED), ...change, of: call }));
      };
      become({ pending: true, error: undefined });
      reply.then((/** @type {any} */ result) => become({ pending: false, data: result }), (/** @type {any} */ error) => become({ pending: false, error }));
      return reply;
    };
  }, [client, name, latest]);
  const { data, error, pending } = of === call ? state : NOT_CALLED;
  return useMemo(() => ({ call, data, error, pending }), [call, data, error, pending]);
}

/**
 * @param {string} kind
 * @param {string} name
 * @param {string} parts  what tells sources of a kind and channel apart
 * @param {{options: any, own?: boolean}} more  `own`: not shared with other components
 * @param {any} empty
 * @param {(channel: Channel, latest: {readonly current: any}) => import('./shared.js').Source} make
 */
function useShared(kind, name, parts, { options, own = false }, empty, make) {
  const client = useTidewire();
  const latest = useLatest({ options, make });
  const shared = useMemo(() => {
    const key = own ? Symbol(kind) : `${kind} ${name} ${parts}`;
    return new Shared(client, key, () => latest.current.make(enter(client, name, latest), latest), empty);
  }, [client, kind, name, parts, own, empty, latest]);
  const value = useSyncExternalStore(shared.subscribe, shared.getSnapshot, shared.getServerSnapshot);
  return { shared, value, client };
}

/**
 * @param {import('../client.js').Tidewire<any>} client
 * @param {string} name
 * @param {{readonly current: {options?: EnterOptions}}} latest
 * @returns {Channel}
 */
function enter(client, name, latest) {
  const { token, since } = latest.current.options ?? {};
  return client.channel(name, { since, token: token && ((context) => /** @type {any} */ (latest.current.options?.token ?? token)(context)) });
}

/** @param {string} name @returns {never} */
function unmounted(name) {
  throw new Error(`${name}: no component that uses it is mounted`);
}

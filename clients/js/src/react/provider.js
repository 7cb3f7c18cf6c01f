import { createContext, createElement, useContext, useEffect, useRef, useState } from 'react';
import { Tidewire } from '../tidewire.js';

/** @typedef {import('../client.js').Options} Options */

const Context = createContext(/** @type {Tidewire<any> | undefined} */ (undefined));

/**
 * Gives a client to the components in it, and connects it. Takes a `client`, or the `url` and `options` of one, which it closes when
 * it is unmounted.
 * @param {{client?: Tidewire<any>, url?: string | URL, options?: Options, children?: import('react').ReactNode}} props
 */
export function TidewireProvider({ client, url, options, children }) {
  if (client) return createElement(Connected, { client }, children);
  if (!url) throw new TypeError('TidewireProvider needs a client or a url');
  return createElement(Owner, { key: String(url), url, options }, children);
}

/** @param {{client: Tidewire<any>, children?: import('react').ReactNode}} props */
function Connected({ client, children }) {
  useEffect(() => void client.connect().catch(() => {}), [client]); // the state says why it is closed
  return createElement(Context.Provider, { value: client }, children);
}

/** @param {{url: string | URL, options?: Options, children?: import('react').ReactNode}} props */
function Owner({ url, options, children }) {
  const latest = useLatest(options);
  const [client] = useState(() => new Tidewire(url, withLatest(options ?? {}, latest)));
  const closing = useRef(/** @type {any} */ (undefined));
  useEffect(() => {
    clearTimeout(closing.current); // StrictMode unmounts and mounts at once
    return () => {
      closing.current = setTimeout(() => client.close());
    };
  }, [client]);
  return createElement(Connected, { client }, children);
}

/**
 * The functions that get credentials are those of the last render.
 * @param {Options} options
 * @param {{readonly current: Options | undefined}} latest
 * @returns {Options}
 */
function withLatest(options, latest) {
  const made = { ...options };
  for (const name of /** @type {const} */ (['token', 'ticket'])) {
    if (typeof options[name] !== 'function') continue;
    made[name] = (context) => {
      const now = latest.current?.[name];
      return typeof now === 'function' ? now(context) : /** @type {any} */ (now);
    };
  }
  return made;
}

/** The client of the provider. @returns {Tidewire<any>} */
export function useTidewire() {
  const client = useContext(Context);
  if (!client) throw new Error('there is no <TidewireProvider> around this component');
  return client;
}

/**
 * The value of the last render that was committed, for effects and listeners.
 * @template T
 * @param {T} value
 * @returns {{readonly current: T}}
 */
export function useLatest(value) {
  const latest = useRef(value);
  useEffect(() => {
    latest.current = value;
  });
  return latest;
}

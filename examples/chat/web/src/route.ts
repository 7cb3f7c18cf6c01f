import { useSyncExternalStore } from 'react';

export type Route = { kind: 'none' } | { kind: 'room'; id: string } | { kind: 'join'; code: string };

const subscribe = (listener: () => void) => {
  addEventListener('hashchange', listener);
  return () => removeEventListener('hashchange', listener);
};

/** What the address of the page names behind the #. */
export function useRoute(): Route {
  const [kind, name] = useSyncExternalStore(subscribe, () => location.hash).slice(1).split('/');
  if (kind === 'room' && name) return { kind, id: name };
  if (kind === 'join' && name) return { kind, code: name };
  return { kind: 'none' };
}

export const goTo = (path: string) => void (location.hash = path);

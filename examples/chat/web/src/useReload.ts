import { useEffect, useRef } from 'react';
import { useConnection } from 'tidewire/react';

/** Calls `load` at the start, and again when a lost connection is back, or when `key` changes. */
export function useReload(load: () => Promise<void>, key = '') {
  const isConnected = useConnection().state === 'ready';
  const hasBegun = useRef(false);
  useEffect(() => {
    if (hasBegun.current && !isConnected) return;
    hasBegun.current = true;
    void load();
  }, [load, isConnected, key]);
}

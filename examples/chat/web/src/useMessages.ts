import { useCallback, useEffect, useState } from 'react';
import { useList } from 'tidewire/react';
import { api, messageOf, type StoredMessage } from './api.ts';

/** A message as the log shows it, whether it comes from Tidewire or from the database. */
export type Message = { id: string; from: string | null; at: number; data: { text: string } };

/** Messages of the database that come before those of the channel: all between the first one and `before`. */
type Archive = { before: string; items: StoredMessage[]; more: boolean };

/** Messages to begin with, and in each further step. */
const ENOUGH = 50;

/** Ids are unique for each sender only. */
export const keyOf = ({ id, from }: { id: string; from: string | null }) => `${from} ${id}`;

/**
 * The messages of a room. The newest come from Tidewire, which has each of them at once and in order, over any lost connection. It keeps
 * the last 200; the backend has all older ones.
 */
export function useMessages(room: string) {
  const { items, status, hasOlder, loadOlder } = useList(`room:${room}`, 'chat.message', { tail: ENOUGH });
  const [archive, setArchive] = useState<Archive>();
  const [error, setError] = useState('');

  // Once the channel has nothing older, ask the database what came before. The channel may begin elsewhere later, as after a restart.
  const first = items[0];
  const before = first ? keyOf(first) : '';
  const isWhole = status === 'live' && !hasOlder;
  const read = useCallback(
    async (signal?: AbortSignal) => {
      try {
        const page = await api.olderMessages(room, first, signal);
        setArchive((known) => ({ before, ...joined(page.messages, page.more, known) }));
        setError('');
      } catch (cause) {
        if (!signal?.aborted) setError(messageOf(cause));
      }
    },
    [room, before], // eslint-disable-line -- `before` says which message is the first
  );
  const isEnough = items.length >= ENOUGH && !archive; // who wants more asks for it
  useEffect(() => {
    if (!isWhole || isEnough) return;
    const abort = new AbortController();
    void read(abort.signal);
    return () => abort.abort();
  }, [isWhole, isEnough, read]);

  const inChannel = new Set(items.map(keyOf));
  const older = hasOlder ? [] : (archive?.items.filter((message) => !inChannel.has(keyOf(message))) ?? []);
  const oldest = older[0];

  async function readOlder() {
    if (hasOlder) {
      await loadOlder(ENOUGH);
      return;
    }
    if (!oldest) return read();
    try {
      const page = await api.olderMessages(room, oldest);
      setArchive((known) => known && { ...known, items: [...page.messages, ...known.items], more: page.more });
      setError('');
    } catch (cause) {
      setError(messageOf(cause));
    }
  }

  return {
    items: [...older, ...items] as Message[],
    /** `live`: what is shown is complete. */
    status: isWhole && !isEnough && !archive && !error ? 'loading' : status,
    hasOlder: hasOlder || isEnough || Boolean(archive?.more) || error !== '',
    readOlder,
    error,
  };
}

/** A page that was read, behind what is known already, if the two overlap. */
function joined(page: StoredMessage[], more: boolean, known?: Archive): { items: StoredMessage[]; more: boolean } {
  const start = page[0]?.number;
  const overlaps = start !== undefined && known?.items.some(({ number }) => number >= start);
  const kept = overlaps ? known!.items.filter(({ number }) => number < start) : [];
  return kept.length ? { items: [...kept, ...page], more: known!.more } : { items: page, more };
}

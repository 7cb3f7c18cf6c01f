import { useCallback, useEffect, useState } from 'react';
import { useList } from 'tidewire/react';
import { api, messageOf, type StoredMessage } from './api.ts';

/** A message as the log shows it, whether it comes from Tidewire or from the database. */
export type Message = { id: string; from: string | null; at: number; data: { text: string } };

/** Messages of the database: all from the first one until `before`, the key of the first message of the channel. */
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
  const first = items[0];
  const before = first ? keyOf(first) : '';
  // After a restart of Tidewire, the channel begins elsewhere: what came before is read again.
  const known = archive && (archive.before === before || archive.before === '') ? archive : undefined;

  /** Asks the database what came before the channel. */
  const readBefore = useCallback(
    async (signal?: AbortSignal) => {
      try {
        const page = await api.olderMessages(room, first, signal);
        setArchive((earlier) => ({ before, ...joined(page.messages, page.more, earlier) }));
        setError('');
      } catch (cause) {
        if (!signal?.aborted) setError(messageOf(cause));
      }
    },
    [room, before], // which says what `first` is
  );
  const isWhole = status === 'live' && !hasOlder; // the page has all that the channel keeps
  const isEnough = items.length >= ENOUGH && !known; // who wants more asks for it
  useEffect(() => {
    if (!isWhole || isEnough) return;
    const abort = new AbortController();
    void readBefore(abort.signal);
    return () => abort.abort();
  }, [isWhole, isEnough, readBefore]);

  const inChannel = new Set(items.map(keyOf));
  const older = hasOlder ? [] : (known?.items.filter((message) => !inChannel.has(keyOf(message))) ?? []);
  const oldest = older[0];

  async function readOlder() {
    if (!hasOlder && !oldest) return readBefore();
    try {
      if (hasOlder) return void (await loadOlder(ENOUGH));
      const page = await api.olderMessages(room, oldest);
      setArchive((earlier) => earlier && { ...earlier, items: [...page.messages, ...earlier.items], more: page.more });
      setError('');
    } catch (cause) {
      setError(messageOf(cause));
    }
  }

  return {
    items: [...older, ...items] as Message[],
    /** `live`: what is shown is complete. */
    status: isWhole && !isEnough && !known && !error ? 'loading' : status,
    hasOlder: hasOlder || isEnough || Boolean(known?.more) || error !== '',
    readOlder,
    error,
  };
}

/** A page that was read, behind what is known already, if the two overlap. */
function joined(page: StoredMessage[], more: boolean, earlier?: Archive): { items: StoredMessage[]; more: boolean } {
  const start = page[0]?.number;
  const overlaps = start !== undefined && earlier?.items.some(({ number }) => number >= start);
  const kept = overlaps ? earlier!.items.filter(({ number }) => number < start) : [];
  return kept.length ? { items: [...kept, ...page], more: earlier!.more } : { items: page, more };
}

import { useCallback, useState } from 'react';
import { keyOf, type Message } from './useMessages.ts';
import { canRetry, reasonOf } from './words.ts';

export type Outgoing = { id: string; text: string; refusal?: string; canRetry?: boolean };
type Publish = (type: 'chat.message', data: { text: string }, options: { id: string }) => Promise<unknown>;

/**
 * The messages of the user that are not in the room yet: on their way, or refused. The client sends them again after a lost connection,
 * with the same id, so that each is stored once.
 */
export function useOutgoing(publish: Publish, shown: Message[], me: string) {
  const [all, setAll] = useState<Outgoing[]>([]);

  const remove = useCallback((id: string) => setAll((known) => known.filter((message) => message.id !== id)), []);
  const send = useCallback(
    (text: string, id: string = crypto.randomUUID()) => {
      setAll((known) => [...known.filter((message) => message.id !== id), { id, text }]);
      publish('chat.message', { text }, { id }).catch((error) => {
        setAll((known) => known.map((message) => (message.id === id ? { ...message, refusal: reasonOf(error), canRetry: canRetry(error) } : message)));
      });
    },
    [publish],
  );

  const stored = new Set(shown.map(keyOf));
  return { items: all.filter(({ id }) => !stored.has(keyOf({ id, from: me }))), send, remove };
}

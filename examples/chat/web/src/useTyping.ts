import { useEffect, useState } from 'react';
import { useEvents } from 'tidewire/react';

/** Milliseconds after which somebody who sends no sign has stopped. Pages send one every 2 s. */
const LASTS = 4_000;

/** Who is typing, in words. */
export function useTyping(channel: `room:${string}`, me: string) {
  const [until, setUntil] = useState<ReadonlyMap<string, number>>(new Map());

  useEvents(channel, ['chat.typing', 'chat.message'], ({ type, from }) => {
    if (!from || from === me) return;
    setUntil((known) => {
      const next = new Map(known);
      if (type === 'chat.typing') next.set(from, Date.now() + LASTS);
      else next.delete(from);
      return next;
    });
  });
  useEffect(() => {
    if (!until.size) return;
    const end = Math.min(...until.values());
    const timer = setTimeout(() => setUntil((known) => new Map([...known].filter(([, time]) => time > end))), end - Date.now());
    return () => clearTimeout(timer);
  }, [until]);

  const names = [...until.keys()].sort();
  if (names.length === 0) return '';
  if (names.length === 1) return `${names[0]} is typing…`;
  if (names.length === 2) return `${names[0]} and ${names[1]} are typing…`;
  return 'Several people are typing…';
}

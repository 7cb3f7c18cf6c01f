import { useEffect, useState } from 'react';
import { api, type RoomSummary } from './api.ts';
import { useIsVisible } from './useIsVisible.ts';

const RETRY = 5_000;

/** Marks what the open room shows as read, while the page is visible. The backend then tells all pages of the user. */
export function useMarkRead(room: string, summary?: RoomSummary) {
  const isVisible = useIsVisible();
  const [attempt, setAttempt] = useState(0);
  const newest = isVisible && summary?.unread ? summary.newest : 0;
  useEffect(() => {
    if (!newest) return;
    let timer: ReturnType<typeof setTimeout> | undefined;
    api.markRead(room, newest).catch(() => (timer = setTimeout(() => setAttempt(attempt + 1), RETRY)));
    return () => clearTimeout(timer);
  }, [room, newest, attempt]);
}

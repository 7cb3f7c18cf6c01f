import { useCallback, useEffect, useMemo, useState } from 'react';
import { useConnection, useMap } from 'tidewire/react';
import { api, messageOf, type RoomSummary } from './api.ts';

/**
 * The rooms of the user. The backend has them; Tidewire brings the numbers of unread messages as they change, in all pages of the user.
 */
export function useRooms(me: string) {
  const [stored, setStored] = useState<RoomSummary[]>();
  const [error, setError] = useState('');
  const { values, status } = useMap(`user:${me}`, 'room.unread');
  const { state } = useConnection();

  const reload = useCallback(async () => {
    try {
      setStored(await api.rooms());
      setError('');
    } catch (cause) {
      setError(messageOf(cause));
    }
  }, []);
  // At the start, after each lost connection, and when the user has joined or left a room in another page.
  const isConnected = state === 'ready';
  const known = status === 'live' ? [...values.keys()].sort().join(' ') : '';
  useEffect(() => void reload(), [reload, isConnected, known]);

  const rooms = useMemo(() => stored?.map((room) => ({ ...room, ...values.get(room.id)?.data })), [stored, values]);
  return { rooms, error, reload };
}

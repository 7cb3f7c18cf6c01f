import type { RoomSummary } from './api.ts';
import { NewRoom } from './NewRoom.tsx';

type Props = { rooms?: RoomSummary[]; error: string; open?: string; onRetry: () => void; onCreated: () => Promise<void> };

/** The rooms of the user, each with the number of its unread messages. */
export function RoomList({ rooms, error, open, onRetry, onCreated }: Props) {
  return (
    <nav className="rooms" aria-label="Rooms">
      <div className="pane-head">
        <h2>Rooms</h2>
        <NewRoom onCreated={onCreated} />
      </div>
      {error && (
        <p className="problem padded" role="alert">
          {error} <button className="link" onClick={onRetry}>Try again</button>
        </p>
      )}
      <ul>
        {rooms?.map(({ id, title, unread }) => (
          <li key={id}>
            <a className="room-link" href={`#room/${id}`} aria-current={id === open ? 'page' : undefined}>
              <span className="room-title">{title}</span>
              {unread > 0 && id !== open && (
                <span className="badge">
                  {unread > 99 ? '99+' : unread}
                  <span className="sr"> unread</span>
                </span>
              )}
            </a>
          </li>
        ))}
      </ul>
      {rooms?.length === 0 && <p className="faint padded">You are in no room yet. Make one, or open the link of an invitation.</p>}
    </nav>
  );
}

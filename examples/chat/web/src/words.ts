/** Why a message was not sent, in words for its author. `error`: a TidewireError. */
export function reasonOf(error: { code?: string; details?: { reason?: unknown } }): string {
  switch (error.code) {
    case 'forbidden': // the backend says why (backend/moderation.py)
      return typeof error.details?.reason === 'string' ? error.details.reason : 'You may not write in this room.';
    case 'invalid_data':
      return 'A message has 1 to 2000 characters.';
    case 'hook_unavailable':
    case 'overloaded':
    case 'broker_unavailable':
      return 'The server is busy. Try again in a moment.';
    case 'not_sent':
    case 'uncertain':
      return 'There was no connection for too long.';
    default:
      return 'It was not sent. Try again.';
  }
}

/** Whether the same message may pass later. */
export const canRetry = ({ code }: { code?: string }) => code !== 'forbidden' && code !== 'invalid_data';

const time = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const day = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });

export const timeOf = (at: number) => time.format(at);
export const dayOf = (at: number) => day.format(at);

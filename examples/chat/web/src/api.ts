// Requests to the backend. It answers with JSON; a refusal has a `message` for people.

export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
    /** The field of the form that is wrong. */
    readonly field?: string,
  ) {
    super(message);
  }
}

export type Me = { name: string; tidewire: string };
export type RoomSummary = { id: string; title: string; unread: number; newest: number };
export type RoomDetails = { id: string; title: string; invitation: string; members: string[] };
/** A message of the database, in the form of an event of Tidewire. */
export type StoredMessage = { id: string; from: string; at: number; data: { text: string }; number: number };

/** Called when the backend says that nobody is logged in any more. */
let loggedOut = () => {};
export const onLoggedOut = (listener: () => void) => void (loggedOut = listener);

async function request(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(`/api${path}`, {
      method,
      signal,
      headers: body === undefined ? {} : { 'Content-Type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, 'The server cannot be reached. Check your connection, then try again.');
  }
  if (response.ok) return response;
  const { message, field } = await response.json().catch(() => ({}));
  if (response.status === 401 && path !== '/session') loggedOut();
  throw new Refused(response.status, message ?? 'The server cannot do this right now. Try again in a moment.', field ?? undefined);
}

const json = async (response: Promise<Response>) => (await response).json();
const segment = encodeURIComponent;

export const api = {
  /** Null: nobody is logged in. */
  me: (): Promise<Me | null> => json(request('GET', '/me')),
  signUp: (form: { name: string; email: string; password: string }) => request('POST', '/accounts', form),
  logIn: (form: { name: string; password: string }) => request('POST', '/session', form),
  logOut: () => request('DELETE', '/session'),
  token: async (signal: AbortSignal) => (await request('GET', '/token', undefined, signal)).text(),

  rooms: (signal?: AbortSignal): Promise<RoomSummary[]> => json(request('GET', '/rooms', undefined, signal)),
  room: (id: string, signal?: AbortSignal): Promise<RoomDetails> => json(request('GET', `/rooms/${segment(id)}`, undefined, signal)),
  createRoom: (title: string): Promise<{ id: string }> => json(request('POST', '/rooms', { title })),
  leaveRoom: (id: string) => request('DELETE', `/rooms/${segment(id)}/members/me`),
  invitation: (code: string): Promise<{ id: string; title: string }> => json(request('GET', `/invitations/${segment(code)}`)),
  join: (code: string): Promise<{ id: string }> => json(request('POST', `/invitations/${segment(code)}`)),

  olderMessages: (room: string, before: { id: string; from: string | null } | undefined, signal?: AbortSignal): Promise<{ messages: StoredMessage[]; more: boolean }> => {
    const query = before ? `?before=${segment(before.id)}&sender=${segment(before.from ?? '')}` : '';
    return json(request('GET', `/rooms/${segment(room)}/messages${query}`, undefined, signal));
  },
  markRead: (room: string, newest: number) => request('POST', `/rooms/${segment(room)}/read`, { newest }),
};

/** What to show of anything that was thrown. */
export const messageOf = (error: unknown) => (error instanceof Refused ? error.message : 'Something went wrong. Reload the page.');

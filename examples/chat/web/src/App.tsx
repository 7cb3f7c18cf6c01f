import { useCallback, useEffect, useMemo, useState } from 'react';
import { TidewireProvider } from 'tidewire/react';
import { api, messageOf, onLoggedOut, type Me } from './api.ts';
import { Chat } from './Chat.tsx';
import type { Contract } from './contract';
import { Entry } from './Entry.tsx';

// Wrong channels, event types and fields fail `npm run check`.
declare module 'tidewire/react' {
  interface Register {
    contract: Contract;
  }
}

/** Shows the chat to whoever is logged in, and the form to all others. */
export function App() {
  const [me, setMe] = useState<Me | null>();
  const [error, setError] = useState('');

  const load = useCallback(async () => {
    try {
      setMe(await api.me());
      setError('');
    } catch (cause) {
      setError(messageOf(cause));
    }
  }, []);
  useEffect(() => {
    onLoggedOut(() => setMe(null));
    void load();
  }, [load]);

  if (me) return <Connected me={me} onLogOut={() => setMe(null)} />;
  if (me === null) return <Entry onEntered={load} />;
  if (!error) return null;
  return (
    <main className="alone">
      <p role="alert">{error}</p>
      <button className="primary" onClick={load}>Try again</button>
    </main>
  );
}

/** One connection to Tidewire for the whole page. It asks for a token whenever it needs a new one. */
function Connected({ me, onLogOut }: { me: Me; onLogOut: () => void }) {
  const options = useMemo(() => ({ token: ({ signal }: { signal: AbortSignal }) => api.token(signal) }), []);
  return (
    <TidewireProvider key={me.name} url={me.tidewire} options={options}>
      <Chat me={me.name} onLogOut={onLogOut} />
    </TidewireProvider>
  );
}

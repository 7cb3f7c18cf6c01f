// The page of tests/browser/test_react.py. The test calls `set` to change what is mounted, and reads `seen`.

import { StrictMode, Suspense, startTransition, useState } from 'react';
import { hydrateRoot } from 'react-dom/client';
import { renderToString } from 'react-dom/server';
import { Tidewire, TidewireError } from 'tidewire';
import { TestService } from 'tidewire/testing';
import { TidewireProvider, useCall, useChannel, useConnection, useEvents, useList, useMap, usePresence, useTidewire } from 'tidewire/react';

const { url, token } = globalThis.config;
const options = { token: () => token };
const seen = { events: [], states: new Set() };

function Status() {
  const { state } = useConnection();
  seen.states.add(state);
  globalThis.client = useTidewire();
  return <p data-testid="state">{state}</p>;
}

function Room({ name }) {
  const { items, status } = useList(name, 'chat.message', { tail: 10 });
  const { members } = usePresence(name);
  globalThis.channel = useChannel(name);
  useEvents(name, 'chat.message', ({ data }) => seen.events.push(data.text));
  return (
    <section data-testid="room">
      <h1>{`${name} ${status}: ${members.map(({ user }) => user).join()}`}</h1>
      <ul>{items.map(({ id, data }) => <li key={id}>{data.text}</li>)}</ul>
    </section>
  );
}

function Desk({ number }) {
  const { members, update } = usePresence(`desk:${number}`);
  const { values } = useMap(`doc:${number}`, 'doc.cursor');
  globalThis.update = update;
  return <p data-testid="desk">{`${members.map(({ user, info }) => `${user} ${info?.status}`)}; ${[...values.keys()]}`}</p>;
}

/** A backend in the page: `answers` has the functions that settle its calls. */
const backend = new TestService();
const answers = (globalThis.answers = []);
backend.onCall('order.quote', () => new Promise((resolve, reject) => answers.push({ resolve, reject: (reason) => reject(new TidewireError('call_failed', 'no', { details: { reason } })) })));
const customer = new Tidewire(backend.url, backend.options);

function Quote({ name }) {
  const { call, data, error, pending } = useCall(name);
  globalThis.quote = call;
  return <p data-testid="quote">{`${name} ${pending ? 'pending' : 'idle'} ${data?.price ?? 'none'} ${error?.details.reason ?? 'fine'}`}</p>;
}

/** Throws a promise until the test resolves it, as a component does that loads data. */
let loading;
function Slow() {
  loading ??= Object.assign(new Promise((resolve) => (globalThis.finish = resolve)).then(() => (loading.done = true)), { done: false });
  if (!loading.done) throw loading;
  return <p data-testid="slow">loaded</p>;
}

function App() {
  const [{ rooms, name, key, slow, desk, quote, mounted }, set] = useState({ rooms: 2, name: 'room:1', key: 0, slow: false, desk: '', quote: '', mounted: true });
  globalThis.set = (change) => startTransition(() => set((before) => ({ ...before, ...change })));
  globalThis.setNow = (change) => set((before) => ({ ...before, ...change }));
  if (!mounted) return null;
  return (
    <TidewireProvider url={url} options={options}>
      <Status />
      <Suspense fallback={<p data-testid="waiting">…</p>}>
        {Array.from({ length: rooms }, (_, index) => <Room key={`${index} ${key}`} name={name} />)}
        {desk && <Desk number={desk} />}
        {slow && <Slow />}
        {quote && <TidewireProvider client={customer}><Quote name={quote} /></TidewireProvider>}
      </Suspense>
    </TidewireProvider>
  );
}

const app = (
  <StrictMode>
    <App />
  </StrictMode>
);
const root = document.getElementById('root');
root.innerHTML = globalThis.markup = renderToString(app);
hydrateRoot(root, app);
globalThis.seen = seen;

import { useConnection } from 'tidewire/react';

/** Whether the page is connected, in words. */
export function ConnectionState() {
  const { state, retryIn, retryNow } = useConnection();
  const waits = state === 'reconnecting' && retryIn !== undefined;
  const text = {
    connecting: 'Connecting…',
    ready: 'Online',
    reconnecting: waits ? 'No connection' : 'Connecting…',
    offline: 'No network',
    closed: 'Not connected',
  }[state];
  return (
    <div className="connection" data-state={state} role="status">
      <span className="dot" />
      <span>{text}</span>
      {waits && <button className="link" onClick={retryNow}>Try now</button>}
    </div>
  );
}

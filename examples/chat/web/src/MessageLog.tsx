import { Fragment, useEffect, useLayoutEffect, useRef } from 'react';
import { Avatar } from './Avatar.tsx';
import { keyOf, type Message, type useMessages } from './useMessages.ts';
import type { Outgoing } from './useOutgoing.ts';
import { dayOf, timeOf } from './words.ts';

type Props = {
  me: string;
  messages: ReturnType<typeof useMessages>;
  outgoing: Outgoing[];
  onRetry: (text: string, id: string) => void;
  onEdit: (text: string, id: string) => void;
  onRemove: (id: string) => void;
};

/** Pixels from the end within which the log follows new messages. */
const NEAR = 80;

/** The messages, oldest first. It stays at the end, unless somebody has scrolled up to read. */
export function MessageLog({ me, messages: { items, status, hasOlder, readOlder, error }, outgoing, onRetry, onEdit, onRemove }: Props) {
  const log = useRef<HTMLDivElement>(null);
  const list = useRef<HTMLOListElement>(null);
  const place = useRef({ isAtEnd: true, fromEnd: 0, first: '' });

  // What somebody reads stays where it is, whether messages are added above or below.
  const first = items[0] ? keyOf(items[0]) : '';
  useLayoutEffect(() => {
    const element = log.current!;
    const { isAtEnd, fromEnd } = place.current;
    if (isAtEnd) element.scrollTop = element.scrollHeight;
    else if (first !== place.current.first) element.scrollTop = element.scrollHeight - fromEnd;
    place.current.first = first;
    remember(element);
  }, [first, items.length, outgoing.length]);

  // Sizes change without new messages, too: a reason to refuse appears, a phone is turned, the line below grows.
  useEffect(() => {
    const element = log.current!;
    const sizes = new ResizeObserver(() => {
      if (place.current.isAtEnd) element.scrollTop = element.scrollHeight;
    });
    sizes.observe(element);
    sizes.observe(list.current!);
    return () => sizes.disconnect();
  }, []);

  function remember(element: HTMLDivElement) {
    const fromEnd = element.scrollHeight - element.scrollTop;
    Object.assign(place.current, { fromEnd, isAtEnd: fromEnd - element.clientHeight < NEAR });
  }

  return (
    <div className="log" ref={log} onScroll={(event) => remember(event.currentTarget)} tabIndex={0} role="log" aria-label="Messages">
      {error && <p className="problem" role="alert">{error}</p>}
      {hasOlder && <button className="plain earlier" onClick={readOlder}>{error ? 'Try again' : 'Older messages'}</button>}
      {status === 'live' && items.length === 0 && outgoing.length === 0 && <p className="none">No messages yet. Write the first one.</p>}
      {status === 'loading' && <p className="none">Loading messages…</p>}
      <ol ref={list}>
        {items.map((message, index) => (
          <Fragment key={keyOf(message)}>
            {isNewDay(message, items[index - 1]) && <li className="day">{dayOf(message.at)}</li>}
            <Line message={message} isMine={message.from === me} follows={isSameSender(message, items[index - 1])} />
          </Fragment>
        ))}
        {outgoing.map(({ id, text, refusal, canRetry }) => (
          <li key={id} className="line mine" data-state={refusal ? 'refused' : 'sending'}>
            <p className="bubble">{text}</p>
            {refusal ? (
              <p className="meta problem" role="alert">
                Not sent: {refusal} {canRetry && <button className="link" onClick={() => onRetry(text, id)}>Try again</button>}{' '}
                <button className="link" onClick={() => onEdit(text, id)}>Edit</button>{' '}
                <button className="link" onClick={() => onRemove(id)}>Remove</button>
              </p>
            ) : (
              <p className="meta">Sending…</p>
            )}
          </li>
        ))}
      </ol>
    </div>
  );
}

function Line({ message: { from, at, data }, isMine, follows }: { message: Message; isMine: boolean; follows: boolean }) {
  return (
    <li className={`line ${isMine ? 'mine' : ''} ${follows ? 'follows' : ''}`}>
      {!isMine && !follows && <Avatar name={from ?? '?'} />}
      {!follows && (
        <p className="meta">
          <span className={isMine ? 'sr' : 'sender'}>{from}</span> <time dateTime={new Date(at).toISOString()}>{timeOf(at)}</time>
        </p>
      )}
      <p className="bubble">{data.text}</p>
    </li>
  );
}

const isNewDay = (message: Message, previous?: Message) => !previous || dayOf(previous.at) !== dayOf(message.at);
const isSameSender = (message: Message, previous?: Message) =>
  previous !== undefined && previous.from === message.from && !isNewDay(message, previous) && message.at - previous.at < 300_000;

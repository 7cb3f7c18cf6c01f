import { useRef, type KeyboardEvent } from 'react';

const MAX = 2000;

type Props = { title: string; text: string; onText: (text: string) => void; onSend: (text: string) => void; onTyping: () => void };

/** Where a message is written. Enter sends, Shift and Enter begins a line. */
export function Composer({ title, text, onText, onSend, onTyping }: Props) {
  const area = useRef<HTMLTextAreaElement>(null);
  const trimmed = text.trim();

  function send() {
    if (!trimmed || trimmed.length > MAX) return;
    onSend(trimmed);
    onText('');
    area.current?.focus();
  }
  function pressed(event: KeyboardEvent) {
    if (event.key !== 'Enter' || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    send();
  }

  return (
    <form className="composer" onSubmit={(event) => (event.preventDefault(), send())}>
      <label className="sr" htmlFor="text">Message to {title}</label>
      <textarea
        id="text"
        ref={area}
        rows={Math.min(6, text.split('\n').length)}
        value={text}
        placeholder="Write a message"
        autoFocus={matchMedia('(pointer: fine)').matches}
        onKeyDown={pressed}
        onChange={(event) => {
          onText(event.target.value);
          if (event.target.value) onTyping();
        }}
      />
      <button className="primary" disabled={!trimmed || trimmed.length > MAX}>Send</button>
      {trimmed.length > MAX && <p className="problem" role="alert">{trimmed.length - MAX} characters too long.</p>}
    </form>
  );
}

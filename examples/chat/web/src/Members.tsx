import { useEffect, useRef, useState } from 'react';
import { api, messageOf, type RoomDetails } from './api.ts';
import { Avatar } from './Avatar.tsx';
import { goTo } from './route.ts';

type Props = { details: RoomDetails; present: Set<string>; me: string; onLeft: () => Promise<void> };

/** Who is in the room, the link that invites others, and the way out: in a panel, or beside the messages where there is room. */
export function Members({ details, present, me, onLeft }: Props) {
  const [isOpen, setOpen] = useState(false);
  const button = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    if (!isOpen) return;
    const close = (event: KeyboardEvent) => {
      if (event.key !== 'Escape' || document.querySelector('dialog[open]')) return;
      setOpen(false);
      button.current?.focus();
    };
    document.addEventListener('keydown', close);
    return () => document.removeEventListener('keydown', close);
  }, [isOpen]);

  const here = details.members.filter((name) => present.has(name)).length;
  return (
    <>
      <button ref={button} className="plain members-button" aria-expanded={isOpen} aria-controls="members" onClick={() => setOpen(!isOpen)}>
        {here} of {details.members.length} here
      </button>
      <aside id="members" className="members" data-open={isOpen} aria-label="Members">
        <h3>Members</h3>
        <ul>
          {details.members.map((name) => (
            <li key={name}>
              <Avatar name={name} isHere={present.has(name)} />
              <span className="member-name">{name}{name === me && ' (you)'}</span>
              <span className="faint">{present.has(name) ? 'here' : 'away'}</span>
            </li>
          ))}
        </ul>
        <Invite code={details.invitation} />
        <Leave details={details} onLeft={onLeft} />
      </aside>
    </>
  );
}

function Invite({ code }: { code: string }) {
  const [isCopied, setCopied] = useState(false);
  const link = `${location.origin}/#join/${code}`;
  const input = useRef<HTMLInputElement>(null);
  async function copy() {
    input.current?.select();
    await navigator.clipboard.writeText(link).then(() => setCopied(true), () => undefined); // else the link is selected
  }
  return (
    <div className="invite">
      <label htmlFor="invite">Invite others with this link</label>
      <div className="row">
        <input id="invite" ref={input} readOnly value={link} onFocus={(event) => event.target.select()} />
        <button className="plain" onClick={copy}>{isCopied ? 'Copied' : 'Copy'}</button>
      </div>
    </div>
  );
}

function Leave({ details, onLeft }: { details: RoomDetails; onLeft: () => Promise<void> }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [problem, setProblem] = useState('');
  async function leave() {
    try {
      await api.leaveRoom(details.id);
      goTo('');
      await onLeft();
    } catch (error) {
      setProblem(messageOf(error));
    }
  }
  return (
    <>
      <button className="quiet danger" onClick={() => dialog.current?.showModal()}>Leave the room</button>
      <dialog ref={dialog} className="card" aria-labelledby="leave">
        <h2 id="leave">Leave “{details.title}”?</h2>
        <p>{details.members.length === 1 ? 'You are the last member: all messages are deleted.' : 'To come back, you need the link of the invitation.'}</p>
        {problem && <p className="problem" role="alert">{problem}</p>}
        <div className="buttons">
          <button className="quiet" onClick={() => dialog.current?.close()}>Stay</button>
          <button className="primary" onClick={leave}>Leave</button>
        </div>
      </dialog>
    </>
  );
}

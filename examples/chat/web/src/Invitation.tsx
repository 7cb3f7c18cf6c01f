import { useEffect, useState } from 'react';
import { api, messageOf } from './api.ts';
import { goTo } from './route.ts';

/** Where the link of an invitation leads: join the room, or not. */
export function Invitation({ code, onJoined }: { code: string; onJoined: () => Promise<void> }) {
  const [title, setTitle] = useState('');
  const [problem, setProblem] = useState('');
  useEffect(() => {
    api.invitation(code).then((room) => setTitle(room.title), (error) => setProblem(messageOf(error)));
  }, [code]);

  async function join() {
    try {
      const { id } = await api.join(code);
      await onJoined();
      goTo(`room/${id}`);
    } catch (error) {
      setProblem(messageOf(error));
    }
  }

  return (
    <main className="room nothing">
      {problem && <p className="problem" role="alert">{problem}</p>}
      {title && (
        <>
          <h2>You are invited to “{title}”</h2>
          <p>Members read all messages, also those from before they have joined.</p>
          <div className="buttons">
            <button className="quiet" onClick={() => goTo('')}>Not now</button>
            <button className="primary" onClick={join}>Join the room</button>
          </div>
        </>
      )}
      {problem && <a href="#">Back to your rooms</a>}
    </main>
  );
}

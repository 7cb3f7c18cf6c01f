import { useRef, useState, type FormEvent } from 'react';
import { api, messageOf } from './api.ts';
import { Field } from './Field.tsx';
import { goTo } from './route.ts';

/** A button, and the dialog that makes a room. */
export function NewRoom({ onCreated }: { onCreated: () => Promise<void> }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [problem, setProblem] = useState<string>();

  async function create(event: FormEvent<HTMLFormElement>) {
    event.preventDefault();
    const form = event.currentTarget;
    try {
      const { id } = await api.createRoom(String(new FormData(form).get('title')));
      await onCreated();
      dialog.current?.close();
      form.reset();
      goTo(`room/${id}`);
    } catch (error) {
      setProblem(messageOf(error));
    }
  }

  return (
    <>
      <button className="plain" onClick={() => (setProblem(undefined), dialog.current?.showModal())}>New room</button>
      <dialog ref={dialog} className="card" aria-labelledby="new-room">
        <form onSubmit={create} noValidate>
          <h2 id="new-room">New room</h2>
          <Field label="Name of the room" name="title" maxLength={60} autoComplete="off" autoFocus problem={problem} />
          <div className="buttons">
            <button type="button" className="quiet" onClick={() => dialog.current?.close()}>Cancel</button>
            <button className="primary">Make the room</button>
          </div>
        </form>
      </dialog>
    </>
  );
}

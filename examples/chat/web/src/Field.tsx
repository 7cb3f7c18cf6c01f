import { useId, type InputHTMLAttributes } from 'react';

/** A labelled input, with what is wrong with it, or else a hint. */
export function Field({ label, hint, problem, ...input }: { label: string; hint?: string; problem?: string } & InputHTMLAttributes<HTMLInputElement>) {
  const id = useId();
  const note = problem ?? hint;
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      <input id={id} aria-invalid={problem !== undefined} aria-describedby={note ? `${id}-note` : undefined} {...input} />
      {note && <p id={`${id}-note`} className={problem ? 'problem' : 'faint'} role={problem ? 'alert' : undefined}>{note}</p>}
    </div>
  );
}

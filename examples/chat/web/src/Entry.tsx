import { useState, type FormEvent } from 'react';
import { api, messageOf, Refused } from './api.ts';
import { Field } from './Field.tsx';

/** Log in, or sign up. */
export function Entry({ onEntered }: { onEntered: () => Promise<void> }) {
  const [isNew, setNew] = useState(false);
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState<{ message: string; field?: string }>();

  async function enter(event: FormEvent<HTMLFormElement>) {
    event.preventDefault();
    const values = Object.fromEntries(new FormData(event.currentTarget)) as { name: string; email: string; password: string };
    setBusy(true);
    setProblem(undefined);
    try {
      await (isNew ? api.signUp(values) : api.logIn(values));
      await onEntered();
    } catch (error) {
      setProblem({ message: messageOf(error), field: error instanceof Refused ? error.field : undefined });
      setBusy(false);
    }
  }

  const of = (field: string) => (problem?.field === field ? problem.message : undefined);
  return (
    <main className="entry">
      <form className="card" onSubmit={enter} noValidate>
        <h1>{isNew ? 'Make an account' : 'Log in to the chat'}</h1>
        <Field label="Name" name="name" autoComplete="username" autoCapitalize="none" autoFocus problem={of('name')} hint={isNew ? 'How others see you: a to z, digits, - and _' : undefined} />
        {isNew && <Field label="E-mail" name="email" type="email" autoComplete="email" problem={of('email')} hint="For messages while you are away" />}
        <Field label="Password" name="password" type="password" autoComplete={isNew ? 'new-password' : 'current-password'} problem={of('password')} hint={isNew ? 'At least 10 characters' : undefined} />
        {problem && !problem.field && <p className="problem" role="alert">{problem.message}</p>}
        <button className="primary" disabled={isBusy}>{isNew ? 'Sign up' : 'Log in'}</button>
        <p className="faint">
          {isNew ? 'You have an account? ' : 'You are new here? '}
          <button type="button" className="link" onClick={() => (setNew(!isNew), setProblem(undefined))}>{isNew ? 'Log in' : 'Make an account'}</button>
        </p>
      </form>
    </main>
  );
}

// From the events of a conversation to its answers.

/**
 * @typedef {'waiting' | 'streaming' | 'complete' | 'stopped' | 'failed'} State
 * @typedef {{id: string, question: string, from: string, at: number, text: string, state: State, isWhole: boolean, parts: number}} Answer
 *   `isWhole`: nothing is missing at the front. `parts`: its events so far.
 */

/**
 * The answers in the order of their questions. The text of a finished answer is that of its last event; that of another one is its
 * deltas.
 * @param {readonly any[]} events  in order
 * @returns {Answer[]}
 */
export function fold(events) {
  /** @type {Map<string, Answer>} */
  const answers = new Map();
  for (const { type, from, at, data } of events) {
    const begun = { id: data.answer, question: data.question ?? '', from: from ?? '', at, text: '', state: /** @type {State} */ ('waiting'), isWhole: type === 'answer.begin', parts: 0 };
    const answer = answers.get(data.answer) ?? begun; // without its begin, it is older than the list
    answers.set(data.answer, answer);
    answer.parts += 1;
    if (type === 'answer.delta') Object.assign(answer, { text: answer.text + data.text, state: 'streaming' });
    if (type === 'answer.end') Object.assign(answer, { text: data.text, state: data.reason, isWhole: true });
  }
  return [...answers.values()];
}

/** A random id for an answer. */
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, '0')).join('');

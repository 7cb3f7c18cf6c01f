// The conversation on the page. Shown text is never written again: new words are appended to it.

import { byId, h, setText, toast } from '../shared/dom.js';
import { me } from '../shared/session.js';

/** @typedef {import('./answers.js').Answer} Answer */

/** Without a new part for this long (ms), an answer counts as interrupted: its backend may have died. */
const SILENCE = 15_000;
/** The same for one that waits for its turn. */
const LONG_WAIT = 120_000;
/** How long "Go offline" lasts (ms). */
const OUTAGE = 5_000;
/** @type {Record<string, string>} */
const WORDS = { waiting: 'Waiting for its turn', complete: '', stopped: 'Stopped', failed: 'Not answered', interrupted: 'Interrupted: nothing comes any more' };

/** "Agent 2". @param {string} user  empty for an answer whose beginning has not been read */
const nameOf = (user) => (user || 'somebody').split('-').map((part) => part.charAt(0).toUpperCase() + part.slice(1)).join(' ');

/** @param {string} user */
function avatar(user) {
  const name = nameOf(user);
  const words = name.split(' ');
  const tone = [...user].reduce((sum, character) => (sum * 31 + character.charCodeAt(0)) % 997, 0) % 8;
  const initials = (words.length > 1 ? words[0][0] + (words.at(-1) ?? '')[0] : name.slice(0, 2)).toUpperCase();
  return h('span', { class: `avatar tone-${tone}`, title: name, role: 'img', 'aria-label': name, dataset: { user } }, initials);
}

/** @param {string} from @param {string} question */
const asked = (from, question) =>
  h('div', { class: `asked ${from === me ? 'mine' : ''}` }, avatar(from), h('p', { class: 'question', 'data-testid': 'asked' }, question || 'An earlier question'));

/** One question with its answer. */
class Exchange {
  #text = h('p', { class: 'text', 'data-testid': 'text' });
  #state = h('span', { class: 'state' });
  #action = h('button', { type: 'button', class: 'link', hidden: true }, 'Try again');
  /** What the page shows of the answer. */
  #shown = '';
  #parts = -1;
  #asked;
  #changedAt = performance.now();

  /** @param {string} id @param {string} from @param {string} question */
  constructor(id, from, question) {
    this.#asked = question;
    this.answer = h('div', { class: 'answer', 'data-testid': 'answer', dataset: { id, state: 'pending' } }, this.#text, h('p', { class: 'foot' }, this.#state, this.#action));
    this.element = h('li', {}, asked(from, question), this.answer);
  }

  /** The question, which comes later if its answer began before the list. @param {string} from @param {string} question */
  ask(from, question) {
    if (this.#asked || !question) return;
    this.#asked = question;
    this.element.firstElementChild?.replaceWith(asked(from, question));
  }

  /** @param {Answer} answer */
  show({ text, state, parts, isWhole }) {
    if (parts === this.#parts) return;
    this.#parts = parts;
    this.#changedAt = performance.now();
    const shown = isWhole ? text : `… ${text}`;
    if (shown.startsWith(this.#shown)) this.#text.append(shown.slice(this.#shown.length));
    else this.#text.textContent = shown;
    this.#shown = shown;
    this.#mark(state, WORDS[state] ?? '');
  }

  /** An answer of a question that is not stored yet. @param {boolean} isConnected */
  pending(isConnected) {
    this.#mark('pending', isConnected ? 'Asking' : 'Will be asked when there is a connection');
  }

  /** @param {string} reason @param {() => void} retry */
  failed(reason, retry) {
    this.#mark('unsent', `Not asked: ${reason}`);
    this.#action.hidden = false;
    this.#action.onclick = retry;
  }

  /** @param {boolean} isConnected */
  tick(isConnected) {
    const { state } = this.answer.dataset;
    if (!isConnected) this.#changedAt = performance.now();
    const silence = performance.now() - this.#changedAt;
    if ((state === 'streaming' && silence > SILENCE) || (state === 'waiting' && silence > LONG_WAIT)) this.#mark('interrupted', WORDS.interrupted);
    if (state === 'pending') this.pending(isConnected);
  }

  get isRunning() {
    return ['streaming', 'waiting'].includes(this.answer.dataset.state ?? '');
  }

  /** @param {string} state @param {string} words */
  #mark(state, words) {
    this.answer.dataset.state = state;
    this.answer.setAttribute('aria-busy', String(state === 'streaming'));
    this.#action.hidden = true;
    setText(this.#state, words);
  }
}

export class View {
  /** @type {Map<string, Exchange>} */
  #exchanges = new Map();
  #isConnected = false;
  #page;

  /** @param {{ask: (question: string, answer?: string) => void, stop: (answer: string) => void, loadEarlier: () => Promise<number>}} page */
  constructor(page) {
    this.#page = page;
    byId('form').addEventListener('submit', (event) => this.#submit(event));
    for (const button of byId('suggestions').querySelectorAll('button')) button.addEventListener('click', () => this.#page.ask(button.textContent ?? ''));
    byId('stop').addEventListener('click', () => this.#stop());
    byId('earlier').addEventListener('click', () => void page.loadEarlier());
    byId('new').addEventListener('click', () => (location.hash = `#c-${Math.random().toString(36).slice(2, 10)}`));
    byId('cut').addEventListener('click', () => this.#goOffline());
    document.addEventListener('keydown', ({ key }) => key === 'Escape' && !byId('stop').hidden && this.#stop());
    setInterval(() => this.#exchanges.forEach((exchange) => exchange.tick(this.#isConnected)), 1_000);
  }

  /** @param {Answer[]} answers @param {{status: string, hasOlder: boolean}} list */
  show(answers, { status, hasOlder }) {
    const isAtEnd = this.#isAtEnd();
    for (const answer of answers) this.#exchange(answer.id, answer.from, answer.question).show(answer);
    this.#sort(answers);
    byId('earlier').hidden = !hasOlder;
    byId('welcome').hidden = this.#exchanges.size > 0 || status === 'loading';
    this.#announce();
    if (isAtEnd) this.#toEnd();
  }

  /** Shows a question that is not stored yet. @param {string} answer @param {string} question */
  pending(answer, question) {
    this.#exchange(answer, me, question).pending(this.#isConnected);
    byId('welcome').hidden = true;
    this.#announce();
    this.#toEnd();
  }

  /** @param {string} answer @param {Error} error */
  failed(answer, error) {
    const exchange = this.#exchanges.get(answer);
    const question = exchange?.element.querySelector('.question')?.textContent ?? '';
    exchange?.failed(error.message, () => this.#page.ask(question, answer));
  }

  /** A notice, which is also read aloud. @param {string} words */
  say(words) {
    toast(words);
  }

  /** @param {readonly {user: string}[]} members */
  showPeople(members) {
    byId('people').replaceChildren(...members.slice(0, 8).map(({ user }) => avatar(user)), h('span', { class: 'faint' }, members.length > 1 ? `${members.length} here` : 'Only you'));
  }

  /** @param {boolean} isConnected */
  showConnection(isConnected) {
    this.#isConnected = isConnected;
    byId('answers').dataset.connected = String(isConnected);
    byId('people').dataset.connected = String(isConnected);
    this.#exchanges.forEach((exchange) => exchange.tick(isConnected));
  }

  /** @param {string} id @param {string} from @param {string} question */
  #exchange(id, from, question) {
    const known = this.#exchanges.get(id);
    known?.ask(from, question);
    if (known) return known;
    const exchange = new Exchange(id, from, question);
    this.#exchanges.set(id, exchange);
    byId('answers').append(exchange.element);
    return exchange;
  }

  /** Earlier answers come first, questions that are not stored last. @param {Answer[]} answers */
  #sort(answers) {
    const list = byId('answers');
    answers.forEach(({ id }, index) => {
      const { element } = /** @type {Exchange} */ (this.#exchanges.get(id));
      if (list.children[index] !== element) list.insertBefore(element, list.children[index]);
    });
  }

  /** The button "Stop", and words for those who do not see the cursor. */
  #announce() {
    const running = [...this.#exchanges.values()].filter(({ isRunning }) => isRunning);
    byId('stop').hidden = running.length === 0;
    const last = [...this.#exchanges.values()].at(-1)?.answer.dataset.state;
    const words = running.length ? 'An answer is being written' : last === 'complete' ? 'The answer is complete' : last === 'stopped' ? 'The answer was stopped' : '';
    setText(byId('status'), words);
  }

  #stop() {
    for (const [id, exchange] of this.#exchanges) if (exchange.isRunning) this.#page.stop(id);
  }

  /** @param {SubmitEvent} event */
  #submit(event) {
    event.preventDefault();
    const input = /** @type {HTMLInputElement} */ (byId('question'));
    const question = input.value.trim();
    if (!question) return;
    input.value = '';
    this.#page.ask(question);
  }

  #isAtEnd() {
    const log = byId('log');
    return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  }

  #toEnd() {
    byId('log').scrollTop = byId('log').scrollHeight;
  }

  /** Says to the client what a browser says when the network goes and comes back. */
  #goOffline() {
    const button = /** @type {HTMLButtonElement} */ (byId('cut'));
    button.disabled = true;
    dispatchEvent(new Event('offline'));
    setTimeout(() => {
      dispatchEvent(new Event('online'));
      button.disabled = false;
    }, OUTAGE);
  }
}

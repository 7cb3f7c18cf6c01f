// The inspector: breaks this page's own connection, and counts what arrives afterwards.

import { Tidewire } from '/client/tidewire.js';
import { byId, setText } from '../shared/dom.js';
import { shell } from '../shared/shell.js';
import { Faults, FAULTS, until } from './faults.js';
import { Frames } from './frames.js';
import { startLab } from './lab.js';
import { Lane } from './lane.js';
import { Latency } from './latency.js';

/** Numbers that must arrive after a fault, for half a second: so it has taken effect, and is over. */
const AFTERWARDS = 10;

const play = /** @type {HTMLButtonElement} */ (byId('play'));
const summary = (/** @type {string} */ text) => setText(byId('summary'), text);
const lab = await startLab().catch((error) => {
  shell({ title: 'Inspector' });
  summary(`The inspector could not start: ${error.message}.`);
  throw error;
});
const kept = new Lane(byId('lanes'), { name: 'kept', title: 'Durable events', line: 'A position, history, and what was missed after each reconnect.' });
const plain = new Lane(byId('lanes'), { name: 'plain', title: 'Plain Pub/Sub', line: 'The same events, at most once: who is not there misses them.' });
const latency = new Latency(byId('latency'));
const frames = new Frames(byId('frames'));

// #region how it works
const client = new Tidewire(lab.url, { token: lab.token, debug: frames.add, backoffCap: 2_000 });
const numbers = client.channel(lab.kept);
numbers.on('subscribed', ({ missed }) => kept.tally.resume(missed));
numbers.on('number.kept', ({ data, at }) => {
  kept.take(data.n);
  latency.take(Date.now() - at);
});
client.channel(lab.plain).on('number.plain', ({ data }) => plain.take(data.n));
client.connect();
// #endregion

shell({ title: 'Inspector', name: 'inspector', client });
const faults = new Faults(byId('faults'), (name) => void run([name]));

/** Breaks something, and waits until everything that was published has arrived. @param {string} name */
async function inspect(name) {
  const before = { recovered: kept.tally.recovered, missing: kept.tally.missing, lost: plain.tally.missing };
  faults.show(name);
  kept.tally.listen();
  const done = latency.mark();
  try {
    const { published } = await lab.play(name);
    await until(() => Math.min(kept.tally.last, plain.tally.last) > published + AFTERWARDS);
  } finally {
    done();
  }
  faults.result(name, {
    silence: kept.tally.silence,
    recovered: kept.tally.recovered - before.recovered,
    missing: kept.tally.missing - before.missing,
    lost: plain.tally.missing - before.lost,
  });
}

/** @param {string[]} names */
async function run(names) {
  play.disabled = true;
  try {
    for (const name of names) {
      summary(`${FAULTS.find((fault) => fault.name === name)?.title} …`);
      await inspect(name);
    }
    summary(sentence());
  } catch (/** @type {any} */ error) {
    summary(`This fault could not be played: ${error.message}.`);
  }
  faults.show();
  play.disabled = false;
}

function sentence() {
  const { received, recovered, missing, repeated, disordered } = kept.tally;
  const faultless = !missing && !repeated && !disordered;
  const result = faultless ? `none is missing: ${recovered.toLocaleString('en')} came later, each once and in order` : `${missing} are missing, ${repeated} came twice, ${disordered} out of order`;
  return `Of ${received.toLocaleString('en')} durable events, ${result}. Plain Pub/Sub has lost ${plain.tally.missing.toLocaleString('en')} for good.`;
}

play.addEventListener('click', () => void run(FAULTS.map(({ name }) => name)));
client.on('state', ({ state, code }) => {
  if (state === 'closed') summary(`The client is closed${code ? ` (${code})` : ''}. Reload the page to start again.`);
});
client.on('error', ({ code, message }) => frames.note(`${code}: ${message}`));
setInterval(() => {
  const { transport } = client.status;
  const position = numbers.position;
  setText(byId('facts'), position ? `${transport === 'websocket' ? 'WebSocket' : `HTTP ${transport}`} · position ${position.epoch} / ${position.offset}` : '');
}, 250);
await until(() => kept.tally.received > 0 && plain.tally.received > 0);
faults.show();
play.disabled = false;

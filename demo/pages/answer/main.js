// The streaming answer: one list of events is the whole conversation, for those who come early, late, or again.

import '/client/collections/index.js';
import { asOther, client } from '../shared/session.js';
import { shell } from '../shared/shell.js';
import { fold, newId } from './answers.js';
import { View } from './view.js';

const conversation = /^#[a-z0-9-]{1,40}$/.test(location.hash) ? location.hash.slice(1) : 'main';

// #region How it works
const channel = client.channel(`conversation:${conversation}`);

// All events are durable. The list reads the history, and goes on with the live events
// without a gap: after a reload, after a cut, and in a window that opens in the middle.
const types = ['answer.begin', 'answer.delta', 'answer.end'];
const events = channel.list(types, { tail: 500, max: 2000 });
events.subscribe(() => view.show(fold(events.items), events));
channel.presence.subscribe(() => view.showPeople(channel.presence.members));

// Questions go to a channel that only the backend reads. A publish waits for the network.
// Its id makes it count once, however often it is sent.
/** @param {string} question @param {string} [answer] */
function ask(question, answer = newId()) {
  view.pending(answer, question);
  client
    .publish('ask:main', 'ask.question', { conversation, answer, question }, { id: answer })
    .catch((error) => view.failed(answer, error));
}
/** @param {string} answer */
function stop(answer) {
  client
    .publish('ask:main', 'ask.stop', { conversation, answer })
    .catch((error) => view.say(`Not stopped: ${error.message}`));
}

const view = new View({ ask, stop, loadEarlier: () => events.loadOlder(500) });
client.on('state', ({ state }) => view.showConnection(state === 'ready'));
client.connect();
// #endregion

addEventListener('hashchange', () => location.reload());
shell({ title: 'Streaming answer', name: 'answer', client, second: asOther() + location.hash });

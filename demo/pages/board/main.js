// The live board: samples for the charts, newest values for the large numbers, and who watches.

import '/client/collections/index.js';
import { client } from '../shared/session.js';
import { shell } from '../shared/shell.js';
import { Board } from './view.js';

// #region How it works
const shop = client.channel('shop:main');

// Durable: every sample counts. The list has the history and the live ones, in order
// and without a gap, also after a time without a network.
const samples = shop.list('shop.sample', { tail: 300, max: 1200 });
// Latest: only the newest value of each key counts. A new window gets all of them at once.
const newest = shop.map('shop.metric');

const board = new Board({ older: (count) => samples.loadOlder(count) });
samples.subscribe(() => board.showSamples(samples.items.map(({ data }) => data), samples));
newest.subscribe(() => board.showNewest(newest.values));
shop.presence.subscribe(() => board.showWatchers(shop.presence.count));
client.on('state', ({ state }) => board.showConnection(state === 'ready'));

client.connect();
// #endregion

shell({ title: 'Live board', name: 'board', client });

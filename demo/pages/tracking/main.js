// Delivery tracking: couriers on a map, and what becomes of orders.

import '/client/collections/index.js';
import { client } from '../shared/session.js';
import { shell } from '../shared/shell.js';
import { Clock } from './clock.js';
import { TownMap } from './map.js';
import { Orders } from './orders.js';

shell({ title: 'Delivery tracking', name: 'tracking', client });

const clock = new Clock();
const map = new TownMap(clock, { onCourier: (courier) => orders.selectOf(courier), onFollow: (courier) => orders.followed(courier) });
const orders = new Orders(clock, { onSelect: (order) => map.mark(order), onFollow: (courier) => map.follow(courier) });

// #region how it works
const delivery = client.channel('delivery:old-town');

// Values by key: a page that opens later gets all of them with the subscription. A courier who signs off is removed.
const couriers = delivery.map('courier.position');
const facts = delivery.map('order.facts');

// Values that end after 5 s. Each phone publishes its own every 2 s, so a courier without one has no network.
const phones = delivery.map('courier.phone');

// Durable events: each step of each order once, and in order.
const steps = delivery.list('order.status', { tail: 100 });

function show() {
  const isLive = couriers.status === 'live'; // complete, and there is a connection
  map.show(couriers.values, phones.values, isLive);
  orders.show(facts.values, steps.items, { couriers: couriers.values, phones: phones.values, isLive });
}
for (const collection of [couriers, phones, facts, steps]) collection.subscribe(show);

delivery.on('courier.position', ({ at }) => clock.heard(at));
client.connect();
// #endregion

// A load test for k6 1.x: WebSocket clients, a backend that publishes, thresholds. k8s/README.md describes how to run it.
//
// Every client follows docs/protocol.md: hello or a ticket, subscribe, ready. It checks that offsets have no gaps, reconnects
// after the delay of `reconnect`, and resumes from its position. All times are of this process's clock.

import { WebSocket } from 'k6/experimental/websockets';
import crypto from 'k6/crypto';
import encoding from 'k6/encoding';
import exec from 'k6/execution';
import http from 'k6/http';
import { Counter, Rate, Trend } from 'k6/metrics';

const text = (name, otherwise) => __ENV[name] || otherwise;
const number = (name, otherwise) => {
  const given = __ENV[name] ? Number(__ENV[name]) : otherwise;
  if (!Number.isFinite(given) || given < 0) throw new Error(`${name} is no number: ${__ENV[name]}`);
  return given;
};

const ADDRESS = text('URL', 'ws://127.0.0.1:8080/ws');
// The URL of the backend API and tickets, if it differs from the WebSockets': in a cluster the Service, because an ingress does not route /api.
const API = text('API', ADDRESS.replace(/^ws/, 'http').replace(/\/ws$/, ''));
const TICKETS = text('TICKETS', '') !== '';
const CLIENTS = number('CLIENTS', 100);
const CHANNELS = number('CHANNELS', 10);
const CHANNEL = text('CHANNEL', 'room:load');
const TYPE = text('TYPE', 'chat.message');
const DATA = JSON.parse(text('DATA', '{"text": "load"}'));
const RATE = number('RATE', 10); // publishes a second of all channels
const [RAMP, HOLD, DOWN] = [number('RAMP', 10), number('HOLD', 30), number('DOWN', 5)]; // seconds
const P95 = number('P95', 250); // milliseconds
const FAILURES = number('FAILURES', 0.01);
const [BACKOFF, BACKOFF_MOST] = [0.25, 5]; // seconds: maximum of the first delay and of all delays, with full jitter
const SETTLE = 2; // seconds from the last publish to the first disconnect, so that all events arrive
const LASTS = RAMP + HOLD + SETTLE + DOWN;
const STOP = new Set([4400, 4403, 4409]); // docs/protocol.md, Close codes: do not reconnect

const delivery = new Trend('delivery', true);
const connecting = new Trend('connecting', true);
const received = new Counter('events_received');
const published = new Counter('events_published');
const reconnects = new Counter('reconnects');
const told = new Counter('reconnects_told');
const resumed = new Counter('resumed');
const lost = new Counter('not_recovered');
const gaps = new Counter('gaps');
const refused = new Counter('errors');
const failures = new Rate('connect_failures');
const unpublished = new Rate('publish_failures');

export const options = {
  scenarios: {
    // Each client is one iteration: it connects during the ramp, stays, and disconnects at the end.
    clients: { executor: 'per-vu-iterations', exec: 'client', vus: CLIENTS, iterations: 1, maxDuration: `${LASTS + 60}s` },
    ...(RATE > 0 && {
      backend: {
        executor: 'constant-arrival-rate', exec: 'publish', rate: RATE, timeUnit: '1s',
        startTime: `${RAMP}s`, duration: `${HOLD}s`, preAllocatedVUs: Math.max(2, Math.ceil(RATE / 10)), maxVUs: Math.max(10, RATE),
      },
    }),
  },
  thresholds: {
    connect_failures: [`rate<${FAILURES}`],
    gaps: ['count==0'],
    not_recovered: ['count==0'],
    errors: ['count==0'],
    ...(RATE > 0 && {
      delivery: [`p(95)<${P95}`],
      publish_failures: [`rate<${FAILURES}`],
      events_received: ['count>0'],
    }),
  },
  summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max'],
};

const credentials = (name) => {
  if (__ENV.TOKEN) return __ENV.TOKEN;
  if (!__ENV.AUTH_SECRET) throw new Error('no credentials: set AUTH_SECRET (signs a token for each client) or TOKEN (one for all)');
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    iss: text('ISSUER', 'tidewire'), aud: text('AUDIENCE', 'tidewire'), sub: name, iat: now, exp: now + 3600,
    grants: [`${CHANNEL}*`], ...(__ENV.TENANT && { tenant: __ENV.TENANT }),
  };
  const part = (value) => encoding.b64encode(JSON.stringify(value), 'rawurl');
  const head = `${part({ alg: 'HS256', typ: 'JWT' })}.${part(claims)}`;
  return `${head}.${crypto.hmac('sha256', __ENV.AUTH_SECRET, head, 'base64rawurl')}`;
};

const channelOf = (turn) => `${CHANNEL}-${turn % CHANNELS}`;

class Client {
  constructor(turn) {
    this.user = `load-${turn}`;
    this.channel = channelOf(turn);
    this.position = null;
    this.failed = 0;
    this.after = null;
    this.leaving = false;
  }

  connect() {
    if (this.leaving) return;
    const started = Date.now();
    let ready = false;
    let over = false;
    let token;
    let query = '';
    if (TICKETS) {
      const answer = http.post(`${API}/tickets`, null, { headers: { Authorization: `Bearer ${credentials(this.user)}` } });
      if (answer.status !== 201) {
        failures.add(true);
        this.again();
        return;
      }
      query = `?ticket=${encodeURIComponent(answer.json('ticket'))}`;
    } else {
      token = credentials(this.user);
    }
    const socket = new WebSocket(ADDRESS + query, 'tidewire.v1');
    this.socket = socket;
    const end = (code) => {
      if (over) return;
      over = true;
      if (!ready && !this.leaving) failures.add(true);
      if (!this.leaving && !STOP.has(code)) this.again();
    };
    socket.onopen = () => {
      if (token) socket.send(JSON.stringify({ type: 'hello', token }));
    };
    socket.onerror = () => end(1006);
    socket.onclose = (event) => end(event.code);
    socket.onmessage = (event) => {
      const content = JSON.parse(event.data);
      for (const message of Array.isArray(content) ? content : [content]) {
        if (message.type === 'subscribed' && !ready) {
          ready = true;
          this.failed = 0;
          failures.add(false);
          connecting.add(Date.now() - started);
        }
        this.take(message);
      }
    };
  }

  take(message) {
    switch (message.type) {
      case 'welcome':
        this.socket.send(JSON.stringify([
          { type: 'subscribe', id: 's', channel: this.channel, ...(this.position && { since: this.position }) },
          { type: 'ready' },
        ]));
        break;
      case 'subscribed':
        if (message.recovered === true) resumed.add(1);
        if (message.recovered === false) lost.add(1);
        // Events of a resume are counted, but not their latency, because the client was disconnected.
        received.add(message.events.filter((event) => event.offset > (this.position ? this.position.offset : 0)).length);
        this.position = { epoch: message.epoch, offset: message.offset, ...(message.last && { id: message.last }) };
        break;
      case 'reconnect':
        this.after = message.after;
        told.add(1);
        break;
      case 'error':
        refused.add(1);
        console.error(`${message.code}: ${message.message}`);
        break;
      default:
        if (message.channel === this.channel && message.type === TYPE) this.apply(message);
    }
  }

  apply(event) {
    const sent = /^load-(\d+)-/.exec(event.id || '');
    if (sent) delivery.add(Date.now() - Number(sent[1]));
    received.add(1);
    if (event.offset === undefined) return; // not durable: gaps cannot be detected
    if (event.offset !== this.position.offset + 1) gaps.add(1);
    this.position = { epoch: this.position.epoch, offset: event.offset, id: event.id };
  }

  again() {
    let pause = this.after;
    if (pause === null) pause = Math.random() * Math.min(BACKOFF_MOST, BACKOFF * 2 ** this.failed);
    this.after = null;
    this.failed += 1;
    reconnects.add(1);
    setTimeout(() => this.connect(), 1000 * pause);
  }

  leave() {
    this.leaving = true;
    if (this.socket) this.socket.close(1000);
  }
}

export function client() {
  const turn = exec.vu.idInTest - 1;
  const share = turn / CLIENTS;
  const one = new Client(turn);
  setTimeout(() => one.connect(), 1000 * RAMP * share);
  setTimeout(() => one.leave(), 1000 * (LASTS - DOWN * (1 - share)));
}

export function publish() {
  const turn = exec.scenario.iterationInTest;
  const event = { type: TYPE, id: `load-${Date.now()}-${turn}`, data: DATA };
  const answer = http.post(`${API}/api/v1/channels/${channelOf(turn)}/events`, JSON.stringify(event), {
    headers: { Authorization: `Bearer ${__ENV.API_KEY}`, 'Content-Type': 'application/json' },
    tags: { name: 'publish' },
  });
  unpublished.add(answer.status !== 200);
  if (answer.status === 200) published.add(1);
  else console.error(`publish: ${answer.status} ${answer.body}`);
}

export function handleSummary(data) {
  const metric = (name) => (data.metrics[name] ? data.metrics[name].values : {});
  const count = (name) => metric(name).count || 0;
  const share = (name) => `${(100 * (metric(name).rate || 0)).toFixed(2)} %`;
  const times = (name) => {
    const values = metric(name);
    if (values.med === undefined) return 'none';
    return ['med', 'p(95)', 'p(99)', 'max'].map((stat) => `${stat} ${values[stat].toFixed(1)} ms`).join(', ');
  };
  const broken = Object.entries(data.metrics).flatMap(([name, { thresholds }]) =>
    Object.entries(thresholds || {}).filter(([, { ok }]) => !ok).map(([rule]) => `${name} ${rule}`));
  const lines = [
    `${CLIENTS} clients in ${CHANNELS} channels, ${RATE} publishes/s for ${HOLD} s`,
    `  published          ${count('events_published')}, failed ${share('publish_failures')}`,
    `  received           ${count('events_received')}`,
    `  publish to receive ${times('delivery')}`,
    `  connect to join    ${times('connecting')}, failed ${share('connect_failures')}`,
    `  reconnects         ${count('reconnects')}, of them told by the service ${count('reconnects_told')}, resumed ${count('resumed')}`,
    `  gaps               ${count('gaps')}, not recovered ${count('not_recovered')}, errors ${count('errors')}`,
    broken.length ? `FAILED: ${broken.join(', ')}` : 'passed',
  ];
  return { stdout: `${lines.join('\n')}\n`, ...(__ENV.SUMMARY && { [__ENV.SUMMARY]: JSON.stringify(data, null, 1) }) };
}

import { Timer } from './clock.js';
import { TidewireError } from './errors.js';
import { SUBPROTOCOL, parse } from './messages.js';
import { Pacer } from './pacer.js';

/**
 * @typedef {object} LinkOptions
 * @property {new (url: string, protocols: string[]) => WebSocket} WebSocket
 * @property {import('./clock.js').Clock} clock
 * @property {import('./messages.js').ClientMessage | undefined} hello  the first message, if the URL has no credentials
 * @property {number} connectTimeout  ms from the handshake to `welcome`
 * @property {number} pongTimeout  ms
 * @property {() => string} nextId
 * @property {(welcome: import('./messages.js').Welcome) => void} onWelcome
 * @property {(message: import('./messages.js').ServerMessage) => void} onMessage
 * @property {(end: End) => void} onEnd  called once
 *
 * @typedef {{code: number, reason: string, opened: boolean, welcomed: boolean}} End
 */

const encoder = new TextEncoder();

/**
 * One WebSocket from handshake to close. It joins the messages of one tick into batch frames within the limits of `welcome`,
 * and detects a connection that broke silently.
 */
export class Link {
  #socket;
  #options;
  #deadline;
  #heartbeat;
  #pace;
  /** @type {{type: string, text: string, bytes: number}[]} */
  #queue = [];
  #flushing = false;
  #heard = 0;
  #opened = false;
  #ended = false;
  /** @type {import('./messages.js').Welcome | undefined} */
  #welcome;
  /** @type {Pacer | undefined} */
  #pacer;

  /**
   * @param {string} url
   * @param {LinkOptions} options
   */
  constructor(url, options) {
    this.#options = options;
    this.#deadline = new Timer(options.clock);
    this.#heartbeat = new Timer(options.clock);
    this.#pace = new Timer(options.clock);
    this.#socket = new options.WebSocket(url, [SUBPROTOCOL]);
    this.#socket.onopen = () => this.#open();
    this.#socket.onmessage = ({ data }) => this.#hear(data);
    this.#socket.onclose = ({ code, reason }) => this.#end(code, reason);
    this.#socket.onerror = () => {}; // a close event with a code follows
    this.#deadline.start(options.connectTimeout, () => this.drop('no_welcome'));
  }

  /** Whether messages can be sent. */
  get welcomed() {
    return this.#welcome !== undefined && !this.#ended;
  }

  /**
   * Adds a message to this tick's frame and returns its size. Throws TidewireError `too_big` if it exceeds the frame limit.
   * @param {import('./messages.js').ClientMessage} message
   */
  send(message) {
    const text = JSON.stringify(message);
    const bytes = encoder.encode(text).length;
    const most = this.#welcome?.limits.message ?? Infinity;
    if (bytes > most) {
      throw new TidewireError('too_big', `the message has ${bytes} bytes; the service accepts ${most}`);
    }
    this.#queue.push({ type: message.type, text, bytes });
    if (!this.#flushing) {
      this.#flushing = true;
      queueMicrotask(() => this.#flush());
    }
    return bytes;
  }

  /** Closes the connection with a close frame. */
  close() {
    this.#finish();
    this.#socket.close(1000);
  }

  /**
   * Drops the connection as broken, without waiting for the peer.
   * @param {string} reason
   * @param {number} [code]
   */
  drop(reason, code = 1006) {
    this.#end(code, reason);
    this.#socket.close();
  }

  #open() {
    this.#opened = true;
    if (this.#socket.protocol !== SUBPROTOCOL) {
      this.drop('unsupported_version', 1002);
      return;
    }
    if (this.#options.hello) this.#socket.send(JSON.stringify(this.#options.hello));
  }

  /** @param {unknown} frame */
  #hear(frame) {
    this.#heard = this.#options.clock.now();
    for (const message of parse(frame)) {
      if (this.#ended) return;
      if (message.type === 'welcome' && !this.#welcome) {
        this.#start(/** @type {import('./messages.js').Welcome} */ (message));
      } else {
        this.#options.onMessage(message);
      }
    }
  }

  /** @param {import('./messages.js').Welcome} welcome */
  #start(welcome) {
    this.#deadline.stop();
    this.#welcome = welcome;
    this.#pacer = new Pacer(welcome.limits, this.#options.clock);
    this.#listen(welcome.heartbeat * 1000);
    this.#options.onWelcome(welcome);
  }

  /**
   * Sends a ping after a heartbeat without a message, because browsers hide the service's WebSocket pings.
   * @param {number} heartbeat
   */
  #listen(heartbeat) {
    const silent = this.#options.clock.now() - this.#heard;
    if (silent < heartbeat) {
      this.#heartbeat.start(heartbeat - silent, () => this.#listen(heartbeat));
      return;
    }
    const before = this.#heard;
    this.send({ type: 'ping', id: this.#options.nextId() });
    this.#heartbeat.start(this.#options.pongTimeout, () => {
      if (this.#heard === before) this.drop('no_pong');
      else this.#listen(heartbeat);
    });
  }

  #flush() {
    this.#flushing = false;
    const { limits } = this.#welcome ?? {};
    if (!limits || !this.#pacer || this.#ended) return;
    while (this.#queue.length > 0) {
      const batch = this.#take(this.#pacer, limits);
      if (batch.length === 0) {
        this.#flushing = true;
        this.#pace.start(this.#pacer.wait(this.#queue[0].type), () => this.#flush());
        return;
      }
      this.#socket.send(batch.length === 1 ? batch[0] : `[${batch.join(',')}]`);
    }
  }

  /**
   * Returns the next messages, in order, that the rates allow and that fit into one frame. A single message always fits.
   * @param {Pacer} pacer
   * @param {import('./messages.js').Limits} limits
   */
  #take(pacer, limits) {
    let count = 0;
    let size = 1;
    for (const { type, bytes } of this.#queue) {
      if (count === limits.batch || (count > 0 && size + 1 + bytes > limits.message) || !pacer.take(type)) break;
      size += 1 + bytes;
      count += 1;
    }
    return this.#queue.splice(0, count).map(({ text }) => text);
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  #end(code, reason) {
    if (this.#ended) return;
    this.#finish();
    this.#options.onEnd({ code, reason, opened: this.#opened, welcomed: this.#welcome !== undefined });
  }

  #finish() {
    this.#ended = true;
    this.#queue.length = 0;
    this.#deadline.stop();
    this.#heartbeat.stop();
    this.#pace.stop();
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
  }
}

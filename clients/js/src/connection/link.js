import { SUBPROTOCOL } from '../messages.js';

/**
 * A way to the service that carries text frames in both directions: a WebSocket, and what else implements this.
 * @typedef {object} Link
 * @property {(frame: string) => void} send
 * @property {() => number} buffered  bytes that are accepted and not yet on their way
 * @property {() => void} close  ends the link; no event follows
 *
 * @typedef {object} LinkEvents  of one link, in this order; nothing after `ended`
 * @property {() => void} opened
 * @property {(frame: unknown) => void} received
 * @property {(code: number, reason: string, verdict?: import('../upkeep/probe.js').Verdict) => void} ended  `verdict`: what the service has answered to a request
 *
 * @typedef {(address: URL, events: LinkEvents, hello?: import('../messages.js').ClientMessage) => Link} OpenLink
 *   throws if there can be no such link here. `hello`: what the client will send
 */

/**
 * Opens links over a WebSocket class.
 * @param {new (url: string, protocols: string[]) => WebSocket} WebSocket
 * @returns {OpenLink}
 */
export function webSocketLinks(WebSocket) {
  return (address, events) => {
    const socket = new WebSocket(address.href, [SUBPROTOCOL]);
    const silence = () => {
      socket.onopen = socket.onmessage = socket.onclose = null;
    };
    socket.onopen = () => {
      if (socket.protocol === SUBPROTOCOL) events.opened();
      else {
        silence();
        socket.close();
        events.ended(1002, 'unsupported_version');
      }
    };
    socket.onmessage = ({ data }) => events.received(data);
    socket.onclose = ({ code, reason }) => {
      silence();
      events.ended(code, reason);
    };
    socket.onerror = () => {}; // a close event with a code follows
    return {
      send: (frame) => socket.send(frame),
      buffered: () => socket.bufferedAmount,
      close: () => {
        silence();
        socket.close(1000);
      },
    };
  };
}

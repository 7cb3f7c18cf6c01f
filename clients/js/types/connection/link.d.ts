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
 * @property {(code: number, reason: string) => void} ended
 *
 * @typedef {(address: URL, events: LinkEvents) => Link} OpenLink  throws if there can be no such link here
 */
/**
 * Opens links over a WebSocket class.
 * @param {new (url: string, protocols: string[]) => WebSocket} WebSocket
 * @returns {OpenLink}
 */
export function webSocketLinks(WebSocket: new (url: string, protocols: string[]) => WebSocket): OpenLink;
/**
 * A way to the service that carries text frames in both directions: a WebSocket, and what else implements this.
 */
export type Link = {
    send: (frame: string) => void;
    /**
     * bytes that are accepted and not yet on their way
     */
    buffered: () => number;
    /**
     * ends the link; no event follows
     */
    close: () => void;
};
/**
 * of one link, in this order; nothing after `ended`
 */
export type LinkEvents = {
    opened: () => void;
    received: (frame: unknown) => void;
    ended: (code: number, reason: string) => void;
};
/**
 * throws if there can be no such link here
 */
export type OpenLink = (address: URL, events: LinkEvents) => Link;

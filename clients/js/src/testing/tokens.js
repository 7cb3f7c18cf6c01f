import { refusal } from './channels/refusal.js';

/**
 * @typedef {import('./channels/access.js').Identity} Identity
 * @typedef {import('./channels/access.js').Grant} Grant
 *
 * @typedef {object} Claims
 * @property {Grant[]} [grants]  all rights in all channels by default
 * @property {any} [info]  what presence shows
 * @property {number} [expiresIn]  seconds; never by default
 */

/** `{"alg":"none"}` */
const HEADER = 'eyJhbGciOiJub25lIn0';

/** Makes and checks the tokens of a test service: JWTs that are not signed. Their time is that of the service's clock. */
export class Tokens {
  #serial = 0;
  /** @type {{upTo: number, user: string | undefined, ends: number}[]} tokens that end before their time */
  #ended = [];
  #now;

  /** @param {() => number} now */
  constructor(now) {
    this.#now = now;
  }

  /**
   * @param {string} user
   * @param {Claims} claims
   * @param {boolean} [isForSubscription]
   */
  issue(user, { grants = ['**'], info, expiresIn = Infinity }, isForSubscription = false) {
    this.#serial += 1;
    const ends = this.#now() + expiresIn * 1_000;
    const claims = { sub: user, grants, info, exp: ends === Infinity ? undefined : ends / 1_000, jti: this.#serial, isForSubscription };
    // `btoa` takes no other characters than these.
    const text = JSON.stringify(claims).replace(/[^ -~]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`);
    return `${HEADER}.${btoa(text)}.`;
  }

  /** Ends the tokens that have been issued so far. @param {string | undefined} user @param {number} ends */
  end(user, ends) {
    this.#ended.push({ upTo: this.#serial, user, ends });
  }

  /** When the token of an identity ends. @param {Identity} identity */
  endOf({ user, serial, ends }) {
    const cuts = this.#ended.filter(({ upTo, user: whose }) => serial <= upTo && (whose === undefined || whose === user));
    return Math.min(ends, ...cuts.map((cut) => cut.ends));
  }

  /** @param {string} token @param {boolean} [isForSubscription] @returns {Identity} */
  read(token, isForSubscription = false) {
    let claims;
    try {
      const [header, body] = token.split('.');
      claims = header === HEADER && JSON.parse(atob(body));
    } catch {
      claims = undefined;
    }
    if (!claims) {
      throw refusal('invalid_token', 'this test service has not made the token; get one from `service.token(user)`');
    }
    if (claims.isForSubscription !== isForSubscription) throw refusal('invalid_token', 'the token is for something else');
    const { sub: user, grants, info, jti: serial, exp = Infinity } = claims;
    const identity = { user, grants, info, serial, ends: Math.round(exp * 1_000) };
    if (this.endOf(identity) <= this.#now()) throw refusal('token_expired', 'the token has expired');
    return identity;
  }
}

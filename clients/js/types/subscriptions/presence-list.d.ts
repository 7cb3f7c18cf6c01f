/**
 * The users in a channel, updated from the snapshot and the `presence.*` events.
 * @typedef {import('../messages.js').Member} Member
 * @typedef {{count: number, members?: Member[], joined?: Member, left?: Member}} PresenceChange
 *   `joined` (also for a present user with new `info`) and `left` are what changed; both are absent for a snapshot. The snapshot is
 *   empty if the token lost the right to presence.
 */
export class PresenceList {
    /** @param {import('../messages.js').Presence} presence */
    replace({ count, members }: import("../messages.js").Presence): PresenceChange;
    /**
     * @param {import('../messages.js').Event} event  `presence.joined`, `.left` or `.count`
     * @returns {PresenceChange | undefined}  undefined for a type that this client does not know
     */
    apply({ type, data }: import("../messages.js").Event): PresenceChange | undefined;
    /** @returns {PresenceChange} */
    get view(): PresenceChange;
    #private;
}
/**
 * The users in a channel, updated from the snapshot and the `presence.*` events.
 */
export type Member = import("../messages.js").Member;
/**
 * `joined` (also for a present user with new `info`) and `left` are what changed; both are absent for a snapshot. The snapshot is
 * empty if the token lost the right to presence.
 */
export type PresenceChange = {
    count: number;
    members?: Member[];
    joined?: Member;
    left?: Member;
};

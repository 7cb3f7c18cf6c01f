/** Name and action by close code. @type {Readonly<Record<number, [string, "reconnect" | "refresh" | "stop"]>>} */
export const CLOSE_ACTIONS: Readonly<Record<number, [string, "reconnect" | "refresh" | "stop"]>>;

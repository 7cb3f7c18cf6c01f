/** @typedef {"reconnect"|"refresh"|"stop"} Action What a client does after a close. */
/** @typedef {{readonly name: string, readonly action: Action, readonly meaning: string}} CloseCode */
/** @typedef {{readonly status: number, readonly retryable: boolean, readonly meaning: string}} ErrorCode */
/** Every close code a client can see. @type {Readonly<Record<number, CloseCode>>} */
export const CLOSE_CODES: Readonly<Record<number, CloseCode>>;
/** Every `code` of an error message or a problem+json body. @type {Readonly<Record<string, ErrorCode>>} */
export const ERROR_CODES: Readonly<Record<string, ErrorCode>>;
/**
 * What a client does after a close.
 */
export type Action = "reconnect" | "refresh" | "stop";
export type CloseCode = {
    readonly name: string;
    readonly action: Action;
    readonly meaning: string;
};
export type ErrorCode = {
    readonly status: number;
    readonly retryable: boolean;
    readonly meaning: string;
};

/** What to do about a code. @param {string} code */
export function helpFor(code: string): string;
/** The shortest text that shows what a value is, without secrets: long runs of letters and digits lose their end. @param {unknown} value */
export function shown(value: unknown): string;
/**
 * A refusal by the service (its codes are in `tidewire/codes`), or by the client itself. `help` says what to do.
 */
export class TidewireError extends Error {
    /**
     * @param {import('./messages.js').ErrorMessage} message
     * @param {string} [channel]
     */
    static from({ code, message, retryable, details }: import("./messages.js").ErrorMessage, channel?: string): TidewireError;
    /**
     * @param {string} code
     * @param {string} message
     * @param {{channel?: string, help?: string, retryable?: boolean, details?: Record<string, any>, cause?: unknown}} [more]
     */
    constructor(code: string, message: string, { channel, help, retryable, details, cause }?: {
        channel?: string;
        help?: string;
        retryable?: boolean;
        details?: Record<string, any>;
        cause?: unknown;
    });
    code: string;
    channel: string | undefined;
    help: string;
    /** Whether the same request can succeed later, unchanged. */
    retryable: boolean;
    details: Record<string, any>;
}

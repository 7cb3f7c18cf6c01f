/**
 * Listeners by event name. A listener that throws stops neither the others nor the client: its error is reported as an
 * uncaught error of the page, or on the console if there is no page.
 * @template {Record<string, any>} Events
 */
export class Emitter<Events extends Record<string, any>> {
    /**
     * Adds a listener, and returns the function that removes it.
     * @template {keyof Events} Name
     * @param {Name} name
     * @param {(value: Events[Name]) => void} listener
     * @param {AbortSignal} [signal]  removes the listener, too
     * @returns {() => void}
     */
    on<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void, signal?: AbortSignal): () => void;
    /** @param {keyof Events} name */
    has(name: keyof Events): boolean;
    /**
     * The listeners, for a caller that awaits them.
     * @param {keyof Events} name
     */
    of(name: keyof Events): ((value: any) => void)[];
    /**
     * @template {keyof Events} Name
     * @param {Name} name
     * @param {Events[Name]} value
     */
    emit<Name extends keyof Events>(name: Name, value: Events[Name]): void;
    clear(): void;
    #private;
}

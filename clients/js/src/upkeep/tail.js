/**
 * Reads the last events for a handle that came after the subscribe, and hands them to its `tail` listeners.
 * @param {ReturnType<typeof import('../channel.js').partsOf>} parts  of the handle
 */
export async function readTail({ core, emitter, handle, subscription }) {
  const { channel, delivery, joined } = subscription;
  try {
    await joined.promise;
    const page = await core.read({ type: 'history', channel, limit: handle.options.tail });
    const run = () => {
      const events = page.events.filter((/** @type {import('../messages.js').Event} */ { offset = 0 }) => offset <= (delivery.position?.offset ?? 0));
      return Promise.all(emitter.of('tail').map((listener) => subscription.run('tail', listener, events)));
    };
    delivery.add({ run });
  } catch {
    // The channel was refused or left, or the client is closed: the caller has been told of that already.
  }
}

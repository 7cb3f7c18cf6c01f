/**
 * Reads the JSON of a response. Rejects if it has more than `max` bytes: something in the place of the service may send without end.
 * @param {Response} response
 * @param {number} max
 * @returns {Promise<any>}
 */
export async function jsonOf(response, max) {
  const reader = response.body?.getReader?.();
  if (!reader) return response.json(); // React Native has no streams
  const decoder = new TextDecoder();
  let text = '';
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return JSON.parse(text + decoder.decode());
    size += value.length;
    if (size > max) {
      void reader.cancel().catch(() => {});
      throw new RangeError(`the body has more than ${max} bytes`);
    }
    text += decoder.decode(value, { stream: true });
  }
}

// What the numbers of the shop are called, and how they are written.

const count = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const percent = new Intl.NumberFormat('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
const minutes = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });

/** @typedef {{second: number, note?: string} & Record<string, any>} Sample  the numbers of one second */

/** @type {Record<string, {label: string, short: string, unit: string, show: (value: number) => string}>} */
export const METRICS = {
  requests: { label: 'Requests', short: 'Requests', unit: '/s', show: count.format },
  p50: { label: 'Response time, p50', short: 'p50', unit: 'ms', show: count.format },
  p99: { label: 'Response time, p99', short: 'p99', unit: 'ms', show: count.format },
  errors: { label: 'Errors', short: 'Errors', unit: '%', show: percent.format },
  orders: { label: 'Orders', short: 'Orders', unit: '/min', show: count.format },
  stock: { label: 'In stock', short: 'Stock', unit: 'items', show: count.format },
};

/** One chart each; `steps`: the value holds until the next sample. */
export const CHARTS = [
  { title: 'Requests', unit: 'per second', metrics: ['requests'], steps: false },
  { title: 'Response time', unit: 'milliseconds', metrics: ['p50', 'p99'], steps: false },
  { title: 'Orders', unit: 'per minute', metrics: ['orders'], steps: false },
  { title: 'Stock', unit: 'items', metrics: ['stock'], steps: true },
];

/** With its unit: "412 /s". @param {string} metric @param {number | null | undefined} value */
export function written(metric, value) {
  const { show, unit } = METRICS[metric];
  return value === null || value === undefined ? 'no data' : `${show(value)} ${unit}`;
}

/** "13:05:09". @param {number} second */
export const clockOf = (second) => clock.format(second * 1000);
/** "13:05". @param {number} second */
export const minuteOf = (second) => minutes.format(second * 1000);

/** "4 s", "2 min". @param {number} ms */
export function ageOf(ms) {
  const seconds = Math.max(0, ms / 1000);
  return seconds < 99.5 ? `${seconds < 9.95 ? seconds.toFixed(1) : Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

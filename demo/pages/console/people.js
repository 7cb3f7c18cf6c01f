// Names and avatars. Online users have a name from presence; for others the user id is shown.

import { h } from '../shared/dom.js';

/** @type {Map<string, string>} */
const names = new Map();

/** @param {string} user @param {unknown} name */
export function learn(user, name) {
  if (typeof name === 'string' && name) names.set(user, name);
}

/** @param {string} user empty for the backend */
export function nameOf(user) {
  if (!user) return 'Backend';
  return names.get(user) ?? user.split('-').map((part) => part.charAt(0).toUpperCase() + part.slice(1)).join(' ');
}

/** "Maya", but "Agent 2". @param {string} user */
export function firstName(user) {
  const name = nameOf(user);
  return /\d$/.test(name) ? name : name.split(' ')[0];
}

/** @param {string} user @param {{label?: boolean}} [options] `label`: the name is not written beside it */
export function avatar(user, { label = false } = {}) {
  const name = nameOf(user);
  const words = name.split(' ').filter(Boolean);
  const initials = words.length > 1 ? words[0][0] + words[words.length - 1][0] : name.slice(0, 2);
  let sum = 0;
  for (const character of user) sum = (sum * 31 + character.charCodeAt(0)) % 997;
  const attributes = { class: `avatar tone-${sum % 8}`, title: name };
  return label
    ? h('span', { ...attributes, role: 'img', 'aria-label': name }, initials.toUpperCase())
    : h('span', { ...attributes, 'aria-hidden': 'true' }, initials.toUpperCase());
}

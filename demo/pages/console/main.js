// The console: connects queue, conversation, board and team on one page.

import { showCounts } from './board.js';
import { leave, openChat, refresh, startConversation } from './conversation.js';
import { byId } from '../shared/dom.js';
import { nameOf } from './people.js';
import { arrange, chats, firstChat, focusQueue, setCurrent, setLooking, startQueue } from './queue.js';
import { client, me } from '../shared/session.js';
import { startTeam } from './team.js';

const narrow = matchMedia('(max-width: 719px)');
/** Whether this browser has opened a chat before: until then, the middle says what this is. */
const KNOWN = 'tidewire.console.known';
let opened = false;

/** Selects the pane that a narrow screen shows. @param {'queue' | 'chat' | 'board'} view */
function show(view) {
  document.body.dataset.view = view;
  for (const tab of document.querySelectorAll('.tabs button')) {
    if (/** @type {HTMLElement} */ (tab).dataset.go === view) tab.setAttribute('aria-current', 'page');
    else tab.removeAttribute('aria-current');
  }
  look();
}

/** Messages count as seen only while their chat is on the screen of a visible page. */
function look() {
  setLooking(!document.hidden && (!narrow.matches || document.body.dataset.view === 'chat'));
}

/** @param {string} chat @param {{focus?: boolean}} [options] */
function open(chat, { focus = true } = {}) {
  if (!chats.has(chat)) return;
  opened = true;
  localStorage.setItem(KNOWN, 'yes');
  openChat(chat);
  setCurrent(chat);
  history.replaceState(null, '', `#${chat}`);
  if (focus) show('chat');
  const composer = byId('composer');
  if (focus && !narrow.matches && composer.checkVisibility()) composer.focus();
}

startQueue({
  onOpen: (chat) => open(chat),
  onChange: (chat) => {
    refresh();
    if (opened || chat.status === 'gone') return;
    const asked = location.hash.slice(1);
    if (chats.has(asked)) open(asked, { focus: true });
    else if (!narrow.matches && localStorage.getItem(KNOWN)) open(firstChat() ?? '', { focus: false });
  },
  onCounts: showCounts,
});
startConversation();
startTeam({
  onNames: () => {
    arrange();
    refresh();
  },
  onOpen: (chat) => open(chat),
});

// --- around the panes -----------------------------------------------------------------------------------------------------

const other = me === 'agent-1' ? 'agent-2' : 'agent-1';
const second = /** @type {HTMLAnchorElement} */ (byId('second-agent'));
second.href = `?user=${other}`;
second.title = `Opens the console as ${nameOf(other)} in another window`;

for (const tab of document.querySelectorAll('.tabs button')) {
  tab.addEventListener('click', () => show(/** @type {any} */ (tab).dataset.go));
}
byId('open-first').addEventListener('click', () => open(firstChat() ?? ''));
byId('back').addEventListener('click', () => {
  show('queue');
  focusQueue();
});
document.addEventListener('visibilitychange', look);
addEventListener('hashchange', () => open(location.hash.slice(1)));
narrow.addEventListener('change', look);

document.addEventListener('keydown', (event) => {
  const target = /** @type {HTMLElement} */ (event.target);
  const writing = target.matches('input, textarea');
  if (event.key === '/' && !writing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    if (narrow.matches) show('queue');
    byId('search').focus();
  } else if (event.key === 'Escape') {
    const search = /** @type {HTMLInputElement} */ (byId('search'));
    if (target === search && search.value) {
      search.value = '';
      arrange();
    }
    if (narrow.matches) show('queue');
    focusQueue();
  }
});

const theme = byId('theme');
const dark = matchMedia('(prefers-color-scheme: dark)');
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === 'dark' : dark.matches;
}
function showTheme() {
  theme.setAttribute('aria-label', isDark() ? 'Use light theme' : 'Use dark theme');
  theme.querySelector('use')?.setAttribute('href', isDark() ? '#i-sun' : '#i-moon');
}
theme.addEventListener('click', () => {
  const chosen = isDark() ? 'light' : 'dark';
  document.documentElement.dataset.theme = chosen;
  localStorage.setItem('tidewire.theme', chosen);
  showTheme();
});
dark.addEventListener('change', showTheme);
showTheme();

addEventListener('pagehide', leave);
client.connect();

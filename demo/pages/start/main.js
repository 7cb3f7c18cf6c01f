// The start page: a card for each demo.

import { byId, h } from '../shared/dom.js';
import { shell } from '../shared/shell.js';
import { DEMOS } from './demos.js';

shell({ title: 'Tidewire' });
for (const { name, title, line, hint, picture } of DEMOS) {
  byId('demos').append(
    h(
      'a',
      { class: `card ${hint ? 'first' : ''}`, href: `/demo/${name}/`, 'data-testid': 'demo', dataset: { demo: name } },
      picture(),
      h('div', { class: 'words' }, hint ? h('p', { class: 'hint' }, hint) : null, h('h2', {}, title), h('p', {}, line)),
    ),
  );
}

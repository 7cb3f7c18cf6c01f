"""The pages of the demos: what each one does when it works, and how much it may load."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

_numbers = count()
_LINE = """(() => {
  const paper = document.querySelector('canvas');
  paper.focus();
  for (const key of [' ', 'ArrowRight', 'ArrowDown', ' ']) {
    paper.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
  }
  return true;
})()"""


def count_of(selector: str, least: int = 1) -> str:
    """An expression: whether the page has so many elements."""
    return f"document.querySelectorAll('{selector}').length >= {least}"


def click(selector: str) -> str:
    """An expression that clicks, if the element is there."""
    return f"document.querySelector('{selector}')?.click() === undefined && {count_of(selector)}"


@dataclass(frozen=True, slots=True)
class DemoPage:
    """One page."""

    path: str
    """`{}` stands for a number, for a part of the page that no other window has."""
    works: tuple[str, ...]
    """Expressions that become true, one after the other, if the page does its main thing."""
    requests: int
    """The most requests until then."""
    kilobytes: int
    """The most kB of their bodies, compressed by gzip."""

    def address(self) -> str:
        """Returns the path of a new window."""
        return self.path.format(next(_numbers))


PAGES = {
    "start": DemoPage("/", (count_of('main a[href^="/demo/"]', 6),), 15, 20),
    "inspector": DemoPage(
        "/demo/inspector/",
        (count_of("#play:not([disabled])"), count_of('[data-testid="kept-received"][data-some="true"]')),
        75,
        100,
    ),
    "console": DemoPage(
        "/demo/console/",
        (
            count_of('[data-testid="queue-item"]', 3),
            click('[data-testid="queue-item"]'),
            count_of('[data-testid="message-text"]'),
        ),
        70,
        100,
    ),
    "board": DemoPage(
        "/demo/board/",
        (count_of('[data-testid="chart"][data-gaps="0"]', 4), count_of('[data-testid="tile"][data-old="false"]', 6)),
        75,
        125,
    ),
    "answer": DemoPage(
        "/demo/answer/#look-{}",
        (
            count_of("#people [data-user]"),
            click("#suggestions button:last-child"),
            "(document.querySelector('[data-testid=\"text\"]')?.textContent ?? '').length > 20",
        ),
        75,
        110,
    ),
    "cursors": DemoPage(
        "/demo/cursors/",
        (
            count_of("#people li"),
            _LINE,
            "tidewire.channel('canvas:main').values.some(({ from }) => from === 'agent-1')",
        ),
        75,
        100,
    ),
    "tracking": DemoPage(
        "/demo/tracking/",
        (
            count_of(".courier", 6),
            count_of("#orders li", 4),
            click("#orders li button"),
            count_of('.timeline [data-done="true"]'),
        ),
        78,
        110,
    ),
}

"""The browser of tests/browser."""

from __future__ import annotations

from tests.browser.conftest import browser, chromium  # noqa: F401  # fixtures

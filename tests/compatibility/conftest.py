from __future__ import annotations

from pathlib import Path

import pytest

from tests.compatibility.revisions import OLD, MissingRevisionError, extract_service


@pytest.fixture(scope="session")
def old_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the old service. Skips the test where the history does not have it."""
    folder = tmp_path_factory.mktemp("old")
    try:
        extract_service(OLD, folder)
    except (MissingRevisionError, FileNotFoundError) as reason:
        pytest.skip(f"the old service is not in the history (git fetch --unshallow gets it): {reason}")
    return folder

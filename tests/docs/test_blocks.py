"""Reading the fenced blocks of a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import Block, PageError, blocks, files, write_files

PAGE = """\
# A page

```console
$ ls
```

## Files ##

```yaml title="the contract"
# contract.yaml
channels: {}  # http://localhost
```

<!-- file: app.py -->
```python
# no name
print(1)
```

- in a list:

  ~~~~js
  // src/main.js
  ~~~
  # not a heading
  ~~~~

```html
<!-- index.html -->
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    return page


def test_blocks_have_language_line_heading_and_file(page: Path) -> None:
    assert blocks(page) == [
        Block("console", "", 3, "$ ls\n", "A page", None, None),
        Block(
            "yaml", 'title="the contract"', 9, "# contract.yaml\nchannels: {}  # http://localhost\n", "Files",
            "contract.yaml", None,
        ),
        Block("python", "", 15, "# no name\nprint(1)\n", "Files", "app.py", "file"),
        Block("js", "", 22, "// src/main.js\n~~~\n# not a heading\n", "Files", "src/main.js", None),
        Block("html", "", 28, "<!-- index.html -->\n", "Files", "index.html", None),
    ]  # fmt: skip


def test_files_are_written_with_replaced_texts(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_files(page, folder, replace={"http://localhost": "http://localhost:1"})
    assert {str(file.relative_to(folder)) for file in folder.rglob("*.*")} == {
        "contract.yaml",
        "app.py",
        "src/main.js",
        "index.html",
    }
    assert (folder / "contract.yaml").read_text() == "# contract.yaml\nchannels: {}  # http://localhost:1\n"


def test_text_to_replace_that_is_missing_is_an_error(page: Path, tmp_path: Path) -> None:
    with pytest.raises(PageError, match="no file has 'http://other'"):
        write_files(page, tmp_path, replace={"http://other": ""})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```js\n1", "1: the block has no end"),
        ("```js\n// a.js\n```\n```js\n// a.js\n```", "4: a.js appears twice"),
        ("```js\n// ../a.js\n```", "1: ../a.js is outside of the folder"),
    ],
)
def test_page_with_an_error_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(PageError) as caught:
        files(page)
    assert str(caught.value) == f"{page}:{message}"

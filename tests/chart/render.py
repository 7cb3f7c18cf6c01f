"""`python -m tests.chart.render FOLDER CASE…`: writes what the chart makes of cases, for scanners to look at.

What is installed comes into FOLDER/service, the pods of `helm test` into FOLDER/tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from tests.chart.cases import CASES
from tests.chart.tools import helms

HOOK = "helm.sh/hook"


def main(folder: Path, names: list[str]) -> None:
    """Renders with the newest Helm there is; ends with a sentence where there is none."""
    if not helms():
        sys.exit("there is no Helm here; `scripts/setup.sh chart` installs it")
    helm = helms()[max(helms())]
    for name in names:
        documents = helm.template(CASES[name])
        tests = [document for document in documents if HOOK in document["metadata"].get("annotations", {})]
        for place, which in (("tests", tests), ("service", [other for other in documents if other not in tests])):
            (folder / place / f"{name.replace(' ', '-')}.yaml").write_text(yaml.safe_dump_all(which))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

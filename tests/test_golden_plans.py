"""The built-in targets place their quantizers where they always did, on models of eight kinds."""

from pathlib import Path

import pytest
from support.golden import MODELS, TARGETS, plans_text

_FOLDER = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", MODELS)
def test_the_plans_of_all_targets_are_those_on_file(name: str) -> None:
    # After a change of placement that is meant: `python tests/golden/write.py` (see there), and read the diff.
    wanted = (_FOLDER / f"{name}.txt").read_text().strip()
    found = "\n\n".join(plans_text(name, target) for target in TARGETS)
    assert found == wanted

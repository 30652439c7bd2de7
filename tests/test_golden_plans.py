"""The built-in targets place their quantizers where they always did, on models of eight kinds."""

from pathlib import Path

import pytest
from support.golden import MODELS, TARGETS, plans_text

_FOLDER = Path(__file__).parent / "golden"


SLOW = ("efficientnet_b0",)  # of blocks that mobilenet_v3_small has too


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)
def test_the_plans_of_all_targets_are_those_on_file(name: str) -> None:
    # After a change of placement that is meant: `python tests/golden/write.py` (see there), and read the diff.
    wanted = (_FOLDER / f"{name}.txt").read_text().strip()
    found = "\n\n".join(plans_text(name, target) for target in TARGETS)
    assert found == wanted

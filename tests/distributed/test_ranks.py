"""Two and three gloo processes against one: calibration, sensitivity, training; and where one of them fails."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor

# That unlike tensors are joined is on purpose: what all ranks saw of them is in the report.
pytestmark = pytest.mark.filterwarnings("ignore:2 operations join, or read joined")
SCRIPT = Path(ranks.__file__)
OF_TWO = (
    "plain,best,sensitivity,trained,sharded,sharing,failing,failing_pass,without_data,of_other_weights,in_order,alone,searching,"
    "elsewhere,dying"
)
OF_THREE = "plain,empty,best_empty"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums come out alike where as many threads add them up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank found, by the size of its group."""
    folders = {size: tmp_path_factory.mktemp(f"group_of_{size}") for size in (2, 3)}
    groups = [(folders[2], "2", OF_TWO), (folders[3], "3", OF_THREE)]
    call = [sys.executable, SCRIPT, *(one for group in groups for one in group)]
    subprocess.run(call, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return {
        size: [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]
        for size, folder in folders.items()
    }


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(actual[name], value) if isinstance(value, Tensor) else actual[name] == value
        assert same, f"{name}: {actual[name]}, alone {value}"


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_hold_bit_for_bit_what_one_process_holds(found: Any, size: int) -> None:
    expected = ranks.calibrated("plain", 0, 1)
    assert any(name.startswith("refitted") for name in expected)
    assert expected["report"][1:3] == (len(ranks.SIZES), sum(ranks.SIZES))
    assert expected["report"][3], "a concatenation of unlike ranges is reported, from what all ranks saw"
    for one in found[size]:
        assert_same(one["plain"], expected)


def test_a_rank_without_a_batch_holds_the_same(found: Any) -> None:
    expected = ranks.calibrated("plain", 0, 1)
    for one in found[3]:
        assert_same(one["empty"], expected)


def test_passes_that_improve_see_the_samples_that_one_process_would_keep(found: Any) -> None:
    expected = ranks.calibrated("best", 0, 1)
    assert any(kept for _, before, _, kept in expected["steps"] if before is not None)
    for one in found[2]:
        assert_same(one["best"], expected)
    expected = ranks.calibrated("best", 0, 1, most=64)  # more than there are
    for one in found[3]:
        assert_same(one["best_empty"], expected)


def test_sensitivity_is_shared_out_and_the_same(found: Any) -> None:
    expected = ranks.sensitive(0, 1)
    for one in found[2]:
        assert_same(one["sensitivity"], expected)


def test_training_under_ddp_keeps_ranges_and_weights_alike(found: Any) -> None:
    first, second = (one["trained"] for one in found[2])
    assert_same(second, first)
    assert "fc_input_quantizer._amax" in first["moved"]
    assert all(math.isfinite(float(value.sum())) for value in first.values() if isinstance(value, Tensor))


def test_a_sharded_model_trains_ranges_alike_and_converts_to_what_all_hold(found: Any) -> None:
    first, second = (one["sharded"] for one in found[2])
    assert_same(second["state"], first["state"])
    for name in ("first_input_quantizer", "fc._weight_quantizer", "first._weight_quantizer"):
        assert f"{name}._amax" in first["moved"]
    assert not any(name.endswith("_amax") for name in first["requires"])  # frozen
    for one in (first, second):  # each has statistics of its own in its batch norm, as with any module
        torch.testing.assert_close(one["whole"], one["outputs"], rtol=0, atol=0)
        # A rounding tie, of activations in the hundreds, may fall to the other side.
        torch.testing.assert_close(
            one["converted"], one["whole"], rtol=0.02, atol=0.02 * float(one["whole"].abs().max())
        )
        for message in one["refused"].values():
            assert "StageError" in message
            assert "'first.weight' is sharded over processes" in message


def test_a_rank_whose_loader_fails_stops_the_others_with_its_words(found: Any) -> None:
    first, second = (one["failing"] for one in found[2])
    assert (
        "another process of the group failed, so this one (rank 0) stops: rank 1: OSError: the disk" in first["error"]
    )
    assert second["error"] == "OSError: the disk is gone"
    assert not first["has_range"]
    assert not second["has_range"]


def test_a_pass_shares_its_items_out_and_all_hold_what_was_found(found: Any) -> None:
    for one in found[2]:
        assert one["sharing"] == {"by": [0, 1, 0, 1, 0], "items": [0, 1, 2, 3, 4]}


def test_a_rank_that_fails_in_a_pass_stops_the_others_and_nothing_stays(found: Any) -> None:
    first, second = (one["failing_pass"] for one in found[2])
    assert "rank 1: PassError" in first["error"]
    for one in (first, second):
        assert "rank 1 fell over item 1" in one["error"]
        assert not one["has_range"]


def test_a_rank_that_is_gone_ends_the_others(found: Any) -> None:
    assert "dying" not in found[2][1]
    message = found[2][0]["dying"]["error"]
    assert message.startswith("CalibrationError: rank 0 waited for the 1 others to exchange what was observed, and not")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("without_data", "the loaders of all 2 processes are empty"),
        ("of_other_weights", "rank 1 has other weights than rank 0"),
        ("in_order", "MovingAverageMinMaxCalibrator, whose result depends on the order"),
        ("searching", "let one of them call auto_quantize with fxq.Data(batches, share=False)"),
        ("elsewhere", "they exchange: rank 0 the sizes of the first batches, rank 1 what was observed"),
    ],
)
def test_what_cannot_be_done_together_is_refused_by_all(found: Any, what: str, message: str) -> None:
    for one in found[2]:
        assert message in one[what]["error"]


def test_one_process_may_work_alone(found: Any) -> None:
    first, second = (one["alone"] for one in found[2])
    assert torch.equal(first["amax"], ranks.calibrated("plain", 0, 1)["tensor fc_input_quantizer._amax"])
    assert second == {}

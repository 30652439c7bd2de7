"""Take rows of a quantized weight, or put them into another order, without quantizing it anew."""

import dataclasses

from torch import Tensor

from fxq.nn import QParams


def select_rows(found: QParams, rows: Tensor) -> QParams:
    """Return the parameters of the weight that has the given rows (dimension 0) of the one with parameters ``found``.

    Args:
        found: of a weight of two dimensions or more.
        rows: indices, in the order of the result.
    """
    has_steps_by_row = found.block_size is not None or found.axis in (0, -2)
    if not has_steps_by_row or not found.step.dim():
        return found
    rows = rows.to(found.step.device)
    return dataclasses.replace(found, step=found.step[rows], zero_point=found.zero_point[rows])

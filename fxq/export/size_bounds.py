"""What the open sizes of a file may be, stored in it: ``{"batch": [1, 8, 32]}``, smallest, usual and largest, as JSON.

ONNX knows names of sizes alone, and TensorRT builds its kernels for a smallest, a usual and a largest shape. The usual
size is that of the example inputs. What has no upper bound is not stored.
"""

import json
from typing import Any

import onnx_ir as ir

from fxq.export.open_shapes import OpenShapes

_KEY = "fxq.sizes"
Range = tuple[int, int, int]


def sizes_as_metadata(shapes: OpenShapes, inputs: tuple[Any, ...]) -> dict[str, str]:
    """Return the entry for ``metadata_props``; none where no open size has an upper bound."""
    now, found = shapes.sizes(inputs), {}
    for _, _, one in shapes.places():
        if one.most is not None:
            found[str(one)] = [one.times * size + one.plus for size in (one.least, now[one.name], one.most)]
    return {_KEY: json.dumps(found)} if found else {}


def stored_sizes(model: ir.Model) -> dict[str, Range]:
    """Return the ranges that a file stores, by the names of its sizes; what is no range is left out."""
    try:
        found = json.loads(model.metadata_props.get(_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    ranges = found.items() if isinstance(found, dict) else ()
    return {name: (sizes[0], sizes[1], sizes[2]) for name, sizes in ranges if _is_range(sizes)}


def _is_range(sizes: Any) -> bool:
    is_three = isinstance(sizes, list) and len(sizes) == 3 and all(type(size) is int for size in sizes)
    return is_three and 1 <= sizes[0] <= sizes[1] <= sizes[2] < 2**31

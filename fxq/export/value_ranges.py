"""How large the float values of a file become: the largest magnitude of each, on samples.

A copy of the file, in float32, gets one more output for each value: ``max |x|`` over what is finite, for an infinity is
one in any dtype.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from fxq.export.written_file import WrittenFile


def measure_values(path: Path, runs: Iterable[Sequence[Tensor]]) -> dict[str, float]:
    """Return the largest finite magnitude that each float32 input and result takes, by its name.

    Args:
        path: a file whose float side is float32; a copy is written beside it.
        runs: the inputs of each run.

    Raises:
        ExportError: ONNX Runtime does not run the file.
    """
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    names = _measure(model.graph)
    measured = path.with_name("measured.onnx")
    ir.save(model, measured, external_data=f"{measured.name}.data")
    largest, file = dict.fromkeys(names, 0.0), WrittenFile(measured)
    for inputs in runs:
        found = file.run(inputs)[-len(names) :]
        largest.update({name: max(largest[name], float(value)) for name, value in zip(names, found, strict=True)})
    return largest


def _measure(graph: ir.Graph) -> list[str]:
    """Add an output for each value; return their names in order."""
    values = [
        *graph.inputs,
        *(value for node in graph for value in node.outputs if value.uses() or value.is_graph_output()),
    ]
    names: list[str] = []
    zero = ir.Value(name="measured_zero", const_value=ir.tensor(0.0, dtype=ir.DataType.FLOAT, name="measured_zero"))
    zero.type, zero.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    graph.register_initializer(zero)
    for value in values:
        if value.dtype != ir.DataType.FLOAT or value is zero:
            continue
        infinite = ir.node("IsInf", [value])
        finite = ir.node("Where", [infinite.outputs[0], zero, value])
        magnitude = ir.node("Abs", [finite.outputs[0]])
        # With a zero beside them: there may be no values.
        flat = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0})
        result = ir.node("Max", [flat.outputs[0], zero])
        graph.extend([infinite, finite, magnitude, flat, result])
        output = result.outputs[0]
        output.name, output.dtype, output.shape = f"measured_{len(names)}", ir.DataType.FLOAT, ir.Shape(())
        graph.outputs.append(output)
        names.append(str(value.name))
    return names

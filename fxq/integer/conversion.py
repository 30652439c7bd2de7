"""to_integer: a converted graph, computed with integers alone from the first quantize to the last dequantize."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxq.compare.outputs import named_outputs, output_steps
from fxq.compare.parity import compare_all, rounding_floors
from fxq.compare.rounding_noise import FUSED
from fxq.errors import GraphError, StageError
from fxq.graph import Rewriter, check_graph
from fxq.graph.kinds import produces_values
from fxq.graph.modules import copy_graph, drop_unused
from fxq.graph.stored import stored_tensor
from fxq.integer.grid import EIGHT_BITS, Grid, Term
from fxq.integer.writer import Writer, described, kind_of
from fxq.quant import DEQUANTIZE, LOWERED_OPS, QUANTIZE
from fxq.registry import find_integer_form, load_plugins
from fxq.stage import Stage
from fxq.state import State, require_state, set_state

_LAYERS = ("conv", "conv_transpose", "linear")


def to_integer(converted: GraphModule) -> GraphModule:
    """Return a copy of a converted model that computes with integers alone between quantize and dequantize.

    Between the first quantize and the last dequantize there are int8 and uint8 tensors, int32 sums and fixed-point
    multipliers ``M = M0 * 2^-n`` (``fxq::requantize``: one rounding, half to even), and tables of 256 codes for
    activations. Each operation is within one code of what ONNX Runtime's integer kernels make of the same codes. What
    stands before the first quantize, and behind the last dequantize, stays as it is; layers there that have quantized
    inputs and weights give int32 sums, which are dequantized.

    Args:
        converted: what ``fxq.convert`` returns, of a recipe that quantizes activations with calibrated 8-bit ranges:
            "onnxruntime" is made for it. Not modified. Pools over windows of other sizes, means and resizes are for the
            sizes of the example inputs.

    Raises:
        GraphError: an operation between quantizers has no integer form, or codes are not 8-bit integers; names the
            node, its module, its line in the model's code, and the operations that have one.
        PassError: an integer form of a plugin failed, or returned no node; names the form and the node.
        StageError: this is not a converted model, or one with islands.
    """
    state = require_state(converted, Stage.LOWERED, "to_integer")
    if state.islands is not None:
        raise StageError(
            "to_integer takes one graph, and this model runs its own Python around islands "
            f"({', '.join(state.islands.paths)}): give it one of these submodules"
        )
    load_plugins()
    gm = copy_graph(converted)
    record = state.record.copy()
    _rewrite(Rewriter(gm, state.settings, record, "to_integer"))
    check_graph(gm, Stage.INTEGER)
    drop_unused(gm)
    gm.recompile()
    _check_numbers(converted, gm, state)
    set_state(gm, replace(state, stage=Stage.INTEGER, record=record))
    return gm


def _rewrite(rw: Rewriter) -> None:
    _check_operators(rw)
    quantizes = rw.nodes(lambda node: node.target is QUANTIZE)
    grids = {node: _grid(node) for node in quantizes}
    dequantizes = rw.nodes(lambda node: node.target is DEQUANTIZE)
    activations = {node: grids[read] for node in dequantizes for read in node.all_input_nodes if read in grids}
    if not activations:
        raise GraphError(
            "to_integer: no activation is quantized with a calibrated range, so there are no integers to compute with. "
            'Convert with a recipe that calibrates activations, such as "onnxruntime"'
        )
    touched = _computed_from(rw, activations)
    writer = Writer(rw, activations)
    for node in quantizes:
        source: Any = node.args[0]
        if source in touched:
            writer.before = node
            codes = writer.codes(source, grids[node])
            rw.bypass(node, f"{codes.name} computes it with integers", source=codes)
    _ask_integers_for_sizes(rw, writer, touched)
    _erase_dead(rw, touched)
    _write_last_layers(rw, writer, touched)
    _erase_dead(rw, touched)


def _check_operators(rw: Rewriter) -> None:
    for node in rw.nodes(lambda node: node.target in LOWERED_OPS):
        if LOWERED_OPS[node.target].kind in ("dynamic", "float"):
            raise GraphError(
                f"to_integer: {described(node)} is {node.target}, which finds its ranges as it runs or computes in "
                'float: convert with a recipe that calibrates activations, such as "onnxruntime"'
            )


def _grid(node: Node) -> Grid:
    _, scale, zero_point, axis, lo, hi, dtype = node.args
    if dtype not in EIGHT_BITS:
        raise GraphError(
            f"to_integer: {described(node)} makes {str(dtype).removeprefix('torch.')} codes, and integer forms are for "
            "int8 and uint8"
        )
    if axis is not None:
        raise GraphError(f"to_integer: {described(node)} has a step for each channel of an activation")
    return Grid(float(stored_tensor(scale)), int(stored_tensor(zero_point)), lo, hi, dtype)  # type: ignore[arg-type]


def _computed_from(rw: Rewriter, activations: Mapping[Node, Grid]) -> dict[Node, None]:
    """Return, in graph order, the dequantized activations and all values that are computed from them."""
    found = dict.fromkeys(activations)
    for node in rw.nodes(lambda node: node.op != "output"):
        if produces_values(node) and any(read in found for read in node.all_input_nodes):
            found[node] = None
    return found


def _write_last_layers(rw: Rewriter, writer: Writer, touched: Mapping[Node, None]) -> None:
    """Let layers whose results no quantizer reads give int32 sums, and dequantize these."""
    for node in [node for node in touched if node.users and kind_of(node) in _LAYERS]:
        form: Any = find_integer_form(kind_of(node))
        if form.why_not(node) is not None or writer.own_grid(node.args[0]) is None:  # type: ignore[arg-type]
            continue  # it computes in float, behind the last quantizer
        writer.before = node
        (term,) = writer.terms(node)
        rw.replace_by(node, _dequantized(rw, writer, node, term), "integer sums, dequantized")


def _dequantized(rw: Rewriter, writer: Writer, node: Node, term: Term) -> Node:
    value = node.meta.get("val")
    dtype = value.dtype if isinstance(value, torch.Tensor) else torch.float32
    place = writer.place(node)
    scale = writer.store(node, f"{place}.output_scale", term.scale.float())
    zero = writer.store(node, f"{place}.output_zero_point", torch.zeros_like(term.scale, dtype=torch.int32))
    return rw.insert_call(node, DEQUANTIZE, (term.node, scale, zero, term.axis, dtype), node, value=value)


def _ask_integers_for_sizes(rw: Rewriter, writer: Writer, touched: Mapping[Node, None]) -> None:
    """Let what asks for the size of a float value ask the integers in its place, where nothing else reads it."""
    for node in [node for node in touched if node.users]:
        readers = list(node.users)
        alike = node.all_input_nodes[0] if node.target is DEQUANTIZE else writer.alike.get(node)
        if alike is not None and not any(map(produces_values, readers)):
            for reader in readers:
                rw.replace_input(reader, node, alike, "asks for a size")


def _erase_dead(rw: Rewriter, touched: Mapping[Node, None]) -> None:
    rw.erase_unread(
        [node for node in rw.nodes() if node.op == "get_attr" or node in touched or node.target is DEQUANTIZE]
    )


def _check_numbers(converted: GraphModule, gm: GraphModule, state: State) -> None:
    """Compare with the model that was converted, as export compares a runtime's integers."""
    inputs = state.known_inputs(converted)
    if inputs is None:
        return
    expected = named_outputs(converted, inputs)
    steps = output_steps(converted, expected)
    parity = compare_all(expected, [value for _, value in named_outputs(gm, inputs)], steps)
    if all(output.is_within() for output in parity):
        return

    def is_explained(floors: Any) -> bool:
        return all(output.is_within(noise=floor) for output, floor in zip(parity, floors, strict=True))

    if not is_explained(rounding_floors(converted, inputs, expected, steps, is_explained, FUSED)):
        worst = max(parity, key=lambda output: output.mean_lsb)
        raise GraphError(
            f"to_integer: the integers compute another {worst.name!r} than the converted model: {worst.mean_lsb:.2f} "
            f"LSB on average, {worst.max_lsb:.2f} at most. An integer form is wrong; look at those of plugins first"
        )

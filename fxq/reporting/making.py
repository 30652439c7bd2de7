"""report: gather all that is known of a quantized model, measure what batches allow, and write it down."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.batches import Forward
from fxq.compare.quality import Quality
from fxq.comparison import compare
from fxq.comparison_report import Comparison
from fxq.data import Data
from fxq.errors import MetricError, StageError
from fxq.explain import explain
from fxq.explanation import Explanation
from fxq.float_reference import ComparedInputs, refer
from fxq.given_model import as_module
from fxq.graph.modules import copy_graph
from fxq.graph.observers import activation_quantizers
from fxq.graph.stored import fit_weights, weight_quantizers
from fxq.nn import TensorQuantizer
from fxq.original import checksum
from fxq.reporting.content import GraphEdge, GraphNode, Report, Size, TensorRange, check_place
from fxq.reporting.given import all_findings, check_results, latencies
from fxq.reporting.graph import draw_graph
from fxq.reporting.tensors import ranges_of_converted, ranges_of_prepared
from fxq.runtimes import Latency
from fxq.sensitivity import as_kept_data, read_samples, sensitivity
from fxq.sensitivity_report import Sensitivity
from fxq.stage import Stage
from fxq.state import State, check_values, find_state
from fxq.surroundings import in_plain_surroundings
from fxq.verification.bench_report import BenchReport
from fxq.verification.finding import Finding

if TYPE_CHECKING:
    from fxq.export import ExportReport

_SENSITIVITY_SAMPLES = 16  # each group costs a run of all of them


@in_plain_surroundings
def report(  # noqa: PLR0913 - a model, and all that may have been found out about it
    model: GraphModule,
    path: str | os.PathLike[str] | None = None,
    batches: Iterable[Any] | Data | None = None,
    *,
    float_model: nn.Module | None = None,
    file: "ExportReport | None" = None,
    findings: Iterable[Finding] = (),
    latency: BenchReport | Mapping[str, Latency] | None = None,
    comparison: Comparison | None = None,
    sensitivity: Sensitivity | None = None,
    forward: Forward | None = None,
    progress: bool = True,
) -> Report:
    """Gather what there is to say about a quantized model, and write it as one page that needs no network.

    Accuracy against the float model is measured on the samples that calibration kept, or else on some of ``batches``.
    A prepared model has more to show than a converted one: what calibration saw of each activation, and the sensitivity
    of each group.

    Args:
        model: the result of ``fxq.prepare`` or ``fxq.convert``; not modified.
        path: where to write: ``.html`` for a page, ``.json`` for the same data; None writes nothing.
        batches, forward: as of ``fxq.calibrate``. With them each layer is compared with the float model, and each group
            of a prepared model is quantized alone (on 16 samples). One run of a batch takes three times that of the
            model, and the groups one run each.
        float_model: that was prepared; needed for a converted model where nobody else keeps it.
        file: what ``fxq.export_onnx`` returned: size and quality of the file, and which fusion costs accuracy.
        findings: what ``fxq.verify`` returned, or some of it.
        latency: what ``fxq.bench`` returned, or what was measured by what it is, such as {"ONNX Runtime, int8": ...}:
            see ``fxq.runtimes``.
        comparison, sensitivity: of ``fxq.compare`` and ``fxq.sensitivity``, where they were measured already.
        progress: show a bar, if stderr is a terminal.

    Raises:
        CalibrationError: batches, and a model without ranges.
        ExportError: nothing can be written at ``path``.
        InputError: a batch does not fit the model, or what was found out elsewhere is something else.
        StageError: the model did not come from ``fxq.prepare`` or ``fxq.convert``, or its weights have no values.
        TraceError: a prepared model computes something else than the original.
    """
    state = find_state(model)
    if state is None or state.stage < Stage.PREPARED:
        raise StageError(f"report takes the result of fxq.prepare or fxq.convert, got {type(model).__name__}")
    check_values(model, "report")
    if path is not None:
        check_place(path)
    check_results(file, comparison, sensitivity)
    timed, found_by_verify = latencies(latency), all_findings(findings)
    explanation, notes = explain(model), []
    data = None if batches is None else as_kept_data(batches, forward, progress)
    if data is not None and state.islands is not None:
        notes.append("layers of a model with islands are not measured: report on the islands by themselves")
        data = None
    if data is not None:
        measuring = _Measuring(model, state, data, notes)
        comparison = measuring.compared(float_model) if comparison is None else comparison
        sensitivity = measuring.sensitivity() if sensitivity is None else sensitivity
    parts = list(_parts(model, state))
    nodes, edges = _graph(parts)
    found = Report(
        model=_name_of(model, state),
        stage=str(state.stage),
        recipe=explanation.recipe,
        target=explanation.target,
        coverage=explanation.coverage,
        counts=explanation.counts,
        quality=_quality(model, state, explanation, file, data, notes),
        size=_size(model, state, file),
        latency=timed,
        nodes=tuple(nodes),
        edges=tuple(edges),
        tensors=tuple(_tensors(parts, state, data)),
        comparison=comparison,
        sensitivity=sensitivity,
        calibration=state.calibration,
        findings=found_by_verify,
        notes=(*filter(None, (explanation.traced, *explanation.notes)), *notes, *_fusions(file)),
    )
    if path is not None:
        found.write(path)
    return found


class _Measuring:
    """What batches allow to measure; what cannot be is noted."""

    def __init__(self, model: GraphModule, state: State, data: Data, notes: list[str]) -> None:
        self._model, self._state, self._data, self._notes = model, state, data, notes

    def compared(self, float_model: nn.Module | None) -> Comparison | None:
        """Compare the layers; a prepared model has the float one inside, too."""
        original = None if self._state.original is None else self._state.original.find()
        given = float_model or original
        if given is None and self._state.stage is not Stage.LOWERED:
            given = self._state.changes.undone(self._model)
        if given is None:
            self._notes.append("layers were not compared: the float model is gone; give float_model=")
            return None
        return compare(given, self._model, self._data)

    def sensitivity(self) -> Sensitivity | None:
        """Quantize each group alone, on a few samples."""
        if self._state.stage is Stage.LOWERED:
            self._notes.append("sensitivity is measured on prepared models: report on that one")
            return None
        few = min(self._data.max_samples, _SENSITIVITY_SAMPLES)
        data = Data(self._data.batches, self._data.forward, few, 0, self._data.progress)
        try:
            return sensitivity(self._model, data, progress=data.progress)
        except MetricError as error:
            self._notes.append(f"sensitivity was not measured: {error}")
            return None


def _parts(model: GraphModule, state: State) -> Iterator[tuple[str, GraphModule]]:
    """Yield the graphs that are drawn, with their paths: the islands, where there are some."""
    if state.islands is None:
        yield "", model
    else:
        yield from state.islands.modules(model).items()


def _graph(parts: list[tuple[str, GraphModule]]) -> tuple[list[GraphNode], list[GraphEdge]]:
    nodes: list[GraphNode] = []
    edges: list[GraphEdge] = []
    for path, gm in parts:
        first = len(nodes)
        own_nodes, own_edges = draw_graph(gm, explain(gm))
        nodes += [_below(path, node) for node in own_nodes]
        edges += [
            GraphEdge(
                first + edge.source, first + edge.target, edge.quantizer and f"{path}.{edge.quantizer}".strip(".")
            )
            for edge in own_edges
        ]
    return nodes, edges


def _below(path: str, node: GraphNode) -> GraphNode:
    """Return a node of an island, with its names as those of the whole model."""
    if not path:
        return node
    quantized = tuple(replace(one, quantizer=f"{path}.{one.quantizer}") for one in node.quantized)
    return replace(node, path=f"{path}.{node.path}", quantized=quantized)


def _tensors(parts: list[tuple[str, GraphModule]], state: State, data: Data | None) -> Iterator[TensorRange]:
    for path, gm in parts:
        own = ranges_of_prepared(gm) if state.stage is not Stage.LOWERED else _converted_ranges(gm, data)
        yield from (replace(one, quantizer=f"{path}.{one.quantizer}".strip(".")) for one in own)


def _converted_ranges(gm: GraphModule, data: Data | None) -> Iterator[TensorRange]:
    quantized = (one for node in explain(gm).nodes for one in node.quantized)
    return ranges_of_converted(gm, data, {one.quantizer: one.descriptor for one in quantized})


def _name_of(model: GraphModule, state: State) -> str:
    given = None if state.original is None else state.original.reference()
    return type(model if given is None else as_module(given)).__name__


def _quality(
    model: GraphModule,
    state: State,
    explanation: Explanation,
    file: "ExportReport | None",
    data: Data | None,
    notes: list[str],
) -> Quality | None:
    """Return how good the file is, or else the model: converted ones know, prepared ones are run.

    That is on the samples that calibration kept, or where it kept none, as in a file of ``fxq.save``, on ``data``.
    """
    if file is not None and file.quality is not None:
        return file.quality
    if state.stage is Stage.LOWERED or state.islands is not None:
        return explanation.quality
    waiting = [one for one in activation_quantizers(model).values() if not (one.has_range or one.is_dynamic)]
    if waiting:
        notes.append(f"not calibrated: {len(waiting)} quantizers have no range, and how accurate it is nobody knows")
    if waiting or (state.compared is None and data is None):
        return None
    gm = copy_graph(model).eval()
    fit_weights(gm, only_missing=True)
    compared, original = state.compared, None if state.original is None else state.original.find()
    if compared is None and data is not None:
        few = Data(data.batches, data.forward, _SENSITIVITY_SAMPLES, 0, data.progress)
        compared = ComparedInputs(tuple(read_samples(gm, few)), checksum(gm), is_original=False)
    assert compared is not None
    return refer(gm, compared, original, state.changes).quality(gm)


def _size(model: GraphModule, state: State, file: "ExportReport | None") -> Size:
    file_bytes = None if file is None else file.size_bytes
    stored = _bytes_of(model)
    if state.stage is Stage.LOWERED:
        original = None if state.original is None else state.original.find()
        return Size(None if original is None else _bytes_of(original), stored, file_bytes)
    quantized = stored
    seen: set[int] = set()
    for _, weight, quantizer in weight_quantizers(model):
        if quantizer.is_enabled and id(weight) not in seen:
            seen.add(id(weight))
            bits = quantizer.num_bits if isinstance(quantizer.num_bits, int) else 1 + sum(quantizer.num_bits)
            quantized -= weight.nbytes - -(-weight.numel() * bits // 8)
    return Size(stored, quantized, file_bytes)


def _fusions(file: "ExportReport | None") -> list[str]:
    """Return which optimizations of ONNX Runtime cost accuracy, in words, by island where there are some."""
    if file is None:
        return []
    islands = [f"{path}: {island.fusion}" for path, island in file.islands.items() if island.fusion]
    return [file.fusion, *islands] if file.fusion else islands


def _bytes_of(model: nn.Module) -> int:
    """Return the bytes of all tensors but those of quantizers, each once."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        if not isinstance(module, TensorQuantizer):
            found |= {id(one): one for one in (*module.parameters(False), *module.buffers(False))}
    return sum(one.nbytes for one in found.values())

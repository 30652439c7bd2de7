"""compare: how far each layer of a quantized model is from the float model, by itself and with all before it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxq.api import prepare
from fxq.batches import Forward, Inputs, naming_batch
from fxq.compare.figures import Figures, Sums
from fxq.compare.lockstep import Lockstep
from fxq.compare.no_figures import listed, without_figures
from fxq.compare.outputs import Named, named_leaves
from fxq.comparison_report import Comparison, LayerComparison
from fxq.data import Data
from fxq.errors import FxqError, InputError, StageError
from fxq.float_reference import CHANGED, run_in_float
from fxq.frontend.choice import Frontend
from fxq.given_model import as_module
from fxq.graph.float_model import in_float
from fxq.graph.kinds import MOVES_DATA, kind, module_of
from fxq.graph.match import rule_path
from fxq.graph.memory import writes_in_place
from fxq.graph.modules import copy_graph
from fxq.graph.observers import check_calibrated
from fxq.graph.stored import fit_weights
from fxq.graph.streams import function_of
from fxq.nn import Quantized, TensorQuantizer
from fxq.quant import DEQUANTIZE
from fxq.saving.edits import do_again
from fxq.saving.packed import Source
from fxq.stage import Stage
from fxq.state import State, find_state
from fxq.surroundings import in_plain_surroundings

_ALIKE_DB = 60.0  # what rounding of folded batch norms leaves
_UNLIKE_DB = 3.0  # half of what is there is error


@in_plain_surroundings
def compare(
    float_model: nn.Module,
    quantized: GraphModule,
    batches: Iterable[Any] | Data,
    forward: Forward | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare a quantized model with the float one, layer by layer, on any number of batches.

    A layer's *local* error is that of the quantized layer given what the float model computes before it; the
    *accumulated* one is what is there in the quantized model. Memory does not grow with the number of batches.

    Args:
        float_model: the model that was prepared; it is not modified.
        quantized: the result of ``fxq.prepare``, calibrated or trained, or of ``fxq.convert``. For a converted model
            ``float_model`` is traced again, and layers are found by their names.
        batches, forward: as of ``fxq.calibrate``.
        progress: show a bar, if stderr is a terminal.

    Raises:
        CalibrationError: there is no batch, or a quantizer has no range yet.
        InputError: a batch does not fit the model, or ``float_model`` is another model.
        StageError: ``quantized`` is no such model, or one with islands.
    """
    state = find_state(quantized)
    if state is None or state.stage < Stage.PREPARED:
        raise StageError(
            f"compare takes the result of fxq.prepare or fxq.convert second, got {type(quantized).__name__}"
        )
    if state.stage > Stage.LOWERED:
        raise StageError(
            f"compare walks a graph of quantized floats, got one at stage '{state.stage}': give it the converted model"
        )
    if state.islands is not None:
        raise StageError(
            "compare walks one graph, and this model runs its own Python around islands "
            f"({', '.join(state.islands.paths)}): prepare the modules at these paths by themselves, and compare those"
        )
    data = batches if isinstance(batches, Data) else Data(batches, forward, progress=progress)
    model = as_module(float_model)
    gm = copy_graph(quantized).eval()
    if state.stage is not Stage.LOWERED:
        check_calibrated(gm, "compare")
        fit_weights(gm, only_missing=True)
    float_gm, weights = _float_model(model, quantized, state)
    run = _Run(gm, float_gm)
    with torch.no_grad(), in_float(float_gm, weights):
        for index, inputs in data.stream(gm, "Comparing"):
            with naming_batch(gm, tuple(inputs.args) or inputs.kwargs, index):
                run.add(inputs, model)
        return run.result(state)


class _Run:
    """The sums of a comparison."""

    def __init__(self, quantized: GraphModule, float_gm: GraphModule) -> None:
        self._gm, self._float, self._pair = quantized, float_gm, Lockstep(quantized, float_gm)
        self._layers = {
            node: rule_path(self._pair.counterparts[node.name])
            for node in filter(self._is_layer, quantized.graph.nodes)
        }
        self._local = {path: Sums() for path in self._layers.values()}
        self._accumulated = {path: Sums() for path in self._layers.values()}
        self._outputs: dict[str, Sums] = {}
        self._against_model: dict[str, Sums] = {}
        self._samples = 0

    def add(self, inputs: Inputs, model: nn.Module) -> None:
        """Add a batch; the first one is run through the user's model too."""
        for node, expected, found, local in self._pair.steps(inputs, self._layers.__contains__):
            path = self._layers.get(node)
            if path is not None:
                self._local[path].add(expected, local)
                self._accumulated[path].add(expected, found)
            elif node.op == "output":
                wanted, given = (named_leaves(value, "output", Tensor) for value in (expected, found))
                if not self._samples:
                    _add_named(self._against_model, _outputs_of(model, inputs, given), wanted)
                _add_named(self._outputs, wanted, given)
        self._samples += inputs.samples or 1

    def result(self, state: State) -> Comparison:
        """Return what was found."""
        weights: dict[str, Figures | None] = {}
        unread: list[str] = []
        kinds: dict[str, str] = {}
        for node, path in self._layers.items():
            counterpart = self._pair.counterparts[node.name]
            kinds[path] = kind(counterpart)
            weights[path], missing = _weights(self._gm, node, counterpart)
            if missing:
                unread.append(path)
        layers = tuple(
            LayerComparison(path, kinds[path], weights[path], self._local[path].figures, sums.figures)
            for path, sums in self._accumulated.items()
        )
        outputs = {name: sums.figures for name, sums in self._outputs.items()}
        known = {name: figures for name, figures in outputs.items() if figures is not None}
        notes = (*self._notes(state, unread), *_other_weights([one for one in weights.values() if one is not None]))
        return Comparison(layers, known, self._samples, notes)

    def _notes(self, state: State, unread: list[str]) -> Iterator[str]:
        lowest = min((_sqnr(sums) for sums in self._against_model.values()), default=math.inf)
        if lowest < _ALIKE_DB:
            yield (
                f"float_model's own outputs are {lowest:.1f} dB from those that layers are compared with: the model "
                "was trained, given other weights or rewritten since it was prepared, and what it computes with its "
                "quantizers off is the float side here"
            )
        quality = None if state.explanation is None else state.explanation.quality
        if state.stage is Stage.LOWERED and quality is not None and quality.against == CHANGED:
            yield (
                "the model was trained, or given other weights, since it was prepared: how far that took it from "
                "float_model counts as error here. Compare the prepared model, which has its own float side"
            )
        if state.stage is Stage.LOWERED:
            known = self._pair.counterparts
            lost = [rule_path(one) for one in self._float.graph.nodes if _has_weights(one) and one.name not in known]
            if lost:
                yield (
                    f"convert took {listed(lost)} apart: no node of the converted model stands for it, so its error "
                    "counts as that of what reads it; compare the prepared model to see it by itself"
                )
        nan = [path for path, sums in (*self._accumulated.items(), *self._outputs.items()) if sums.nan]
        if nan:
            yield (
                f"NaN in the float model, at {listed(nan)}, counts for nothing in the figures: look for the "
                "batch that holds it, or for a layer that divides by 0 or overflows"
            )
        yield from without_figures((*self._accumulated.items(), *self._outputs.items()))
        if unread:
            yield (
                f"the weights of {listed(unread)} are stored in a form that is not read back here: compare the "
                "prepared model to see their error"
            )

    def _is_layer(self, node: Node) -> bool:
        """Return whether ``node`` computes with a tensor that is quantized, and does more than move it."""
        counterpart = self._pair.counterparts.get(node.name)
        if counterpart is None or node.op in ("placeholder", "get_attr", "output") or kind(counterpart) in MOVES_DATA:
            return False
        if writes_in_place(node):  # computed once more, it would write once more
            return False
        own = node.op == "call_module" and any(
            isinstance(one, TensorQuantizer) and one.is_enabled for one in module_of(node).modules()
        )
        return own or self._pair.reads_quantized(node)


def _float_model(model: nn.Module, quantized: GraphModule, state: State) -> tuple[GraphModule, dict[str, Tensor]]:
    """Return a graph module with the node names of the quantized one, and the weights that make it the float model."""
    if state.stage is not Stage.LOWERED:
        float_gm = copy_graph(quantized).eval()
        return float_gm, state.changes.float_weights(float_gm)
    frontend: Frontend = "export" if state.traced else "auto"
    settings = state.settings
    try:
        float_gm = prepare(model, settings.example_inputs, state.recipe, settings.qat, False, frontend, "float").eval()
    except FxqError as error:
        raise InputError(f"float_model cannot be traced as the converted model was: {error}") from error
    if state.changes.replaced or state.changes.inserted:
        _put_in_again(float_gm, state)
    return float_gm, state.changes.equivalent_weights(float_gm)


def _put_in_again(float_gm: GraphModule, state: State) -> None:
    """Put in what passes of calibration put in: the weights that they rewrote compute the same only with it."""
    if not isinstance(state.source, Source):
        raise InputError(
            "passes of calibration put modules into the converted model, and what these were it does not tell (it is a "
            "pickle of it, or they cannot be stored): compare the prepared model"
        )
    device, packed = next((one.device for one in float_gm.parameters()), None), state.source.packed
    edits = packed.header["edits"]
    do_again(float_gm, edits)
    for path in (*edits["replaced"], *(fields["path"] for fields in edits["inserted"])):
        float_gm.get_submodule(path).load_state_dict(packed.section(f"{path}."))
    float_gm.to(device)


def _weights(gm: GraphModule, node: Node, counterpart: Node) -> tuple[Figures | None, bool]:
    """Return how far the quantized weights of a layer are from the float ones, and whether some were not found."""
    module = module_of(counterpart) if counterpart.op == "call_module" else None
    if not isinstance(module, Quantized):
        return None, False
    sums, missing = Sums(), False
    for name, tensor, quantizer in module.weights():
        if not quantizer.is_enabled:
            continue
        found = _quantized_weight(gm, node, str(counterpart.target), name)
        if found is None or found.shape != tensor.shape:
            missing = True
        else:
            sums.add(tensor, found)
    return sums.figures, missing


def _quantized_weight(gm: GraphModule, node: Node, path: str, name: str) -> Tensor | None:
    """Return a weight as the quantized model computes with it, None where it is not found."""
    own = module_of(node) if node.op == "call_module" else None
    if isinstance(own, Quantized):
        return next((quantizer(tensor) for known, tensor, quantizer in own.weights() if known == name), None)
    stored = [one for one in gm.graph.nodes if one.op == "get_attr" and str(one.target) == f"{path}.{name}"]
    reader = next((user for one in stored for user in one.users if user.target is DEQUANTIZE), None)
    if reader is None:
        return None
    read = {source: function_of(gm, source, {})() for source in reader.all_input_nodes}
    value: Tensor = DEQUANTIZE(*map_arg(reader.args, read.__getitem__))
    return value


def _other_weights(weights: Sequence[Figures]) -> Iterator[str]:
    """Say so where no weight is near its float one: rounding does not do that."""
    if weights and all(one.sqnr_db is not None and one.sqnr_db < _UNLIKE_DB for one in weights):
        yield (
            "no weight of the quantized model is like the one of float_model, which 4 bits would keep: give the model "
            "that was prepared, with the weights that it had then"
        )


def _outputs_of(model: nn.Module, inputs: Inputs, expected: Named) -> Named:
    """Return what the user's model makes of a batch; InputError where that has another form than ``expected``."""
    (found,) = run_in_float(model, (inputs,))
    shapes, wanted = ([(name, tuple(value.shape)) for name, value in one] for one in (found, expected))
    if shapes != wanted:
        raise InputError(
            f"float_model ({type(model).__name__}) returns {shapes}, and the quantized model {wanted}: give the model "
            "that was prepared"
        )
    return found


def _add_named(sums: dict[str, Sums], expected: Named, found: Named) -> None:
    for (name, want), (_, have) in zip(expected, found, strict=True):
        sums.setdefault(name, Sums()).add(want, have)


def _has_weights(node: Node) -> bool:
    return node.op == "call_module" and isinstance(module_of(node), Quantized)


def _sqnr(sums: Sums) -> float:
    figures = sums.figures
    return math.inf if figures is None or figures.sqnr_db is None else figures.sqnr_db

"""ValueRewriter: the part of the rewriter that shows data to passes, and changes weights and biases."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxq.data import Data
from fxq.errors import PassError
from fxq.graph.data_stage import DataStage
from fxq.graph.float_model import in_float
from fxq.graph.parameters import Parameters
from fxq.graph.streams import Streams, Values
from fxq.record import Entry, Record

Item = TypeVar("Item")
Found = TypeVar("Found")


class ValueRewriter:
    """What :class:`fxq.Rewriter` does to numbers; it adds what is done to the graph.

    Args:
        gm: the graph module; edited in place.
        record: where changes are written down.
        pass_name: whose hands these are.
        data_stage: what passes of the stage CALIBRATED have beside the graph; None for all others.
    """

    def __init__(self, gm: GraphModule, record: Record, pass_name: str, data_stage: DataStage | None) -> None:
        self.gm = gm
        self.record = record
        self.pass_name = pass_name
        self._data_stage = data_stage
        self._parameters: Parameters | None = None

    @property
    def data(self) -> Data:
        """The batches that the user calibrates with; of the stage CALIBRATED only.

        Raises:
            PassError: the pass is of another stage, or there is no data.
        """
        stage = self._data_stage
        if stage is None:
            raise PassError(
                f"pass {self.pass_name!r} asks for data, which only passes of the stage 'calibrated' have: "
                "declare stage = fxq.Stage.CALIBRATED"
            )
        if stage.data is None:
            raise PassError(
                f"pass {self.pass_name!r} needs data, and there is none: pass batches to fxq.calibrate, or take the "
                f"pass out with recipe.without_pass({self.pass_name!r})"
            )
        return stage.data

    def has_failed_to_load(self, error: BaseException) -> bool:
        """Return whether ``error`` is the user's loader's own, and no pass's."""
        stage = self._data_stage
        return stage is not None and stage.data is not None and stage.data.loader_error is error

    def run_both(self, nodes: Iterable[Node]) -> Iterator[tuple[Node, Values]]:
        """Yield each of ``nodes`` in execution order with what it computes in the float and in the quantized model.

        ``for node, (float_values, quantized_values) in rw.run_both(nodes):``, two lists with a value for each kept
        batch; batches may differ in shape. A weight, bias or range that is set at its own node in the body of the loop
        is seen by all that comes behind it. The float model has the weights that ``prepare`` left, the quantized one
        those of now. Memory: see ``fxq.graph.streams``.

        Raises:
            PassError: there is no data, or a weight is set when the streams have left its node behind.
        """
        yield from self._streams().walk(nodes, self.pass_name)

    def run_float(self, nodes: Iterable[Node]) -> Iterator[tuple[Node, list[Any]]]:
        """Yield each of ``nodes`` with what it computes in the float model, a value for each kept batch.

        Half the cost of :meth:`run_both`, whose errors it has.
        """
        for node, values in self._streams(only_float=True).walk(nodes, self.pass_name):
            yield node, values.float_values
            del values  # or the walk could not reuse its memory

    def share_out(self, items: Sequence[Item], compute: Callable[[Item], Found]) -> list[Found]:
        """Return what ``compute`` finds for each item, in order; each in one process, where several calibrate together.

        For what takes long and is independent: a search for each layer. All processes then hold what one of them found.

        Args:
            items: the same in all processes.
            compute: changes nothing, and returns what pickle can hold; tensors come back on the model's device.

        Raises:
            PassError: there is no data.
            CalibrationError: another process failed or is gone.
        """
        team = self.data.team
        if team is None:
            return [compute(item) for item in items]
        device = next((tensor.device for tensor in (*self.gm.parameters(), *self.gm.buffers())), None)
        found = team.share_out(f"what {self.pass_name} found", items, compute)
        return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), found)  # type: ignore[no-any-return]

    @contextmanager
    def in_float(self) -> Iterator[None]:
        """Let ``rw.gm`` compute what the float model does: quantizers off, the weights that ``run_both`` compares with.

        For a pass that runs the model on inputs of its own making.

        Raises:
            PassError: the pass declares ``streams = True``, so there is no float model.
        """
        with in_float(self.gm, self._float_weights()):
            yield

    def _streams(self, only_float: bool = False) -> Streams:
        data = self.data
        weights, stage = self._float_weights(), self._data_stage
        assert stage is not None
        return Streams(self.gm, data.kept(self.gm), weights, stage.changed, only_float)

    def _float_weights(self) -> dict[str, torch.Tensor]:
        stage = self._data_stage
        if stage is None or stage.weights is None:
            raise PassError(f"pass {self.pass_name!r} declares streams = True, so no samples were kept: take that out")
        return stage.weights

    def set_weight(
        self, path: str, value: torch.Tensor, why: str, is_equivalent: bool = False, keep_range: bool = False
    ) -> None:
        """Set a weight in place, and fit its range again. Tied modules see the change, each with its range.

        Args:
            path: of the module, or of the weight itself where it has another name.
            value: same shape and dtype, finite; copied.
            why: the reason.
            is_equivalent: part of a rewrite that leaves what the float model computes, as when a factor moves from one
                layer to the next: the float stream takes the value too.
            keep_range: the value was rounded to the range that there is.

        Raises:
            PassError: there is no such weight, or the value does not fit it.
        """
        self._set_parameter("weight", path, value, why, is_equivalent, keep_range)

    def set_bias(self, path: str, value: torch.Tensor, why: str, is_equivalent: bool = False) -> None:
        """Set a bias in place; a convolution or linear layer without one gets it. Arguments as in ``set_weight``."""
        self._set_parameter("bias", path, value, why, is_equivalent)

    def _set_parameter(
        self, name: str, path: str, value: torch.Tensor, why: str, is_equivalent: bool, keep_range: bool = False
    ) -> None:
        stage = self._data_stage
        if stage is not None and stage.weights is None:
            raise PassError(f"pass {self.pass_name!r} declares streams = True and sets the {name} of {path!r}")
        self._parameters = self._parameters or Parameters(self.gm)
        try:
            if name == "bias":
                paths = self._parameters.set_bias(path, value)
            else:
                paths = self._parameters.set_weight(path, value, keep_range)
        except PassError as error:
            raise PassError(f"pass {self.pass_name!r}: {error}") from error
        if stage is not None:
            stage.note_change(self.pass_name, paths, value if is_equivalent else None)
        owners = {found.rpartition(".")[0] for found in paths}
        text = why if len(owners) == 1 else f"{why} (tied: {', '.join(sorted(owners))})"
        self.record.add(Entry(self.pass_name, "edit", "", paths[0].rpartition(".")[0], f"{name}: {text}"))

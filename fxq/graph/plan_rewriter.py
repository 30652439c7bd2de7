"""PlanRewriter: the part of the rewriter that plans quantizers and declines to, with a reason for each."""

from collections.abc import Iterable

from torch import nn
from torch.fx import GraphModule, Node

from fxq.errors import PassError
from fxq.graph import plan as plans
from fxq.graph.data_stage import DataStage
from fxq.graph.dead_nodes import nodes_without_values
from fxq.graph.groups import quantizers_alone
from fxq.graph.kinds import kind, module_of
from fxq.graph.match import input_edges, module_path
from fxq.graph.memory import Memory
from fxq.graph.modules import module_at
from fxq.graph.settings import Settings
from fxq.nn import InputQuantized, Quantized, TensorQuantizer, WeightQuantized, quantized_type
from fxq.quant.descriptor import QuantDescriptor
from fxq.quant.qconfig import QConfig
from fxq.record import Entry, Record
from fxq.stage import Stage
from fxq.targets.target import Target

_CHANNEL_FIRST_OR_SECOND = frozenset({"conv", "conv_transpose", "linear"})


class PlanRewriter:
    """What :class:`fxq.Rewriter` plans for later passes to carry out; the graph stays as it is.

    Attributes:
        settings: what the run was asked for.
        record: where plans and reasons are written down.
        pass_name: whose hands these are.
        stage: of the pass.
    """

    gm: GraphModule
    settings: Settings
    record: Record
    pass_name: str
    stage: Stage | None
    _data_stage: DataStage | None
    _without_values: set[Node] | None = None  # once asked for, as the next: until an edit is noted
    _memory: Memory | None = None

    @property
    def target(self) -> Target:
        """The runtime to quantize for."""
        return self.settings.target

    @property
    def qat(self) -> bool:
        """Will the prepared model be trained?"""
        return self.settings.qat

    def config(self, node: Node, slot: str = "inputs", may_be_negative: bool = False) -> QConfig | None:
        """Return the descriptors for ``node``, None if a rule leaves it in float; the rest as in Settings.config."""
        return self.settings.config(node, slot, may_be_negative)

    def skip(self, node: Node, reason: str) -> None:
        """Note that the pass leaves ``node`` as it is, and why; what was left in float has its reason."""
        if self._data_stage is None or node.name not in self._data_stage.left:
            self._note("skip", node, reason)

    def plan_input(self, node: Node, position: int, descriptor: QuantDescriptor, why: str, role: str = "input") -> None:
        """Plan a quantizer on the node argument of ``node`` at ``position`` (see Edge). Roles: see Plan."""
        edges = input_edges(node)
        if not isinstance(position, int) or not 0 <= position < len(edges):
            raise PassError(
                f"pass {self.pass_name!r}: node {node.name!r} has {len(edges)} inputs, counted from 0, no input "
                f"{position!r}; what its module holds, such as a weight, is planned by rw.plan_inside"
            )
        if self._is_overwritten(node, edges[position].producer):
            return
        self._plan(node, plans.Plan(position, descriptor, role, self.pass_name, why))

    def plan_inside(self, node: Node, slot: str, descriptor: QuantDescriptor, why: str) -> None:
        """Plan a quantizer on a tensor inside the module that ``node`` calls, such as its "weight".

        All calls of the module share it. The module is swapped for its quantized version when plans are carried out.
        A weight with ranges along an axis has one for each output channel, whichever dimension the target has for it.

        Raises:
            PassError: the module has no quantized version, no such tensor, or is quantized by hand.
        """
        module = module_of(node) if node.op == "call_module" else None
        quantized = None if module is None else quantized_type(module)
        if slot == "weight" and isinstance(descriptor, QuantDescriptor) and descriptor.axis is not None:
            found = kind(node)
            if found in _CHANNEL_FIRST_OR_SECOND:
                descriptor = descriptor.replace(axis=self.target.weight_axis(found))
        plan = plans.Plan(slot, descriptor, _role_inside(quantized, module, slot), self.pass_name, why)
        if plans.plans_of(node).get(slot) == plan:
            return
        if quantized is None or module is None:
            raise PassError(
                f"pass {self.pass_name!r} plans {slot!r} inside of {node.name!r}: {_why_not_inside(module)}"
            )
        slots = quantized.weight_slots(module)
        if not issubclass(quantized, WeightQuantized):  # the input of one that is stands in the graph: plan_input
            slots = [*slots, *quantized.activation_slots(module)]
        if slot not in slots:
            raise PassError(
                f"pass {self.pass_name!r} plans {slot!r} inside of {node.target!r}, and a {type(module).__name__} has "
                f"no such tensor to quantize; it has {', '.join(slots)}"
            )
        self._plan(node, plan)

    def drop_plan(self, node: Node, slot: int | str, reason: str) -> None:
        """Take a plan of ``node`` back, and say why.

        Raises:
            PassError: it was carried out.
        """
        if self.stage is not Stage.PREPARED or _is_carried_out(node, plans.plans_of(node).get(slot)):
            self._check_planning(node)
        plans.forget_plan(node, slot)
        self.skip(node, reason)

    def plan_output(self, node: Node, descriptor: QuantDescriptor, why: str) -> None:
        """Plan a quantizer on the output of ``node``, for all that read it."""
        if self._is_overwritten(node, node):
            return
        self._plan(node, plans.Plan(plans.OUTPUT, descriptor, "output", self.pass_name, why))

    def share_range(self, nodes: Iterable[Node], group: str, why: str) -> None:
        """Plan one range for the outputs of ``nodes``."""
        for node in nodes:
            self._check_planning(node)
            if plans.note_group(node, group):
                self._note("plan", node, f"shares the range of {group}: {why}")

    def leave_in_float(self, node: Node, why: str) -> None:
        """Let an operation that was quantized compute in float, where data show that it must.

        The quantizers that no other operation wants are switched off: those of its weights, of what it reads and of
        what it gives. What is computed with it, such as an add in the same kernel, goes with it. The next calibration
        starts with all of them on. ``fxq.save`` stores which are off, a state dict does not. What is known before there
        is data is a rule's to say, or ``drop_plan``'s.

        Args:
            node: the operation; or a quantizer, for those that want it.
            why: the reason, for the record.

        Raises:
            PassError: the pass is of another stage than CALIBRATED, or streams, or nothing was quantized for ``node``;
                or, in a loop over ``run_both``, the streams have left one of the quantizers behind.
        """
        if self._data_stage is None:
            raise PassError(
                f"pass {self.pass_name!r} leaves {node.name!r} in float, which passes of the stage 'calibrated' do by "
                "switching off its quantizers: declare stage = fxq.Stage.CALIBRATED, or plan none (rw.drop_plan)"
            )
        stage = self._data_stage
        if stage.weights is None:
            raise PassError(
                f"pass {self.pass_name!r} declares streams = True and leaves {node.name!r} in float, which the next "
                "calibration could not undo: take streams = True out"
            )
        operations, paths = quantizers_alone(self.gm, self.target, node, stage.left)
        if not operations:
            raise PassError(
                f"pass {self.pass_name!r} leaves {node.name!r} in float, for which nothing was quantized: ask "
                "fxq.graph.planned_inputs, planned_inside and planned_output before"
            )
        if not paths:
            self.skip(node, f"{why}; other operations want its quantizers, which stay on")
            return
        for path in paths:
            quantizer = module_at(self.gm, path)
            assert isinstance(quantizer, TensorQuantizer)
            if quantizer.is_enabled:  # one that the user switched off stays so in the next calibration
                quantizer.disable()
                stage.switched_off.append(path)
        stage.changed.extend(paths)
        for one in operations:
            self._note("edit", one, f"left in float: {why}")
            self.skip(one, why)
        stage.left.extend(one.name for one in operations)

    def _is_overwritten(self, node: Node, producer: Node) -> bool:
        """Note that ``node`` gets no quantizer if one on ``producer`` would miss what is written there later."""
        if self._memory is None or producer not in self._memory:
            self._memory = Memory(self.gm.graph)
        writer = self._memory.overwriting(producer)
        if writer is not None:
            self.skip(
                node, f"{producer.name!r} is overwritten in place by {writer.name!r}, which a quantizer would miss"
            )
        return writer is not None

    def _check_planning(self, node: Node) -> None:
        if self.stage is not None and self.stage > Stage.PLANNED:
            raise PassError(
                f"pass {self.pass_name!r} of stage '{self.stage}' plans for {node.name!r}, and plans were carried out "
                "before it: declare stage = fxq.Stage.PLANNED"
            )

    def _plan(self, node: Node, plan: plans.Plan) -> None:
        self._check_planning(node)
        where = f"{plan.slot!r} of {node.name!r}, planned by {self.pass_name!r}"
        if not isinstance(plan.descriptor, QuantDescriptor):
            raise PassError(f"{where}: a plan takes a fxq.QuantDescriptor, got {plan.descriptor!r}")
        if plan.role == "weight":
            self.target.check_weight(plan.descriptor, where, kind(node))
        else:
            self.target.check_activation(plan.descriptor, where)
        if self._without_values is None:
            self._memory = self._memory or Memory(self.gm.graph)
            self._without_values = nodes_without_values(self.gm, self._memory)
        if node in self._without_values:
            self.skip(node, "nothing reads its values, at most its shape is")
            return
        if plans.note_plan(node, plan):
            slot = f"{plan.role} {plan.slot}" if isinstance(plan.slot, int) else plan.slot
            self._note("plan", node, f"{slot}: {plan.descriptor}: {plan.why}")

    def _note(self, action: str, node: Node, text: str) -> None:
        if action == "edit":
            self._without_values = self._memory = None
        self.record.add(Entry(self.pass_name, action, node.name, module_path(node), text))


def _is_carried_out(node: Node, plan: plans.Plan | None) -> bool:
    """Return whether a quantizer is there for a plan: inside of the module, or on the input or output of ``node``."""
    if plan is None:
        return False
    if isinstance(plan.slot, str) and plan.slot != plans.OUTPUT:
        return isinstance(module_of(node), Quantized)
    beside = node.users if plan.slot == plans.OUTPUT else node.all_input_nodes
    return any(plan in plans.inserted_for(one) for one in beside)


def _role_inside(quantized: type[Quantized] | None, module: nn.Module | None, slot: str) -> str:
    """Return the role of a tensor inside of ``module``, which ``quantized`` is to replace."""
    if quantized is None or module is None or slot in quantized.weight_slots(module):
        return "weight"
    return "input" if issubclass(quantized, InputQuantized) else "inside"


def _why_not_inside(module: nn.Module | None) -> str:
    """Return why nothing inside of ``module`` can be planned; None is what calls no module."""
    if module is None:
        return "it calls no module; plan an input of it, or its output"
    if isinstance(module, Quantized):
        return f"{type(module).__name__} has its own quantizers: leave them, or hand prepare() the float module"
    return f"fxq.nn.QUANTIZED has no quantized version of {type(module).__name__}"

"""ShapeTracer: torch.fx symbolic tracing that also computes each node's ``meta["val"]`` while it records.

Values are computed on fake tensors (shape, dtype and device without data), so tracing costs no arithmetic and one
look at each node.
"""

import contextlib
import functools
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node, Proxy, Tracer
from torch.fx.proxy import TraceError

from fxq.graph.arguments import Fact, facts_about, type_fact
from fxq.graph.evaluation import Evaluation
from fxq.graph.numbers_in_tensors import NumbersInTensors, holds_tensors
from fxq.graph.recorded_sizes import sizes_may_be_proxies
from fxq.graph.shape_proxy import UNKNOWN, ShapeProxy, elements, truth, value_of
from fxq.graph.size_decisions import Decision
from fxq.graph.source_lines import user_line, user_stack
from fxq.graph.trace_transformer import STACKS, plain_forward
from fxq.kinds import is_registered
from fxq.nn import plain_type

_PACKAGES = frozenset({"torch", "_operator", "builtins"})
# They may compare sizes.
_COMPARISONS = frozenset({
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.and_, operator.or_,
})  # fmt: skip


class ShapeTracer(Tracer):
    """A torch.fx tracer that keeps modules as nodes and knows shapes.

    Args:
        leaves: paths of the modules to keep whole, besides those of torch.nn and of fxq.
        inputs: values of forward's parameters by name; a parameter without one is known by its default only.
        defaults: the defaults of the parameters that are not in ``inputs``.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        leaves: frozenset[str] = frozenset(),
        inputs: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.leaves = leaves
        self.inputs = dict(inputs or {})
        self.defaults = dict(defaults or {})
        self.newest: Node | None = None  # where to look when tracing fails
        self.facts: list[Fact] = []  # what the graph takes for given about the parameters of forward
        self.decisions: list[Decision] = []  # and about sizes, among others
        self._evaluating = False
        self._evaluation = Evaluation()
        self._names: dict[int, str] = {}
        self.numbers = NumbersInTensors(self)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> torch.fx.Graph:
        """Return the graph of ``root``; torch's own classes are patched meanwhile and restored after."""
        if isinstance(root, nn.Module):
            self._names = {id(tensor): name for name, tensor in (*root.named_parameters(), *root.named_buffers())}
        with sizes_may_be_proxies():
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module becomes one node."""
        if module_qualified_name in self.leaves or isinstance(m, torch.jit.ScriptModule):
            return True
        if type(m) in STACKS:
            return False
        kind = plain_type(m)
        if kind.__module__.partition(".")[0] == "fxq" or is_registered(kind):
            return True
        if kind is not type(m):  # it computes its weights, and is made where torch's own classes are
            return kind.__module__.startswith("torch.nn.") and not issubclass(kind, nn.Sequential)
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a leaf module, trace through another; one that forward made on the spot is traced through too."""
        if self._evaluating or m not in (self.submodule_paths or {}):
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if type(m).__call__ is not nn.Module.__call__ and self.is_leaf_module(m, path):
            # It is running now, around this call, and would once more where the graph calls the module.
            raise TraceError(
                f"the class of the leaf '{path}' ({type(m).__name__}) overrides __call__; override forward"
            )
        plain = plain_forward(m)
        if plain is None:
            return super().call_module(m, forward, args, kwargs)
        m.forward = functools.partial(plain, m)  # the hooks around it stay
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            del m.forward

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Proxy]) -> Any:
        """Return a get_attr proxy for a parameter or buffer of the model, anything else as it is."""
        name = self._names.get(id(attr_val)) if isinstance(attr_val, Tensor) and not self._evaluating else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        """Return a proxy's node, and whatever else a graph can hold; a proxy looks like what it stands for."""
        if isinstance(a, np.generic):
            return a.item()
        return a.node if isinstance(a, Proxy) else super().create_arg(a)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """Record a node; what is no tensor, no size and no container is known for good and is returned as it is."""
        kind, target, values, *others = args
        if kind == "placeholder":
            # Its default, which may be anything, is none of the values that a graph computes with.
            proxy = super().create_proxy(kind, target, (), *others, **kwargs)
            proxy.node.args = values
        else:
            proxy = super().create_proxy(*args, **kwargs)
        value = value_of(proxy)
        if _is_missing_weights(proxy.node, self.root):
            return None
        if value is UNKNOWN and not _is_of_others(proxy.node):
            found = self.numbers.find_out(proxy.node)
            return proxy if found is None else found
        if proxy.node in self.numbers.stored and not _is_of_others(proxy.node) and not holds_tensors(value):
            return value
        if not _is_known_for_good(proxy.node, value):
            return proxy
        if value is not None or proxy.node.target is operator.getitem:
            self.take_for_given(proxy.node)
        return value

    def take_for_given(self, node: Node, question: str = "truth") -> None:
        """Remember that the graph is only right where ``node`` computes what it computes now.

        ``question``: what of it Python asked for, "truth", "number", "len" or "keys".
        """
        self.facts += [fact for fact in facts_about(node) if fact not in self.facts]
        if question == "len" and not isinstance(node.meta.get("val"), Tensor):
            return  # of a shape: the number of dimensions
        self.decisions.append(Decision(node, question, self.running, user_line(sys._getframe())))

    def take_type_for_given(self, node: Node) -> None:
        """Remember that the model's Python asked whether ``node`` is a list, a tuple or a dict."""
        fact = type_fact(node)
        if fact is not None and fact not in self.facts:
            self.facts.append(fact)

    @property
    def is_evaluating(self) -> bool:
        """Whether modules run for real."""
        return self._evaluating

    def as_fake(self, value: Any) -> Any:
        """Return ``value`` with fake tensors in place of tensors."""
        return self._evaluation.as_fake(value)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let modules run for real: their calls and attributes make no nodes."""
        before, self._evaluating = self._evaluating, True
        try:
            yield
        finally:
            self._evaluating = before

    @property
    def running(self) -> str:
        """The path of the module whose forward is running."""
        return next(reversed(self.module_stack.values()))[0] if self.module_stack else ""

    def proxy(self, node: Node) -> ShapeProxy:
        """Wrap a node."""
        return ShapeProxy(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        """Decide an ``if`` on a proxy."""
        return truth(obj)

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """Iterate over a proxy."""
        return elements(obj)

    def keys(self, obj: Proxy) -> Any:
        """Return the keys of a proxy that stands for a dict, for ``**``."""
        value = value_of(obj)
        self.take_for_given(obj.node, "keys")
        return list(value) if isinstance(value, dict) else super().keys(obj)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Any, list[Any]]:
        """Make a placeholder for each parameter of forward, and give forward the plain value where it is no tensor."""
        function, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        root = arguments[: int(is_module)]
        function = (plain_forward(root[0]) if root else None) or function
        return function, [*root, *map(self._argument, arguments[len(root) :])]

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        """Record a node with its source line, and compute its value where its inputs' values are known."""
        node = self.newest = super().create_node(*args, **kwargs)
        node.stack_trace = user_stack(sys._getframe())
        if node.op == "placeholder":
            self._place(node)
            return node
        self.numbers.stored.note(node)
        is_stored = node in self.numbers.stored
        with contextlib.suppress(*(Exception,) if is_stored else ()):  # it may want data, and can have them
            self._evaluate(node)
        if "val" not in node.meta and not is_stored and not _is_of_others(node):
            before = node.args, node.kwargs
            if self.numbers.replace_numbers(node):
                self._evaluate(node)
                if "val" not in node.meta:
                    node.args, node.kwargs = before
        return node

    def _evaluate(self, node: Node) -> None:
        # Of what is kept whole, because it does not trace, fake tensors may find out nothing.
        is_kept = node.op == "call_module" and self._is_kept(str(node.target))
        with self.evaluating():
            self._evaluation.evaluate(node, self.root, is_kept)

    def _is_kept(self, path: str) -> bool:
        return path in self.leaves or isinstance(self.root.get_submodule(path), torch.jit.ScriptModule)

    def _place(self, node: Node) -> None:
        name = str(node.target).lstrip("*")
        if name in self.inputs:
            node.meta["val"] = self._evaluation.as_fake(self.inputs[name])
        elif name in self.defaults:
            node.meta["val"] = self.defaults[name]

    def _argument(self, proxy: Any) -> Any:
        value = proxy.node.meta.get("val", proxy)
        if value is proxy or _stays_an_input(value):
            return proxy
        proxy.node.meta["burned_in"] = value
        self.facts.append(Fact(str(proxy.node.target).lstrip("*"), value))
        return value


def _is_missing_weights(node: Node, root: nn.Module) -> bool:
    """Whether a result is the weights of attention that were not asked for, None whatever the inputs are."""
    if node.target is not operator.getitem or node.args[1] != 1:
        return False
    source = node.args[0]
    if not isinstance(source, Node) or source.op != "call_module":
        return False
    return isinstance(root.get_submodule(str(source.target)), nn.MultiheadAttention) and not _needs_weights(source)


def _needs_weights(call: Node) -> bool:
    """Whether a call of attention, ``forward(query, key, value, key_padding_mask, need_weights)``, wants weights."""
    return bool(call.args[4] if len(call.args) > 4 else call.kwargs.get("need_weights", True))


def _is_known_for_good(node: Node, value: Any) -> bool:
    """Whether a result is None, a text, a dtype or an answer, and not a number that another input may change."""
    if node.op == "placeholder" or _is_of_others(node):
        return False
    if isinstance(value, bool):
        return node.target not in _COMPARISONS
    return value is None or isinstance(value, str | torch.dtype | torch.device | torch.layout)


def _is_of_others(node: Node) -> bool:
    """Whether it calls a function of others, of which torch.fx.wrap wants a proxy, whatever it returns."""
    package = str(getattr(node.target, "__module__", None)).partition(".")[0]
    return node.op == "call_function" and package not in _PACKAGES


def _stays_an_input(value: Any) -> bool:
    """Whether an input may differ in the next call: tensors, what holds tensors, and numbers; not flags and None."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return True
    return holds_tensors(value)

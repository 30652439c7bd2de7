"""Proxies that know the shape, dtype and device of what they stand for, so that Python can ask.

A node's ``meta["val"]`` holds what the node computed on the example inputs: a fake tensor (shape without data) or a
number. A size that is passed on stays a node, and the graph works for other sizes; a size that Python needs as a
number (``if``, ``int``, ``range``) is burned in.
"""

import dis
import operator
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.fx.proxy import Attribute, TraceError

from fxq.graph.callee import asks_for_types, is_in_torch
from fxq.graph.source_lines import is_user_code
from fxq.graph.stored_values import UnsettledError

# Answered at once and without a node: they ask for the kind of a tensor, which no other batch changes.
_KIND_METHODS = frozenset({
    "dim", "ndimension", "is_floating_point", "is_complex", "is_signed", "is_contiguous", "get_device", "is_conj",
    "is_neg", "is_inference",
})  # fmt: skip
_KIND_FUNCTIONS = frozenset({
    torch.is_floating_point, torch.is_complex, torch.is_signed, torch.is_conj, torch.is_neg, torch.is_inference,
})  # fmt: skip
UNKNOWN = object()


class ShapeProxy(Proxy):
    """A torch.fx proxy that answers questions about shape and kind from its node's ``meta["val"]``."""

    tracer: Any

    @property  # type: ignore[misc]  # of object it can be set
    def __class__(self) -> Any:
        """What ``isinstance`` finds: the type of the value."""
        value, frame = value_of(self), sys._getframe(1)
        if isinstance(value, Tensor) and (not asks_for_types(frame.f_code) or is_in_torch(frame)):
            return ShapeProxy
        if not isinstance(value, Tensor) and is_asked_by_the_model(frame):
            return self.asked_type()
        return ShapeProxy if value is UNKNOWN else type_of(self)

    def asked_type(self) -> type:
        """Return the type of the value, for the model's code, which may decide by it."""
        self.tracer.take_type_for_given(self.node)
        return type_of(self)

    def __getattr__(self, name: str) -> Any:
        value = value_of(self)
        if value is UNKNOWN:
            is_question = not hasattr(Tensor, name) or name.startswith("is_") or name == "requires_grad"
            is_question = is_question or (name in ("dtype", "layout") and _is_compared_by_identity(sys._getframe(1)))
            if is_question and not name.startswith("__") and is_user_code(sys._getframe(1).f_code.co_filename):
                raise TraceError(f"{name!r} of '{self.node}' is asked for, and is not known while tracing")
            return UnknownAttribute(self, name)
        attribute = getattr(value, name)  # AttributeError as in eager code, so that hasattr tells the truth
        if name in _KIND_METHODS:
            return attribute
        if isinstance(value, dict) and name in ("items", "values", "keys", "get"):
            self.tracer.take_for_given(self.node, "keys")
        if isinstance(value, dict) and name in ("items", "values"):
            pairs = [(key, item_of(self, key)) for key in value]
            return lambda: pairs if name == "items" else [item for _, item in pairs]
        if callable(attribute):
            return Attribute(self, name)
        if name != "ndim" and _may_vary(attribute):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return attribute

    def __len__(self) -> int:
        return len(self._number("len"))

    def __int__(self) -> int:
        return int(self._number("int"))

    def __index__(self) -> int:
        return operator.index(self._number("an integer"))

    def __float__(self) -> float:
        return float(self._number("float"))

    def __contains__(self, item: Any) -> bool:
        if isinstance(value_of(self), dict):
            self.tracer.take_for_given(self.node, "keys")
            return item in value_of(self)
        return any(bool(item == element) for element in self)

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.create_proxy("call_function", round, (self,) if digits is None else (self, digits), {})

    def __divmod__(self, other: Any) -> tuple[Any, ...]:
        floor, rest = operator.floordiv, operator.mod
        return tuple(self.tracer.create_proxy("call_function", each, (self, other), {}) for each in (floor, rest))

    def __setitem__(self, index: Any, item: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, item), {})

    @classmethod
    def __torch_function__(
        cls,
        orig_method: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Record a torch function as a node; an assertion about shapes is decided here and leaves no node."""
        if orig_method in _KIND_FUNCTIONS and args and isinstance(args[0], Proxy):
            if value_of(args[0]) is UNKNOWN:
                raise TraceError(f"{orig_method.__name__}({args[0].node}) is asked, and is not known while tracing")
            return orig_method(value_of(args[0]))
        if orig_method is torch._assert and args and not _holds_tensor(args[0]):
            torch._assert(bool(args[0]), args[1] if len(args) > 1 else (kwargs or {}).get("message", ""))
            return None
        return Proxy.__torch_function__(orig_method, types, args, kwargs)

    def _number(self, wanted: str) -> Any:
        value = value_of(self)
        if value is UNKNOWN:
            raise TraceError(f"{wanted} of '{self.node}' is needed while tracing, and its shape is not known")
        if isinstance(value, Tensor) and wanted != "len":
            return number_in(self, f"{wanted} of the tensor '{self.node}' depends on data")
        self.tracer.take_for_given(self.node, "len" if wanted == "len" else "number")
        return value


class UnknownAttribute(Attribute):
    """An attribute or method of a value that is not known."""

    @property  # type: ignore[misc]  # of object it can be set
    def __class__(self) -> Any:
        return self.asked_type() if is_asked_by_the_model(sys._getframe(1)) else UnknownAttribute

    def asked_type(self) -> type:
        """Refuse: the type is not known."""
        raise TraceError(f"the type of {self.attr!r} of '{self.root.node}' is asked for, and is not known")


def _in_place(name: str) -> Callable[[ShapeProxy, Any], Any]:
    """Return the method behind ``x += y``: Proxy has none, and what else is named x would keep the old values."""

    def record(self: ShapeProxy, other: Any) -> Any:
        if not _holds_tensor(self):
            return NotImplemented
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return record


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(ShapeProxy, f"__{_name}__", _in_place(_name))


def type_of(proxy: Proxy) -> type:
    """Return the type of what the proxy stands for."""
    value = value_of(proxy)
    if value is UNKNOWN:
        raise TraceError(f"the type of '{proxy.node}' is asked for, and is not known while tracing")
    return Tensor if isinstance(value, Tensor) else type(value)


def value_of(proxy: Proxy) -> Any:
    """Return what the proxy's node computed on the example inputs, or a marker that is like no value."""
    return proxy.node.meta.get("val", UNKNOWN)


def item_of(proxy: Proxy, key: Any) -> Proxy:
    """Return ``proxy[key]``, recorded as a node."""
    return proxy.tracer.create_proxy("call_function", operator.getitem, (proxy, key), {})


def has_proxy(argument: Any) -> bool:
    """Whether a proxy is in an argument, looking into tuples, lists, dicts and slices."""
    if isinstance(argument, Proxy):
        return True
    if isinstance(argument, tuple | list):
        return any(map(has_proxy, argument))
    if isinstance(argument, dict):
        return any(map(has_proxy, argument.values()))
    return isinstance(argument, slice) and any(map(has_proxy, (argument.start, argument.stop, argument.step)))


def truth(proxy: Any) -> bool:
    """Return the truth of a proxy whose value is a number, a string or a container."""
    value = value_of(proxy)
    if value is UNKNOWN:
        raise TraceError(f"control flow depends on '{proxy.node}', whose value is not known while tracing")
    if isinstance(value, Tensor):
        return bool(number_in(proxy, f"control flow depends on the data in the tensor '{proxy.node}'"))
    proxy.tracer.take_for_given(proxy.node, "truth")
    return bool(value)


def number_in(proxy: Any, refusal: str) -> Any:
    """Return the number in a tensor that no data of the model's inputs reaches: a stored one, or a size.

    Raises:
        TraceError: it may be another number in the next call, as ``refusal`` says.
    """
    try:
        return proxy.tracer.numbers.number_in(proxy.node, refusal)
    except UnsettledError as error:
        raise TraceError(f"{refusal}, which {error}") from error


def elements(proxy: Any) -> Iterator[Any]:
    """Return the elements of a proxy that stands for a container, a shape or a tensor (along its first dimension)."""
    value = value_of(proxy)
    if value is UNKNOWN:
        raise TraceError(f"iteration over '{proxy.node}', whose length is not known while tracing")
    proxy.tracer.take_for_given(proxy.node, "len")
    if isinstance(value, dict):
        return iter(value)
    if isinstance(value, Tensor) and value.dim() == 0:
        raise TypeError("iteration over a 0-d tensor")
    return iter([item_of(proxy, index) for index in range(len(value))])


def _may_vary(attribute: Any) -> bool:
    """Whether an attribute is a tensor or a size, which must stay in the graph; dtype, device and flags need not."""
    return isinstance(attribute, Tensor | tuple) or type(attribute) is int


def is_asked_by_the_model(frame: FrameType) -> bool:
    """Whether the model's code asks for a type, itself or through ``torch.is_tensor``.

    torch and fx ask a lot too, and where torch does in C++, the frame is that of whoever called it.
    """
    code = frame.f_code
    if code is torch.is_tensor.__code__:
        return True
    return is_user_code(code.co_filename) and asks_for_types(code)


def _is_compared_by_identity(frame: FrameType) -> bool:
    """Whether what is loaded now is asked for with ``is``: ``x.dtype is torch.float32``, either way around."""
    later = [one.opname for one in dis.get_instructions(frame.f_code) if one.offset > frame.f_lasti]
    return "IS_OP" in later[:3]


def _holds_tensor(condition: Any) -> bool:
    value: Any = value_of(condition) if isinstance(condition, Proxy) else condition
    return value is UNKNOWN or isinstance(value, Tensor)

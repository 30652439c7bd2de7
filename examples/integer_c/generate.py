"""Write an integer model as a C header: ``python generate.py model.json model.h``, after ``fxq.export_integer``.

The header has the numbers as constant arrays and a function ``fxq_run``; ``integer.h`` has the operators. Inputs are
codes, outputs integers; the header says how to quantize the one and dequantize the other.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

TYPES = {"int8": ("int8_t", "FXQ_INT8"), "uint8": ("uint8_t", "FXQ_UINT8"), "int32": ("int32_t", "FXQ_INT32")}
IMAGE_OPERATORS = ("integer_conv", "integer_max_pool")
DIMS = 5


class Header:
    """Collects the lines of a header from the description of a model and its tensors."""

    def __init__(self, model: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.model, self.tensors = model, tensors
        self.values = {value["name"]: value for value in (*model["inputs"], *model["nodes"])}

    def text(self) -> str:
        """Return the whole header."""
        return "\n".join(
            [
                "/* Generated from an integer model of fxq; include it once. */",
                '#include "integer.h"',
                "",
                *(line for name, tensor in self.tensors.items() for line in self._constant(name, tensor)),
                *(line for value in self.values.values() for line in self._buffer(value)),
                *self._parameters(),
                "",
                "/* Fill the inputs, call it, read the outputs. */",
                "static void fxq_run(void) {",
                *(f"    {line}" for node in self.model["nodes"] for line in self._call(node)),
                "}",
                "",
            ]
        )

    def _constant(self, name: str, tensor: Tensor) -> Iterator[str]:
        words = [", ".join(map(str, row.tolist())) for row in tensor.reshape(-1).split(24)]
        c_type = TYPES[str(tensor.dtype).removeprefix("torch.")][0]
        yield f"static const {c_type} {c_name(name)}[{tensor.numel()}] = {{"
        yield from (f"    {row}," for row in words)
        yield "};"

    def _buffer(self, value: dict[str, Any]) -> Iterator[str]:
        c_type, name = TYPES[value["dtype"]][0], c_name(value["name"])
        if value.get("operator") == "reshape":
            return  # the same numbers, in another shape
        yield f"static {c_type} {name}[{math.prod(value['shape'])}];"

    def _parameters(self) -> Iterator[str]:
        for kind in ("inputs", "outputs"):
            for index, value in enumerate(self.model[kind]):
                name = self._storage(value["name"])
                scales = value["scale"] if isinstance(value["scale"], list) else [value["scale"]]
                zeros = value["zero_point"] if isinstance(value["zero_point"], list) else [value["zero_point"]]
                prefix = f"FXQ_{kind[:-1].upper()}_{index}"
                yield f"#define {prefix} {name}"
                yield f"#define {prefix}_SCALES {{{', '.join(f'{scale:.9g}f' for scale in scales)}}}"
                yield f"#define {prefix}_ZERO_POINTS {{{', '.join(map(str, zeros))}}}"

    def _storage(self, name: str) -> str:
        """Return the array that a value is in."""
        while self.values[name].get("operator") == "reshape":
            name = self.values[name]["arguments"]["source"]["value"]
        return c_name(name)

    def _tensor(self, name: str, is_image: bool = False) -> str:
        value = self.values[name]
        return literal(TYPES[value["dtype"]][1], self._storage(name), five(value["shape"], is_image))

    def _stored(self, argument: dict[str, str] | None, is_image: bool = False) -> str:
        if argument is None:
            return "NULL"
        name = argument["tensor"]
        tensor = self.tensors[name]
        dtype = TYPES[str(tensor.dtype).removeprefix("torch.")][1]
        return literal(dtype, f"(void *){c_name(name)}", five(tensor.shape, is_image))

    def _array(self, argument: dict[str, str] | None) -> str:
        return "NULL" if argument is None else c_name(argument["tensor"])

    def _call(self, node: dict[str, Any]) -> list[str]:
        operator, given, name = node["operator"], node["arguments"], node["name"]
        out = self._tensor(name, operator in IMAGE_OPERATORS)
        if operator == "reshape":
            return []
        if operator == "requantize":
            return [self._requantize(node)]
        if operator == "integer_conv":
            dims = len(given["stride"])
            # What stands behind the last element, and how much is cut off there, the sizes of the result say.
            numbers = [
                three(given["stride"]),
                three(given["pads"][:dims], 0),
                three(given["spread"]),
                three(given["dilation"]),
            ]
            arguments = [
                self._tensor(given["x"]["value"], True), given["x_zero"], self._stored(given["weight"], True),
                self._stored(given["weight_zero"]), self._array(given["bias"]), *numbers, given["groups"],
            ]  # fmt: skip
            return [call("fxq_conv", out, *arguments)]
        if operator == "integer_linear":
            columns = self.tensors[given["weight"]["tensor"]].shape[1]
            arguments = [
                self._tensor(given["x"]["value"]), given["x_zero"], self._stored(given["weight"]),
                self._stored(given["weight_zero"]), self._array(given["bias"]), columns, DIMS + given["dim"],
            ]  # fmt: skip
            return [call("fxq_linear", out, *arguments)]
        if operator == "integer_mul":
            a, b = (self._operand(given[one]) for one in ("a", "b"))
            return [call("fxq_mul", out, a, given["a_zero"], b, given["b_zero"])]
        if operator == "lookup":
            table = self._stored(given["table"])
            return [call("fxq_lookup", out, self._tensor(given["codes"]["value"]), table, given["lowest"])]
        if operator == "integer_max_pool":
            kernel, stride, padding, dilation = (given[one] for one in ("kernel", "stride", "padding", "dilation"))
            numbers = [three(kernel), three(stride), three(padding, 0), three(dilation)]
            return [call("fxq_max_pool", out, self._tensor(given["x"]["value"], True), *numbers)]
        if operator == "cat":
            return list(self._cat(out, given))
        if operator == "gather":
            source = self._tensor(given["source"]["value"])
            return [call("fxq_gather", out, source, self._array(given["places"]), given["fill"])]
        raise SystemExit(f"{name}: {operator} is not written in C here: add it to integer.h and generate.py")

    def _requantize(self, node: dict[str, Any]) -> str:
        given = node["arguments"]
        values = f"(const fxq_tensor *const[]){{{', '.join(self._operand(one) for one in given['values'])}}}"
        zeros = f"(const int[]){{{', '.join(map(str, given['value_zeros']))}}}"
        multipliers = f"(const int32_t *const[]){{{', '.join(map(self._array, given['multipliers']))}}}"
        axis = -1 if given["axis"] is None else DIMS + given["axis"]
        ends = (given["zero_point"], given["quant_min"], given["quant_max"])
        count = len(given["values"])
        arguments = (count, values, zeros, multipliers, self._array(given["shift"]), axis, *ends)
        return call("fxq_requantize", self._tensor(node["name"]), *arguments)

    def _operand(self, argument: dict[str, str]) -> str:
        return self._tensor(argument["value"]) if "value" in argument else self._stored(argument)

    def _cat(self, out: str, given: dict[str, Any]) -> Iterator[str]:
        start = 0
        for part in given["values"]:
            yield call("fxq_put", out, self._tensor(part["value"]), DIMS + given["dim"], start)
            start += self.values[part["value"]]["shape"][given["dim"]]


def c_name(name: str) -> str:
    return "fxq_" + "".join(letter if letter.isalnum() else "_" for letter in name)


def literal(dtype: str, data: str, shape: list[int]) -> str:
    return f"&(fxq_tensor){{{dtype}, {data}, {{{', '.join(map(str, shape))}}}}}"


def five(shape: Any, is_image: bool = False) -> list[int]:
    """Return five sizes; an image's, or its kernel's, missing dimensions stand behind the channels."""
    sizes = [int(size) for size in shape]
    missing = [1] * (DIMS - len(sizes))
    return [*sizes[:2], *missing, *sizes[2:]] if is_image else [*missing, *sizes]


def three(numbers: list[int], missing: int = 1) -> str:
    return f"(const int[]){{{', '.join(map(str, [*[missing] * (3 - len(numbers)), *numbers]))}}}"


def call(function: str, *arguments: Any) -> str:
    return f"{function}({', '.join(map(str, arguments))});"


def main(source: str, header: str) -> None:
    model = json.loads(Path(source).read_text(encoding="utf-8"))
    tensors = load_file(Path(source).with_name(model["tensors"]))
    Path(header).write_text(Header(model, tensors).text(), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])

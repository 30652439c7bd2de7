"""Compare two prepared or converted models, saved or not, without the model that they were made of."""

import difflib
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxq.quant.descriptor import QuantDescriptor
from fxq.saving.difference_report import Difference, Unlike, UnlikeRange, UnlikeWeight
from fxq.saving.pack import pack
from fxq.saving.packed import Packed
from fxq.saving.saved_file import read_packed

_SETTINGS = ("stage", "is_converted", "qat", "verify", "frontend", "untraceable")
_BOUNDS = ("_amax", "_low", "_high")


def diff(first: GraphModule | str | os.PathLike[str], second: GraphModule | str | os.PathLike[str]) -> Difference:
    """Return what tells two models apart: recipe, graph, plans, quantizers, ranges and weights.

    Args:
        first, second: files of ``fxq.save``, or prepared or converted models; of a converted one what was converted.

    Raises:
        SavedModelError: a file is none of ``fxq.save``, or a model cannot be saved.
        StageError: fxq did not make a model.
    """
    one, other = (pack(model) if isinstance(model, GraphModule) else read_packed(model) for model in (first, second))
    return Difference(
        recipe=tuple(_unified(one.header["recipe"], other.header["recipe"])),
        settings=tuple(_settings(one.header, other.header)),
        graph=tuple(_lines(_graph(one), _graph(other))),
        plans=tuple(_unlike(_plans(one), _plans(other))),
        quantizers=tuple(_unlike(_switches(one), _switches(other))),
        ranges=tuple(_ranges(_bounds(one), _bounds(other))),
        weights=tuple(_weights(_stored(one), _stored(other))),
    )


def _unified(first: str, second: str) -> list[str]:
    return list(difflib.unified_diff(first.splitlines(), second.splitlines(), "first", "second", lineterm="", n=2))


def _lines(first: list[str], second: list[str]) -> list[str]:
    compared = difflib.ndiff(first, second) if first != second else ()
    return [line for line in compared if line.startswith(("- ", "+ "))]


def _settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Unlike]:
    found = [Unlike(name, str(first[name]), str(second[name])) for name in _SETTINGS if first[name] != second[name]]
    if first["target"] != second["target"]:
        found.append(Unlike("target", *(f"{one['target']['name']}, as saved" for one in (first, second))))
    return found


def _unlike(first: Mapping[str, str], second: Mapping[str, str]) -> list[Unlike]:
    names = [*first, *(name for name in second if name not in first)]
    return [
        Unlike(name, first.get(name, ""), second.get(name, ""))
        for name in names
        if first.get(name, "") != second.get(name, "")
    ]


def _graph(packed: Packed) -> list[str]:
    islands = packed.header["islands"].items()
    return [*packed.header["graph"], *(f"{path}: {line}" for path, fields in islands for line in fields["graph"])]


def _plans(packed: Packed) -> dict[str, str]:
    found = {}
    planned = dict(packed.header["plans"])
    for path, of_island in packed.header["islands"].items():
        planned |= {f"{path}: {node}": fields for node, fields in of_island["plans"].items()}
    for node, fields in planned.items():
        for plan in fields["plans"]:
            slot = f"{plan['role']} {plan['slot']}" if isinstance(plan["slot"], int) else plan["slot"]
            found[f"{node} {slot}"] = str(QuantDescriptor.from_dict(plan["descriptor"]))
        if fields["group"] is not None:
            found[f"{node} shares its range"] = f"in group {fields['group']}"
    return found


def _switches(packed: Packed) -> dict[str, str]:
    return {path: _state_in_words(fields) for path, fields in packed.header["quantizers"].items()}


def _state_in_words(fields: Mapping[str, Any]) -> str:
    on = [name for name, is_on in fields["switches"].items() if is_on and name != "enabled"]
    calibrator = str(fields["calibrator"] or "no calibrator").rpartition(".")[2]
    descriptor = QuantDescriptor.from_dict(fields["descriptor"])
    return f"{descriptor}, {' '.join(on) if fields['switches']['enabled'] else 'disabled'}, {calibrator}"


def _bounds(packed: Packed) -> dict[str, tuple[Tensor, Tensor]]:
    """Return lowest and highest value of each stored range, by the path of its quantizer."""
    found = {}
    for path, fields in packed.header["quantizers"].items():
        stored = {name: packed.tensors.get(f"{path}.{name}") for name in _BOUNDS}
        amax, low, high = (None if stored[name] is None else stored[name].float().cpu() for name in _BOUNDS)  # type: ignore[union-attr]
        if amax is not None:
            is_unsigned = QuantDescriptor.from_dict(fields["descriptor"]).unsigned
            found[path] = torch.zeros_like(amax) if is_unsigned else -amax, amax
        elif low is not None and high is not None:
            found[path] = low, high
    return found


def _ranges(
    first: Mapping[str, tuple[Tensor, Tensor]], second: Mapping[str, tuple[Tensor, Tensor]]
) -> list[UnlikeRange]:
    found = []
    for path in dict.fromkeys((*first, *second)):
        one, other = first.get(path), second.get(path)
        apart = _apart(one, other)
        if apart != 0:
            found.append(UnlikeRange(path, _range_text(one), _range_text(other), apart))
    return sorted(found, key=lambda one: -math.inf if one.apart is None else -one.apart)


def _apart(first: tuple[Tensor, Tensor] | None, second: tuple[Tensor, Tensor] | None) -> float | None:
    if first is None or second is None or first[0].shape != second[0].shape:
        return None
    moved = torch.maximum((first[0] - second[0]).abs(), (first[1] - second[1]).abs())
    width = torch.maximum(first[1] - first[0], second[1] - second[0]).clamp(min=torch.finfo(moved.dtype).tiny)
    return float((moved / width).max()) if moved.numel() else 0.0


def _range_text(bounds: tuple[Tensor, Tensor] | None) -> str:
    if bounds is None:
        return ""
    low, high = bounds
    if low.numel() == 1:
        return f"[{float(low):.4g}, {float(high):.4g}]"
    return f"{tuple(high.shape)}, up to {float(high.min()):.4g} to {float(high.max()):.4g}"


def _stored(packed: Packed) -> dict[str, Tensor]:
    quantizers = packed.header["quantizers"]
    return {path: value for path, value in packed.weights.items() if path.rpartition(".")[0] not in quantizers}


def _weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[UnlikeWeight]:
    found = []
    for path in dict.fromkeys((*first, *second)):
        one, other = first.get(path), second.get(path)
        forms = tuple("" if value is None else _form(value) for value in (one, other))
        if one is None or other is None or one.shape != other.shape:
            found.append(UnlikeWeight(path, None, None, *forms))
            continue
        a, b = one.detach().cpu().double(), other.detach().cpu().double()
        if forms[0] == forms[1] and a.equal(b):
            continue
        noise, signal = float((a - b).square().sum()), float(a.square().sum())
        decibels = math.inf if not noise else -math.inf if not signal else 10 * math.log10(signal / noise)
        largest = float((a - b).abs().max()) if a.numel() else 0.0
        found.append(UnlikeWeight(path, decibels, largest, *forms))
    return sorted(found, key=lambda one: -math.inf if one.sqnr_db is None else one.sqnr_db)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"

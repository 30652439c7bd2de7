"""Whether a target can express a descriptor: errors that say where it was asked for, and what to use instead."""

from typing import TYPE_CHECKING

from fxq.errors import TargetError
from fxq.quant.descriptor import QuantDescriptor

if TYPE_CHECKING:
    from fxq.targets.target import Target


def check_activation(target: "Target", descriptor: QuantDescriptor, where: str) -> None:
    """Raise a TargetError if activations at ``where`` (a path and what asked for it) cannot have ``descriptor``."""
    if target.activation is None:
        raise TargetError(
            f"{where}: target {target.name!r} leaves activations in float; drop the activation descriptor, or take "
            "a target that has integer activations"
        )
    _check_format(target, descriptor, where, "activations", target.formats.activation_bits)
    check_activation_axis(target, descriptor, where)
    if descriptor.is_dynamic and not target.is_dynamic:
        raise TargetError(
            f"{where}: target {target.name!r} needs ranges that are known before it runs; use another calibrator "
            'than "dynamic", or the recipe "dynamic"'
        )
    if target.is_dynamic and not descriptor.is_dynamic:
        raise TargetError(
            f"{where}: target {target.name!r} measures each activation as it runs; use "
            f'calibrator="dynamic", got {descriptor.calibrator!r}'
        )
    if not target.file.affine_activations and (descriptor.unsigned or not descriptor.symmetric):
        raise TargetError(
            f"{where}: target {target.name!r} takes signed symmetric activations only (zero point 0, int8); "
            "use unsigned=False and symmetric=True"
        )
    if target.is_dynamic and (descriptor.symmetric or not descriptor.unsigned):
        # ONNX DynamicQuantizeLinear has no other form.
        raise TargetError(
            f"{where}: target {target.name!r} takes unsigned affine activations only; use unsigned=True and "
            "symmetric=False"
        )
    _check_dtype(descriptor, f"{where}: target {target.name!r} has no", "activations", target.file.activation_dtypes)


def check_activation_axis(target: "Target", descriptor: QuantDescriptor, where: str) -> None:
    """Raise a TargetError if ``descriptor`` has several ranges for one activation, which no runtime takes."""
    if descriptor.axis is not None:
        raise TargetError(
            f"{where}: target {target.name!r} quantizes activations per tensor; use axis=None, got {descriptor.axis}"
        )


def check_weight(target: "Target", descriptor: QuantDescriptor, where: str, kind: str) -> None:
    """Raise a TargetError if weights of an operation of ``kind`` at ``where`` cannot have ``descriptor``."""
    _check_format(target, descriptor, where, "weights", target.formats.weight_bits)
    if not target.file.affine_weights and (descriptor.unsigned or not descriptor.symmetric):
        raise TargetError(
            f"{where}: target {target.name!r} takes signed symmetric weights only; "
            "use unsigned=False and symmetric=True"
        )
    if descriptor.unsigned and descriptor.symmetric:
        raise TargetError(f"{where}: symmetric unsigned codes hold no negative weights; add symmetric=False")
    _check_dtype(descriptor, f"{where}: target {target.name!r} has no", "weights", target.file.weight_dtypes)
    if descriptor.is_dynamic:
        raise TargetError(f'{where}: a weight is known and has nothing dynamic; drop calibrator="dynamic"')
    if descriptor.block_size is not None:
        _check_blocks(target, descriptor, where, kind)


def listing(items: frozenset[int] | frozenset[str]) -> str:
    """Return "4 or 8"."""
    return " or ".join(str(item) for item in sorted(items))


def _check_format(target: "Target", descriptor: QuantDescriptor, where: str, what: str, widths: frozenset[int]) -> None:
    if isinstance(descriptor.num_bits, tuple):
        if not target.formats.float8:
            raise TargetError(f"{where}: target {target.name!r} has no float8 {what}; use num_bits={listing(widths)}")
    elif descriptor.num_bits not in widths:
        raise TargetError(
            f"{where}: target {target.name!r} has no {descriptor.num_bits}-bit {what}; "
            f"use num_bits={listing(widths)} or leave the module in float (a rule with None)"
        )


def _check_dtype(descriptor: QuantDescriptor, problem: str, what: str, dtypes: tuple[str, ...]) -> None:
    """Refuse integers that the file has no dtype of that sign for; narrower ones are padded."""
    if isinstance(descriptor.num_bits, tuple):
        return
    sign = "uint" if descriptor.unsigned else "int"
    if not any(dtype.startswith(sign) and int(dtype.removeprefix(sign)) >= descriptor.num_bits for dtype in dtypes):
        raise TargetError(f"{problem} {sign}{descriptor.num_bits} {what}; its files hold {', '.join(dtypes)}")


def _check_blocks(target: "Target", descriptor: QuantDescriptor, where: str, kind: str) -> None:
    formats = target.formats
    if not formats.block_sizes:
        raise TargetError(
            f"{where}: target {target.name!r} has no weights in blocks; use axis=0 without block_size, or the recipe "
            '"weight_only"'
        )
    if kind not in formats.block_kinds:
        raise TargetError(
            f"{where}: only {listing(formats.block_kinds)} weights have blocks, and this is a {kind}; give it a rule "
            "whose descriptor has no block_size"
        )
    if descriptor.block_size not in formats.block_sizes:
        raise TargetError(
            f"{where}: target {target.name!r} has no blocks of {descriptor.block_size}; use "
            f"block_size={listing(formats.block_sizes)}"
        )
    if descriptor.num_bits not in formats.packed_bits:
        raise TargetError(
            f"{where}: target {target.name!r} has no blocks of {descriptor.num_bits}-bit weights; use "
            f"num_bits={listing(formats.packed_bits)}, or drop block_size"
        )

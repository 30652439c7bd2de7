"""Every quantized module beside the module of torch.nn that it replaces: arguments, state dict, numbers, type."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import _pytree as pytree

from fxq.errors import DescriptorError
from fxq.graph import fit_weights
from fxq.nn import QUANTIZED, Quantized, QuantMaxPool2d, TensorQuantizer
from fxq.quant.descriptor import QuantDescriptor

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    # torch's own remark about even kernels.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


@dataclass(frozen=True)
class Case:
    """Positional and keyword arguments of the constructor, and the inputs of forward."""

    kind: type[nn.Module]
    args: tuple[Any, ...]
    inputs: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind.__name__}{self.args}{self.options or ''}"


def tensor(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(rank: int, channels: int = 4) -> Tensor:
    return tensor(2, channels, *([7] * rank))


def convolutions() -> list[Case]:
    found = []
    for rank in (1, 2, 3):
        kind, up, x = getattr(nn, f"Conv{rank}d"), getattr(nn, f"ConvTranspose{rank}d"), (image(rank),)
        # in, out, kernel, stride, padding, dilation, groups, bias, padding_mode
        found.append(Case(kind, (4, 6, 3, 2, 1, 2, 2, False, "circular"), x))
        found += [Case(kind, (4, 6, 3), x, {"padding": 1, "padding_mode": mode}) for mode in ("reflect", "replicate")]
        found += [Case(kind, (4, 6, 2), x, {"padding": padding}) for padding in ("same", "valid")]
        found.append(Case(kind, (4, 4, 3), (x[0][0],), {"groups": 4}))
        # in, out, kernel, stride, padding, output_padding, groups, bias, dilation, padding_mode
        found.append(Case(up, (4, 6, 3, 2, 1, 1, 2, False, 2, "zeros"), x))
        found.append(Case(up, (4, 6, 3), (*x, [16] * rank), {"stride": 2}))
    return found


def inputs_only() -> list[Case]:
    found = []
    for rank in (1, 2, 3):
        x = (image(rank),)
        found.append(Case(getattr(nn, f"MaxPool{rank}d"), (3, 2, 1, 1, True, True), x))
        found.append(Case(getattr(nn, f"AvgPool{rank}d"), (3, 2, 1, True, False), x))
        found.append(Case(getattr(nn, f"AdaptiveAvgPool{rank}d"), (3,), x))
        # features, eps, momentum, affine, track_running_stats
        found.append(Case(getattr(nn, f"InstanceNorm{rank}d"), (4, 1e-3, 0.2, True, True), x))
        found.append(Case(getattr(nn, f"InstanceNorm{rank}d"), (4,), (x[0][0],)))
    return found


def recurrent() -> list[Case]:
    x, packed = tensor(5, 3, 6), pack_padded_sequence(tensor(5, 3, 6), [3, 5, 1], enforce_sorted=False)
    found = []
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        # in, hidden, layers; for RNN the nonlinearity comes next
        between: tuple[Any, ...] = ("relu",) if kind is nn.RNN else ()
        found.append(Case(kind, (6, 4, 2, *between, False, True, 0.5, True), (x,)))
        found += [Case(kind, (6, 4), (sequence,), {"bidirectional": True}) for sequence in (packed, x[0])]
        found.append(Case(getattr(nn, f"{kind.__name__}Cell"), (6, 4, False), (x[0],)))
        found.append(Case(getattr(nn, f"{kind.__name__}Cell"), (6, 4), (x[0, 0],)))
    found += [Case(nn.RNNCell, (6, 4, True, "relu"), (x[0],))]
    return [
        *found,
        *(Case(nn.LSTM, (6, 4), (sequence,), {"num_layers": 2, "proj_size": 3}) for sequence in (x, packed)),
    ]


def others() -> list[Case]:
    x, indices = tensor(5, 3, 8), torch.tensor([[1, 2], [9, 1]])
    return [
        Case(nn.Linear, (8, 4, False), (x,)),
        Case(nn.Linear, (8, 4), (x[0, 0],)),
        # embeddings, size, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        Case(nn.Embedding, (10, 4, 2, 1.0, 1.0, True, False), (indices,)),
        Case(nn.Embedding, (10, 4), (indices,), {"sparse": True}),
        # embed, heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first
        Case(nn.MultiheadAttention, (8, 2, 0.5, True, True, True, 6, 4, True), (x, x[..., :6], x[..., :4])),
        Case(nn.MultiheadAttention, (8, 4), (x[:, 0], x[:, 0], x[:, 0])),
        Case(nn.MultiheadAttention, (8, 4, 0.0, False), (x, x, x, None, False)),
        Case(nn.MultiheadAttention, (8, 4), (x, x, x, None, True, torch.ones(5, 5).triu(1).bool(), False)),
    ]


CASES = [*convolutions(), *inputs_only(), *recurrent(), *others()]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def pair(case: Case, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    original = case.kind(*case.args, **case.options, **options).eval()
    torch.manual_seed(0)
    return original, QUANTIZED[case.kind](*case.args, **case.options, **options).eval()


def switch_off(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, TensorQuantizer):
            part.disable()


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data, value.batch_sizes]
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def test_every_replaced_type_is_compared() -> None:
    assert {case.kind for case in CASES} == set(QUANTIZED)


@each_case
def test_parameters_are_the_same_and_in_the_same_order(case: Case) -> None:
    original, module = pair(case)
    assert isinstance(module, case.kind)
    expected, found = original.state_dict(), module.state_dict()
    assert list(found) == list(expected)  # and ranges, once there are some
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert repr(original) in repr(module) or original.extra_repr() in repr(module)


@each_case
def test_with_quantization_off_the_numbers_are_the_same(case: Case) -> None:
    original, module = pair(case)
    switch_off(module)
    expected, found = tensors(original(*case.inputs)), tensors(module(*case.inputs))
    assert len(expected) == len(found) > 0
    for one, other in zip(found, expected, strict=True):
        # Loops over time, and products of attention, add in another order than torch's kernels.
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if "Pool" not in case.kind.__name__], ids=str)
def test_device_and_dtype_are_taken(case: Case) -> None:
    _, module = pair(case, device="meta", dtype=torch.float64)
    assert all(tensor.is_meta for tensor in module.parameters())
    assert all(tensor.dtype == torch.float64 for tensor in module.parameters())


@each_case
def test_from_float_takes_over_everything_but_the_class(case: Case) -> None:
    original, _ = pair(case)
    descriptors = {"input": QuantDescriptor(num_bits=4)}
    kind = QUANTIZED[case.kind]
    module = kind.from_float(original, **descriptors)
    assert all(a is b for a, b in zip(module.parameters(), original.parameters(), strict=True))
    assert not any(part.training for part in module.modules())
    assert {quantizer.num_bits for _, quantizer in module.activations()} == {4} or case.kind is nn.Embedding
    names = [name for name, _ in original.named_parameters() if "weight" in name or name.endswith("weight")]
    weights = [weight.name for weight in module.weights()]
    assert set(weights) == set(names) or (not weights and "Norm" in case.kind.__name__)
    switch_off(module)
    for one, other in zip(tensors(module(*case.inputs)), tensors(original(*case.inputs)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@each_case
def test_without_an_input_descriptor_only_weights_are_quantized(case: Case) -> None:
    original, _ = pair(case)
    module = QUANTIZED[case.kind].from_float(original)
    has_weights = bool(list(module.weights()))
    assert bool(list(module.activations())) != has_weights  # one without weights would quantize nothing at all
    fit_weights(module)
    assert all(weight.quantizer.has_range for weight in module.weights())
    with torch.no_grad():  # sparse gradients would be refused
        assert all(torch.isfinite(found).all() for found in tensors(module(*case.inputs)))


def test_fit_weights_leaves_fixed_disabled_and_on_request_known_ranges() -> None:
    module = QUANTIZED[nn.LSTM].from_float(nn.LSTM(3, 2))
    first, second = (weight.quantizer for weight in module.weights())
    first.amax = [1.0] * 8
    second.disable()
    fit_weights(module, only_missing=True)
    assert torch.equal(first.amax, torch.ones(8))
    assert not second.has_range
    fit_weights(module)
    assert torch.equal(first.amax.flatten(), module.weight_ih_l0.abs().amax(1))
    fixed = QUANTIZED[nn.Linear].from_float(nn.Linear(2, 2), weight=QuantDescriptor(amax=3.0))
    fit_weights(fixed)
    assert float(fixed.weight_quantizer.amax) == 3.0


def test_a_module_without_weights_refuses_a_descriptor_for_them() -> None:
    with pytest.raises(DescriptorError, match="QuantMaxPool2d has no weight"):
        QuantMaxPool2d.from_float(nn.MaxPool2d(2), QuantDescriptor())


def test_the_class_of_the_quantizers_can_be_chosen() -> None:
    class Mine(TensorQuantizer):
        """A quantizer of one's own."""

    class Linear(QUANTIZED[nn.Linear]):
        quantizer_type = Mine

    assert issubclass(Linear, Quantized)
    assert all(type(part) is Mine for part in Linear(2, 2).children())

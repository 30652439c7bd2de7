"""Poolings, instance normalisation and embedding with quantizers."""

import pytest
import torch
from torch import nn

from fxq.errors import InputError
from fxq.nn import TensorQuantizer, embedding, instancenorm, pooling
from fxq.quant.descriptor import QuantDescriptor

LAYERS = []
for rank in (1, 2, 3):
    LAYERS += [
        (getattr(pooling, f"QuantMaxPool{rank}d"), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
        (getattr(pooling, f"QuantMaxPool{rank}d"), {"kernel_size": 2, "dilation": 2, "return_indices": True}),
        (getattr(pooling, f"QuantAvgPool{rank}d"), {"kernel_size": 3, "padding": 1, "count_include_pad": False}),
        (getattr(pooling, f"QuantAdaptiveAvgPool{rank}d"), {"output_size": 2}),
        (getattr(instancenorm, f"QuantInstanceNorm{rank}d"), {"num_features": 4}),
        (
            getattr(instancenorm, f"QuantInstanceNorm{rank}d"),
            {"num_features": 4, "affine": True, "track_running_stats": True},
        ),
    ]


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=[f"{kind.__name__}-{options}" for kind, options in LAYERS])
def test_the_float_module_sees_a_quantized_input(kind, options) -> None:
    original, module = kind.replaced_type()(**options).eval(), kind(**options).eval()
    assert isinstance(module, type(original))
    x = torch.randn(2, 4, *([6] * int(kind.__name__[-2])), generator=torch.Generator().manual_seed(0))
    expected, off = original(TensorQuantizer()(x)), original(x)
    torch.testing.assert_close(module(x), expected, atol=0, rtol=0)
    twin = kind.from_float(original, input=QuantDescriptor(num_bits=4))
    assert twin.input_quantizer.num_bits == 4
    assert not twin.input_quantizer.training
    module.input_quantizer.disable()
    torch.testing.assert_close(module(x), off, atol=0, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": 2}, {"max_norm": 1.0}, {"max_norm": 1.0, "norm_type": 1.0}], ids=str
)
def test_embedding_looks_up_a_quantized_table(options) -> None:
    torch.manual_seed(0)
    original = nn.Embedding(10, 4, **options)
    module = embedding.QuantEmbedding(10, 4, **options)
    module.load_state_dict(original.state_dict())
    assert module.input_quantizer is None
    indices = torch.tensor([[1, 2], [9, 1]])
    expected = original(indices)  # max_norm changes the table of each
    quantized = module(indices)
    assert torch.equal(module.weight, original.weight)
    assert torch.equal(quantized, module.quantized_weight()[indices])
    module.weight_quantizer.disable()
    assert torch.equal(module(indices), expected)


@pytest.mark.parametrize("options", [{"padding_idx": 2}, {"scale_grad_by_freq": True}], ids=str)
def test_embedding_gradient_is_that_of_torch(options) -> None:
    torch.manual_seed(0)
    original = nn.Embedding(10, 4, **options)
    module = embedding.QuantEmbedding.from_float(
        nn.Embedding.from_pretrained(original.weight.clone(), False, **options)
    )
    indices = torch.tensor([1, 2, 1])
    for layer in (original, module):
        layer(indices).sum().backward()
    assert torch.equal(module.weight.grad, original.weight.grad)


def test_sparse_gradients_are_refused_while_the_table_is_quantized() -> None:
    module = embedding.QuantEmbedding(10, 4, sparse=True)
    indices = torch.tensor([1])
    with pytest.raises(InputError, match="sparse=False"):
        module(indices)
    with torch.no_grad():
        assert torch.equal(module(indices), module.quantized_weight()[indices])
    module.weight_quantizer.disable()
    module(indices).sum().backward()
    assert module.weight.grad.is_sparse

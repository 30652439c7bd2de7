"""A small stand-in for the lowering passes: float model in, LOWERED graph out, ranges from one forward."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.quant import DEQUANTIZE, QUANTIZE

FUNCTIONS = {nn.Conv2d: F.conv2d, nn.Linear: F.linear, nn.ConvTranspose2d: F.conv_transpose2d}
KEYWORDS = {
    nn.Conv2d: ("stride", "padding", "dilation", "groups"),
    nn.Linear: (),
    nn.ConvTranspose2d: ("stride", "padding", "output_padding", "groups", "dilation"),
}


def lower(model: nn.Module, x: Tensor, bits: int = 8, other_inputs: tuple[Tensor, ...] = ()) -> fx.GraphModule:
    """Quantize the input and the weight of each weighted module, symmetric int8, as for TensorRT."""
    gm = fx.symbolic_trace(_folded(model))
    amax = _input_ranges(gm, (x, *other_inputs))
    for node in list(gm.graph.nodes):
        if node.op == "call_module" and type(gm.get_submodule(node.target)) in FUNCTIONS:
            _lower_module(gm, node, amax[node.name], bits)
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()
    return gm


def _lower_module(gm: fx.GraphModule, node: fx.Node, amax: Tensor, bits: int) -> None:
    module = gm.get_submodule(node.target)
    path, hi = node.target, 2 ** (bits - 1) - 1
    weight = module.weight.detach()
    axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
    scale_c = weight.abs().amax(dim=[d for d in range(weight.dim()) if d != axis]) / 127
    zero_c = torch.zeros(len(scale_c), dtype=torch.int8)
    codes = QUANTIZE(weight, scale_c, zero_c, axis, -128, 127, torch.int8)
    names = {
        f"{path}_input_quantizer.scale": (amax / hi).to(weight.dtype),
        f"{path}_input_quantizer.zero_point": torch.zeros((), dtype=torch.int8),
        f"{path}.weight": codes,
        f"{path}_weight_quantizer.scale": scale_c,
        f"{path}_weight_quantizer.zero_point": zero_c,
    }
    if module.bias is not None:
        names[f"{path}.bias"] = module.bias.detach()
    holder, leaf = gm.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    setattr(holder, leaf, nn.Module())
    for name, value in names.items():
        parent = _holder(gm, name.rpartition(".")[0])
        parent.register_buffer(name.rpartition(".")[2], value)
    with gm.graph.inserting_before(node):
        read = {name: gm.graph.get_attr(name) for name in names}
        scale, zero, weight_node, scale_w, zero_w, *bias = read.values()
        q = gm.graph.call_function(QUANTIZE, (node.args[0], scale, zero, None, -hi - 1, hi, torch.int8))
        dq = gm.graph.call_function(DEQUANTIZE, (q, scale, zero, None, weight.dtype))
        w = gm.graph.call_function(DEQUANTIZE, (weight_node, scale_w, zero_w, axis, weight.dtype))
        args = (dq, w, bias[0] if bias else None)
        kwargs = {name: getattr(module, name) for name in KEYWORDS[type(module)]}
        new = gm.graph.call_function(FUNCTIONS[type(module)], args, kwargs)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)


def _holder(gm: nn.Module, path: str) -> nn.Module:
    for name in path.split("."):
        if not hasattr(gm, name):
            gm.add_module(name, nn.Module())
        gm = getattr(gm, name)
    return gm


def _folded(model: nn.Module) -> nn.Module:
    gm = fx.symbolic_trace(model)
    for node in list(gm.graph.nodes):
        if node.op != "call_module" or not isinstance(gm.get_submodule(node.target), nn.BatchNorm2d):
            continue
        conv = gm.get_submodule(node.args[0].target)
        fused = nn.utils.fusion.fuse_conv_bn_eval(conv, gm.get_submodule(node.target))
        gm.set_submodule(node.args[0].target, fused)
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)
    gm.delete_all_unused_submodules()
    gm.recompile()
    return gm


def _input_ranges(gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    ranges = {}

    class Ranges(fx.Interpreter):
        def call_module(self, target, args, kwargs):
            if type(self.module.get_submodule(target)) in FUNCTIONS:
                ranges[self.current] = args[0].abs().max()
            return super().call_module(target, args, kwargs)

        def run_node(self, n):
            self.current = n.name
            return super().run_node(n)

    with torch.no_grad():
        Ranges(gm).run(*inputs)
    return ranges


class Residual(nn.Module):
    """One residual block and a classifier: the smallest model with everything the export has to get right."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        return self.head(F.relu(self.block(stem) + stem))


def lowered_residual(bits: int = 8, dtype: torch.dtype = torch.float32) -> tuple[fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(1, 3, 16, 16)
    return lower(model.to(dtype), x.to(dtype), bits), x.to(dtype)

"""Write the files of this folder anew: each in a process of its own, as some tools patch torch.

    PYTHONPATH=FOLDER_WITH_THE_TOOLS python tests/verification/foreign_files/write.py [NAME ...]

What each file is stands in README.md. No test needs the tools.
"""

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
IMAGES, TOKENS = (1, 3, 16, 16), (1, 16, 16)
Write = Callable[[Path], None]
# torch stores with each node which line of which file called it: of that only the modules are kept.
_KEPT = "pkg.torch.onnx.name_scopes"


def conv_bn(inputs: int, outputs: int, kernel: int = 1, **options: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """As in ResNet, with a convolution on the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.down = conv_bn(16, 8, 3, stride=2), conv_bn(8, 16), conv_bn(16, 16, stride=2)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.conv2(self.relu1(self.conv1(x))) + self.down(x))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.relu(self.fc1(self.pool(x)))))


class Inverted(nn.Module):
    """As in MobileNet V3, with an identity as the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise, self.project = conv_bn(16, 16), conv_bn(16, 16, 3, groups=16), conv_bn(16, 16)
        self.act1, self.act2, self.se = nn.Hardswish(), nn.Hardswish(), SqueezeExcite()

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.se(self.act2(self.depthwise(self.act1(self.expand(x)))))) + x


class Branches(nn.Module):
    """As in GoogLeNet: a convolution beside a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.relu = conv_bn(16, 8), conv_bn(16, 8), nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.relu(self.left(x)), self.right(self.pool(x))], 1)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu, self.pool = conv_bn(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.res, self.inv, self.mix = Residual(), Inverted(), Branches()
        self.last, self.act, self.mean = conv_bn(16, 16), nn.SiLU(), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.res(self.pool(self.relu(self.stem(x))))
        x = self.mix(self.inv(x))
        return self.head(self.mean(self.act(self.last(x))).flatten(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(batch, length, 16))


class Transformer(nn.Module):
    """A block, before it a projection and behind it a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2, self.norm = nn.Linear(16, 16), *(nn.LayerNorm(16) for _ in range(3))
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x).mean(1))


def network(kind: type[nn.Module]) -> nn.Module:
    """Return it with random weights, and batch norms that have seen data."""
    torch.manual_seed(0)
    model = kind().train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, *shape(model)[1:]))
    return model.eval()


def shape(model: nn.Module) -> tuple[int, ...]:
    return IMAGES if isinstance(model, ConvNet) else TOKENS


def batches(model: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape(model), generator=generator) for _ in range(8)]


def export(model: nn.Module, path: Path, *, opset: int, dynamo: bool = False) -> Path:
    """Write the file of a model by one of torch's exporters, without the lines of code that called its nodes."""
    torch.onnx.export(
        model, (batches(model)[0],), path, input_names=["x"], output_names=["y"],
        opset_version=opset, dynamo=dynamo, verbose=False, external_data=False,
    )  # fmt: skip
    return without_source_lines(path)


def without_source_lines(path: Path) -> Path:
    file = onnx.load(path)
    for node in file.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key == _KEPT]
        node.ClearField("metadata_props")
        node.metadata_props.extend(kept)
        node.doc_string = ""
    for value in (*file.graph.value_info, *file.graph.input, *file.graph.output):
        value.ClearField("metadata_props")
    file.graph.ClearField("metadata_props")
    onnx.save(file, path)
    return path


class Reader:
    """Hands calibration data to onnxruntime."""

    def __init__(self, model: nn.Module) -> None:
        self._left: Iterator[Tensor] = iter(batches(model))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {"x": batch.numpy()}


def onnxruntime_static(kind: type[nn.Module], *, for_tensorrt: bool = False) -> Write:
    """By quantize_static: for its own kernels on CPUs, or with its options for TensorRT."""

    def write(path: Path) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        model, inferred = network(kind), path.with_name("inferred.onnx")
        quant_pre_process(str(export(model, path.with_name("float.onnx"), opset=17)), str(inferred))
        for_its_own = {"activation_type": QuantType.QUInt8}
        options = {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
        }
        quantize_static(
            str(inferred), str(path), Reader(model), quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8,
            **({"activation_type": QuantType.QInt8, "extra_options": options} if for_tensorrt else for_its_own),
        )  # fmt: skip

    return write


def nncf_onnx(kind: type[nn.Module]) -> Write:
    """By nncf.quantize of a file, in its mode for transformers where it is one."""

    def write(path: Path) -> None:
        import nncf

        model = network(kind)
        source = onnx.load(export(model, path.with_name("float.onnx"), opset=18, dynamo=True))
        data = nncf.Dataset([batch.numpy() for batch in batches(model)], lambda batch: {"x": batch})
        model_type = nncf.ModelType.TRANSFORMER if kind is Transformer else None
        onnx.save(nncf.quantize(source, data, model_type=model_type, subset_size=8), path)

    return write


def nncf_torch(kind: type[nn.Module]) -> Write:
    """By nncf.quantize of a module, nncf.strip and torch's exporter."""

    def write(path: Path) -> None:
        import nncf

        model = network(kind)
        found = nncf.quantize(model, nncf.Dataset(batches(model)), subset_size=8)
        example = batches(model)[0]
        export(nncf.strip(found, strip_format=nncf.StripFormat.NATIVE, example_input=example), path, opset=17)

    return write


def modelopt_onnx(kind: type[nn.Module], high_precision_dtype: str) -> Write:
    """By ModelOpt's quantizer of files, whose floats are fp16 by default."""

    def write(path: Path) -> None:
        from modelopt.onnx.quantization import quantize

        model = network(kind)
        quantize(
            str(export(model, path.with_name("float.onnx"), opset=19)),
            calibration_data=batches(model)[0].numpy(), calibration_method="max", calibration_eps=["cpu"],
            output_path=str(path), high_precision_dtype=high_precision_dtype,
        )  # fmt: skip

    return write


def modelopt_torch(kind: type[nn.Module]) -> Write:
    """By ModelOpt's quantizer of modules, and torch's exporter."""

    def write(path: Path) -> None:
        import modelopt.torch.quantization as mtq

        model = network(kind)
        images = batches(model)
        export(mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda net: [net(image) for image in images]), path, opset=17)

    return write


def pytorch_quantization(kind: type[nn.Module]) -> Write:
    """By pytorch-quantization, as its guide does: modules are replaced as they are made, amax is calibrated."""

    def write(path: Path) -> None:
        from pytorch_quantization import nn as quant_nn
        from pytorch_quantization import quant_modules

        quant_modules.initialize()
        model = network(kind)
        quantizers = [module for module in model.modules() if isinstance(module, quant_nn.TensorQuantizer)]
        for quantizer in quantizers:
            quantizer.disable_quant()
            quantizer.enable_calib()
        for batch in batches(model):
            model(batch)
        for quantizer in quantizers:
            quantizer.load_calib_amax()
            quantizer.disable_calib()
            quantizer.enable_quant()
        quant_nn.TensorQuantizer.use_fb_fake_quant = True
        export(model, path, opset=13)

    return write


FILES: dict[str, Write] = {
    "onnxruntime_convnet": onnxruntime_static(ConvNet),
    "onnxruntime_transformer": onnxruntime_static(Transformer),
    "onnxruntime_for_tensorrt_convnet": onnxruntime_static(ConvNet, for_tensorrt=True),
    "nncf_convnet": nncf_onnx(ConvNet),
    "nncf_transformer": nncf_onnx(Transformer),
    "nncf_torch_convnet": nncf_torch(ConvNet),
    "modelopt_convnet": modelopt_onnx(ConvNet, "fp16"),
    "modelopt_transformer": modelopt_onnx(Transformer, "fp32"),
    "modelopt_torch_convnet": modelopt_torch(ConvNet),
    "pytorch_quantization_convnet": pytorch_quantization(ConvNet),
    "pytorch_quantization_transformer": pytorch_quantization(Transformer),
}


def main(names: list[str]) -> None:
    if len(names) != 1:
        for name in names or FILES:
            print(name, flush=True)
            subprocess.run([sys.executable, __file__, name], check=True)
        return
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{names[0]}.onnx"
        FILES[names[0]](path)
        path.replace(HERE / path.name)


if __name__ == "__main__":
    main(sys.argv[1:])

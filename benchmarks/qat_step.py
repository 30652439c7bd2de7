"""What a training step of a prepared MobileNetV2 costs, as a ratio to the same step of the float model.

Forward, loss, backward and an SGD step, in turn with the float model's, on one thread: in CPU time of this process,
which other processes do not add to. On a GPU, where there is one, in time of the device with a batch that fills it.

Run: python -m benchmarks qat_step
"""

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from rich.console import RenderableType
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

import fxq
from benchmarks.figures import Figure, table_of

ROUNDS = 6
LIMITS = {"cpu": 2.0, "cuda": 1.5}
LEARNED = fxq.QConfig(fxq.QuantDescriptor(learn_amax=True), fxq.QuantDescriptor(axis=0, learn_amax=True))
RECIPES = {
    "tensorrt": fxq.recipe("tensorrt"),
    "onnxruntime": fxq.recipe("onnxruntime"),
    "tensorrt, moving averages": fxq.recipe("tensorrt").replace(
        default=fxq.QConfig(fxq.QuantDescriptor(calibrator="moving_average"))
    ),
    "tensorrt, learned ranges": fxq.recipe("tensorrt").replace(default=LEARNED),
}


@torch.no_grad()
def network(x: Tensor) -> nn.Module:
    """Return a MobileNetV2 whose running statistics are those of ``x``, as a trained one's are."""
    model = mobilenet_v2().train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for momentum in (1.0, 0.1):
        for norm in norms:
            norm.momentum = momentum
        model(x)
    return model


def prepared(recipe: fxq.Recipe, x: Tensor) -> nn.Module:
    model = fxq.prepare(network(x.cpu()).eval(), x[:2].cpu(), recipe, qat=True)
    fxq.calibrate(model, [x[:8].cpu()], progress=False)
    return model.train().to(x.device)


def step_of(model: nn.Module, x: Tensor) -> Callable[[], float]:
    """Return what does a step and says how long it took, in seconds."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-5)

    def clock() -> float:
        if x.is_cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def step() -> float:
        start = clock()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        return clock() - start

    return step


def figures(x: Tensor) -> Iterator[Figure]:
    exact = step_of(network(x.cpu()).train().to(x.device), x)
    for name, recipe in RECIPES.items():
        trained = step_of(prepared(recipe, x), x)
        times = [(exact(), trained()) for _ in range(ROUNDS)][1:]  # the first ones allocate
        ratio = statistics.median(ours / theirs for theirs, ours in times)
        note = f"float step {1e3 * min(theirs for theirs, _ in times):.0f} ms"
        yield Figure(f"{name}, {x.device.type}", ratio, "x", limit=LIMITS[x.device.type], goal=1.5, note=note)


def run() -> Iterator[RenderableType]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        found = list(figures(torch.randn(8, 3, 128, 128)))
        if torch.cuda.is_available():
            found += figures(torch.randn(128, 3, 224, 224, device="cuda"))
        yield table_of("a training step of MobileNetV2, prepared against float", found)
    finally:
        torch.set_num_threads(threads)

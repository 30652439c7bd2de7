"""Calibrating in several processes: how it scales here, and on paper to 1000 ranks.

Measured: MobileNetV2, 64 images in 8 batches, one thread a process, gloo on one machine; the ideal is half the time
for two. On paper: an all-gather of B bytes a rank over a ring moves (N - 1) B bytes into each rank, in
(N - 1) (latency + B / bandwidth) seconds; then each rank merges N states, at the time that one takes here. A broadcast
goes down a tree, log2(N) steps deep; there is one from each rank with samples to keep.
"""

import math
import pickle
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import RenderableType
from rich.table import Table
from torch import distributed, multiprocessing

import fxq
from benchmarks.figures import Figure, table_of
from benchmarks.models import network, noise_images
from fxq.graph import observing_quantizers

IMAGES, BATCH = 64, 8
RANKS = (2, 8, 64, 1000)
# Bytes and seconds: 10 Gbit/s Ethernet between machines, and a fabric of 200 Gbit/s.
NETWORKS = {"10 Gbit/s": (1.25e9, 50e-6), "200 Gbit/s": (25e9, 5e-6)}
KEPT, BYTES_PER_IMAGE = 64, 3 * 224 * 224 * 4


def run() -> list[RenderableType]:
    """Measure, and return the tables to print."""
    seconds = {size: _measured(size) for size in (1, 2)}
    figure = Figure("two processes, to one", seconds[2] / seconds[1], "x", 0.75, 0.55, note=f"{seconds[2]:.2f} s")
    title = f"calibration, MobileNetV2, {IMAGES} images, seconds of the slowest of two ranks to one rank"
    return [table_of(title, [figure]), _on_paper()]


def _measured(size: int) -> float:
    """Return the seconds that ``fxq.calibrate`` takes in the slowest rank, the second time."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_calibrate, (size, folder), nprocs=size)
        return max(float((Path(folder) / str(rank)).read_text()) for rank in range(size))


def _calibrate(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    method, patience = f"file://{folder}/group", timedelta(minutes=5)
    distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=size, timeout=patience)
    batches = noise_images(IMAGES).split(BATCH)[rank::size]
    prepared = fxq.prepare(network("mobilenet_v2"), batches[0][:1])
    for _ in range(2):
        distributed.barrier()
        start = time.perf_counter()
        fxq.calibrate(prepared, batches, progress=False)
    (Path(folder) / str(rank)).write_text(str(time.perf_counter() - start))
    distributed.destroy_process_group()


def _on_paper() -> Table:
    prepared = fxq.prepare(network("mobilenet_v2"), noise_images(1))
    fxq.calibrate(prepared, [noise_images(8)], progress=False)
    calibrators = [
        found.calibrator for found in observing_quantizers(prepared).values() if found.calibrator is not None
    ]
    states = [one.state() for one in calibrators]
    start = time.perf_counter()
    for calibrator, state in zip(calibrators, states, strict=True):
        calibrator.merge(type(calibrator).from_state(state))
    merging = time.perf_counter() - start
    sizes = {
        "what was observed": (len(pickle.dumps(states)), merging),
        "sizes of the first batches (accuracy passes)": (len(pickle.dumps(list(range(KEPT // BATCH)))), 0.0),
    }
    table = Table(title=f"on paper: MobileNetV2, {len(states)} quantizers; into each rank", title_justify="left")
    for heading in ("collective", "ranks", "bytes", *(f"seconds, {name}" for name in NETWORKS), "merging"):
        table.add_column(heading, justify="left" if heading == "collective" else "right")
    for name, (size, seconds) in sizes.items():
        for ranks in RANKS:
            received = (ranks - 1) * size
            times = [(ranks - 1) * latency + received / bandwidth for bandwidth, latency in NETWORKS.values()]
            table.add_row(name, *_row(ranks, received, times), f"{ranks * seconds:.2f} s")
    # Of each quantizer a share and an error; factors for the channels of each convolution. Dealt out over the ranks.
    channels = [one.out_channels for one in prepared.modules() if isinstance(one, torch.nn.Conv2d)]
    found = len(pickle.dumps([[(0.9, 0.8)] * len(states), [torch.ones(count).numpy() for count in channels]]))
    for name, share in (("what two searches found (accuracy passes)", found), ("that all passes are done", 0)):
        for ranks in RANKS:
            size = share // ranks + len(pickle.dumps([]))
            received = (ranks - 1) * size
            times = [(ranks - 1) * latency + received / bandwidth for bandwidth, latency in NETWORKS.values()]
            table.add_row(name, *_row(ranks, received, times), "")
    kept = KEPT * BYTES_PER_IMAGE  # of all ranks together no more is kept than of one
    for ranks in RANKS:
        owners, depth = min(ranks, KEPT // BATCH), math.ceil(math.log2(ranks))
        times = [depth * (owners * latency + kept / bandwidth) for bandwidth, latency in NETWORKS.values()]
        table.add_row(f"the {KEPT} samples kept (accuracy passes)", *_row(ranks, kept, times), "")
    return table


def _row(ranks: int, received: int, seconds: list[float]) -> list[str]:
    return [str(ranks), f"{received / 1e6:.2f} MB", *(f"{one:.3f}" for one in seconds)]

"""What the processes of the tests do; each writes what it found, and one process that has all the data does the same.

``python ranks.py FOLDER SIZE WHAT ...``: SIZE processes join a gloo group through a file in FOLDER, and do all of WHAT.
"""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import fxq
from fxq.state import find_state

SIZES = (6, 6, 5, 6, 6, 6, 1, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.third, self.join, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = torch.cat([F.relu(x + self.third(self.second(x))), 500 * x], 1)
        return self.fc(F.relu(self.join(x)).mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 6, 6, generator=generator) * (1 + index) for index, size in enumerate(SIZES)]


def own(items: list[Any], rank: int, size: int, shares: str = "dealt") -> list[Any]:
    """Return the share of a rank: dealt out in turn, or all but what the last rank would get."""
    if shares == "dealt":
        return items[rank::size]
    return [] if rank == size - 1 else items[rank :: size - 1]


def calibrated(level: str, rank: int, size: int, shares: str = "dealt", most: int = 24) -> dict[str, Any]:
    """Return all that calibration leaves behind."""
    prepared = fxq.prepare(net(), batches()[0][:2], fxq.recipe("tensorrt").with_accuracy(level))
    data = fxq.Data(own(batches(), rank, size, shares), max_samples=most, held_out=0.25, progress=False)
    report = fxq.calibrate(prepared, data)
    quantizers = {path: one for path, one in prepared.named_modules() if isinstance(one, fxq.TensorQuantizer)}
    found: dict[str, Any] = {f"tensor {name}": value.detach() for name, value in prepared.state_dict().items()}
    for path, one in quantizers.items():
        if one.calibrator is not None:
            found |= {f"seen {path} {name}": value for name, value in one.calibrator.state().items()}
    state = find_state(prepared)
    assert state is not None
    assert state.compared is not None
    found |= {f"compared {index}": one.args[0] for index, one in enumerate(state.compared.inputs)}
    found["steps"] = [(step.name, step.sqnr_before_db, step.sqnr_after_db, step.kept) for step in report.steps]
    found["report"] = (report.notes, report.batches, report.samples, report.crowded_ranges, report.empty_ranges)
    fxq.fit_ranges(prepared, "percentile", percentile=99.0)
    found |= {f"refitted {path}": one.amax for path, one in quantizers.items()}
    return found


def sensitive(rank: int, size: int) -> dict[str, Any]:
    found = fxq.sensitivity(net(), own(batches(), rank, size), progress=False)
    return {"sensitivity": [(one.paths, one.value) for one in found], "samples": found.samples}


def trained(rank: int, size: int) -> dict[str, Any]:
    """Train under DDP with a learned range, each rank on its own images."""
    learned = fxq.QConfig(activation=fxq.QuantDescriptor(learn_amax=True))
    recipe = fxq.recipe("tensorrt").with_rules(("fc", learned))
    prepared = fxq.prepare(net(), batches()[0][:2], recipe, qat=True)
    fxq.calibrate(prepared, own(batches(), rank, size), progress=False)
    model: Any = nn.parallel.DistributedDataParallel(prepared.train()) if size > 1 else prepared.train()
    ranges = [value for name, value in prepared.named_parameters() if name.endswith("_amax")]
    weights = [value for name, value in prepared.named_parameters() if not name.endswith("_amax")]
    # The gradient of a range is small by LSQ's scaling.
    optimizer = torch.optim.SGD([{"params": weights, "lr": 0.05}, {"params": ranges, "lr": 1.0}])
    before = {name: value.detach().clone() for name, value in prepared.state_dict().items()}
    for images in batches()[:6]:
        optimizer.zero_grad()
        F.cross_entropy(model(images[rank::size]), torch.arange(len(images[rank::size])) % 4).backward()
        optimizer.step()
    # Statistics of batch norms are each rank's own until DDP hands out those of rank 0 with the next step.
    kept = {name: value.detach() for name, value in prepared.state_dict().items() if "running_" not in name}
    after = {f"trained {name}": value for name, value in kept.items()}
    moved = sorted(name for name, value in kept.items() if not torch.equal(value, before[name]))
    return {**after, "moved": moved}


def sharded(rank: int, size: int) -> dict[str, Any]:
    """Train with learned ranges, each rank with a part of every parameter, and convert what all hold together."""
    learned = fxq.QConfig(fxq.QuantDescriptor(learn_amax="lsq"), fxq.QuantDescriptor(axis=0, learn_amax="pact"))
    recipe = fxq.recipe("tensorrt").with_rules(("fc", learned), ("first", learned))

    def prepare() -> Any:
        return fxq.prepare(net(), batches()[0][:2], recipe, qat=True)

    prepared = prepare()
    fxq.calibrate(prepared, own(batches(), rank, size), progress=False)
    before = {name: value.detach().clone() for name, value in prepared.state_dict().items()}
    model: Any = fully_shard(prepared.train(), mesh=distributed.init_device_mesh("cpu", (size,)))
    # The gradient of a range is small by LSQ's scaling.
    rates = {name: 1.0 if "input_quantizer" in name else 1e-4 for name, _ in model.named_parameters()}
    optimizer = torch.optim.SGD([{"params": [one], "lr": rates[name]} for name, one in model.named_parameters()])
    for images in batches()[:3]:
        optimizer.zero_grad()
        F.cross_entropy(model(images[rank::size]), torch.arange(len(images[rank::size])) % 4).backward()
        optimizer.step()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    alike = {name: value for name, value in state.items() if "running_" not in name}
    fxq.freeze_batchnorm(model)
    fxq.freeze_ranges(model)
    refused = {
        name: error_of(lambda call=call: call(model))["error"]  # type: ignore[misc]  # mypy takes no default there
        for name, call in {
            "convert": fxq.convert,
            "explain": fxq.explain,
            "save": lambda gm: fxq.save(gm, "never.fxq"),
            "fit_ranges": fxq.fit_ranges,
        }.items()
    }
    outputs = model.eval()(batches()[0]).detach()
    whole = prepare()
    whole.load_state_dict(state)
    return {
        "state": alike,
        "moved": sorted(name for name, value in alike.items() if not torch.equal(value, before[name])),
        "requires": [name for name, value in model.named_parameters() if value.requires_grad],
        "refused": refused,
        "outputs": outputs,
        "whole": whole(batches()[0]).detach(),
        "converted": fxq.convert(whole)(batches()[0]).detach(),
    }


def error_of(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        call()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": ""}


def failing(rank: int, size: int) -> dict[str, Any]:
    """One rank's loader fails in the middle."""
    prepared = fxq.prepare(net(), batches()[0][:2])

    def load() -> Any:
        yield from own(batches(), rank, size)[:1]
        if rank == size - 1:
            raise OSError("the disk is gone")

    found = error_of(lambda: fxq.calibrate(prepared, load(), progress=False))
    return {
        **found,
        "has_range": any(one.has_range for one in prepared.modules() if isinstance(one, fxq.TensorQuantizer)),
    }


@fxq.register_pass("search_in_turn")
class SearchInTurn(fxq.Pass):
    """Notes which rank looked at which of five items; a rank that ``fails`` does not come to an end."""

    stage = fxq.Stage.CALIBRATED
    fails = -1
    found: ClassVar[list[tuple[int, Tensor]]] = []

    def run(self, rw: fxq.Rewriter) -> None:
        def look(item: int) -> tuple[int, Tensor]:
            rank = distributed.get_rank()
            if rank == self.fails:
                raise RuntimeError(f"rank {rank} fell over item {item}")
            return rank, torch.tensor(float(item))

        self.found[:] = rw.share_out(range(5), look)


def sharing(rank: int, size: int) -> dict[str, Any]:
    """A pass shares its items out."""
    prepared = fxq.prepare(net(), batches()[0][:2], fxq.recipe("tensorrt").with_pass("search_in_turn"))
    fxq.calibrate(prepared, own(batches(), rank, size), progress=False)
    return {"by": [by for by, _ in SearchInTurn.found], "items": [item.item() for _, item in SearchInTurn.found]}


def failing_pass(rank: int, size: int) -> dict[str, Any]:
    """One rank fails in a pass, when what was observed is merged already."""
    prepared = fxq.prepare(net(), batches()[0][:2], fxq.recipe("tensorrt").with_pass("search_in_turn"))
    SearchInTurn.fails = size - 1
    found = error_of(lambda: fxq.calibrate(prepared, own(batches(), rank, size), progress=False))
    return {**found, "has_range": prepared.get_submodule("fc_input_quantizer").has_range}


def without_data(rank: int, size: int) -> dict[str, Any]:
    return error_of(lambda: fxq.calibrate(fxq.prepare(net(), batches()[0]), [], progress=False))


def of_other_weights(rank: int, size: int) -> dict[str, Any]:
    model = net()
    with torch.no_grad():
        model.get_parameter("fc.weight").add_(rank)
    return error_of(lambda: fxq.calibrate(fxq.prepare(model, batches()[0]), batches(), progress=False))


def in_order(rank: int, size: int) -> dict[str, Any]:
    recipe = fxq.recipe("tensorrt").replace(calibrator="moving_average")
    return error_of(lambda: fxq.calibrate(fxq.prepare(net(), batches()[0], recipe), batches(), progress=False))


def alone(rank: int, size: int) -> dict[str, Any]:
    """Only one rank calls fxq, and says so."""
    if rank:
        return {}
    prepared = fxq.prepare(net(), batches()[0])
    fxq.calibrate(prepared, fxq.Data(batches(), share=False, progress=False))
    return {"amax": prepared.get_submodule("fc_input_quantizer").amax}


def searching(rank: int, size: int) -> dict[str, Any]:
    return error_of(lambda: fxq.auto_quantize(net(), batches(), lambda model: 1.0, progress=False))


def elsewhere(rank: int, size: int) -> dict[str, Any]:
    """The ranks are in different calls."""
    prepared = fxq.prepare(net(), batches()[0])
    if rank:
        return error_of(lambda: fxq.calibrate(prepared, batches(), progress=False))
    fxq.calibrate(prepared, fxq.Data(batches(), share=False, progress=False))
    return error_of(lambda: fxq.sensitivity(prepared, batches(), progress=False))


def dying(rank: int, size: int) -> dict[str, Any]:
    """The last rank is gone before it has told what it saw."""
    if rank == size - 1:
        os._exit(1)
    return error_of(lambda: fxq.calibrate(fxq.prepare(net(), batches()[0]), batches(), progress=False))


WORK: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "plain": lambda rank, size: calibrated("plain", rank, size),
    "empty": lambda rank, size: calibrated("plain", rank, size, "without"),
    "best": lambda rank, size: calibrated("best", rank, size),
    "best_empty": lambda rank, size: calibrated("best", rank, size, "without", most=64),
    "sensitivity": sensitive,
    "trained": trained,
    "failing": failing,
    "sharded": sharded,
    "sharing": sharing,
    "failing_pass": failing_pass,
    "without_data": without_data,
    "of_other_weights": of_other_weights,
    "in_order": in_order,
    "alone": alone,
    "searching": searching,
    "elsewhere": elsewhere,
    "dying": dying,
}


def join(folder: Path, rank: int, size: int, what: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    found = {}
    for name in what.split(","):
        found[name] = WORK[name](rank, size)
        torch.save(found, folder / f"{rank}.pt")  # each time: one of them may die


def main(groups: list[tuple[Path, int, str]]) -> None:
    """Run all groups at once, each rank in a fork of this process, which has imported and traced once for all."""
    torch.set_num_threads(1)
    calibrated(
        "plain", 0, 1
    )  # not "best", which trains: autograd has threads of its own, and those stay behind in a fork
    children = []
    for folder, size, what in groups:
        for rank in range(size):
            child = os.fork()
            if not child:
                join(folder, rank, size, what)
                os._exit(0)
            children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main([(Path(arguments[at]), int(arguments[at + 1]), arguments[at + 2]) for at in range(0, len(arguments), 3)])

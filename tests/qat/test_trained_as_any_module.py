"""What training is done with leaves a prepared model right: EMA, accumulation, autocast, checkpointing, compiling."""

import copy
from pathlib import Path

import pytest
import torch
from support.small import images
from test_freezing import AVERAGED, LEARNED, ready, step
from torch import nn
from torch.fx import GraphModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import fxq

CONFIGS = pytest.mark.parametrize(
    "config", [fxq.QConfig(), LEARNED, AVERAGED], ids=["weights follow", "learned", "averages"]
)


def steady(config: fxq.QConfig) -> GraphModule:
    """Return a prepared model in training mode without what is random in it."""
    prepared = ready(config)
    prepared.dropout.p = 0.0
    return prepared


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@CONFIGS
@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_averaged_model_evaluates_what_it_converts_to(config: fxq.QConfig, use_buffers: bool) -> None:
    prepared = steady(config)
    averaged = AveragedModel(prepared, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    for _ in range(3):
        step(prepared)
        averaged.update_parameters(prepared)
    fxq.freeze_batchnorm(averaged)
    expected = averaged.eval()(images(4))
    found = fxq.convert(averaged.module)(images(4))
    assert (found - expected).norm() < 0.02 * expected.norm()  # a tie may fall to the other side


@CONFIGS
def test_gradients_accumulate_over_calls(config: fxq.QConfig) -> None:
    prepared = steady(config)
    fxq.freeze_batchnorm(prepared)
    prepared(images(8))
    fxq.freeze_ranges(prepared)
    whole, parts = copy.deepcopy(prepared), copy.deepcopy(prepared)
    whole(images(8)).square().sum().backward()
    sum(parts(part).square().sum() for part in images(8).split(2)).backward()  # all calls before the first backward
    for name, grad in gradients(whole).items():
        torch.testing.assert_close(gradients(parts)[name], grad, rtol=1e-4, atol=1e-4)


@CONFIGS
def test_autocast_keeps_parameters_and_ranges_in_float32(config: fxq.QConfig) -> None:
    prepared = steady(config)
    exact = copy.deepcopy(prepared)(images(8))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = prepared(images(8))
    outputs.float().square().mean().backward()
    assert (outputs.float() - exact).norm() < 0.05 * exact.norm()
    assert all(grad.dtype == torch.float32 and bool(grad.isfinite().all()) for grad in gradients(prepared).values())
    assert all(value.dtype == torch.float32 for name, value in prepared.state_dict().items() if name.endswith("_amax"))


@CONFIGS
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_repeats_a_call_and_counts_it_once(config: fxq.QConfig, reentrant: bool) -> None:
    prepared = steady(config)
    repeated = copy.deepcopy(prepared)
    prepared(images(8)).square().mean().backward()
    checkpoint(repeated, images(8).requires_grad_(), use_reentrant=reentrant).square().mean().backward()
    for name, grad in gradients(prepared).items():
        torch.testing.assert_close(gradients(repeated)[name], grad, rtol=1e-4, atol=1e-6)
    found = repeated.state_dict()
    for name, value in prepared.state_dict().items():
        if name.endswith("input_quantizer._amax"):
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(fxq.QConfig(), id="weights follow", marks=pytest.mark.slow),
        pytest.param(LEARNED, id="learned"),
        pytest.param(AVERAGED, id="averages", marks=pytest.mark.slow),
    ],
)
def test_compiled_training_is_the_same_and_follows_a_freeze(config: fxq.QConfig) -> None:
    prepared = steady(config)
    other = copy.deepcopy(prepared)
    torch.compiler.reset()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        step(prepared)
        step(compiled)
    found = other.state_dict()
    for name, value in prepared.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-3)  # a tie may fall to the other side
    fxq.freeze_batchnorm(compiled)
    before = other.get_buffer("bn.running_mean").clone()
    step(compiled)
    torch.testing.assert_close(other.get_buffer("bn.running_mean"), before, rtol=0, atol=0)


def train_on_a_rank(rank: int, folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    prepared = ready(LEARNED)
    prepared.dropout.p = 0.0
    model: nn.Module
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(prepared)
    else:
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        model = torch.distributed.fsdp.fully_shard(prepared, mesh=mesh)
    for _ in range(2):
        step(model, x=images(8, rank))
    trained = {
        name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in model.named_parameters()
    }
    torch.save(trained, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # two processes import torch anew
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_one_model(kind: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_on_a_rank, (str(tmp_path), kind), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())

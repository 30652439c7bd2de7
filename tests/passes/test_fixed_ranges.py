"""Fixed ranges: what a target fixes is never calibrated, for all that read it and all that is tied to it."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq import Fixed, OpRule, QuantDescriptor, Same, Target, TensorQuantizer
from fxq.testing import assert_rewrites
from fxq_passes import InsertQuantizers, PlanOps, SolveScales

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
UINT8 = QuantDescriptor(unsigned=True, symmetric=False)
SIGMOID, TANH = Fixed("sigmoid", 0, 255 / 256), Fixed("tanh", -1, 127 / 128)


def target(*constraints: Same | Fixed, output: bool = True, activation: QuantDescriptor = UINT8) -> Target:
    """Return a target that runs convolutions, adds and concatenations on integers, and gates with such outputs."""
    rows = [OpRule("conv", inputs=True, weight=True), OpRule(("cat", "add"), inputs=True)]
    gates = [OpRule(("sigmoid", "tanh"), output=True)] if output else []
    return Target("mine", (*rows, *gates), constraints, activation=activation)


def ranges(model: nn.Module, runtime: Target) -> dict[str, tuple[float, float]]:
    """Return the fixed ranges of the prepared model's quantizers, by path."""
    prepared = fxq.prepare(model.eval(), X, fxq.Recipe(target=runtime))
    return {
        path: tuple(float(bound) for bound in module.range)  # type: ignore[misc]
        for path, module in prepared.named_modules()
        if isinstance(module, TensorQuantizer) and module.has_range
    }


def test_an_output_of_a_fixed_range_has_it_without_data() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1))
    assert ranges(model, target(SIGMOID)) == {"2_input_quantizer": (0, 255 / 256)}


def test_readers_that_quantize_it_for_themselves_have_it_too() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1))
    assert ranges(model, target(SIGMOID, output=False)) == {"2_input_quantizer": (0, 255 / 256)}


@pytest.mark.parametrize(
    ("descriptor", "step", "zero_point"),
    [(UINT8, 1 / 128, 128), (QuantDescriptor(symmetric=False), 1 / 128, 0), (QuantDescriptor(), 1 / 127, 0)],
    ids=["uint8 affine", "int8 affine", "int8 symmetric"],
)
def test_scale_and_zero_point_follow_from_the_codes(descriptor: QuantDescriptor, step: float, zero_point: int) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1))
    prepared = fxq.prepare(model.eval(), X, fxq.Recipe(target=target(TANH, activation=descriptor)))
    quantizer = prepared.get_submodule("2_input_quantizer")
    assert isinstance(quantizer, TensorQuantizer)
    assert float(quantizer.scale) == pytest.approx(step, rel=1e-6)
    assert int(quantizer.zero_point) == zero_point


class Gates(nn.Module):
    """Two gates of one input, or a gate and a convolution, joined."""

    def __init__(self, left: nn.Module, right: nn.Module, is_moved: bool = False) -> None:
        super().__init__()
        self.left, self.right, self.is_moved = left, right, is_moved
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        if self.is_moved:
            left = left.transpose(2, 3)
        return self.conv(torch.cat((left, right), 1))


def test_a_fixed_range_holds_across_what_moves_data_and_for_what_is_joined() -> None:
    runtime = target(SIGMOID, Same(("cat", "transpose")))
    found = ranges(Gates(nn.Sigmoid(), nn.Sigmoid(), is_moved=True), runtime)
    assert set(found.values()) == {(0, 255 / 256)}
    # One quantizer for all that is tied: cat, transpose and both gates.
    prepared = fxq.prepare(Gates(nn.Sigmoid(), nn.Sigmoid(), is_moved=True).eval(), X, fxq.Recipe(target=runtime))
    assert sum(isinstance(module, TensorQuantizer) for module in prepared.modules()) == 2  # and the weight's


def test_what_is_fixed_inside_of_a_module_has_its_range_too() -> None:
    runtime = Target(
        "mine",
        (OpRule(("multihead_attention", "matmul"), inputs=True, weight=True),),
        (Fixed("softmax", 0, 255 / 256),),
        activation=UINT8,
    )
    model, x = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval(), torch.randn(2, 5, 8)
    prepared = fxq.prepare(model, x, fxq.Recipe(target=runtime))
    quantizer = prepared.get_submodule("self_attn._softmax_quantizer")
    assert isinstance(quantizer, TensorQuantizer)
    assert [float(bound) for bound in quantizer.range] == [0, 255 / 256]
    (tensor,) = [one for one in fxq.explain(prepared)["self_attn"].quantized if "softmax" in str(one)]
    assert "its range is always [0, 0.996094]" in str(tensor)


def test_what_is_not_quantized_has_no_range_to_fix() -> None:
    assert ranges(nn.Sequential(nn.Sigmoid(), nn.ReLU()), target(SIGMOID, output=False)) == {}


def test_a_second_run_plans_nothing_new() -> None:
    assert_rewrites(
        [PlanOps(), SolveScales(), InsertQuantizers()],
        model=nn.Sequential(nn.Sigmoid(), nn.Flatten()),
        inputs=X,
        target=target(SIGMOID, Same("reshape")),
        after="""
            input_1 = input
            _0 = Sigmoid[0](input_1)  # output: uint8 affine per tensor
            _0_output_quantizer = TensorQuantizer[0_output_quantizer](_0)
            _1 = Flatten[1](_0_output_quantizer)  # output: uint8 affine per tensor
            _0_output_quantizer_1 = TensorQuantizer[0_output_quantizer](_1)
            return _0_output_quantizer_1
        """,
    )


CONFLICTS: dict[str, tuple[Callable[[], nn.Module], Target, str]] = {
    "two fixed ranges": (
        lambda: Gates(nn.Sigmoid(), nn.Tanh()),
        target(SIGMOID, TANH, Same("cat")),
        "target 'mine' wants one range for 'left' and 'right', which meet without rescaling: 'left' (sigmoid) is fixed "
        "to [0, 0.996094], and 'right' (tanh) is fixed to [-1, 0.992188]; leave what joins them in float",
    ),
    "fixed and calibrated": (
        lambda: Gates(nn.Conv2d(4, 4, 1), nn.Sigmoid(), is_moved=True),
        target(SIGMOID, Same(("cat", "transpose"))),
        "wants one range for 'right' and 'transpose', which meet without rescaling: 'right' (sigmoid) is fixed to "
        "[0, 0.996094], and 'transpose' (transpose) is calibrated",
    ),
    "two formats": (
        lambda: Gates(nn.Sigmoid(), nn.Sigmoid()),
        Target(
            "mine",
            (OpRule("cat", inputs=True, output=QuantDescriptor()), OpRule("conv", inputs=True, weight=True)),
            (Same("cat"),),
            activation=UINT8,
        ),
        "target 'mine' wants one range for what 'cat' (cat) joins: 'left' is planned as uint8 affine per tensor, and "
        "'cat' as int8 per tensor; give them one descriptor, or leave 'cat' in float (a rule with None)",
    ),
    "a range fixed by hand": (
        lambda: Gates(nn.Sequential(TensorQuantizer(UINT8.replace(range=(0, 4)))), nn.Conv2d(4, 4, 1)),
        target(Same("cat")),
        "wants one range for what 'cat' (cat) joins: 'left_0' is a quantizer placed by hand with a fixed range, and "
        "'right' is calibrated",
    ),
}


@pytest.mark.parametrize(("make", "runtime", "message"), CONFLICTS.values(), ids=CONFLICTS)
def test_demands_that_contradict_each_other_are_an_error_that_names_both_tensors(
    make: Callable[[], nn.Module], runtime: Target, message: str
) -> None:
    with pytest.raises(fxq.TargetError, match=re.escape(message)):
        fxq.prepare(make().eval(), X, fxq.Recipe(target=runtime))


def test_the_exported_file_holds_the_fixed_step_and_runs(tmp_path: object) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1)).eval()
    converted = fxq.quantize(model, [X], fxq.Recipe(target=target(TANH)), progress=False)
    report = fxq.export_onnx(converted, f"{tmp_path}/model.onnx", X)
    assert report.parity[0].max_lsb < 1e-3  # floats that threads add up in another order

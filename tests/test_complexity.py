"""Counts: each handler against a closed formula, whole networks against arithmetic done apart."""

import pytest
import torch
from torch import nn

from rflw import InputError, build
from rflw.complexity import by_module, count
from rflw_study.paper import value


def macs(module, size=(12, 20)) -> dict:
    return {kind: n for kind, n in count(module, size)["macs"].items() if n and kind != "total"}


def blank(name: str, classes: int = 21) -> nn.Module:
    """A network whose weights are zeros: counts do not depend on them."""
    with torch.device("meta"):
        model = build(name, classes)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    return model


H, W = 12, 20


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), {"conv": 3 * 3 * 3 * 8 * H * W}),  # the bias is free
        (nn.Conv2d(3, 6, 5, 2, 2, groups=3), {"conv": 5 * 5 * 1 * 6 * 6 * 10}),
        (nn.MaxPool2d(5, 1, 2), {"pool": 25 * 3 * H * W}),
        (nn.MaxPool2d((2, 4)), {"pool": 8 * 3 * 6 * 5}),
        (nn.AvgPool2d(3, 2, 1), {"pool": 9 * 3 * 6 * 10}),
        (nn.AdaptiveAvgPool2d(1), {"pool": 3 * H * W}),
        (nn.BatchNorm2d(3), {"norm": 3 * H * W}),
        (nn.ReLU(), {"activation": 3 * H * W}),
        (nn.ReLU6(inplace=True), {"activation": 3 * H * W}),
        (nn.Upsample((24, 30), mode="bilinear"), {"resize": 4 * 3 * 24 * 30}),
        (nn.Upsample(size=(24, 30), mode="nearest"), {}),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * H * W, 7)), {"conv": 3 * H * W * 7}),
    ],
)
def test_handler_meets_its_formula(module, expected):
    assert macs(module) == expected


def test_total_is_the_sum_and_what_is_not_counted_is_named():
    class Sum(nn.Module):
        def forward(self, x):
            return x.relu() + x

    result = count(Sum(), (4, 5))
    assert {kind: n for kind, n in result["macs"].items() if n} == {"activation": 60, "total": 60}
    assert result["uncounted"] == {"aten::add": 1}


def test_table_1_is_met_to_its_printed_digits():
    """These two tell the width of the light-weight RCU. Other rows: `test_claims.py`."""
    row = "RefineNet-101-LW-WITH-RCU"
    result = count(blank("refinenet-lw-rcu-resnet101"), (64, 64))
    assert round(result["params"] / 1e6) == value(1, row, "Parameters")
    macs = 8 * 8 * (result["macs"]["conv"] + result["macs"]["pool"])  # at 512x512, see below
    assert round(macs / 1e9) == value(1, row, "FLOPs")


def test_counts_grow_with_the_area_and_the_network_stays_as_it_was():
    model = blank("refinenet-lw-mobilenet_v2").train()
    model.encoder.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small, large = (count(model, size)["macs"] for size in ((64, 64), (128, 192)))
    assert large == {kind: 2 * 3 * number for kind, number in small.items()}
    rows = {row["module"]: row["macs"]["total"] for row in by_module(model, (64, 64))}
    assert rows[""] == rows["encoder"] + rows["decoder"] == small["total"]
    assert model.training and not model.encoder.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    for size in ((0, 64), (64,)):
        with pytest.raises(InputError):
            count(model, size)

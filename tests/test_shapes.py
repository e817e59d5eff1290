"""Recorded graphs of small networks against what is read off their code."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
import torch.nn.functional as F

from rflw.trace import Step, collapse, cut, record


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv(F.relu(x))


class Net(nn.Module):
    """A convolution, a residual unit, an in-place ReLU, dropout, a pooling; two inputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, (1, 5), stride=2, bias=False)
        self.unit = Residual()
        self.act, self.drop, self.pool = nn.ReLU(inplace=True), nn.Dropout(), nn.MaxPool2d((2, 4))

    def forward(self, x, other):
        x = self.unit(self.stem(x))
        x = self.pool(self.drop(self.act(x)))
        x += other["map"]
        return x


def steps(model=None):
    return record(model or Net(), torch.zeros(2, 3, 9, 21), {"map": torch.zeros(2, 4, 2, 2)})


class TestSteps:
    def test_every_operation_with_its_inputs_and_shape(self):
        assert steps() == [
            Step("conv2d", "stem", (-1,), (2, 4, 5, 9), 5, (3, 4), params=3 * 4 * 5),
            Step("relu", "unit", (0,), (2, 4, 5, 9)),
            Step("conv2d", "unit.conv", (1,), (2, 4, 5, 9), 3, (4, 4), params=4 * 4 * 9 + 4),
            Step("add", "unit", (0, 2), (2, 4, 5, 9)),
            # in place: the pooling takes its result, not that of the sum
            Step("relu", "act", (3,), (2, 4, 5, 9)),
            Step("max_pool2d", "pool", (4,), (2, 4, 2, 2), kernel=4),  # the dropout did nothing
            Step("add", "", (5, -2), (2, 4, 2, 2)),
        ]

    @pytest.mark.parametrize("sizes", [(9, 21), (2, 2)])  # recorded; too small for the stem
    def test_the_network_is_left_as_it_was(self, sizes):
        model = Net().train()
        model.unit.eval()
        with nullcontext() if sizes == (9, 21) else pytest.raises(RuntimeError):
            record(model, torch.zeros(2, 3, *sizes), {"map": torch.zeros(2, 4, 2, 2)})
        assert (model.training, model.unit.training, model.drop.training) == (True, False, True)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    def test_cut_numbers_anew_and_keeps_what_comes_from_outside(self):
        part = cut(steps(), lambda step: step.module.startswith("unit"))
        found = [(step.op, *step.inputs) for step in part]
        assert found == [("relu", -1), ("conv2d", 0), ("add", -1, 1)]
        sums = cut(steps(), lambda step: step.op == "add")
        assert [step.inputs for step in sums] == [(-1, -2), (-3, -4)]

    def test_collapse_makes_one_step_of_a_block_in_the_order_of_ends(self):
        names = {"": "ends", "stem": "ends"}
        blocks = collapse(steps(), lambda step: names.get(step.module, step.module.split(".")[0]))
        assert blocks == [
            Step("unit", "", (3,), (2, 4, 5, 9), params=148),
            Step("act", "", (0,), (2, 4, 5, 9)),
            Step("pool", "", (1,), (2, 4, 2, 2)),
            Step("ends", "", (-1, 2, -2), (2, 4, 2, 2), params=60),
        ]

    def test_a_new_tensor_is_not_mistaken_for_one_that_is_gone(self):
        class Forgetful(nn.Module):
            def forward(self, x):
                for _ in range(9):
                    x = torch.ones(3) + x.relu()
                return x

        found = [step.inputs for step in record(Forgetful(), torch.zeros(3))]
        assert found == [(i - 1,) for i in range(18)]

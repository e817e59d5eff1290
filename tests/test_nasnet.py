"""NASNet-A Mobile against its published counts, and its cells against the paper's Figure 4.

What the whole network gives: `test_golden.py`.
"""

import pytest
import torch
from torch import nn

from rflw.nn.nasnet import NORMAL, REDUCTION, Cell, NASNetMobile

# Figure 4, block by block: the two operations that are added. Where they go is checked by numbers.
OPERATIONS = {
    NORMAL: ["sep5 sep3", "sep5 sep3", "avg3 same", "avg3 avg3", "sep3 same"],
    REDUCTION: ["sep5/2 sep7/2", "max3/2 sep7/2", "avg3/2 sep5/2", "avg3 same", "sep3 max3/2"],
}


def scale(factor):
    """Stands for an operation, and leaves a number by which it can be told from the others."""
    module = nn.Identity()
    module.forward = lambda x: factor * x
    return module


@pytest.fixture(scope="module")
def net():
    return NASNetMobile().eval()


def describe(operation):
    """An operation in the words of `OPERATIONS`: kind, kernel and, if it strides, its stride."""
    if isinstance(operation, nn.Identity):
        return "same"
    if isinstance(operation, nn.Sequential):
        first, second = operation[1], operation[5]
        assert first.kernel_size == second.kernel_size and second.stride == (1, 1)
        kind, kernel, stride = "sep", first.kernel_size[0], first.stride[0]
    else:
        kind = {nn.AvgPool2d: "avg", nn.MaxPool2d: "max"}[type(operation)]
        kernel, stride = operation.kernel_size, operation.stride
    return f"{kind}{kernel}" + (f"/{stride}" if stride > 1 else "")


class TestCells:
    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # of fvcore
    def test_published_counts_and_tf_slims_norms(self, net):
        """With the classifier, 1056 x 1000 and biases: 5,289,978 parameters; 564 M MACs."""
        from fvcore.nn import FlopCountAnalysis

        assert sum(p.numel() for p in net.parameters()) == 5_289_978 - 1057 * 1000
        # padded, the stem makes of 221 pixels the 111 that it makes, unpadded, of 224
        analysis = FlopCountAnalysis(net, torch.zeros(1, 3, 221, 221))
        macs = analysis.unsupported_ops_warnings(False).by_operator()
        assert macs["conv"] + 1056 * 1000 == pytest.approx(564e6, abs=0.5e6)
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(m.eps, round(m.momentum, 9)) for m in norms} == {(1e-3, 3e-4)}

    def test_cells_are_in_order_and_have_the_operations_of_figure_4(self, net):
        cells = [cell for stage in net.stages for cell in stage]
        assert "".join("N" if cell.plan is NORMAL else "R" for cell in cells) == "RRNNNNRNNNNRNNNN"
        for cell in cells:
            found = [f"{describe(left)} {describe(right)}" for left, right in cell.blocks]
            assert found == OPERATIONS[cell.plan]

    # With cur = 1 and prev = 10, left operations that multiply by 1 and the right one of block i by
    # 100 i. By hand, normal: prev, cur + 100 prev, prev + 200 prev, cur + 300 prev, prev + 400
    # prev, cur + 500 cur. Reduction: (first: 1001) cur + 200 prev, cur + 300 prev, first + 400
    # second, first + 500 cur. Both states of its fourth block are blocks, as in `OPERATIONS`.
    @pytest.mark.parametrize(
        "plan, expected",
        [(NORMAL, [10, 1001, 2010, 3001, 4010, 501]), (REDUCTION, [2001, 3001, 801_401, 1501])],
    )
    def test_operations_are_wired_as_in_figure_4(self, plan, expected):
        cell = Cell(plan, width=1, cur=1, prev=1, halve=False, match=True)
        cell.cur = cell.prev = scale(1)
        for i, block in enumerate(cell.blocks, start=1):
            block[0], block[1] = scale(1), scale(100 * i)
        out = cell(torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 10.0))
        assert out.flatten().tolist() == expected

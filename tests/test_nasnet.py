"""NASNet-A Mobile against its published counts, and its cells against a second reading of the paper's Figure 4."""

import pytest
import torch
from torch import nn

from rflw.nn.nasnet import NORMAL, REDUCTION, Cell, FactorizedReduction, NASNetMobile

CHANNELS, STRIDES = (44, 88, 264, 352, 528, 704, 1056), (4, 8, 8, 16, 16, 32, 32)  # of the taps
# Figure 4, block by block: the two operations that are added. Where they go is checked apart, by numbers.
OPERATIONS = {
    NORMAL: ["sep5 sep3", "sep5 sep3", "avg3 same", "avg3 avg3", "sep3 same"],
    REDUCTION: ["sep5/2 sep7/2", "max3/2 sep7/2", "avg3/2 sep5/2", "avg3 same", "sep3 max3/2"],
}


class Scale(nn.Module):
    """Stands for an operation, and leaves a number by which it can be told from the others."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@pytest.fixture(scope="module")
def net():
    """With the statistics of one batch in its norms: untouched ones let the signal fade."""
    torch.manual_seed(0)
    net = NASNetMobile()
    for m in norms(net):
        m.momentum = 1.0
    with torch.no_grad():
        net.train()(torch.randn(2, 3, 97, 97))
    return net.eval()


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # of fvcore
def test_published_counts(net):
    """With the classifier, 1056 x 1000 and biases: 5,289,978 parameters; Table 2 prints 564 M MACs."""
    from fvcore.nn import FlopCountAnalysis

    assert sum(p.numel() for p in net.parameters()) == 5_289_978 - 1057 * 1000
    # padded, the stem makes of 221 pixels the 111 that it makes, unpadded, of 224
    analysis = FlopCountAnalysis(net, torch.zeros(1, 3, 221, 221))
    macs = analysis.unsupported_ops_warnings(False).by_operator()
    assert macs["conv"] + 1056 * 1000 == pytest.approx(564e6, abs=0.5e6)


def test_norms_have_tf_slims_constants():
    found = norms(NASNetMobile())
    assert {(m.eps, round(m.momentum, 9)) for m in found} == {(1e-3, 3e-4)}
    # stem; both inputs of 16 cells, but for one of the first; two in each of five separable
    # operations a cell
    assert len(found) == 1 + (2 * 16 - 1) + 16 * 5 * 2


def test_taps_have_their_sizes_and_are_taken_before_their_relu(net):
    for h in range(33, 65, 10):  # remainders of 32 in either direction, another one in the other
        x = torch.randn(1, 3, h, 129 - h)
        with torch.no_grad():
            taps = net(x)
        for tap, channels, stride in zip(taps, CHANNELS, STRIDES, strict=True):
            assert tap.shape == (1, channels, -(-h // stride), -(-(129 - h) // stride))
            assert tap.min() < -0.1


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


def test_cells_are_in_order_and_have_the_operations_of_figure_4(net):
    cells = [cell for stage in net.stages for cell in stage]
    assert "".join("N" if cell.plan is NORMAL else "R" for cell in cells) == "RRNNNNRNNNNRNNNN"
    for cell in cells:
        assert [f"{describe(left)} {describe(right)}" for left, right in cell.blocks] == OPERATIONS[
            cell.plan
        ]


# With cur = 1 and prev = 10, left operations that multiply by 1 and the right one of block i by 100 i. By hand, normal:
# prev, cur + 100 prev, prev + 200 prev, cur + 300 prev, prev + 400 prev, cur + 500 cur. Reduction: (first: 1001)
# cur + 200 prev, cur + 300 prev, first + 400 second, first + 500 cur. Both states of its fourth block are blocks,
# in the order of `OPERATIONS`.
@pytest.mark.parametrize(
    "plan, expected",
    [(NORMAL, [10, 1001, 2010, 3001, 4010, 501]), (REDUCTION, [2001, 3001, 801_401, 1501])],
)
def test_operations_are_wired_as_in_figure_4(plan, expected):
    cell = Cell(plan, width=1, cur=1, prev=1, halve=False, match=True)
    cell.cur = cell.prev = Scale(1)
    for i, block in enumerate(cell.blocks, start=1):
        block[0], block[1] = Scale(1), Scale(100 * i)
    out = cell(torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 10.0))
    assert out.flatten().tolist() == expected


def test_a_cell_gets_the_last_output_and_the_one_before(net):
    got, made = [], []

    def note(module, inputs, output):
        got.append(inputs)
        made.append(output)

    hooks = [
        m.register_forward_hook(note)
        for m in (net.stem, *(cell for stage in net.stages for cell in stage))
    ]
    with torch.no_grad():
        taps = net(torch.randn(1, 3, 33, 33))
    for hook in hooks:
        hook.remove()
    for i, (cur, prev) in enumerate(got[1:]):  # made[0] is the stem's, made[i + 1] that of cell i
        assert cur is made[i] and prev is made[max(0, i - 1)]
    assert all(tap is made[i + 1] for tap, i in zip(taps, (0, 1, 5, 6, 10, 11, 15), strict=True))


def test_factorized_reduction_samples_even_and_odd_pixels():
    reduction = FactorizedReduction(1, 4).eval()
    for conv in (reduction.even, reduction.odd):
        nn.init.ones_(conv.weight)
    where = {}
    for pixel in ((2, 4), (3, 5), (2, 5), (3, 4), (0, 0), (6, 8)):
        x = torch.zeros(1, 1, 7, 9)
        x[0, 0][pixel] = 1
        out = reduction(x).detach()
        assert out.shape == (1, 4, 4, 5)
        # ones, but for the epsilon
        assert out.sum().item() == pytest.approx(out.count_nonzero().item(), rel=1e-3)
        where[pixel] = [tuple(i) for i in out[0].nonzero().tolist()]
    assert where == {
        (2, 4): [(0, 1, 2), (1, 1, 2)],  # channels 0 and 1: even rows and columns
        (3, 5): [(2, 1, 2), (3, 1, 2)],  # channels 2 and 3: odd ones
        (2, 5): [],
        (3, 4): [],
        (0, 0): [(0, 0, 0), (1, 0, 0)],
        (6, 8): [(0, 3, 4), (1, 3, 4)],  # nothing of the border comes back through the shift
    }
    assert reduction(torch.full((1, 1, 7, 9), -1.0)).eq(0).all()  # the ReLU comes first


def test_windows_are_centred_on_even_pixels_and_averages_leave_the_padding_out():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    cell = Cell(REDUCTION, width=1, cur=1, prev=1, halve=False, match=True)
    maximum, average = cell.blocks[1][0], cell.blocks[2][0]
    assert average(ramp)[0, 0, 0].tolist() == [0.5, 2, 4, 6]  # (0 + 1) / 2: two pixels, not three
    assert maximum(ramp)[0, 0, 0].tolist() == [1, 3, 5, 7]
    assert maximum(-1 - ramp)[0, 0, 0].tolist() == [-1, -2, -4, -6]  # no zero of the padding wins
    assert cell.blocks[3][0](torch.ones(1, 1, 3, 3)).eq(1).all()

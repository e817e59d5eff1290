"""Fields of toy networks that are known exactly, and passes that compute only what a patch can reach against whole ones."""

import math

import pytest
import torch
from torch import nn
import torch.nn.functional as F

from rflw import InputError, build
from rflw_study import receptive_field as rf
from rflw_study.layers import feature_map, feature_maps, stacked
from rflw_study.reach import Partial, Span

torch.set_num_threads(1)


def ones(module: nn.Module) -> nn.Module:
    """All weights 1, no bias: every pixel of a field counts the same."""
    for p in module.parameters():
        nn.init.ones_(p) if p.ndim > 1 else nn.init.zeros_(p)
    return module.eval()


def conv(kernel, stride=1, padding=0, dilation=1, cin=3, cout=4):
    return nn.Conv2d(cin, cout, kernel, stride, padding, dilation, bias=False)


class Skip(nn.Module):
    """A sum of a 3x3 branch and the input, halved in size, resized back and added again, beside a global mean that scales it."""

    def __init__(self, scale=False, corners=True):
        super().__init__()
        self.branch, self.down = conv(3, padding=1, cin=4), conv(2, stride=2, cin=4)
        self.stem, self.scale, self.corners = conv(1), scale, corners

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branch(x.relu())
        x = x + F.interpolate(
            self.down(x), x.shape[-2:], mode="bilinear", align_corners=self.corners
        )
        return x * x.mean((2, 3), keepdim=True).sigmoid() if self.scale else x


class InPlace(nn.Module):
    """Sums and ReLUs in place, as torchvision's ResNet has them; `whole`: with a map of which nothing is left unchanged."""

    def __init__(self, whole=False):
        super().__init__()
        self.conv, self.whole = conv(3, padding=1, cin=4), whole

    def forward(self, x):
        y = self.conv(x)
        if self.whole:
            y = y * y.mean((2, 3), keepdim=True).expand(y.shape).contiguous()
        y += x
        y = F.relu(y, inplace=True)
        z = self.conv(y)
        z += y
        return z.add_(1.0)


# ---------------------------------------------------------------- in theory


@pytest.mark.parametrize(
    ("net", "rows", "columns"),
    [
        (nn.Sequential(conv(3)), 3, 3),
        (nn.Sequential(conv(3), conv(3, cin=4)), 5, 5),
        (nn.Sequential(conv((1, 5))), 1, 5),
        (nn.Sequential(conv(3, dilation=2)), 5, 5),
        (
            nn.Sequential(conv(3, stride=2), conv(3, cin=4)),
            3 + 2 * 2,
            7,
        ),  # a step of the second is two pixels
        (
            nn.Sequential(conv(3, stride=2), nn.MaxPool2d(5, 1, 2), nn.ReLU(), nn.BatchNorm2d(4)),
            3 + 4 * 2,
            11,
        ),
        (nn.Sequential(conv(1), nn.AvgPool2d(4)), 4, 4),
        (nn.Sequential(conv(1), nn.AvgPool2d(4, 2), nn.AvgPool2d(4)), 4 + 3 * 2, 10),
        (nn.Sequential(nn.ZeroPad2d(3), conv(7)), 7, 7),
        (nn.Sequential(conv(2, stride=2), nn.ConvTranspose2d(4, 4, 2, 2)), 2, 2),
        (nn.Sequential(conv(3, stride=2), nn.Upsample(scale_factor=2, mode="nearest")), 3, 3),
    ],
)
def test_theory_of_chains(net, rows, columns):
    assert rf.theoretical(net, str(len(net) - 1)) == (rows, columns)


def test_theory_of_a_global_mean_is_without_limit_and_the_whole_image():
    net = nn.Sequential(conv(3), nn.AdaptiveAvgPool2d(1))
    assert rf.theoretical(net, "1") == (math.inf, math.inf)
    assert rf.theoretical(net, "1", (20, 31)) == (20, 31)
    assert rf.theoretical(Skip(scale=True), "branch", (20, 30)) == (3, 3)


def test_theory_at_the_border_is_what_is_left():
    net = nn.Sequential(conv(9, padding=4))
    assert rf.theoretical(net, "0") == (9, 9)
    assert rf.theoretical(net, "0", (5, 40)) == (5, 9)
    span = net(Span.of_image((20, 20)))
    assert span.first[0][:6].tolist() == [0, 0, 0, 0, 0, 1] and span.last[1][-6:].tolist() == [
        18,
        19,
        19,
        19,
        19,
        19,
    ]


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("size", [(16, 22), (13, 17)])
def test_theory_is_what_a_gradient_finds(corners, size):
    """Of every position along both axes: first and last pixel that a gradient of a network with weights of 1 reaches."""
    net = ones(Skip(corners=corners))
    x = torch.ones(1, 3, *size, requires_grad=True)
    span, out = net(Span.of_image(size)), net(x)
    assert span.shape == (1, *out.shape[1:])
    for place in [(0, 0), (3, 5), (size[0] // 2, size[1] // 2), (size[0] - 1, size[1] - 1)]:
        grad = torch.autograd.grad(out[0, 0][place], x, retain_graph=True)[0].abs().sum((0, 1))
        for axis in (0, 1):
            seen = torch.nonzero(grad.sum(1 - axis)).flatten()
            assert (span.first[axis][place[axis]], span.last[axis][place[axis]]) == (
                seen[0],
                seen[-1],
            )


def test_theory_refuses_what_it_does_not_know():
    with pytest.raises(InputError, match="bicubic"):
        rf.theoretical(
            nn.Sequential(conv(2, stride=2), nn.Upsample(scale_factor=2, mode="bicubic")), "1"
        )
    with pytest.raises(InputError, match="no map|not known"):
        rf.theoretical(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)), "1", (8, 8))


def test_theory_of_the_networks_grows_from_block_to_block():
    sizes = [
        rf.theoretical(build("refinenet-lw-efficientnet_lite0", 6), layer)[0]
        for layer in rf.PLACES.values()
    ]
    # five CRP windows of 4 x 4 positions at stride 32, then at stride 16, 8 and 4, each with what interpolation adds
    assert sizes[1] - sizes[0] == 4 * 4 * 32
    assert sizes == sorted(sizes) and sizes[0] > 512


# ---------------------------------------------------------------- by gradient


def test_gradient_of_a_box_is_the_box():
    fields = rf.gradient(
        ones(nn.Sequential(conv(5, padding=2), conv(3, padding=1, cin=4, cout=2))),
        "0",
        torch.rand(3, 3, 21, 21),
    )
    assert fields.sizes.tolist() == [5] and fields.by_image.tolist() == [5, 5, 5]
    assert (
        fields.maps.shape == (1, 21, 21)
        and (fields.maps[0, 8:13, 8:13] == 1).all()
        and fields.maps.sum() == 25
    )


def test_gradient_of_a_gaussian_ends_where_luo_et_al_let_it():
    kernel = torch.exp(-(torch.linspace(-3, 3, 61) ** 2) / 2)  # deviations 10 pixels
    net = nn.Sequential(nn.Conv2d(3, 1, 61, padding=30, bias=False))
    net[0].weight.data[:] = kernel[:, None] * kernel
    fields = rf.gradient(net, "0", torch.rand(1, 3, 81, 81), [0])
    radius = math.sqrt(2 * math.log(1 / rf.GAUSS)) * 10
    assert fields.sizes[0] == pytest.approx(math.sqrt(math.pi) * radius, rel=0.01)


def test_gradient_of_several_units_and_images():
    net = ones(nn.Sequential(conv(7, padding=3)))
    for unit, side in enumerate((1, 3, 5, 7)):  # each channel another box
        mask = torch.zeros(7, 7)
        edge = (7 - side) // 2
        mask[edge : edge + side, edge : edge + side] = 1
        net[0].weight.data[unit] *= mask
    images = torch.rand(5, 3, 15, 15)
    fields = rf.gradient(net, "0", images, [3, 0, 2], batch=2)
    assert (
        fields.units == [3, 0, 2]
        and fields.sizes.tolist() == [7, 1, 5]
        and fields.by_image.tolist() == [7] * 5
    )
    assert rf.gradient(net, "0", images).sizes.tolist() == [7]  # together: the largest


# ---------------------------------------------------------------- by occlusion


@pytest.mark.parametrize("partial", [True, False])
def test_occlusion_with_a_pixel_is_the_field(partial):
    torch.manual_seed(0)
    net = ones(nn.Sequential(conv(5, padding=2), nn.ReLU(), conv(3, padding=1, cin=4, cout=2)))
    images = torch.rand(2, 3, 24, 30)
    fields = rf.occlusion(
        net, "2", images, top=2, patch=1, stride=1, cut=1e-4, partial=partial
    )  # above rounding
    assert fields.sizes.tolist() == [7, 7]
    middle = fields.maps[0][23 - 4 : 23 + 5, 29 - 4 : 29 + 5] > 1e-4
    assert (
        middle.sum() == 49 and middle[1:8, 1:8].all()
    )  # in the middle of the map, wherever the unit was strongest


def test_occlusion_with_a_patch_is_the_field_widened_by_the_patch():
    images = torch.rand(1, 3, 30, 30)
    fields = rf.occlusion(
        ones(nn.Sequential(conv(3, padding=1))), "0", images, [1], patch=5, stride=1, cut=0.0
    )
    assert fields.cell == 1 and fields.sizes.tolist() == [3 + 5 - 1]
    fields = rf.occlusion(
        ones(nn.Sequential(conv(1))), "0", images, [1], patch=6, stride=3, cut=0.0
    )
    assert fields.cell == 3 and fields.sizes.tolist() == [6]


def test_occlusion_takes_the_images_that_activate_most():
    net = ones(nn.Sequential(conv(3, padding=1)))
    images = torch.rand(4, 3, 20, 20) * torch.tensor([1, 3, 2, 4]).view(4, 1, 1, 1)
    fields = rf.occlusion(net, "0", images, top=2, patch=3, stride=2)
    assert [not math.isnan(v) for v in fields.by_image] == [False, True, False, True]
    best, maps = rf.top_images(net, "0", images, unit=2, top=3)
    assert (
        best == [3, 1, 2] and maps.shape == (3, 20, 20) and maps[0].max() == 1 and maps[1].max() < 1
    )


def test_occlusion_does_not_depend_on_the_batch():
    net = nn.Sequential(conv(3, padding=1), nn.ReLU(), conv(3, stride=2, cin=4)).double()
    images = torch.rand(2, 3, 20, 20).double()
    a, b = (rf.occlusion(net, "2", images, top=2, patch=4, batch=batch) for batch in (3, 16))
    assert torch.allclose(a.maps, b.maps, equal_nan=True)


# ---------------------------------------------------------------- by top activations


def test_activation_of_a_blob():
    net = ones(nn.Sequential(conv(1, cout=2)))
    images = torch.zeros(3, 3, 20, 20)
    images[0, :, 4:10, 4:10] = 1.0
    images[1, :, 4:8, 4:8] = 0.5
    images[2, :, 4:8, 4:8] = 0.1  # below a fifth of the strongest
    fields = rf.activation(net, "0", images, top=3)
    assert fields.sizes.tolist() == pytest.approx(
        [(6 + 4 + 0) / 3] * 2
    ) and fields.by_image.tolist() == [6, 4, 0]
    assert rf.activation(net, "0", images, top=1).sizes.tolist() == [6, 6]
    assert fields.maps[0].sum() == 36


# ---------------------------------------------------------------- only what a patch can reach


NETS = {
    "chain": lambda: nn.Sequential(
        conv(3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        conv(5, 2, 2, cin=4),
        nn.MaxPool2d(3, 2, 1),
        nn.ReLU6(),
        conv(3, padding=2, dilation=2, cin=4),
    ),
    "strides": lambda: nn.Sequential(
        conv(1, stride=2),
        conv(2, stride=3, cin=4),
        conv(1, stride=2, cin=4),
        conv(3, padding=1, cin=4),
    ),
    "pads": lambda: nn.Sequential(
        nn.ZeroPad2d((1, 2, 0, 3)), conv(3, 2), nn.ConstantPad2d(2, 0.5), conv((5, 2), cin=4)
    ),
    "pools": lambda: nn.Sequential(
        conv(3, padding=1),
        nn.MaxPool2d(2, 1, 1),
        nn.AvgPool2d(3, 1, 1),
        nn.MaxPool2d(5, 1, 2),
        nn.AvgPool2d(2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ),
    "sums": lambda: Skip(),
    "scaled": lambda: Skip(scale=True),
    "in place": lambda: nn.Sequential(
        conv(3, padding=1), InPlace(), InPlace(whole=True), nn.MaxPool2d(2)
    ),
    "groups": lambda: nn.Sequential(
        conv(3, padding=1),
        nn.Conv2d(4, 4, 5, 2, 2, groups=4),
        nn.Hardswish(),
        nn.Upsample(scale_factor=2),
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(40, 52), (23, 31)])
def test_partial_passes_equal_whole_ones(name, size):
    torch.manual_seed(1)
    net = NETS[name]().double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            nn.init.normal_(module.bias)
    clean = torch.randn(1, 3, *size).double()
    corner = torch.tensor(
        [(y, x) for y in (0, 1, 7, size[0] - 4) for x in (0, 5, size[1] - 5, size[1] - 4)]
    )
    partial = Partial(clean, torch.randn(len(corner), 3, 4, 4).double(), corner)
    with torch.no_grad():
        expected, found = net(partial.whole()), net(partial)
        assert type(expected) is torch.Tensor and found.shape == expected.shape
        if isinstance(found, Partial):
            y, x = torch.randint(expected.shape[2], (4,)), torch.randint(expected.shape[3], (4,))
            assert torch.allclose(
                found.at(torch.arange(4), y, x),
                expected[:, torch.arange(4), y, x],
                rtol=0,
                atol=1e-12,
            )
            found = found.whole()
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_partial_passes_compute_less():
    """Windows stay as small as arithmetic allows: a 4x4 patch after a 3x3 convolution reaches 6x6, after one of stride 2 more, 4x4."""
    with torch.no_grad():
        x = Partial(
            torch.randn(1, 3, 64, 64), torch.randn(2, 3, 4, 4), torch.tensor([(10, 20), (31, 41)])
        )
        x = conv(3, padding=1)(x)
        assert x.inside.shape == (2, 4, 6, 6) and x.corner.tolist() == [[9, 19], [30, 40]]
        x = conv(3, 2, 1, cin=4)(x.relu())
        assert isinstance(x, Partial) and x.inside.shape == (2, 4, 4, 4)
        assert type(x.mean((2, 3))) is torch.Tensor


@pytest.mark.parametrize(
    "name", ["refinenet-lw-efficientnet_lite0", "refinenet-lw-rcu-mobilenet_v2"]
)
def test_partial_passes_of_the_networks(name):
    torch.manual_seed(0)
    net = build(name, 6).double().eval().to(memory_format=torch.channels_last)
    clean = torch.randn(1, 3, 97, 131).double()
    partial = Partial(clean, torch.randn(2, 3, 11, 11).double(), torch.tensor([(3, 60), (80, 117)]))
    with torch.no_grad():
        expected, found = net(partial.whole()), net(partial)
    assert type(found) is torch.Tensor and torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- bad input, and what is left behind


@pytest.mark.parametrize("method", [rf.gradient, rf.occlusion, rf.activation])
def test_bad_input_is_refused(method):
    net, images = ones(nn.Sequential(conv(3, padding=1), nn.ReLU())), torch.rand(2, 3, 16, 16)
    with pytest.raises(InputError, match="no images"):
        method(net, "1", [])
    with pytest.raises(InputError, match="several sizes: number 0 is 16x16, number 1 20x16"):
        method(net, "1", [images[0], torch.rand(3, 16, 20)])
    with pytest.raises(InputError, match="no layer '3'"):
        method(net, "3", images)
    with pytest.raises(InputError, match="units are 0 to 3, not 4"):
        method(net, "1", images, [4])
    net[0].weight.data[2] = -1
    with pytest.raises(InputError, match="unit 2 never activates on 2 images"):
        method(net, "1", images, [1, 2])
    net[0].weight.data[:] = -1
    with pytest.raises(InputError, match="no unit ever activates"):
        method(net, "1", images)


def test_dead_units_have_no_size():
    net = ones(nn.Sequential(conv(3, padding=1), nn.ReLU()))
    net[0].weight.data[2] = -1
    for method in (rf.occlusion, rf.activation):
        fields = method(net, "1", torch.rand(2, 3, 16, 16))
        assert fields.dead == [2] and fields.sizes.isnan().tolist() == [False, False, True, False]


def test_names_near_a_wrong_one_are_told():
    net = build("refinenet-lw-mobilenet_v2", 3)
    with pytest.raises(InputError, match=r"near it: .*decoder\.stages\.0\.crp\b"):
        feature_map(net, "decoder.stage.0.crp", torch.rand(1, 3, 33, 33))
    with pytest.raises(InputError, match="near it: encoder, decoder"):
        feature_map(net, "zzz", torch.rand(1, 3, 33, 33))
    with pytest.raises(InputError, match="no layer 'decoder:output'"):
        feature_map(net, "decoder:output", torch.rand(1, 3, 33, 33))
    with pytest.raises(InputError, match="gives no map"):
        feature_map(net, "encoder", torch.rand(1, 3, 33, 33))
    with pytest.raises(InputError, match="not called"):
        feature_map(net, "decoder.stages", torch.rand(1, 3, 33, 33))


def test_maps_before_and_after_a_layer_come_from_one_pass():
    net, x = nn.Sequential(conv(1), nn.ReLU(), conv(3, cin=4)), torch.randn(2, 3, 9, 9)
    calls = []
    net[2].register_forward_pre_hook(lambda *_: calls.append(1))
    before, after = feature_maps(net, ["1:input", "1"], x)
    assert torch.equal(after, before.relu()) and torch.equal(before, net[0](x)) and not calls


def test_the_network_is_left_as_it_was():
    net = nn.Sequential(conv(3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).train()
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    images = torch.rand(2, 3, 16, 16)
    (
        rf.occlusion(net, "2", images, patch=4),
        rf.gradient(net, "2", images),
        rf.activation(net, "2", images),
        rf.theoretical(net, "2"),
    )
    assert [m.training for m in net] == [True, False, True] and net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert (
        not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        and net[0].weight.grad is None
    )


def test_images_may_come_one_by_one():
    assert stacked([torch.rand(1, 3, 4, 5), torch.rand(3, 4, 5)]).shape == (2, 3, 4, 5)

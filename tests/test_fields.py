"""Fields of toy networks that are known exactly."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
import torch.nn.functional as F

from rflw import InputError, build
from rflw.data.labels import LABELS
from rflw.data.synthetic import Scenes
from rflw_study import fields
from rflw_study.layers import feature_maps
from rflw_study.reach import Span, theoretical

torch.set_num_threads(1)


def ones(*modules: nn.Module) -> nn.Module:
    """All weights 1, no bias: every pixel of a field counts the same."""
    net = nn.Sequential(*modules)
    for p in net.parameters():
        nn.init.ones_(p) if p.ndim > 1 else nn.init.zeros_(p)
    return net.eval()


def conv(kernel, stride=1, padding=0, dilation=1, cin=3, cout=4):
    return nn.Conv2d(cin, cout, kernel, stride, padding, dilation, bias=False)


class Skip(nn.Module):
    """A sum of a 3x3 branch and the input; that halved, resized back and added again.

    scale: multiplied by a global mean.
    """

    def __init__(self, scale=False, corners=True):
        super().__init__()
        self.branch, self.down = conv(3, padding=1, cin=4), conv(2, stride=2, cin=4)
        self.stem, self.scale, self.corners = conv(1), scale, corners

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branch(x.relu())
        small, size = self.down(x), x.shape[-2:]
        x = x + F.interpolate(small, size, mode="bilinear", align_corners=self.corners)
        x.add_(1.0)
        return x * x.mean((2, 3), keepdim=True).sigmoid() if self.scale else x


class Few(Scenes):
    """Corners of the first scenes of the embedded set."""

    def __init__(self, number: int = 3, rows: int = 96, columns: int = 128, split="val"):
        super().__init__(split)
        self.ids, self.corner = self.ids[:number], (slice(rows), slice(columns))

    def __getitem__(self, index):
        return tuple(part[self.corner] for part in super().__getitem__(index))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return build("refinenet-lw-efficientnet_lite0", 6).eval()


def dead(form="refinenet-lw"):
    """A network in which nothing gets through the first stage of the decoder."""
    torch.manual_seed(4)
    net = build(f"{form}-efficientnet_lite0", 6).eval()
    for module in net.decoder.stages[0].reduce[:2]:
        module.weight.data.zero_()
    return net


@pytest.mark.parametrize(
    ("net", "rows", "columns"),
    [
        ([conv(3)], 3, 3),
        ([conv(3), conv(3, cin=4)], 5, 5),
        ([conv((1, 5))], 1, 5),
        ([conv(3, dilation=2)], 5, 5),
        ([conv(3, stride=2), conv(3, cin=4)], 3 + 2 * 2, 7),  # a step of the second is two pixels
        ([conv(3, stride=2), nn.MaxPool2d(5, 1, 2), nn.ReLU(), nn.BatchNorm2d(4)], 3 + 4 * 2, 11),
        ([conv(1), nn.AvgPool2d(4, 2), nn.AvgPool2d(4)], 4 + 3 * 2, 10),
        ([nn.ZeroPad2d(3), conv(7)], 7, 7),
        ([conv(3, stride=2), nn.Upsample(scale_factor=2, mode="nearest")], 3, 3),
    ],
)
def test_theory_of_chains(net, rows, columns):
    assert theoretical(nn.Sequential(*net), str(len(net) - 1)) == (rows, columns)


def test_theory_of_a_global_mean_and_a_slice():
    net = nn.Sequential(conv(3), nn.AdaptiveAvgPool2d(1))
    assert theoretical(net, "1") == (math.inf, math.inf)
    assert theoretical(net, "1", (20, 31)) == (20, 31)
    assert theoretical(Skip(scale=True), "branch", (20, 30)) == (3, 3)
    assert theoretical(nn.Sequential(conv(9, padding=4)), "0", (5, 40)) == (5, 9)
    span = Span.of_image((20, 20))[:, :, 3:, ::2]
    assert span.first[0][:2].tolist() == [3, 4] and span.last[1][:3].tolist() == [0, 2, 4]
    net = nn.Sequential(conv(2, stride=2), nn.Upsample(scale_factor=2, mode="bicubic"))
    with pytest.raises(InputError, match="bicubic"):
        theoretical(net, "1")


@pytest.mark.parametrize(("corners", "size"), [(True, (16, 22)), (False, (13, 17))])
def test_theory_is_what_a_gradient_finds(corners, size):
    """First and last pixel that a gradient of a network with weights of 1 reaches."""
    net = ones(Skip(corners=corners))
    x = torch.ones(1, 3, *size, requires_grad=True)
    span, out = net(Span.of_image(size)), net(x)
    assert span.shape == out.shape
    for place in [(0, 0), (3, 5), (size[0] // 2, size[1] // 2), (size[0] - 1, size[1] - 1)]:
        grad = torch.autograd.grad(out[0, 0][place], x, retain_graph=True)[0].abs().sum((0, 1))
        for axis, at in enumerate(place):
            seen = torch.nonzero(grad.sum(1 - axis)).flatten()
            assert (span.first[axis][at], span.last[axis][at]) == (seen[0], seen[-1])


def test_gradient_of_several_units_and_images():
    net = ones(conv(7, padding=3))
    for unit, side in enumerate((1, 3, 5, 7)):  # each channel another box
        edge = (7 - side) // 2
        net[0].weight.data[unit] = F.pad(torch.ones(side, side), [edge] * 4)
    result = fields.gradient(net, "0", torch.rand(5, 3, 15, 15), [3, 0, 2], batch=2)
    assert result.maps[2].sum() == 25 and (result.maps[2, 5:10, 5:10] == 1).all()
    assert result.units == [3, 0, 2] and result.sizes.tolist() == [7, 1, 5]
    assert result.by_image.tolist() == [7] * 5


@pytest.mark.parametrize(
    ("kernel", "patch", "stride", "side"), [(7, 1, 1, 7), (3, 5, 1, 3 + 5 - 1), (1, 6, 3, 6)]
)
def test_occlusion_finds_the_field_widened_by_the_patch(kernel, patch, stride, side):
    net = ones(conv(kernel, padding=kernel // 2))
    images = torch.rand(1, 3, 30, 30)
    images[0, :, 15, 14] += 2  # the strongest place, away from borders
    (result,) = fields.occlusion(net, ["0"], images, patch=patch, stride=stride, cut=1e-4)
    assert result.cell == stride and result.sizes.tolist() == [side] * 4
    if patch == 1:  # wherever the unit was strongest, its field is in the middle of the map
        assert (result.maps[0][29 - 3 : 29 + 4, 29 - 3 : 29 + 4] > 1e-4).all()


def test_occlusion_does_not_depend_on_the_batch_nor_on_other_layers():
    net = nn.Sequential(conv(3, padding=1), nn.ReLU(), conv(3, stride=2, cin=4)).double()
    images = torch.rand(3, 3, 20, 20).double() * torch.tensor([1, 3, 2]).view(3, 1, 1, 1)
    (a,) = fields.occlusion(net, ["2"], images, top=1, patch=4, batch=3)
    _, b = fields.occlusion(net, ["0", "2"], images, top=1, patch=4)
    (chosen,) = fields.strongest(net, ["2"], images)
    best = {*chosen.best(1).flatten().tolist()}  # on no other image is anything measured
    assert a.by_image.isnan().tolist() == [i not in best for i in range(3)] and len(best) < 3
    assert torch.allclose(a.maps, b.maps, equal_nan=True)
    assert torch.allclose(a.sizes, b.sizes, equal_nan=True)


def test_activation_of_a_blob():
    net = ones(conv(1, cout=2))
    images = torch.zeros(3, 3, 20, 20)
    images[0, :, 4:10, 4:10] = 1.0
    images[1, :, 4:8, 4:8] = 0.5
    images[2, :, 4:8, 4:8] = 0.1  # below a fifth of the strongest
    result = fields.activation(net, "0", images, top=3)
    assert result.sizes.tolist() == pytest.approx([(6 + 4 + 0) / 3] * 2)
    assert result.by_image.tolist() == [6, 4, 0] and result.maps[0].sum() == 36
    assert fields.activation(net, "0", images, top=1).sizes.tolist() == [6, 6]


def test_dead_units_have_no_size_and_the_network_is_left_as_it_was():
    net = ones(conv(3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).train()
    net[0].weight.data[2], net[1].weight.data[:] = -1, 1
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    images = torch.rand(2, 3, 16, 16)
    (occluded,) = fields.occlusion(net, ["2"], images, patch=4)
    for result in (occluded, fields.activation(net, "2", images)):
        assert result.sizes.isnan().tolist() == [False, False, True, False]
    fields.gradient(net, "2", images, [0])
    theoretical(net, "2")
    assert [m.training for m in net] == [True, False, True] and net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert net[0].weight.grad is None


def test_maps_before_and_after_a_layer_come_from_one_pass():
    net, x = nn.Sequential(conv(1), nn.ReLU(), conv(3, cin=4)), torch.randn(2, 3, 9, 9)
    calls = []
    net[2].register_forward_pre_hook(lambda *_: calls.append(1))
    before, after = feature_maps(net, ["1:input", "1"], x)
    assert torch.equal(after, before.relu()) and torch.equal(before, net[0](x)) and not calls


def test_images_side_by_side_and_resized(model):
    single = fields.tensors(model, Few(9), [0, 1, 2, 3])
    tiled = fields.tensors(model, Few(9), range(9), tile=2)
    assert single.shape == (4, 3, 96, 128) and tiled.shape == (2, 3, 192, 256)
    assert torch.equal(tiled[0, :, :96, 128:], single[1])
    assert torch.equal(tiled[0, :, 96:, :128], single[2])
    assert fields.tensors(model, Few(1), [0], size=(48, 64)).shape == (1, 3, 48, 64)
    uneven = [(np.zeros((40, width, 3), np.uint8), None) for width in (50, 60)]
    for said, *wrong in (
        ("4x4", Few(9), range(9), None, 4),
        ("size 20x64", Few(1), [0], (20, 64)),
        ("several sizes: 50x40, 60x40", uneven, [0, 1]),
    ):
        with pytest.raises(InputError, match=said):
            fields.tensors(model, *wrong)


@pytest.mark.parametrize(
    ("method", "options"),
    [("gradient", {"units": 3}), ("activation", {}), ("occlusion", {"patch": 40, "stride": 50})],
)
def test_fields_of_a_network(model, method, options):
    layers = {place: fields.PLACES[place] for place in ("before CRP", "last layer")}
    result, measured = fields.erf(model, Few(), method, layers, images=2, top=1, **options)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["method"], result["size"], result["images"]) == (method, [96, 128], 2)
    before, last = (result["layers"][place] for place in layers)
    assert last["layer"] == "decoder.classifier"
    assert len(last["sides"]) == (3 if method == "gradient" else 6 - last["dead"])
    assert before["within"] == [96, 128] and before["theoretical"][0] > 500
    assert list(before["cuts"]) == ["0.05", "0.1", "0.2", "0.5"]
    assert before["side"]["n"] == len(before["sides"]) == len(before["units"])
    assert before["side"]["mean"] == pytest.approx(np.mean(before["sides"]), abs=0.1)
    rows = fields.rows_of_figure(model, Few(), result, measured, 2, top=1)
    assert rows[0][0].startswith("before CRP\nunit ")
    assert {row[0] for row in rows[1:]} < {*LABELS["embedded"].classes}
    for image, relative in (pair for row in rows for pair in row[4]):
        assert image.shape == (96, 128, 3) and relative.shape == (96, 128)
        assert relative.max() == pytest.approx(1, abs=0.2)  # upsampled


def test_bad_settings_are_refused(model):
    for options, message in (
        ({"units": 0}, "0 units"),
        ({"tile": 0}, "0x0 tiles"),
        ({"cut": 1.0}, "cut 1"),
        ({"method": "occlusion", "patch": 97}, "patch 97"),
    ):
        with pytest.raises(InputError, match=message):
            fields.erf(model, Few(1), images=1, **options)


def test_a_dead_layer_is_recorded_without_a_size():
    net, places = dead(), ("after CRP", "after the first sum")
    layers = {place: fields.PLACES[place] for place in places}
    for method in ("gradient", "activation"):
        result, measured = fields.erf(net, Few(1), method, layers, images=1, units=2, top=1)
        shut, living = (result["layers"][place] for place in places)
        assert shut["dead"] == 256 and "side" not in shut and list(measured) == [places[1]]
        assert living["dead"] < 256 and living["side"]["mean"] > 0
    assert fields.top_images(net, Few(1), layers[places[0]], 0, 1) == []

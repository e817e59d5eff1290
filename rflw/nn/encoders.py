"""Encoders: one contract for every classification network.

An encoder maps (B, 3, H, W) to four levels, fine to coarse, at strides 4, 8, 16 and 32; a level is
a tuple of one or more taps (B, C, ceil(H/stride), ceil(W/stride)). It carries `channels` (the same
nesting, numbers of channels), `mean` and `std` (of the images that it was trained on, scaled to [0,
1]), `wiring` (which wiring of the decoder its kind gets: a key of `refinenet.WIRINGS`) and `origin`
(of its weights, see `rflw.nn.pretrained`; None: random).

Mobile networks hand over the output of every stage, so strides 16 and 32 have two taps: this is
what the authors' MobileNet-v2 does. For NASNet-Mobile it is our choice, which the multiply-adds of
Table 3 allow but do not settle.
"""

from functools import partial
from math import ceil

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from rflw.errors import InputError, choose, why
from rflw.nn import pretrained
from rflw.nn.nasnet import NASNetMobile

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class ResNet(nn.Module):
    """torchvision's ResNet without its pooling and classifier; one tap a level."""

    channels = ((256,), (512,), (1024,), (2048,))
    mean, std, wiring, origin = IMAGENET_MEAN, IMAGENET_STD, "resnet", None

    def __init__(self, depth: int):
        super().__init__()
        from torchvision import models  # costs seconds: only who builds a ResNet pays them

        net = models.get_model(f"resnet{depth}")
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4

    def forward(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        levels = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            levels.append((x,))
        return levels


class ConvBN(nn.Module):
    """Convolution, batch norm and, unless `linear`, ReLU6.

    `same` pads stride-2 convolutions as TensorFlow does.
    """

    def __init__(self, cin, cout, kernel=1, stride=1, groups=1, linear=False, same=False):
        super().__init__()
        self.same = same and stride == 2
        padding = 0 if self.same else kernel // 2
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=1e-3 if same else 1e-5)
        self.act = nn.Identity() if linear else nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:  # even sizes get a row that no window reaches: simple sizes for compilers
            k, (h, w) = self.conv.kernel_size[0], x.shape[-2:]
            top, left = (k - 2 + h % 2) // 2, (k - 2 + w % 2) // 2
            x = F.pad(x, (left, k - 1 - left, top, k - 1 - top))
        if self.conv.groups > 1 and x.device.type == "cpu" and torch.is_grad_enabled():
            # oneDNN's bf16 gradients of depthwise convolutions take much longer than those in fp32
            with torch.autocast("cpu", enabled=False):
                return self.act(self.bn(self.conv(x.to(self.conv.weight.dtype))))
        return self.act(self.bn(self.conv(x)))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1 without activation; plus the input where shapes allow."""

    def __init__(self, cin, cout, kernel, stride, expand, same):
        super().__init__()
        mid = cin * (expand or 1)
        self.expand = ConvBN(cin, mid, same=same) if expand else nn.Identity()
        self.depthwise = ConvBN(mid, mid, kernel, stride, groups=mid, same=same)
        self.project = ConvBN(mid, cout, linear=True, same=same)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


# (expansion, or 0 for no such convolution; kernel; stride; channels; repeats) of every stage. The
# authors' MobileNet-v2 has an expansion 32 -> 32 in its first block that the MobileNet-v2 paper
# leaves out.
MOBILENET_V2 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 3, 2, 32, 3),
    (6, 3, 2, 64, 4),
    (6, 3, 1, 96, 3),
    (6, 3, 2, 160, 3),
    (6, 3, 1, 320, 1),
)
EFFICIENTNET_LITE0 = (
    (0, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class MobileNet(nn.Module):
    """Inverted residuals with ReLU6: MobileNet-v2 and EfficientNet-Lite.

    Taps after every stage from stride 4 on.

    Written here although torchvision and timm have them: the authors' MobileNet-v2 is not
    torchvision's, and the two libraries take longer to import than a whole prediction may. The
    tests hold both to the libraries' outputs.
    """

    origin = None

    def __init__(self, stages, same: bool, mean, std, wiring: str):
        super().__init__()
        self.mean, self.std, self.wiring = mean, std, wiring
        self.stem = ConvBN(3, 32, 3, 2, same=same)
        self.stages, levels, cin = nn.ModuleList(), [], 32
        for expand, kernel, stride, cout, repeats in stages:
            blocks = []
            for step in (stride, *[1] * (repeats - 1)):
                blocks.append(InvertedResidual(cin, cout, kernel, step, expand, same))
                cin = cout
            self.stages.append(nn.Sequential(*blocks))
            if stride == 2:
                levels.append(())
            if levels:
                levels[-1] += (cout,)
        self.channels = tuple(levels)

    def forward(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        x, taps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        return group(taps[-sum(map(len, self.channels)) :], self.channels)


class NASNet(nn.Module):
    """NASNet-A Mobile; taps of both kinds of cell, as MobileNet-v2's of every stage."""

    channels = ((44,), (88, 264), (352, 528), (704, 1056))
    mean, std, wiring, origin = HALF, HALF, "mobile", None

    def __init__(self):
        super().__init__()
        self.net = NASNetMobile()

    def forward(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        return group(self.net(x), self.channels)


class Timm(nn.Module):
    """Any network of timm that gives features at strides 4 to 32; one tap a level."""

    wiring, origin = "resnet", None

    def __init__(self, name: str, weights: str | None):
        super().__init__()
        import timm

        # timm would look elsewhere for some other names: in folders and on a server
        if not timm.is_model(name):
            raise InputError(f"timm:{name}: timm has no network of this name")
        loading, origin = pretrained.timm_options(name) if weights else ({}, None)

        def create(**options):
            try:  # transformers that else take images of one size only
                return timm.create_model(name, features_only=True, strict_img_size=False, **options)
            except TypeError:
                return timm.create_model(name, features_only=True, **options)

        try:
            strides = create().feature_info.reduction()
            taken = {"out_indices": [strides.index(s) for s in (4, 8, 16, 32)]}
            net = create(**taken)
        except (OSError, RuntimeError, ValueError, AttributeError, TypeError) as e:
            raise InputError(f"timm:{name}: has no features at strides 4, 8, 16, 32 ({e})") from e
        if weights:
            try:
                net = create(**taken, **loading)
            except Exception as e:  # each library that timm downloads with has errors of its own
                raise pretrained.not_found(f"timm:{name}", f"no download ({why(e)})") from e
            net.pretrained_cfg.pop("state_dict", None)  # they would be held twice
            self.origin = origin or pretrained.timm_origin(net.pretrained_cfg)
        self.name, self.net = name, net
        self.channels = tuple((c,) for c in net.feature_info.channels())
        self.mean, self.std = net.default_cfg["mean"], net.default_cfg["std"]
        self.channels_last_maps = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        h, w = x.shape[-2:]
        try:
            taps = self.net(x)
        except (AssertionError, RuntimeError):  # some take multiples of their strides or windows
            try:
                taps = self.net(F.pad(x, (0, -w % 64, 0, -h % 64)))
            except (AssertionError, RuntimeError) as e:
                raise InputError(f"timm:{self.name}: {h}x{w} pixels do not fit ({why(e)})") from e
        levels = []
        for tap, stride in zip(taps, (4, 8, 16, 32)):
            tap = tap.permute(0, 3, 1, 2) if self.channels_last_maps else tap
            size = (-(-h // stride), -(-w // stride))
            tap = tap[..., : size[0], : size[1]]  # without what was added above
            if tap.shape[-2:] != size:  # networks that pad otherwise; the sizes are a promise
                tap = F.interpolate(tap, size=size, mode="bilinear", align_corners=False)
            levels.append((tap,))
        return levels


def group(taps: list[Tensor], channels) -> list[tuple[Tensor, ...]]:
    """A flat list of taps into levels, nested as `channels` is."""
    taps = iter(taps)
    return [tuple(next(taps) for _ in level) for level in channels]


def lite(width: float, depth: float) -> MobileNet:
    """EfficientNet-Lite: channels to multiples of 8, repeats up but in the first and last stage."""

    def channels(c):
        rounded = int(c * width + 4) // 8 * 8
        return rounded if rounded >= 0.9 * c * width else rounded + 8

    ends = EFFICIENTNET_LITE0[0], EFFICIENTNET_LITE0[-1]
    stages = [
        (*stage[:3], channels(stage[3]), stage[4] if stage in ends else ceil(stage[4] * depth))
        for stage in EFFICIENTNET_LITE0
    ]
    return MobileNet(stages, same=True, mean=HALF, std=HALF, wiring="lite")


@torch.no_grad()
def load_mobile(net: MobileNet, name: str) -> dict:
    """Published weights in place -> their origin.

    The extra expansion of the authors' MobileNet-v2 becomes the identity: what it gets is the
    output of a ReLU6, so identity, neutral batch norm and ReLU6 change nothing.
    """
    first = net.stages[0][0]
    extra, first.expand = first.expand, nn.Identity()
    origin = pretrained.load(net, name, pretrained.mobile_maps(net.stages))
    first.expand = extra
    if isinstance(extra, ConvBN):
        nn.init.dirac_(extra.conv.weight)
        extra.bn.weight.fill_((1 + extra.bn.eps) ** 0.5)
    return origin


ENCODERS = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (50, 101, 152)},
    "mobilenet_v2": lambda: MobileNet(
        MOBILENET_V2, same=False, mean=IMAGENET_MEAN, std=IMAGENET_STD, wiring="mobile"
    ),
    "nasnet_mobile": NASNet,
    "efficientnet_lite0": lambda: lite(1.0, 1.0),
    "efficientnet_lite1": lambda: lite(1.0, 1.1),
    "efficientnet_lite2": lambda: lite(1.1, 1.2),
}


def make_encoder(name: str, weights: str | None = None) -> nn.Module:
    """`weights`: None or "imagenet".

    Raises InputError for an unknown name or weights that cannot be had.
    """
    choose("weights", weights, (None, "imagenet"))
    if name.startswith("timm:"):
        return Timm(name.removeprefix("timm:"), weights)
    choose("encoder", name, (*ENCODERS, "timm:<name>"))
    net = ENCODERS[name]()
    if weights:
        load = load_mobile if isinstance(net, MobileNet) else pretrained.load
        net.origin = load(getattr(net, "net", net), name)
    return net

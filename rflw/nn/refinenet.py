"""RefineNet and Light-Weight RefineNet: encoder + decoder, and `build`, which makes them by name.

Letters in shape comments: B batch, C channels, H and W rows and columns, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral

from torch import Tensor, nn

from rflw.errors import InputError
from rflw.nn.blocks import CRP, RCU, BottleneckRCU, conv, resize
from rflw.nn.encoders import ENCODERS, make_encoder

MAX_CLASSES = 65536  # more is a slip of the keyboard, and would not fit into memory
MIN_SIZE = 33  # pixels; the stride-32 map of anything smaller is a single pixel


@dataclass(frozen=True)
class Form:
    """What the decoder is made of."""

    kernel: int  # of all its convolutions but the classifier and those inside an RCU
    rcu: Callable[[int], nn.Module] | None  # channels -> unit; two before fusion, three after CRP
    crp: Callable[[int, int], nn.Module] | None = CRP  # channels, kernel -> pooling chain
    levels: int = 4  # how many levels are used, from the coarsest


# The paper's three, by the prefix of the model's name, ...
FORMS = {
    "refinenet": Form(kernel=3, rcu=RCU),
    "refinenet-lw-rcu": Form(kernel=1, rcu=BottleneckRCU),
    "refinenet-lw": Form(kernel=1, rcu=None),
}
# ... and its ablations: "dropping RCU blocks in the original" (3.3), CRP as "the main driving
# force" (5.2), and "the skip-design structure" (5.1) as reasons for the accuracy.
ABLATIONS = {
    "refinenet-norcu": Form(kernel=3, rcu=None),
    "refinenet-lw-nocrp": Form(kernel=1, rcu=None, crp=None),
    "refinenet-lw-crp-convs": Form(kernel=1, rcu=None, crp=partial(CRP, pools=False)),
    "refinenet-lw-crp-pools": Form(kernel=1, rcu=None, crp=partial(CRP, convs=False)),
    "refinenet-lw-top2": Form(kernel=1, rcu=None, levels=2),
}


@dataclass(frozen=True)
class Wiring:
    """What decoders of different encoders differ in, whatever the form."""

    top: int  # channels on the stride-32 path
    adapt: bool  # in LW: a second 1x1 between reduction and sum
    relu6: bool
    dropout: float  # on the stride-16 and stride-32 taps, training only


RESNET = Wiring(top=512, adapt=True, relu6=False, dropout=0.5)  # the authors'
MOBILE = Wiring(top=256, adapt=False, relu6=True, dropout=0.0)  # the authors', of MobileNet-v2
# Ours, for EfficientNet-Lite, which the paper has not: as narrow as MOBILE, with the fusion block
# of Figure 1, and ReLU, since features of these encoders often exceed the 6 at which ReLU6 cuts
LITE = Wiring(top=256, adapt=True, relu6=False, dropout=0.0)
WIRINGS = {"resnet": RESNET, "mobile": MOBILE, "lite": LITE}
WIDTH = 256  # channels everywhere but on the stride-32 path of ResNets


class Stage(nn.Module):
    """One level of the decoder: reduce its taps, add the coarser path, refine.

    taps [(B, C_i, H, W)] and path (B, 256, H', W') or None -> (B, 256, H, W), or (B, width, H, W)
    without `fuse`.
    """

    def __init__(
        self,
        taps: tuple[int, ...],
        width: int,
        form: Form,
        wiring: Wiring,
        first: bool,
        last: bool,
        dropout: float,
    ):
        super().__init__()
        before, after = (2, 3) if form.rcu else (0, 0)
        self.dropout = nn.Dropout(dropout)
        self.reduce = nn.ModuleList(conv(c, width, form.kernel) for c in taps)
        self.rcu_in = nn.Sequential(*(form.rcu(width) for _ in range(before)))
        # the fusion block of Figure 1(d, g): a convolution on either path, then the sum
        adapt = not first and (wiring.adapt or form.kernel == 3)
        self.adapt = conv(width, width, form.kernel) if adapt else nn.Identity()
        self.act = nn.ReLU6() if wiring.relu6 else nn.ReLU()
        self.crp = form.crp(width, form.kernel) if form.crp else nn.Identity()
        self.rcu_out = nn.Sequential(*(form.rcu(width) for _ in range(after)))
        self.fuse = nn.Identity() if last else conv(width, WIDTH, form.kernel)

    def forward(self, taps: tuple[Tensor, ...], path: Tensor | None) -> Tensor:
        maps = [reduce(self.dropout(tap)) for reduce, tap in zip(self.reduce, taps)]
        x = self.adapt(self.rcu_in(sum(maps[1:], maps[0])))  # (B, width, H, W)
        if path is not None:
            x = x + resize(path, x.shape[-2:])
        return self.fuse(self.rcu_out(self.crp(self.act(x))))


class Decoder(nn.Module):
    """Levels of taps, fine to coarse -> logits (B, K, H, W) at the finest level used."""

    def __init__(
        self, channels: tuple[tuple[int, ...], ...], num_classes: int, form: Form, wiring: Wiring
    ):
        super().__init__()
        used = tuple(reversed(channels))[: form.levels]  # coarse to fine
        self.stages = nn.ModuleList()
        for i, taps in enumerate(used):
            width, dropout = wiring.top if i == 0 else WIDTH, wiring.dropout if i < 2 else 0.0
            place = {"first": i == 0, "last": i == len(used) - 1}
            self.stages.append(Stage(taps, width, form, wiring, **place, dropout=dropout))
        # only the original decoder drops features before its classifier
        self.dropout = nn.Dropout(wiring.dropout if form.kernel == 3 else 0.0)
        self.classifier = conv(WIDTH, num_classes, 3, bias=True)

    def forward(self, levels: list[tuple[Tensor, ...]]) -> Tensor:
        path = None
        for stage, taps in zip(self.stages, reversed(levels)):
            path = stage(taps, path)
        return self.classifier(self.dropout(path))


class RefineNet(nn.Module):
    """(B, 3, H, W) normalised by `mean` and `std` -> logits (B, K, ceil(H/4), ceil(W/4)).

    H, W >= 33.
    """

    def __init__(self, name: str, encoder: nn.Module, num_classes: int, form: Form):
        super().__init__()
        self.name, self.num_classes = name, num_classes
        self.mean, self.std = tuple(encoder.mean), tuple(encoder.std)
        self.encoder = encoder
        self.decoder = Decoder(encoder.channels, num_classes, form, WIRINGS[encoder.wiring])
        self.coarse = form.levels < 4

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        if h < MIN_SIZE or w < MIN_SIZE:
            raise InputError(f"input of {h}x{w} pixels: the smallest is {MIN_SIZE}x{MIN_SIZE}")
        logits = self.decoder(self.encoder(x))
        return resize(logits, (-(-h // 4), -(-w // 4))) if self.coarse else logits


def init_decoder(decoder: Decoder, how: str) -> None:
    """Initialise the decoder, in place.

    "default": PyTorch's, as in the authors' scripts; nothing is changed. "normal": normal with
    deviation 0.01, biases 0, as in the authors' README.
    """
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d) and how == "normal":
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# Every network whose parameters or operations the paper gives.
PAPER = (
    "refinenet-lw-mobilenet_v2",
    "refinenet-lw-nasnet_mobile",
    "refinenet-lw-rcu-resnet101",
    *(f"refinenet-lw-resnet{depth}" for depth in (101, 152, 50)),
    *(f"refinenet-resnet{depth}" for depth in (101, 152, 50)),
)


def list_models(ablations: bool = False) -> list[str]:
    """Names for `build`, sorted: the paper's forms on every named encoder.

    Args:
        ablations: also list the forms of the ablations.
    """
    forms = FORMS | ABLATIONS if ablations else FORMS
    return sorted(f"{form}-{encoder}" for form in forms for encoder in ENCODERS)


def build(name: str, num_classes: int = 21, weights: str | None = None) -> RefineNet:
    """A network by name.

    Args:
        name: e.g. "refinenet-lw-resnet50" or "refinenet-lw-timm:convnext_tiny".
        num_classes: K of the logits.
        weights: None (random) or "imagenet" (the encoder's).

    Returns:
        The network in training mode, on the CPU.

    Raises:
        InputError: for an unknown name, a class count out of range, or weights that cannot be had.
    """
    forms = FORMS | ABLATIONS
    prefix = max((f for f in forms if name.startswith(f + "-")), key=len, default="")
    if not prefix:
        raise InputError(
            f"unknown model {name!r}: a form ({', '.join(sorted(forms))}), a dash and an encoder "
            f"({', '.join(sorted(ENCODERS))}, timm:<name>)"
        )
    if not isinstance(num_classes, Integral) or not 1 <= num_classes <= MAX_CLASSES:
        raise InputError(
            f"{name}: the number of classes is 1 to {MAX_CLASSES}, not {num_classes!r}"
        )
    encoder = make_encoder(name.removeprefix(f"{prefix}-"), weights)
    return RefineNet(name, encoder, int(num_classes), forms[prefix])

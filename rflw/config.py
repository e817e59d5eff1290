"""Recipes: everything that a training run depends on, as frozen dataclasses. No torch.

A recipe says what to train on what and how; a seed makes a run of it. What differs from a default is written where the
recipe is, so a recipe reads as its difference from the authors' practice.
"""

from dataclasses import dataclass, fields, replace
import hashlib
import json
from math import floor, isfinite
from types import UnionType
from typing import get_args, get_origin

from rflw.errors import InputError

SCHEDULES = ("constant", "poly", "halve", "multistep")
INITS = ("default", "lecun", "normal")
OPTIMISERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Stage:
    """Part of a run: a data set, a number of epochs, the learning rates and how they fall."""

    data: str  # data set name
    epochs: int
    encoder_lr: float
    decoder_lr: float
    split: str = "train"
    schedule: str = "constant"
    milestones: tuple[
        int, ...
    ] = ()  # epochs of this stage at which "halve" and "multistep" multiply the rates ...
    gamma: float = 0.5  # ... by this
    power: float = 0.9  # of "poly"
    warmup: int = 0  # steps over which the rates rise in a straight line: without it, AdamW's first steps kill units

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise InputError(f"unknown schedule {self.schedule!r}: one of {', '.join(SCHEDULES)}")
        if self.epochs < 1:
            raise InputError(f"a stage of {self.epochs} epochs")
        if self.schedule == "halve" and self.gamma != 0.5:
            raise InputError(f"schedule 'halve' with gamma {self.gamma}: 'multistep' takes any")
        if self.warmup < 0:
            raise InputError(f"a warm-up of {self.warmup} steps")

    def lr_factor(self, step: int, steps_per_epoch: int) -> float:
        """What the rates are multiplied by at `step` of this stage: poly falls at every step, the others by epoch."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "constant":
            return rise
        if self.schedule == "poly":
            return rise * max(0.0, 1 - step / (self.epochs * steps_per_epoch)) ** self.power
        epoch = floor(step / steps_per_epoch)
        return rise * self.gamma ** sum(epoch >= m for m in self.milestones)


@dataclass(frozen=True)
class Recipe:
    """A training run but for its seed."""

    name: str
    model: str
    stages: tuple[Stage, ...]
    crop: tuple[int, int]  # rows, columns
    weights: str | None = "imagenet"  # of the encoder
    init: str = ""  # checkpoint that training begins with instead, see `rflw.training.begin_with`
    decoder_init: str = (
        "default"  # what the decoder's weights are at first, see `refinenet.init_decoder`
    )
    batch: int = 8
    scale: tuple[float, float] = (0.5, 2.0)
    min_side: int = 0  # pixels that the shorter side keeps when scaled
    flip: bool = True
    jitter: float = 0.0
    optimiser: str = "sgd"  # or "adamw"
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-5
    clip: float = 5.0  # largest norm of the gradient; 0 leaves it alone
    ema: float = 0.0  # decay of the running mean of weights that is evaluated and kept; 0 for none
    balance: float = (
        0.0  # exponent of 1 / frequency in the loss's class weights; 0 weighs all pixels alike
    )
    frozen_bn: bool = True  # keep batch norm statistics; False where no trained ones exist
    restart: bool = False  # make the optimiser anew, without momentum, at each stage
    precision: str = (
        "auto"  # "fp32", "bf16", "fp16"; "auto": bf16 where the device is faster with it
    )
    val_every: int = 5  # epochs
    validation: str = "val"  # split of the last stage's data set
    val_scale: float = 1.0  # at which the network sees validation images; scores are of the labels at their own size
    test: str = ""  # split that is scored once, with the last weights
    note: str = ""  # why it is so

    def __post_init__(self):
        if not self.stages:
            raise InputError(f"{self.name}: no stages")
        if self.decoder_init not in INITS:
            raise InputError(
                f"unknown decoder_init {self.decoder_init!r}: one of {', '.join(INITS)}"
            )
        if self.optimiser not in OPTIMISERS:
            raise InputError(
                f"unknown optimiser {self.optimiser!r}: one of {', '.join(OPTIMISERS)}"
            )

    @property
    def data(self) -> str:
        """The data set whose classes the network has and which validates it: the last stage's."""
        return self.stages[-1].data

    def on(self, data: str) -> "Recipe":
        """The same on another data set, or on one's own by its folder."""
        return replace(self, stages=tuple(replace(stage, data=data) for stage in self.stages))

    def hash(self) -> str:
        """First 12 digits of the SHA-256 of all settings but name and note. Those at their default are left out, so that
        a setting that is added later changes no hash."""
        settings = _unusual(self) | {"stages": [_unusual(stage) for stage in self.stages]}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def of(cls, config: dict) -> "Recipe":
        """The recipe that a record holds as its `config`. Raises InputError for settings that no recipe has."""

        def typed(kind, settings):
            settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
            for f in fields(kind):
                if f.name in settings and not _is_of(settings[f.name], f.type):
                    raise TypeError(
                        f"{f.name} is {settings[f.name]!r}, which is no {getattr(f.type, '__name__', f.type)}"
                    )
            return kind(**settings)

        try:
            return typed(
                cls, config | {"stages": tuple(typed(Stage, stage) for stage in config["stages"])}
            )
        except (TypeError, KeyError, AttributeError) as e:
            raise InputError(
                f"not a recipe: {' '.join(str(e).split())}"
            ) from e  # it may name a setting of many lines

    def with_epochs(self, epochs: int) -> "Recipe":
        """The same with each stage's epochs scaled so that the last has `epochs`."""
        if epochs < 1:
            raise InputError(f"{self.name}: {epochs} epochs")
        ratio = epochs / self.stages[-1].epochs
        stages = tuple(
            replace(
                s,
                epochs=max(1, round(s.epochs * ratio)),
                milestones=tuple(round(m * ratio) for m in s.milestones),
            )
            for s in self.stages
        )
        return replace(self, stages=stages)


def _is_of(value, kind) -> bool:
    """Whether a value is of a type as a field has it: a name, a finite number, a tuple of such, or one of several types."""
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        kinds = (
            kinds[:1] * len(value) if kinds[1:] == (...,) and isinstance(value, tuple) else kinds
        )
        return (
            isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
        )
    if get_origin(kind) is UnionType:
        return any(_is_of(value, one) for one in get_args(kind))
    if kind in (int, float):
        return (
            isinstance(value, int if kind is int else int | float)
            and not isinstance(value, bool)
            and isfinite(value)
        )
    return isinstance(value, kind)


def _unusual(settings) -> dict:
    """Fields that are not at their default; names and notes are no settings."""
    return {
        f.name: getattr(settings, f.name)
        for f in fields(settings)
        if f.name not in ("name", "note") and getattr(settings, f.name) != f.default
    }


# ---------------------------------------------------------------- the paper's data sets


def _name(data: str, form: str, encoder: str) -> str:
    return f"{data}-{form.removeprefix('refinenet').removeprefix('-') or 'original'}-{encoder}"


# What the paper leaves unsaid, in one place. Batch, crop, scales and their least side, flip, momentum and decay: those of
# the authors' NYUDv2 script of 2018. Gradients are not clipped there. Initial weights: PyTorch's, as in both scripts
# (their README says N(0, 0.01) instead: `decoder_init="normal"`). The best validation epoch is kept beside the last one.
UNSAID = {
    "crop": (500, 500),
    "batch": 6,
    "scale": (0.5, 2.0),
    "min_side": 350,
    "clip": 0.0,
    "val_every": 10,
}
# The decoder's rate over the encoder's: ten in the authors' script for ResNets. The mobile networks begin at 1e-3, and ten
# times that diverges, since the decoder has no normalisation; five times is the ResNets' own decoder rate.
RATES = {"resnet": (5e-4, 5e-3), "mobile": (1e-3, 5e-3)}


def _halved(
    data: str, epochs: int, encoder: str, milestones: tuple[int, ...] = (), halvings: int = 0
) -> Stage:
    """A stage that starts at the paper's rate (section 4), halved so many times before, and halves it at milestones."""
    encoder_lr, decoder_lr = (
        rate / 2**halvings for rate in RATES["resnet" if encoder.startswith("resnet") else "mobile"]
    )
    return Stage(
        data,
        epochs,
        encoder_lr,
        decoder_lr,
        schedule="halve" if milestones else "constant",
        milestones=milestones,
    )


def _paper(data: str, encoder: str, form: str = "refinenet-lw") -> Recipe:
    """The paper's own training. NYUDv2 and Person-Part: 300 epochs, halved after 100 and 200. Context and Cityscapes: 200,
    halved after 50 and 100 (supplement). VOC: "we reduce the learning rate by half after 20 epochs of COCO training and
    after 50 epochs of the BSD training, and keep training until 200 total epochs", which we read as 20 of COCO, 50 of SBD
    with VOC and 130 of VOC; whether the 200 count all three, and whether the optimiser restarts, is not said."""
    stages = {
        "nyu": (_halved("nyu", 300, encoder, (100, 200)),),
        "person": (_halved("person", 300, encoder, (100, 200)),),
        "context": (_halved("context", 200, encoder, (50, 100)),),
        "cityscapes": (_halved("cityscapes", 200, encoder, (50, 100)),),
        "voc": (
            _halved("coco", 20, encoder),
            _halved("sbd", 50, encoder, halvings=1),
            _halved("voc", 130, encoder, halvings=2),
        ),
    }[data]
    recipe = Recipe(_name(f"paper-{data}", form, encoder), f"{form}-{encoder}", stages, **UNSAID)
    if encoder == "nasnet_mobile":
        return replace(
            recipe,
            weights=None,
            frozen_bn=False,
            note="no package ships this encoder's ImageNet weights for PyTorch: it starts from random ones",
        )
    return recipe


def _authors_2018(encoder: str) -> Recipe:
    """The authors' script for NYUDv2: three stages of 100 epochs, the optimiser made anew for each. The third multiplies
    the rates by 0.4, not by one half."""
    stages = tuple(
        Stage("nyu", 100, encoder_lr=rate, decoder_lr=10 * rate) for rate in (5e-4, 2.5e-4, 1e-4)
    )
    return Recipe(
        f"authors-2018-nyu-lw-{encoder}", f"refinenet-lw-{encoder}", stages, **UNSAID, restart=True
    )


def _authors_2020(data: str, encoder: str, schedule: str) -> Recipe:
    """The authors' second script: one optimiser, rates in steps of one half or falling polynomially. Where the steps are
    is taken from the paper. "sbd" is SBD's images with those of VOC 2012."""
    length, steps = (300, (100, 200)) if data == "nyu" else (200, (50, 100))
    stage = replace(_halved(data, length, encoder, steps), schedule="multistep")
    if schedule == "poly":
        stage = replace(stage, schedule="poly", milestones=())
    return Recipe(
        f"authors-2020-{data}-lw-{encoder}-{schedule}",
        f"refinenet-lw-{encoder}",
        (stage,),
        **UNSAID,
    )


# ---------------------------------------------------------------- data that is at hand


def _camvid(
    form: str,
    encoder: str,
    epochs: int = 20,
    kind: str = "camvid",
    split: str = "train",
    rates: tuple[float, float] = (1e-3, 5e-3),
    warmup: int = 0,
    **changes,
) -> Recipe:
    """Rates of the mobile networks: encoder 1e-3 (the paper's), decoder five times that. Above 1e-2 training diverges:
    the decoder has no normalisation. Poly, since the schedule is short. Frames are never halved: poles would be thinner
    than a pixel. Rare classes weigh more: a pedestrian or a sign has one pixel in a hundred."""
    stage = Stage("camvid", epochs, *rates, split=split, schedule="poly", warmup=warmup)
    return Recipe(
        _name(kind, form, encoder),
        f"{form}-{encoder}",
        (stage,),
        **({"crop": (256, 352), "scale": (0.75, 2.0), "balance": 0.5, "ema": 0.99} | changes),
    )


def _camvid_tune(what: str, encoder: str = "efficientnet_lite0", **changes) -> Recipe:
    """Settings are chosen on the last fifth of each training sequence, so that the validation frames stay unseen."""
    tuned = _camvid(
        "refinenet-lw", encoder, 8, split="fit", validation="holdout", val_every=4, **changes
    )
    return replace(tuned, name=f"camvid-tune-{what}")


def _camvid_long(encoder: str, epochs: int) -> Recipe:
    """The best network that CPUs train in hours: what did best on held-out training frames (`camvid-tune-batch-adamw`), longer."""
    return _camvid(
        "refinenet-lw",
        encoder,
        epochs,
        "camvid-long",
        batch=4,
        optimiser="adamw",
        rates=(2e-4, 1e-3),
        weight_decay=0.01,
        warmup=WARMUP,
        val_every=10,
        test="test",
    )


def _camvid_scratch(form: str, encoder: str) -> Recipe:
    """ResNets have no ImageNet weights here. So batch norm learns its statistics, and training takes far longer."""
    return _camvid(
        form, encoder, 200, weights=None, frozen_bn=False, val_every=20, note="from random weights"
    )


def _camvid_short(form: str) -> Recipe:
    """What the original's decoder, 19 times the light-weight one's work, allows on a CPU: smaller crops, fewer epochs."""
    return _camvid(
        form,
        "efficientnet_lite0",
        12,
        "camvid-short",
        crop=(192, 256),
        scale=(0.5, 1.5),
        val_every=4,
    )


# ---------------------------------------------------------------- the comparison of decoders that votes: see data/protocol.yaml

# The grid that every form is tuned on: how it is optimised, with the encoder's and the decoder's rate, and what its decoder's
# weights are at first (PyTorch's, as in the authors' scripts, or N(0, 0.01), as in their README).
OPTIMISED = {
    "sgd": {"optimiser": "sgd", "rates": (1e-3, 5e-3)},
    "fast-sgd": {"optimiser": "sgd", "rates": (2e-3, 1e-2)},
    "adamw": {"optimiser": "adamw", "rates": (2e-4, 1e-3), "weight_decay": 0.01},
}
GRID = tuple((how, init) for how in OPTIMISED for init in ("default", "normal"))
COMPARED = (
    "refinenet",
    "refinenet-norcu",
    "refinenet-lw-rcu",
    "refinenet-lw",
    "refinenet-lw-nocrp",
)
COMPARED_ON = {"camvid": "efficientnet_lite0", "nyu": "mobilenet_v2"}
# What the grid chose for each form, by the score on the hold-out. A form that is not here yet is not trained to be compared.
CHOSEN: dict[tuple[str, str], tuple[str, str]] = {}


def _compared(
    data: str,
    form: str,
    how: str,
    init: str,
    kind: str,
    epochs: int,
    split: str = "train",
    **changes,
) -> Recipe:
    """CamVid: 20 epochs of 256x352 crops. NYUDv2: frames at half size, 15 epochs of 224x288 crops, scored at half size, too. The
    warm-up is for all forms and optimisers alike. Test frames are scored once, with the last weights."""
    how = dict(OPTIMISED[how])
    stage = Stage(data, epochs, *how.pop("rates"), split=split, schedule="poly", warmup=WARMUP)
    settings = {
        "camvid": {
            "crop": (256, 352),
            "scale": (0.75, 2.0),
            "balance": 0.5,
            "batch": 4,
            "test": "test",
        },
        "nyu": {"crop": (224, 288), "scale": (0.25, 0.75), "val_scale": 0.5},
    }[data]
    encoder = COMPARED_ON[data]
    return Recipe(
        _name(kind, form, encoder),
        f"{form}-{encoder}",
        (stage,),
        **settings | {"ema": 0.99, "decoder_init": init, "val_every": epochs} | how | changes,
    )


def _grid(data: str, form: str, how: str, init: str) -> Recipe:
    """A cell of the grid: few epochs and small crops of small frames, of training data that are kept for this."""
    small = {
        "camvid": {"crop": (128, 176), "scale": (0.375, 1.0), "val_scale": 0.5, "epochs": 5},
        "nyu": {"crop": (160, 208), "scale": (0.25, 0.75), "val_scale": 0.5, "epochs": 3},
    }[data]
    return _compared(
        data,
        form,
        how,
        init,
        f"{data}-grid-{how}-{init}",
        split="fit",
        validation="holdout",
        **small | {"test": ""},
    )


def _nyu_long(encoder: str, epochs: int) -> Recipe:
    """The network for NYUDv2 to use: AdamW's rates with a longer warm-up than its batches of 8 need, whole frames."""
    stage = Stage("nyu", epochs, 2e-4, 1e-3, schedule="poly", warmup=200)
    return Recipe(
        _name("nyu-long", "refinenet-lw", encoder),
        f"refinenet-lw-{encoder}",
        (stage,),
        crop=(320, 320),
        scale=(0.5, 1.5),
        optimiser="adamw",
        weight_decay=0.01,
        ema=0.99,
        val_every=epochs,
    )


def _embedded(form: str) -> Recipe:
    """Whole scenes, unscaled: a scene cut off from its beacon has no right answer."""
    stage = Stage("embedded", 4, encoder_lr=5e-3, decoder_lr=5e-3, schedule="poly")
    return Recipe(
        _name("embedded", form, "efficientnet_lite0"),
        f"{form}-efficientnet_lite0",
        (stage,),
        crop=(96, 128),
        scale=(1.0, 1.0),
        batch=16,
        val_every=1,
    )


WARMUP = 100  # steps; with none, a decoder rate of 1e-3 under AdamW kills the stride-32 stage within 50 steps

# Anybody's own data, in the folder that `rflw train own --data` names. Their sizes are not known: crops that fit most photos.
OWN = Recipe(
    "own",
    "refinenet-lw-efficientnet_lite0",
    (Stage("own", 50, 1e-3, 5e-3, schedule="poly"),),
    crop=(352, 352),
    scale=(0.75, 2.0),
    balance=0.5,
    ema=0.99,
)

FORMS = (
    "refinenet",
    "refinenet-norcu",
    "refinenet-lw-rcu",
    "refinenet-lw",
    "refinenet-lw-nocrp",
    "refinenet-lw-top2",
)
RESNETS = ("resnet50", "resnet101", "resnet152")
RECIPES = {
    recipe.name: recipe
    for recipe in (
        *(_paper(data, encoder) for data in ("nyu", "person") for encoder in RESNETS),  # Table 2
        *(
            _paper("voc", encoder) for encoder in (*RESNETS, "mobilenet_v2", "nasnet_mobile")
        ),  # Table 3
        *(
            _paper("voc", "resnet101", form)
            for form in ("refinenet", "refinenet-norcu", "refinenet-lw-rcu")
        ),  # section 3.3
        *(_paper("context", encoder) for encoder in ("resnet101", "resnet152")),  # Table 5
        _paper("cityscapes", "resnet101"),  # supplement
        *(_authors_2018(encoder) for encoder in RESNETS),
        *(
            _authors_2020(data, encoder, schedule)
            for data in ("nyu", "sbd")
            for encoder in ("resnet50", "mobilenet_v2")
            for schedule in ("steps", "poly")
        ),
        *(_camvid(form, "efficientnet_lite0") for form in FORMS),
        *(
            _camvid("refinenet-lw", encoder)
            for encoder in ("efficientnet_lite1", "efficientnet_lite2")
        ),
        _camvid_tune("plain", balance=0.0),
        _camvid_tune("balance"),
        _camvid_tune("strong-balance", balance=1.0),
        _camvid_tune("rates", rates=(2e-3, 1e-2)),
        _camvid_tune(
            "adamw", optimiser="adamw", rates=(2e-4, 1e-3), weight_decay=0.01, warmup=WARMUP
        ),
        _camvid_tune("batch", batch=4),
        _camvid_tune(
            "batch-adamw",
            batch=4,
            optimiser="adamw",
            rates=(2e-4, 1e-3),
            weight_decay=0.01,
            warmup=WARMUP,
        ),
        _camvid_tune("scale", batch=4, scale=(0.5, 1.5)),
        _camvid_tune("crop", crop=(320, 448)),
        _camvid_tune("lite2", "efficientnet_lite2"),
        _camvid_long("efficientnet_lite2", 64),
        _nyu_long("mobilenet_v2", 60),
        *(_grid(data, form, *cell) for data in COMPARED_ON for cell in GRID for form in COMPARED),
        *(
            _compared(data, form, *cell, f"{data}-tuned", {"camvid": 20, "nyu": 15}[data])
            for (data, form), cell in CHOSEN.items()
        ),
        *(_camvid_short(form) for form in FORMS[:4]),
        *(
            _camvid_scratch(form, encoder)
            for form in ("refinenet", "refinenet-lw-rcu", "refinenet-lw")
            for encoder in ("resnet50", "resnet101")
        ),
        *(_embedded(form) for form in FORMS),
    )
}


def recipe(name: str) -> Recipe:
    """A shipped recipe by name, or "own". Raises InputError that lists them."""
    if name == OWN.name:
        return OWN
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: one of {', '.join(RECIPES)}, own")
    return RECIPES[name]

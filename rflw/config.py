"""Recipes: everything that a training run depends on, as frozen dataclasses. No torch.

A recipe says what to train on what and how; a seed makes a run of it. What differs from a default is written where the
recipe is, so a recipe reads as its difference from the authors' practice.
"""
from dataclasses import dataclass, fields, replace
import hashlib
import json
from math import floor

from rflw.errors import InputError

SCHEDULES = ("constant", "poly", "halve", "multistep")
INITS = ("default", "lecun", "normal")


@dataclass(frozen=True)
class Stage:
    """Part of a run: a data set, a number of epochs, the learning rates and how they fall."""

    data: str  # data set name
    epochs: int
    encoder_lr: float
    decoder_lr: float
    split: str = "train"
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()  # epochs of this stage at which "halve" and "multistep" multiply the rates ...
    gamma: float = 0.5  # ... by this
    power: float = 0.9  # of "poly"

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise InputError(f"unknown schedule {self.schedule!r}: one of {', '.join(SCHEDULES)}")
        if self.epochs < 1:
            raise InputError(f"a stage of {self.epochs} epochs")
        if self.schedule == "halve" and self.gamma != 0.5:
            raise InputError(f"schedule 'halve' with gamma {self.gamma}: 'multistep' takes any")

    def lr_factor(self, step: int, steps_per_epoch: int) -> float:
        """What the rates are multiplied by at `step` of this stage: poly falls at every step, the others by epoch."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "poly":
            return max(0.0, 1 - step / (self.epochs * steps_per_epoch)) ** self.power
        epoch = floor(step / steps_per_epoch)
        return self.gamma ** sum(epoch >= m for m in self.milestones)


@dataclass(frozen=True)
class Recipe:
    """A training run but for its seed."""

    name: str
    model: str
    stages: tuple[Stage, ...]
    crop: tuple[int, int]  # rows, columns
    weights: str | None = "imagenet"  # of the encoder
    decoder_init: str = "default"  # what the decoder's weights are at first, see `refinenet.init_decoder`
    batch: int = 8
    scale: tuple[float, float] = (0.5, 2.0)
    min_side: int = 0  # pixels that the shorter side keeps when scaled
    flip: bool = True
    jitter: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 1e-5
    clip: float = 5.0  # largest norm of the gradient; 0 leaves it alone
    ema: float = 0.0  # decay of the running mean of weights that is evaluated and kept; 0 for none
    restart: bool = False  # make the optimiser anew, without momentum, at each stage
    precision: str = "auto"  # "fp32", "bf16", "fp16"; "auto": bf16 where the device is faster with it
    val_every: int = 5  # epochs
    note: str = ""  # why it is so

    def __post_init__(self):
        if self.decoder_init not in INITS:
            raise InputError(f"unknown decoder_init {self.decoder_init!r}: one of {', '.join(INITS)}")

    @property
    def data(self) -> str:
        """The data set whose classes the network has and which validates it: the last stage's."""
        return self.stages[-1].data

    def hash(self) -> str:
        """First 12 digits of the SHA-256 of all settings but name and note. Those at their default are left out, so that a
        setting that is added later changes no hash."""
        settings = _unusual(self)
        settings["stages"] = [_unusual(stage) for stage in self.stages]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def of(cls, config: dict) -> "Recipe":
        """The recipe that a record holds as its `config`."""
        stages = tuple(Stage(**{k: tuple(v) if isinstance(v, list) else v for k, v in stage.items()}) for stage in config["stages"])
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k != "stages"}, stages=stages)

    def with_epochs(self, epochs: int) -> "Recipe":
        """The same with each stage's epochs scaled so that the last has `epochs`."""
        if epochs < 1:
            raise InputError(f"{self.name}: {epochs} epochs")
        ratio = epochs / self.stages[-1].epochs
        stages = tuple(replace(s, epochs=max(1, round(s.epochs * ratio)),
                               milestones=tuple(round(m * ratio) for m in s.milestones)) for s in self.stages)
        return replace(self, stages=stages)


def _unusual(settings) -> dict:
    """Fields that are not at their default; names and notes are no settings."""
    return {f.name: getattr(settings, f.name) for f in fields(settings)
            if f.name not in ("name", "note") and getattr(settings, f.name) != f.default}


# ---------------------------------------------------------------- the paper's data sets

# What the paper leaves unsaid, here in one place. Batch, crop, scales, flip, momentum and decay are those of the authors'
# 2018 script, and so is a decoder that learns ten times as fast as the encoder. On mobile encoders it is five times: at
# their rate of 1e-3 ten times would be 1e-2, where the decoder, which has no normalisation, diverges. Weights at first are
# PyTorch's, as in both scripts. Gradients are cut at a norm of 5 in none of them; we leave them alone, too.
UNSAID = {"crop": (500, 500), "batch": 6, "scale": (0.5, 2.0), "min_side": 350, "clip": 0.0, "val_every": 10}
MOBILE_ENCODERS = ("mobilenet_v2", "nasnet_mobile")


def _halved(data: str, epochs: int, encoder: str, milestones: tuple[int, ...] = (), halvings: int = 0) -> Stage:
    """A stage that starts at the paper's rate (section 4), halved so many times before, and halves it at milestones."""
    rate = (1e-3 if encoder in MOBILE_ENCODERS else 5e-4) / 2**halvings
    return Stage(data, epochs, encoder_lr=rate, decoder_lr=rate * (5 if encoder in MOBILE_ENCODERS else 10),
                 schedule="halve" if milestones else "constant", milestones=milestones)


def _paper(data: str, encoder: str) -> Recipe:
    """The paper's own training. NYUDv2 and Person-Part: 300 epochs, halved after 100 and 200. Context and Cityscapes: 200,
    halved after 50 and 100 (supplement). VOC: "we reduce the learning rate by half after 20 epochs of COCO training and
    after 50 epochs of the BSD training, and keep training until 200 total epochs", which we read as 20 of COCO, 50 of SBD
    with VOC, and 130 of VOC; whether the 200 count all three, and whether the optimiser restarts, is not said."""
    stages = {
        "nyu": (_halved("nyu", 300, encoder, (100, 200)),),
        "person": (_halved("person", 300, encoder, (100, 200)),),
        "context": (_halved("context", 200, encoder, (50, 100)),),
        "cityscapes": (_halved("cityscapes", 200, encoder, (50, 100)),),
        "voc": (_halved("coco", 20, encoder), _halved("sbd", 50, encoder, halvings=1), _halved("voc", 130, encoder, halvings=2)),
    }[data]
    return Recipe(f"paper-{data}-lw-{encoder}", f"refinenet-lw-{encoder}", stages, **UNSAID)


def _authors_2018(encoder: str) -> Recipe:
    """The authors' script for NYUDv2: three stages of 100 epochs, the optimiser made anew for each. The third multiplies
    the rates by 0.4, not by one half."""
    stages = tuple(Stage("nyu", 100, encoder_lr=rate, decoder_lr=10 * rate) for rate in (5e-4, 2.5e-4, 1e-4))
    return Recipe(f"authors-2018-nyu-lw-{encoder}", f"refinenet-lw-{encoder}", stages, **UNSAID, restart=True)


def _authors_2020(data: str, encoder: str, schedule: str) -> Recipe:
    """The authors' second script: one optimiser, rates in steps of one half or falling polynomially. Where it puts the
    steps is taken from the paper."""
    if data == "nyu":
        stages = (replace(_halved("nyu", 300, encoder, (100, 200)), schedule="multistep"),)
    else:
        stages = (replace(_halved(data, 200, encoder, (50, 100)), schedule="multistep"),)
    if schedule == "poly":
        stages = tuple(replace(stage, schedule="poly", milestones=()) for stage in stages)
    return Recipe(f"authors-2020-{data}-lw-{encoder}{'-poly' * (schedule == 'poly')}", f"refinenet-lw-{encoder}", stages, **UNSAID)


# ---------------------------------------------------------------- data sets that are at hand


def _camvid(form: str, encoder: str, epochs: int, **changes) -> Recipe:
    """Rates of the mobile networks: encoder 1e-3 (the paper's), decoder five times that. Above 1e-2 training diverges:
    the decoder has no normalisation. Poly, since the schedule is short. Frames are
    never halved: poles would be thinner than a pixel."""
    stage = Stage("camvid", epochs, encoder_lr=1e-3, decoder_lr=5e-3, schedule="poly")
    return Recipe(f"camvid-{form.removeprefix('refinenet-') or 'original'}-{encoder}", f"{form}-{encoder}", (stage,),
                  **({"crop": (256, 352), "scale": (0.75, 2.0), "ema": 0.99} | changes))


def _embedded(form: str, encoder: str, epochs: int, **changes) -> Recipe:
    """Whole scenes, unscaled: a scene cut off from its beacon has no right answer. The decoder's weights
    at first keep the scale of what they get: `...-default-init` shows what PyTorch's do, which shrink it."""
    stage = Stage("embedded", epochs, encoder_lr=5e-3, decoder_lr=5e-3, schedule="poly")
    return Recipe(f"embedded-{form.removeprefix('refinenet-') or 'original'}-{encoder}", f"{form}-{encoder}", (stage,),
                  **({"crop": (96, 128), "scale": (1.0, 1.0), "batch": 16, "decoder_init": "lecun"} | changes))


RESNETS = ("resnet50", "resnet101", "resnet152")
RECIPES = {recipe.name: recipe for recipe in (
    *(_paper(data, encoder) for data in ("nyu", "person") for encoder in RESNETS),  # Table 2
    *(_paper("voc", encoder) for encoder in (*RESNETS, *MOBILE_ENCODERS)),  # Table 3
    *(_paper("context", encoder) for encoder in ("resnet101", "resnet152")),  # Table 5
    _paper("cityscapes", "resnet101"),  # supplement
    *(_authors_2018(encoder) for encoder in RESNETS),
    *(_authors_2020("nyu", encoder, schedule) for encoder in ("resnet50", "mobilenet_v2") for schedule in ("steps", "poly")),
    *(_authors_2020("sbd", encoder, schedule) for encoder in ("resnet50", "mobilenet_v2") for schedule in ("steps", "poly")),
    _camvid("refinenet-lw", "efficientnet_lite0", 30),
    _embedded("refinenet-lw", "efficientnet_lite0", 4, val_every=1),
    replace(_embedded("refinenet-lw", "efficientnet_lite0", 4, val_every=1, decoder_init="default"),
            name="embedded-lw-efficientnet_lite0-default-init"),
)}


def recipe(name: str) -> Recipe:
    """A shipped recipe by name. Raises InputError that lists them."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: one of {', '.join(RECIPES)}")
    return RECIPES[name]

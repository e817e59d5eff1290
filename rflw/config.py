"""Recipes: everything that a training run depends on, as frozen dataclasses. No torch.

A recipe says what to train on what and how; a seed makes a run of it. What differs from a default is written where the
recipe is, so a recipe reads as its difference from the authors' practice.
"""
from dataclasses import asdict, dataclass, replace
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
        """First 12 digits of the SHA-256 of all settings but name and note."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("name", "note")}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def with_epochs(self, epochs: int) -> "Recipe":
        """The same with each stage's epochs scaled so that the last has `epochs`."""
        if epochs < 1:
            raise InputError(f"{self.name}: {epochs} epochs")
        ratio = epochs / self.stages[-1].epochs
        stages = tuple(replace(s, epochs=max(1, round(s.epochs * ratio)),
                               milestones=tuple(round(m * ratio) for m in s.milestones)) for s in self.stages)
        return replace(self, stages=stages)


def _camvid(form: str, encoder: str, epochs: int, **changes) -> Recipe:
    """Rates of the mobile networks: encoder 1e-3 (the paper's), decoder five times that. Above 1e-2 training diverges:
    the decoder has no normalisation. Poly, since the schedule is short. Frames are
    never halved: poles would be thinner than a pixel."""
    stage = Stage("camvid", epochs, encoder_lr=1e-3, decoder_lr=5e-3, schedule="poly")
    return Recipe(f"camvid-{form.removeprefix('refinenet-') or 'original'}-{encoder}", f"{form}-{encoder}", (stage,),
                  **({"crop": (256, 352), "scale": (0.75, 2.0), "ema": 0.99} | changes))


def _embedded(form: str, encoder: str, epochs: int, **changes) -> Recipe:
    """Whole scenes, unscaled: a scene cut off from its beacon has no right answer."""
    stage = Stage("embedded", epochs, encoder_lr=5e-3, decoder_lr=5e-3, schedule="poly")
    return Recipe(f"embedded-{form.removeprefix('refinenet-') or 'original'}-{encoder}", f"{form}-{encoder}", (stage,),
                  **({"crop": (96, 128), "scale": (1.0, 1.0), "batch": 16} | changes))


RECIPES = {recipe.name: recipe for recipe in (
    _camvid("refinenet-lw", "efficientnet_lite0", 30),
    _embedded("refinenet-lw", "efficientnet_lite0", 4, val_every=1),
)}


def recipe(name: str) -> Recipe:
    """A shipped recipe by name. Raises InputError that lists them."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: one of {', '.join(RECIPES)}")
    return RECIPES[name]

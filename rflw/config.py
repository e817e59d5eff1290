"""Recipes: everything that a training run depends on, as frozen dataclasses. No torch.

A recipe says which network is trained, on which data and how. A recipe and a seed make a run. Each
recipe states only the settings that differ from the defaults.
"""

from dataclasses import dataclass, fields, replace
from functools import cache
import hashlib
import json
from math import floor

from rflw.errors import InputError, choose, why

SCHEDULES = ("constant", "poly", "halve", "multistep")
INITS = ("default", "normal")
OPTIMISERS = ("sgd", "adamw")
EXACT = {"extra": "forbid", "allow_inf_nan": False}  # for pydantic, which reads what records hold


@dataclass(frozen=True)
class Stage:
    """Part of a run: a data set, a number of epochs, the learning rates and how they fall.

    Raises:
        InputError: for settings that contradict each other.
    """

    __pydantic_config__ = EXACT

    data: str  # data set name
    epochs: int
    encoder_lr: float
    decoder_lr: float
    split: str = "train"  # part of the data set that is trained on
    schedule: str = "constant"  # how the learning rates fall: constant, poly, halve, multistep
    milestones: tuple[int, ...] = ()  # epochs of the stage at which halve and multistep lower them
    gamma: float = 0.5  # factor of the learning rates at each milestone
    power: float = 0.9  # exponent of poly
    warmup: int = 0  # steps over which the rates rise linearly; AdamW without it can kill units

    def __post_init__(self):
        choose("schedule", self.schedule, SCHEDULES)
        if self.epochs < 1:
            raise InputError(f"a stage of {self.epochs} epochs")
        if self.schedule == "halve" and self.gamma != 0.5:
            raise InputError(f"schedule 'halve' with gamma {self.gamma}: 'multistep' takes any")
        if self.warmup < 0:
            raise InputError(f"a warm-up of {self.warmup} steps")

    def lr_factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor of the rates at `step` of this stage: poly falls by step, others by epoch."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "constant":
            return rise
        if self.schedule == "poly":
            return rise * max(0.0, 1 - step / (self.epochs * steps_per_epoch)) ** self.power
        epoch = floor(step / steps_per_epoch)
        return rise * self.gamma ** sum(epoch >= m for m in self.milestones)


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run except its seed.

    Raises:
        InputError: for a recipe without stages and for unknown choices.
    """

    __pydantic_config__ = EXACT

    name: str
    model: str
    stages: tuple[Stage, ...]
    crop: tuple[int, int]  # rows, columns
    weights: str | None = "imagenet"  # of the encoder
    init: str = ""  # checkpoint that the training starts from; none: from the encoder's weights
    decoder_init: str = (
        "default"  # initial weights of the decoder: PyTorch's, or normal: N(0, 0.01)
    )
    batch: int = 8  # images in a step
    scale: tuple[float, float] = (0.5, 2.0)  # range of the random scaling of an image
    min_side: int = 0  # pixels that the shorter side keeps when an image is scaled
    flip: bool = True  # mirror half of the images, chosen at random
    jitter: float = 0.0  # strength of random changes of brightness, contrast and saturation
    optimiser: str = "sgd"  # sgd or adamw
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-5  # of all weights
    clip: float = 5.0  # largest norm of the gradient; 0: no limit
    ema: float = 0.0  # decay of the running mean of weights that is scored and kept; 0: no mean
    balance: float = 0.0  # exponent of 1 / frequency in the loss's class weights; 0: equal weights
    frozen_bn: bool = True  # keep the batch norm statistics of the pretrained encoder
    restart: bool = False  # start the optimiser anew, without momentum, at each stage
    precision: str = "auto"  # fp32, bf16 or fp16; auto: bf16 where the device has it
    val_every: int = 5  # epochs between validations
    validation: str = "val"  # split that is scored at each validation
    val_scale: float = 1.0  # size of the validation images; labels keep their size
    test: str = ""  # split that is scored once, with the last weights
    note: str = ""  # why it is so

    def __post_init__(self):
        if not self.stages:
            raise InputError(f"{self.name}: no stages")
        choose("decoder_init", self.decoder_init, INITS)
        choose("optimiser", self.optimiser, OPTIMISERS)

    @property
    def data(self) -> str:
        """Name of the last stage's data set, whose classes the network has."""
        return self.stages[-1].data

    def on(self, data: str) -> "Recipe":
        """The same on another data set, or on one's own by its folder."""
        return replace(self, stages=tuple(replace(stage, data=data) for stage in self.stages))

    def hash(self) -> str:
        """First 12 digits of the SHA-256 of all settings except name and note.

        Settings at their default are left out, so a setting that is added later changes no hash.
        """
        settings = _unusual(self) | {"stages": [_unusual(stage) for stage in self.stages]}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def of(cls, config: dict) -> "Recipe":
        """The recipe that a record holds as its `config`.

        Raises:
            InputError: for unknown settings and for values of another type; it names the first.
        """
        from pydantic import ValidationError

        try:
            return _reader().validate_json(json.dumps(config), strict=True)
        except ValidationError as e:
            raise InputError(f"not a recipe: {why(e)}") from e

    def with_epochs(self, epochs: int) -> "Recipe":
        """The same with each stage's epochs scaled so that the last has `epochs`."""
        if epochs < 1:
            raise InputError(f"{self.name}: {epochs} epochs")
        ratio = epochs / self.stages[-1].epochs
        stages = tuple(
            replace(
                stage,
                epochs=max(1, round(stage.epochs * ratio)),
                milestones=tuple(round(epoch * ratio) for epoch in stage.milestones),
            )
            for stage in self.stages
        )
        return replace(self, stages=stages)


@cache
def _reader():
    from pydantic import TypeAdapter  # a bare GPU machine has none

    return TypeAdapter(Recipe)


def _unusual(settings) -> dict:
    """Settings that are not at their default; name and note are not settings."""
    return {
        f.name: getattr(settings, f.name)
        for f in fields(settings)
        if f.name not in ("name", "note") and getattr(settings, f.name) != f.default
    }

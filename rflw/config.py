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

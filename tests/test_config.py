"""Recipes and schedules, against their formulas. Hashes and the way through JSON: `test_contract`."""

from dataclasses import asdict, replace
import math

import pytest

from rflw import InputError, records
from rflw.config import Recipe, Stage
from rflw.recipes import OWN, RECIPES


def factors(epochs, per_epoch=10, **settings):
    stage = Stage("camvid", epochs, 1.0, 1.0, **settings)
    return [stage.lr_factor(step, per_epoch) for step in range(epochs * per_epoch)]


def test_schedules_are_their_formulas_and_a_warm_up_multiplies_them():
    poly = [(1 - step / 60) ** 0.9 for step in range(60)]
    for expected, settings in (
        ([1.0] * 60, {}),
        (poly, {"schedule": "poly", "power": 0.9}),
        ([0.5 ** (step // 20) for step in range(60)], {"schedule": "halve", "milestones": (2, 4)}),
        ([1.0] * 10 + [0.4] * 50, {"schedule": "multistep", "milestones": (1,), "gamma": 0.4}),
    ):
        assert factors(6, **settings) == pytest.approx(expected)
        rises = [(step + 1) / 15 for step in range(15)] + [1.0] * 45
        warmed = [rise * factor for rise, factor in zip(rises, expected)]
        assert factors(6, warmup=15, **settings) == pytest.approx(warmed)
    assert Stage("camvid", 4, 1, 1, schedule="poly").lr_factor(40, 10) == 0.0


def test_every_recipe_with_adamw_warms_up():
    """Without it, a decoder's rate of 1e-3 kills the units of the coarsest stage."""
    adamw = [recipe for recipe in RECIPES.values() if recipe.optimiser == "adamw"]
    assert adamw and all(s.warmup >= 100 for recipe in adamw for s in recipe.stages)


def test_every_stage_and_its_milestones_are_scaled_and_none_vanishes():
    stage = Stage("camvid", 300, 1, 1, schedule="halve", milestones=(100, 200))
    short = replace(OWN, stages=(stage,)).with_epochs(30).stages[0]
    assert (short.epochs, short.milestones) == (30, (10, 20))
    voc = RECIPES["paper-voc-lw-resnet50"]
    for epochs, expected in ((130, [20, 50, 130]), (65, [10, 25, 65]), (1, [1, 1, 1])):
        assert [stage.epochs for stage in voc.with_epochs(epochs).stages] == expected
    other = voc.on("mine")
    assert [stage.data for stage in other.stages] == ["mine"] * 3
    assert other == replace(voc, stages=other.stages) and voc.data == "voc"  # the last stage's


# Trained before AdamW had a warm-up, without which units of the coarsest stage died.
OLDER = ("camvid-tune-adamw", "camvid-tune-batch-adamw", "camvid-long-lw-efficientnet_lite2")


def test_records_were_made_with_the_recipes_as_they_are():
    trainings = [record for record in records.read_all() if record["kind"] == "train"]
    assert len(trainings) > 20
    for record in trainings:
        config = Recipe.of(record["config"])
        if config.name not in OLDER:
            recipe = replace(RECIPES[config.name], note=config.note, init=config.init)
            assert config == recipe, record["name"]


@pytest.mark.parametrize(
    ("setting", "value", "place"),
    [
        ("batch", True, "batch: "),
        ("jitter", math.nan, "jitter: "),
        ("crop", [64, 64.5], "crop.1: "),
        ("optimizer", "adam", "optimizer: "),
        ("optimiser", "adam", "unknown optimiser 'adam'; choose from: sgd, adamw$"),
        ("decoder_init", "zeros", "unknown decoder_init 'zeros'"),
        ("stages", [], "own: no stages"),
        ("epochs", 0, "stages.0: a stage of 0 epochs"),
        ("milestones", [1, "2"], "stages.0.milestones.1: "),
        ("rate", 1.0, "stages.0.rate: "),
        ("schedule", "cosine", "stages.0: unknown schedule 'cosine'"),
        ("gamma", 0.4, "stages.0: schedule 'halve' with gamma 0.4"),
        ("warmup", -1, "stages.0: a warm-up of -1 steps"),
    ],
)
def test_a_wrong_setting_is_one_line(setting, value, place):
    config = asdict(OWN) | {"scale": [1, 2]}  # whole numbers are numbers
    in_stage = place.startswith("stages.0")
    if setting == "gamma":
        config["stages"][0]["schedule"] = "halve"
    assert Recipe.of(config).scale == (1, 2)
    (config["stages"][0] if in_stage else config)[setting] = value
    with pytest.raises(InputError, match=f"^not a recipe: {place}[^\n]*$"):
        Recipe.of(config)


def test_the_papers_own_trainings():
    """Its sections 3.3, 4 and 7, number by number; "lw" is the light-weight form."""
    parts = {
        "nyu": [("nyu", 100, 0), ("nyu", 100, 1), ("nyu", 100, 2)],
        "person": [("person", 100, 0), ("person", 100, 1), ("person", 100, 2)],
        "context": [("context", 50, 0), ("context", 50, 1), ("context", 100, 2)],
        "cityscapes": [("cityscapes", 50, 0), ("cityscapes", 50, 1), ("cityscapes", 100, 2)],
        "voc": [("coco", 20, 0), ("sbd", 50, 1), ("voc", 130, 2)],
    }
    names = [f"paper-{d}-lw-resnet{n}" for d in ("nyu", "person", "voc") for n in (50, 101, 152)]
    names += ["paper-voc-lw-mobilenet_v2", "paper-voc-lw-nasnet_mobile"]
    names += [f"paper-context-lw-resnet{n}" for n in (101, 152)]
    names += ["paper-cityscapes-lw-resnet101"]
    names += [f"paper-voc-{form}-resnet101" for form in ("original", "norcu", "lw-rcu")]
    assert {name for name in RECIPES if name.startswith("paper-")} == set(names)
    for name in names:
        plan, (_, data, form) = RECIPES[name], name.split("-", 2)
        encoder = 1e-3 if "mobile" in name else 5e-4
        assert [
            (stage.data, stage.encoder_lr * factor, stage.decoder_lr * factor)
            for stage in plan.stages
            for factor in (stage.lr_factor(epoch, 1) for epoch in range(stage.epochs))
        ] == [
            (data, pytest.approx(encoder / 2**halvings), pytest.approx(5e-3 / 2**halvings))
            for data, epochs, halvings in parts[data]
            for _ in range(epochs)
        ], name
        assert (plan.optimiser, plan.momentum, plan.batch, plan.clip) == ("sgd", 0.9, 6, 0)
        pretrained = "nasnet" not in name  # no package ships those
        assert (plan.weights == "imagenet") == plan.frozen_bn == pretrained
        assert plan.model == f"refinenet-{form.removeprefix('original-')}"

"""Recipes and schedules, against their formulas."""

from dataclasses import asdict, replace
import json
import math

import pytest

from rflw import InputError, records
from rflw.config import Recipe, Stage
from rflw.recipes import OWN, RECIPES, recipe

PLAIN = Recipe("a", "refinenet-lw-resnet50", (Stage("camvid", 3, 1e-3, 5e-3),), (64, 64))


def factors(epochs, per_epoch=10, **settings):
    stage = Stage("camvid", epochs, 1.0, 1.0, **settings)
    return [stage.lr_factor(step, per_epoch) for step in range(epochs * per_epoch)]


class TestSchedules:
    def test_each_is_its_formula(self):
        assert set(factors(3)) == {1.0}
        rates = factors(4, schedule="poly", power=0.9)
        assert rates == [pytest.approx((1 - step / 40) ** 0.9) for step in range(40)]
        assert Stage("camvid", 4, 1, 1, schedule="poly").lr_factor(40, 10) == 0.0
        rates = factors(6, schedule="halve", milestones=(2, 4))
        assert rates == [1.0] * 20 + [0.5] * 20 + [0.25] * 20
        assert factors(2, schedule="multistep", milestones=(1,), gamma=0.4)[10:] == [0.4] * 10

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"schedule": "poly"},
            {"schedule": "halve", "milestones": (1,)},
        ],
    )
    def test_a_warm_up_rises_in_a_line_and_multiplies_the_schedule(self, settings):
        rises = [(step + 1) / 15 for step in range(15)] + [1.0] * 15
        assert factors(3, warmup=15, **settings) == pytest.approx(
            [rise * factor for rise, factor in zip(rises, factors(3, **settings), strict=True)]
        )

    def test_every_recipe_with_adamw_has_one(self):
        """Without it, a decoder's rate of 1e-3 kills the units of the coarsest stage."""
        adamw = [recipe for recipe in RECIPES.values() if recipe.optimiser == "adamw"]
        assert adamw and all(s.warmup >= 100 for recipe in adamw for s in recipe.stages)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Stage, {"schedule": "cosine"}, "unknown schedule 'cosine'; choose from: constant, poly"),
        (Stage, {"schedule": "halve", "gamma": 0.4}, "'multistep' takes any"),
        (Stage, {"warmup": -1}, "a warm-up of -1 steps"),
        (Recipe, {"decoder_init": "zeros"}, "unknown decoder_init 'zeros'; choose from: default"),
        (Recipe, {"optimiser": "adam"}, "unknown optimiser 'adam'; choose from: sgd, adamw$"),
    ],
)
def test_contradictions_are_refused(kind, settings, message):
    with pytest.raises(InputError, match=message):
        replace(PLAIN if kind is Recipe else PLAIN.stages[0], **settings)


def test_names_are_keys():
    assert all(name == r.name for name, r in RECIPES.items())
    assert recipe("own") is OWN and recipe("camvid-lw-resnet50") is RECIPES["camvid-lw-resnet50"]


def test_every_stage_and_its_milestones_are_scaled_and_none_vanishes():
    stage = Stage("camvid", 300, 1, 1, schedule="halve", milestones=(100, 200))
    short = replace(PLAIN, stages=(stage,)).with_epochs(30).stages[0]
    assert (short.epochs, short.milestones) == (30, (10, 20))
    voc = RECIPES["paper-voc-lw-resnet50"]
    for epochs, expected in ((130, [20, 50, 130]), (65, [10, 25, 65]), (1, [1, 1, 1])):
        assert [stage.epochs for stage in voc.with_epochs(epochs).stages] == expected
    assert voc.with_epochs(130) == voc
    with pytest.raises(InputError, match="0 epochs"):
        voc.with_epochs(0)


def test_the_same_on_other_data():
    voc = RECIPES["paper-voc-lw-resnet50"]
    other = voc.on("mine")
    assert [stage.data for stage in other.stages] == ["mine"] * 3 and other.data == "mine"
    assert other == replace(voc, stages=other.stages) and voc.data == "voc"  # the last stage's


# ---------------------------------------------------------------- settings do not drift

# Another default would change the hashes of old settings: `test_contract` holds these.


def test_a_hash_depends_on_settings_and_not_on_names():
    assert replace(PLAIN, name="b", note="why").hash() == PLAIN.hash()
    changed = replace(PLAIN.stages[0], decoder_lr=4e-3)
    hashes = {
        PLAIN.hash(),
        replace(PLAIN, batch=9).hash(),
        replace(PLAIN, stages=(changed,)).hash(),
    }
    assert len(hashes) == 3


# Trained before AdamW had a warm-up, without which units of the coarsest stage died.
OLDER = ("camvid-tune-adamw", "camvid-tune-batch-adamw", "camvid-long-lw-efficientnet_lite2")


def test_records_were_made_with_the_recipes_as_they_are():
    trainings = [record for record in records.read_all() if record["kind"] == "train"]
    assert len(trainings) > 20
    for record in trainings:
        config = Recipe.of(record["config"])
        if config.name not in OLDER:
            assert config == replace(RECIPES[config.name], note=config.note), record["name"]


# ---------------------------------------------------------------- settings from files


def test_a_record_gives_its_recipe_back():
    for shipped in RECIPES.values():
        config = json.loads(json.dumps(asdict(shipped)))
        assert Recipe.of(config) == shipped
        del config["jitter"]  # as in a record that is older than the setting
        assert Recipe.of(config).hash() == shipped.hash()
    # whole numbers are numbers
    assert Recipe.of(asdict(OWN) | {"jitter": 1, "scale": [1, 2]}).scale == (1, 2)


@pytest.mark.parametrize(
    ("setting", "value", "place"),
    [
        ("batch", True, "batch: "),
        ("jitter", math.nan, "jitter: "),
        ("crop", [64, 64.5], "crop.1: "),
        ("optimizer", "adam", "optimizer: "),
        ("stages", [], "own: no stages"),
        ("epochs", 0, "stages.0: a stage of 0 epochs"),
        ("milestones", [1, "2"], "stages.0.milestones.1: "),
        ("rate", 1.0, "stages.0.rate: "),
    ],
)
def test_unknown_settings_and_other_types_are_one_line(setting, value, place):
    config = asdict(OWN)
    in_stage = setting in ("epochs", "milestones", "rate")
    (config["stages"][0] if in_stage else config)[setting] = value
    with pytest.raises(InputError, match=f"^not a recipe: {place}[^\n]*$"):
        Recipe.of(config)


@pytest.mark.parametrize("config", [{}, "x"])
def test_what_holds_no_settings_is_no_recipe(config):
    with pytest.raises(InputError, match="^not a recipe: "):
        Recipe.of(config)


# ---------------------------------------------------------------- the paper and the scripts


def rates(recipe):
    """[(data, encoder rate, decoder rate)] of every epoch."""
    return [
        (stage.data, stage.encoder_lr * factor, stage.decoder_lr * factor)
        for stage in recipe.stages
        for factor in (stage.lr_factor(epoch, 1) for epoch in range(stage.epochs))
    ]


class TestPaper:
    """The paper's sections 3.3, 4 and 7, number by number; "lw" is the light-weight form."""

    # (data set, epochs, halvings of the first rate)
    PARTS = {
        "nyu": [("nyu", 100, 0), ("nyu", 100, 1), ("nyu", 100, 2)],
        "person": [("person", 100, 0), ("person", 100, 1), ("person", 100, 2)],
        "context": [("context", 50, 0), ("context", 50, 1), ("context", 100, 2)],
        "cityscapes": [("cityscapes", 50, 0), ("cityscapes", 50, 1), ("cityscapes", 100, 2)],
        "voc": [("coco", 20, 0), ("sbd", 50, 1), ("voc", 130, 2)],
    }
    NAMES = {
        **{f"paper-{d}-lw-resnet{n}": d for d in ("nyu", "person", "voc") for n in (50, 101, 152)},
        "paper-voc-lw-mobilenet_v2": "voc",
        "paper-voc-lw-nasnet_mobile": "voc",
        "paper-context-lw-resnet101": "context",
        "paper-context-lw-resnet152": "context",
        "paper-cityscapes-lw-resnet101": "cityscapes",
        **{f"paper-voc-{form}-resnet101": "voc" for form in ("original", "norcu", "lw-rcu")},
    }

    def test_all_of_its_networks_and_data_sets(self):
        assert {name for name in RECIPES if name.startswith("paper-")} == set(self.NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_rates_and_epochs(self, name):
        plan = RECIPES[name]
        encoder, decoder = (1e-3 if "mobile" in name else 5e-4), 5e-3
        expected = [
            (data, pytest.approx(encoder / 2**halvings), pytest.approx(decoder / 2**halvings))
            for data, epochs, halvings in self.PARTS[self.NAMES[name]]
            for _ in range(epochs)
        ]
        assert rates(plan) == expected
        assert (plan.optimiser, plan.momentum, plan.batch, plan.clip) == ("sgd", 0.9, 6, 0)
        pretrained = "nasnet" not in name  # no package ships those
        assert (plan.weights == "imagenet") == plan.frozen_bn == pretrained
        form = name.split("-", 2)[2].removeprefix("original-")
        assert plan.model == f"refinenet-{form}"


def test_the_authors_script_of_2018():
    plan = RECIPES["authors-2018-nyu-lw-resnet50"]
    for depth in (101, 152):
        other = RECIPES[f"authors-2018-nyu-lw-resnet{depth}"]
        assert other == replace(plan, name=other.name, model=f"refinenet-lw-resnet{depth}")
    expected = [(5e-4, 5e-3)] * 100 + [(2.5e-4, 2.5e-3)] * 100 + [(1e-4, 1e-3)] * 100
    assert [pair for _, *pair in rates(plan)] == [pytest.approx(list(pair)) for pair in expected]
    assert plan.restart and plan.frozen_bn and plan.flip
    assert (plan.optimiser, plan.momentum, plan.weight_decay) == ("sgd", 0.9, 1e-5)
    assert (plan.batch, plan.crop, plan.scale, plan.min_side) == (6, (500, 500), (0.5, 2.0), 350)
    assert plan.clip == plan.ema == plan.balance == 0


@pytest.mark.parametrize(("encoder", "first"), [("resnet50", 5e-4), ("mobilenet_v2", 1e-3)])
@pytest.mark.parametrize(("data", "epochs"), [("nyu", 300), ("sbd", 200)])
def test_the_authors_script_of_2020(encoder, first, data, epochs):
    steps, poly = (
        RECIPES[f"authors-2020-{data}-lw-{encoder}-{schedule}"] for schedule in ("steps", "poly")
    )
    halvings = (
        [0] * 100 + [1] * 100 + [2] * 100 if data == "nyu" else [0] * 50 + [1] * 50 + [2] * 100
    )
    assert rates(steps) == [(data, first / 2**n, 5e-3 / 2**n) for n in halvings]
    falls = [(1 - epoch / epochs) ** 0.9 for epoch in range(epochs)]
    assert [encoder for _, encoder, _ in rates(poly)] == pytest.approx([first * f for f in falls])
    assert not steps.restart and steps.batch == poly.batch == 6

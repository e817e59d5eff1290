"""Recipes and schedules, against their formulas."""

from dataclasses import MISSING, asdict, fields, replace
import json
import math
from pathlib import Path

import pytest

from rflw import InputError, records
from rflw.config import Recipe, Stage
from rflw.recipes import OWN, RECIPES, recipe


def factors(epochs, per_epoch=10, **settings):
    stage = Stage("camvid", epochs, 1.0, 1.0, **settings)
    return [stage.lr_factor(step, per_epoch) for step in range(epochs * per_epoch)]


def test_constant():
    assert set(factors(3)) == {1.0}


def test_poly_falls_at_every_step_from_one_towards_zero():
    rates = factors(4, schedule="poly", power=0.9)
    assert rates == [pytest.approx((1 - step / 40) ** 0.9) for step in range(40)]
    assert rates[0] == 1.0 and rates[-1] > 0
    assert Stage("camvid", 4, 1, 1, schedule="poly").lr_factor(40, 10) == 0.0


def test_halve_at_its_milestones():
    rates = factors(6, schedule="halve", milestones=(2, 4))
    assert rates == [1.0] * 20 + [0.5] * 20 + [0.25] * 20


def test_multistep_takes_any_factor():
    assert factors(2, schedule="multistep", milestones=(1,), gamma=0.4)[10:] == [0.4] * 10


def test_contradictions_are_refused():
    for settings in ({"schedule": "cosine"}, {"schedule": "halve", "gamma": 0.4}):
        with pytest.raises(InputError):
            Stage("camvid", 3, 1, 1, **settings)
    with pytest.raises(InputError):
        Stage("camvid", 0, 1, 1)
    with pytest.raises(InputError, match="decoder_init"):
        Recipe(
            "a",
            "refinenet-lw-resnet50",
            (Stage("camvid", 3, 1, 1),),
            (64, 64),
            decoder_init="zeros",
        )
    with pytest.raises(InputError, match="optimiser"):
        Recipe(
            "a", "refinenet-lw-resnet50", (Stage("camvid", 3, 1, 1),), (64, 64), optimiser="adam"
        )
    with pytest.raises(InputError, match="unknown recipe"):
        recipe("imagenet")


def test_hash_depends_on_settings_and_not_on_names():
    stage = Stage("camvid", 3, 1e-3, 5e-3)
    a = Recipe("a", "refinenet-lw-resnet50", (stage,), (64, 64))
    b = Recipe("b", "refinenet-lw-resnet50", (stage,), (64, 64), note="why")
    c = Recipe("a", "refinenet-lw-resnet50", (stage,), (64, 64), batch=9)
    assert a.hash() == b.hash() != c.hash()
    later = Recipe("a", "refinenet-lw-resnet50", (Stage("camvid", 3, 1e-3, 4e-3),), (64, 64))
    assert a.hash() != later.hash()


@pytest.mark.parametrize("name", RECIPES)
def test_a_record_gives_its_recipe_back(name):
    config = json.loads(json.dumps(asdict(RECIPES[name])))
    assert Recipe.of(config) == RECIPES[name]
    del config["jitter"]  # as in a record that is older than the setting
    assert Recipe.of(config).hash() == RECIPES[name].hash()
    with pytest.raises(InputError, match="optimizer"):
        Recipe.of(config | {"optimizer": "adam"})


def test_other_lengths_scale_the_milestones():
    long = Recipe(
        "x", "m", (Stage("camvid", 300, 1, 1, schedule="halve", milestones=(100, 200)),), (64, 64)
    )
    short = long.with_epochs(30).stages[0]
    assert (short.epochs, short.milestones) == (30, (10, 20))


def test_every_stage_is_scaled_and_none_vanishes():
    voc = RECIPES["paper-voc-lw-resnet50"]
    assert [stage.epochs for stage in voc.stages] == [20, 50, 130]
    assert [stage.epochs for stage in voc.with_epochs(65).stages] == [10, 25, 65]
    assert [stage.epochs for stage in voc.with_epochs(1).stages] == [1, 1, 1]
    assert voc.with_epochs(130) == voc
    with pytest.raises(InputError, match="0 epochs"):
        voc.with_epochs(0)


def test_names_are_keys():
    assert all(name == r.name for name, r in RECIPES.items())
    assert recipe("own") is OWN and recipe("camvid-lw-resnet50") is RECIPES["camvid-lw-resnet50"]
    with pytest.raises(
        InputError, match="unknown recipe 'camvid': one of paper-nyu-lw-resnet50, .*, own$"
    ):
        recipe("camvid")


def test_the_same_on_other_data():
    other = RECIPES["paper-voc-lw-resnet50"].on("mine")
    assert [stage.data for stage in other.stages] == ["mine"] * 3 and other.data == "mine"
    assert other == replace(RECIPES["paper-voc-lw-resnet50"], stages=other.stages)
    assert RECIPES["paper-voc-lw-resnet50"].data == "voc"  # the last stage's


# ---------------------------------------------------------------- settings do not drift

# A hash leaves defaults out: one that changed would change what the recipes of old records mean, and no hash.
DEFAULTS = {
    "weights": "imagenet",
    "init": "",
    "decoder_init": "default",
    "batch": 8,
    "scale": (0.5, 2.0),
    "min_side": 0,
    "flip": True,
    "jitter": 0.0,
    "optimiser": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-5,
    "clip": 5.0,
    "ema": 0.0,
    "balance": 0.0,
    "frozen_bn": True,
    "restart": False,
    "precision": "auto",
    "val_every": 5,
    "validation": "val",
    "note": "",
}
STAGE_DEFAULTS = {
    "split": "train",
    "schedule": "constant",
    "milestones": (),
    "gamma": 0.5,
    "power": 0.9,
}


def test_defaults_are_part_of_what_a_hash_means():
    for kind, expected in ((Recipe, DEFAULTS), (Stage, STAGE_DEFAULTS)):
        assert {f.name: f.default for f in fields(kind) if f.default is not MISSING} == expected


def test_recipes_are_frozen():
    with pytest.raises(AttributeError):
        OWN.batch = 1
    with pytest.raises(AttributeError):
        OWN.stages[0].epochs = 1
    assert len({OWN, replace(OWN)}) == 1


def test_hashes_of_recipes_are_those_on_file():
    kept = json.loads((Path(__file__).parent / "data" / "golden.json").read_text())["recipes"]
    assert {name: r.hash() for name, r in (RECIPES | {"own": OWN}).items()} == kept


def test_records_were_made_with_the_recipes_as_they_are():
    found = [record for record in records.read_all() if record["kind"] == "train"]
    assert len(found) > 20
    for record in found:
        config = Recipe.of(record["config"])
        assert config == replace(RECIPES[config.name], note=config.note), record["name"]
        assert record["config_hash"] == config.hash() == RECIPES[config.name].hash()


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        # section 4 and the supplement: rates 5e-4 and 5e-3 for ResNets, halved at these epochs; VOC: after 20 of COCO and 50 of SBD
        ("paper-nyu-lw-resnet50", [("nyu", 300, 5e-4, 5e-3, "halve", (100, 200))]),
        ("paper-person-lw-resnet152", [("person", 300, 5e-4, 5e-3, "halve", (100, 200))]),
        ("paper-context-lw-resnet101", [("context", 200, 5e-4, 5e-3, "halve", (50, 100))]),
        ("paper-cityscapes-lw-resnet101", [("cityscapes", 200, 5e-4, 5e-3, "halve", (50, 100))]),
        (
            "paper-voc-lw-resnet101",
            [
                ("coco", 20, 5e-4, 5e-3, "constant", ()),
                ("sbd", 50, 2.5e-4, 2.5e-3, "constant", ()),
                ("voc", 130, 1.25e-4, 1.25e-3, "constant", ()),
            ],
        ),
        (
            "paper-voc-lw-mobilenet_v2",
            [
                ("coco", 20, 1e-3, 5e-3, "constant", ()),
                ("sbd", 50, 5e-4, 2.5e-3, "constant", ()),
                ("voc", 130, 2.5e-4, 1.25e-3, "constant", ()),
            ],
        ),
        (
            "authors-2018-nyu-lw-resnet50",
            [
                ("nyu", 100, 5e-4, 5e-3, "constant", ()),
                ("nyu", 100, 2.5e-4, 2.5e-3, "constant", ()),
                ("nyu", 100, 1e-4, 1e-3, "constant", ()),
            ],
        ),
        ("authors-2020-nyu-lw-resnet50-steps", [("nyu", 300, 5e-4, 5e-3, "multistep", (100, 200))]),
        ("authors-2020-sbd-lw-mobilenet_v2-poly", [("sbd", 200, 1e-3, 5e-3, "poly", ())]),
    ],
)
def test_stages_are_those_of_the_paper_and_the_scripts(name, stages):
    found = RECIPES[name].stages
    assert [
        (s.data, s.epochs, s.encoder_lr, s.decoder_lr, s.schedule, s.milestones) for s in found
    ] == [(*stage[:2], *map(pytest.approx, stage[2:4]), *stage[4:]) for stage in stages]
    assert (
        RECIPES[name].restart == name.startswith("authors-2018")
        and RECIPES[name].batch == 6
        and RECIPES[name].clip == 0
    )


# ---------------------------------------------------------------- settings from files


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("batch", True),
        ("batch", 8.0),
        ("batch", "8"),
        ("jitter", math.nan),
        ("jitter", math.inf),
        ("jitter", False),
        ("name", 3),
        ("weights", 3),
        ("crop", [64]),
        ("crop", [64, 64, 64]),
        ("crop", 64),
        ("crop", [64, "64"]),
        ("crop", [64, 64.5]),
        ("scale", [1, None]),
        ("flip", 1),
        ("note", None),
    ],
)
def test_settings_of_another_type_are_refused(where, value):
    with pytest.raises(InputError, match=f"not a recipe: {where} is .*, which is no "):
        Recipe.of(asdict(OWN) | {where: value})


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("weights", None),
        ("weights", "imagenet"),
        ("jitter", 1),
        ("scale", [1, 2]),
        ("crop", [64, 65]),
    ],
)
def test_settings_of_the_right_type_are_taken(where, value):
    found = getattr(Recipe.of(json.loads(json.dumps(asdict(OWN) | {where: value}))), where)
    assert found == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("where", "value"),
    [("epochs", 2.0), ("milestones", [1, "2"]), ("milestones", 3), ("power", None)],
)
def test_settings_of_a_stage_are_checked_too(where, value):
    stage = asdict(OWN.stages[0]) | {where: value}
    with pytest.raises(InputError, match=f"not a recipe: {where} is "):
        Recipe.of(asdict(OWN) | {"stages": [stage]})


def test_a_stage_may_be_one_epoch_and_a_recipe_needs_one():
    assert Stage("camvid", 1, 1, 1, schedule="multistep", gamma=0.4).epochs == 1
    with pytest.raises(InputError, match="no stages"):
        replace(OWN, stages=())
    for config in (
        {},
        {"stages": 3},
        {"stages": [3]},
        {"stages": {"data": "x"}},
        asdict(OWN) | {"stages": []},
    ):
        with pytest.raises(InputError):
            Recipe.of(config)


def rates(recipe):
    """[(data, encoder rate, decoder rate)] of every epoch."""
    return [
        (
            stage.data,
            stage.encoder_lr * stage.lr_factor(epoch, 1),
            stage.decoder_lr * stage.lr_factor(epoch, 1),
        )
        for stage in recipe.stages
        for epoch in range(stage.epochs)
    ]


class TestPaper:
    """The paper's sections 3.3, 4 and 7, number by number; "lw" is the light-weight form."""

    NAMES = {
        **{
            f"paper-{data}-lw-resnet{n}": data
            for data in ("nyu", "person", "voc")
            for n in (50, 101, 152)
        },
        "paper-voc-lw-mobilenet_v2": "voc",
        "paper-voc-lw-nasnet_mobile": "voc",
        "paper-context-lw-resnet101": "context",
        "paper-context-lw-resnet152": "context",
        "paper-cityscapes-lw-resnet101": "cityscapes",
        **{f"paper-voc-{form}-resnet101": "voc" for form in ("original", "norcu", "lw-rcu")},
    }
    # (data set, epochs, halvings of the first rate)
    PARTS = {
        "nyu": [("nyu", 100, 0), ("nyu", 100, 1), ("nyu", 100, 2)],
        "person": [("person", 100, 0), ("person", 100, 1), ("person", 100, 2)],
        "context": [("context", 50, 0), ("context", 50, 1), ("context", 100, 2)],
        "cityscapes": [("cityscapes", 50, 0), ("cityscapes", 50, 1), ("cityscapes", 100, 2)],
        "voc": [("coco", 20, 0), ("sbd", 50, 1), ("voc", 130, 2)],
    }

    def test_all_of_its_networks_and_data_sets(self):
        assert {name for name in RECIPES if name.startswith("paper-")} == set(self.NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_rates_and_epochs(self, name):
        plan = RECIPES[name]
        first = 1e-3 if "mobile" in name else 5e-4
        expected = [
            (data, first / 2**halvings)
            for data, epochs, halvings in self.PARTS[self.NAMES[name]]
            for _ in range(epochs)
        ]
        assert [(data, encoder) for data, encoder, _ in rates(plan)] == [
            (data, pytest.approx(rate)) for data, rate in expected
        ]
        assert len(expected) == (300 if self.NAMES[name] in ("nyu", "person") else 200)
        assert (
            plan.optimiser == "sgd"
            and plan.momentum > 0
            and plan.frozen_bn == (plan.weights == "imagenet")
        )
        assert (plan.weights == "imagenet") == ("nasnet" not in name)  # no package ships those
        form = name.split("-", 2)[2].removeprefix("original-")
        assert plan.model == f"refinenet-{form}"


@pytest.mark.parametrize("encoder", ["resnet50", "resnet101", "resnet152"])
def test_the_authors_script_of_2018(encoder):
    plan = RECIPES[f"authors-2018-nyu-lw-{encoder}"]
    assert [(e, d) for _, e, d in rates(plan)] == [(5e-4, 5e-3)] * 100 + [
        (2.5e-4, 2.5e-3)
    ] * 100 + [(1e-4, 1e-3)] * 100
    assert (
        plan.restart
        and plan.frozen_bn
        and plan.flip
        and (plan.optimiser, plan.momentum, plan.weight_decay) == ("sgd", 0.9, 1e-5)
    )
    assert (plan.batch, plan.crop, plan.scale, plan.min_side) == (6, (500, 500), (0.5, 2.0), 350)
    assert plan.clip == plan.ema == plan.balance == 0


@pytest.mark.parametrize(("encoder", "first"), [("resnet50", 5e-4), ("mobilenet_v2", 1e-3)])
def test_the_authors_script_of_2020(encoder, first):
    steps, poly = (
        RECIPES[f"authors-2020-nyu-lw-{encoder}-{schedule}"] for schedule in ("steps", "poly")
    )
    assert [e for _, e, _ in rates(steps)] == [first] * 100 + [first / 2] * 100 + [first / 4] * 100
    assert [e for _, e, _ in rates(poly)] == [
        pytest.approx(first * (1 - epoch / 300) ** 0.9) for epoch in range(300)
    ]
    assert (
        not steps.restart
        and steps.batch == poly.batch == 6
        and {d for _, _, d in rates(steps)} == {5e-3, 2.5e-3, 1.25e-3}
    )

"""Recipes and schedules, against their formulas."""
from dataclasses import asdict
import json

import pytest

from rflw import InputError
from rflw.config import RECIPES, Recipe, Stage, recipe


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
        Recipe("a", "refinenet-lw-resnet50", (Stage("camvid", 3, 1, 1),), (64, 64), decoder_init="zeros")
    with pytest.raises(InputError, match="optimiser"):
        Recipe("a", "refinenet-lw-resnet50", (Stage("camvid", 3, 1, 1),), (64, 64), optimiser="adam")
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
    long = Recipe("x", "m", (Stage("camvid", 300, 1, 1, schedule="halve", milestones=(100, 200)),), (64, 64))
    short = long.with_epochs(30).stages[0]
    assert (short.epochs, short.milestones) == (30, (10, 20))


def test_names_are_keys():
    assert all(name == r.name for name, r in RECIPES.items())

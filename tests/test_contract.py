"""What others rely on stays: see `tests/contract/__init__.py`, which says how to change it."""

from dataclasses import replace
import json

import contract
from contract import rflw
import numpy as np
import pytest
from test_deploy import Tiny

import rflw as package
from rflw.data import synthetic
from rflw.recipes import OWN

FROZEN = {path.stem: json.loads(path.read_text()) for path in contract.FOLDER.glob("*.json")}
NOT_RFLW = ("python -m ", "python .ci/", "make ")  # records of measurements by other commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("contract")
    contract.make_inputs(path)
    return path


# ------------------------------------------------------------ commands and names


@pytest.mark.parametrize("command", FROZEN["commands"])
def test_commands_and_options_stay(command):
    found, frozen = contract.commands()[command], FROZEN["commands"][command]
    assert set(frozen["options"]) <= set(found["options"])
    assert found["arguments"] == frozen["arguments"]


@pytest.mark.parametrize("record", contract.records(), ids=lambda record: record["name"])
def test_commands_of_records_are_still_understood(record):
    if not record["command"].startswith(NOT_RFLW):
        assert record["command"].startswith("rflw ")
        contract.parsed(record["command"].removeprefix("rflw "))


def test_commands_of_the_readme_are_still_understood():
    start, lines = ".venv/bin/rflw ", (contract.ROOT / "README.md").read_text().splitlines()
    found = [line.removeprefix(start).split(" #")[0] for line in lines if line.startswith(start)]
    assert len(found) > 15
    for line in found:
        contract.parsed(line)


def test_an_unknown_option_is_noticed():
    with pytest.raises(AssertionError, match="--sizes"):
        contract.parsed("complexity refinenet-lw-resnet50 --sizes 64 64")


def test_public_names_stay():
    assert set(FROZEN["names"]) <= set(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert callable(package.deploy.optimise) and package.__version__


def test_the_public_calls_of_the_readme():
    image, truth = contract.scene("val", 0)
    mask = package.predict(package.load("embedded"), image)
    assert mask.dtype == np.uint8 and (mask == truth)[truth < 255].mean() > 0.95
    with pytest.raises(package.InputError, match="nothing"):
        package.build("refinenet-lw-nothing", num_classes=21)
    with pytest.raises(package.InputError, match="nowhere.pth"):
        package.load_official("nowhere.pth", num_classes=21)


# ------------------------------------------------------------ recipes


def test_shipped_recipes_keep_their_hashes():
    found = contract.shipped_recipes()
    assert {name: found.get(name) for name in FROZEN["shipped"]} == FROZEN["shipped"]


def test_settings_of_records_keep_their_hashes():
    for frozen, config in FROZEN["recorded"]:
        assert package.Recipe.of(config).hash() == frozen, config["name"]
    found = [record for record in contract.records() if record["config_hash"]]
    assert len(found) >= 48
    for record in found:
        assert package.Recipe.of(record["config"]).hash() == record["config_hash"], record["name"]


# ------------------------------------------------------------ networks
# The layouts of the authors' five checkpoints: tests/data/*.keys.json and test_checkpoint.py.
# Counts and logits: test_golden.py.


@pytest.mark.parametrize("name", FROZEN["networks"]["networks"])
def test_networks_keep_names_and_shapes_of_their_weights(name):
    assert contract.network(name) == FROZEN["networks"]["networks"][name]
    assert name in package.list_models(ablations=True)


@pytest.mark.parametrize("name", FROZEN["networks"]["checkpoints"])
def test_shipped_checkpoints_keep_their_layout(name):
    assert contract.checkpoint(name) == FROZEN["networks"]["checkpoints"][name]
    model = package.load(name)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert contract.layout(shapes).items() <= FROZEN["networks"]["checkpoints"][name].items()


# ------------------------------------------------------------ what commands print


def leaves(value, path: str = "") -> dict:
    """{path: number or text} of all that JSON holds, such as {".rows[3].miou": 0.5}."""
    if not value or not isinstance(value, dict | list):
        return {path: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    found = [leaves(part, f"{path}.{key}") for key, part in parts]
    return {path: leaf for part in found for path, leaf in part.items()}


def assert_fits(found: dict, frozen: dict, open_ended: bool):
    """Every place that is frozen is there and holds the types it held; null may come or go."""
    assert frozen.keys() <= found.keys() and (open_ended or found.keys() <= frozen.keys())
    for path, kinds in frozen.items():
        if not path.endswith((".commit", ".dirty")):  # null outside a checkout
            assert {*found[path]} - {"null"} == {*kinds} - {"null"}, path


@pytest.mark.parametrize("what", contract.ANSWERS)
def test_answers_stay(folder, what, monkeypatch):
    rates = dict.fromkeys(("fp32_gmacs", "bf16_gmacs", "copy_gb_s"), 1.0)
    monkeypatch.setattr("rflw_study.speed.peaks", lambda *_: rates)  # take half a minute
    monkeypatch.setattr("rflw_study.campaign.work", lambda plan: 1.0)  # of all networks: long
    monkeypatch.setattr("rflw.recipes.OWN", replace(OWN, crop=(64, 64)))
    if what == "export":
        monkeypatch.setattr(package.checkpoint, "load", lambda _: Tiny())
    kind = contract.ANSWERS[what][0]
    found, frozen = contract.answer(what, folder), FROZEN["answers"][what]
    if kind in ("numbers", "rough"):  # what processors differ by
        share = 1e-3 if kind == "numbers" else 1e-2
        found, frozen = leaves(found), leaves(frozen)
        assert found.keys() == frozen.keys()
        for path, leaf in frozen.items():
            near = pytest.approx(leaf, rel=share, abs=share) if isinstance(leaf, float) else leaf
            assert found[path] == near, path
    else:
        assert_fits(found, frozen, open_ended=kind == "rows")
    left = {  # the files that some commands leave
        "train": ("run", "log.csv last.pt best.safetensors model.safetensors record.json"),
        "data-prepare": ("root/voc", "images masks splits manifest.json"),
        "pictures": (".", "worst.png"),
    }
    place, names = left.get(what, (".", ""))
    assert {*names.split()} <= {path.name for path in (folder / place).iterdir()}


# ------------------------------------------------------------ bad input


MOBILE, TRAIN = "refinenet-lw-mobilenet_v2", "train embedded-lw-efficientnet_lite0"
REFUSED = (  # a command, and what its one line on stderr names
    ("frobnicate", "frobnicate"),
    ("models --colour", "--colour"),
    ("complexity", "--all"),
    ("complexity resnet50", "resnet50"),
    (f"complexity {MOBILE} --all", "--all"),
    (f"complexity {MOBILE} --classes 0", "classes"),
    (f"complexity {MOBILE} --classes 99999999999", "classes"),
    (f"complexity {MOBILE} --size 32 64", "32"),
    (f"complexity {MOBILE} --size 1000000 1000000", "1000000x1000000"),
    ("predict", "images"),
    ("predict {tmp}/text.jpg --batch 0", "--batch"),
    ("predict {tmp}/text.jpg --short-side 32", "--short-side 32"),
    ("predict {tmp}/text.jpg --tile 64", "tiles of 64 pixels"),
    (f"predict {'a' * 5000}.png", "aaa"),
    (f"predict {{tmp}}/text.jpg --checkpoint {'a' * 5000}", "aaa"),
    ("predict {tmp}/own/images/0.png --checkpoint nope -o {tmp}/x", "nope"),
    ("predict {tmp}/own/images/0.png --device tpu -o {tmp}/x", "tpu"),
    ("train nothing", "nothing"),
    ("train own", "--data"),
    ("train own --data nowhere", "nowhere"),
    ("train own --data {tmp}/empty", "empty/classes.txt"),
    ("train own --data {tmp}/own --init {tmp}/damaged.safetensors", "damaged.safetensors"),
    ("train camvid-lw-efficientnet_lite0 --root {tmp}/empty", "RFLW_DATA"),
    (f"{TRAIN} --epochs 0", "epochs"),
    (f"{TRAIN} --workers -1", "workers"),
    (f"{TRAIN} --weights none", "'none' does not exist"),
    (f"{TRAIN} --out {{tmp}}/text.jpg/run", "text.jpg"),
    (
        f"{TRAIN} --init camvid --out {{tmp}}/x",
        "a refinenet-lw-efficientnet_lite2, this is a refinenet-lw-eff",
    ),
    ("first-steps no-such-recipe", "no-such-recipe"),
    ("publish {tmp}/empty some-name", "no such record"),
    ("publish {tmp}/empty ../some-name", "name"),
    ("records nothing", "nothing"),
    ("records {tmp}/record.json", "record.json"),
    ("records --folder {tmp}/text.jpg", "text.jpg' is a file"),
    ("recipes --colour", "--colour"),
    ("claims --results {tmp}/none", "none"),
    ("claims --results {tmp}", "record.json"),
    ("lists {tmp}/nowhere", "nowhere"),
    ("campaign list --tier tpu", "tpu"),
    ("campaign status --tier tpu", "tpu"),
    ("campaign run --budget-minutes nan", "budget"),
    ("campaign run --only no-such-run --runs {tmp}/runs --results {tmp}/none", "no-such-run"),
    ("data prepare voc --raw {tmp}/none --out {tmp}/x", "none"),
    ("data prepare voc --raw {tmp}/raw --out {tmp}/x --workers -1", "--workers"),
    ("data prepare imagenet --raw {tmp}/empty --out {tmp}/x", "imagenet"),
    ("data convert {tmp}/nowhere -o {tmp}/x", "nowhere"),
    ("data list --colour", "--colour"),
    ("data check imagenet", "imagenet"),
    ("data check voc --root {tmp}/empty", "empty"),
    ("data show embedded -o x.txt", "choose from: .png, .webp, .jpg, .svg, .pdf"),
    ("data show embedded --number 0 -o x.png", "--number"),
    ("eval {tmp}/damaged.safetensors", "damaged.safetensors"),
    ("eval embedded --data camvid --root {tmp}/empty", "empty"),
    ("eval embedded --split test", "test"),
    ("eval embedded --scales 1 0", "--scales"),
    ("eval embedded --scales nan", "--scales"),
    ("eval embedded --tile 64", "tiles of 64 pixels"),
    ("eval embedded --deployed fp8", "fp32, bf16, fp16, int8"),
    ("export embedded --format tflite -o {tmp}/x", "tflite"),
    ("erf embedded --method magic", "magic"),
    ("erf embedded --layer decoder.stage.0.crp", "decoder.stages.0.crp"),
    ("probe embedded --head deep", "deep"),
    ("saturation embedded --images 0", "0"),
    ("pictures embedded", "--output"),
    ("pictures -o x.png", "--checkpoint NAME"),
    ("pictures embedded --rule best -o x.png", "best"),
    ("pictures embedded --checkpoint embedded -o x.png", "among the networks already"),
    ("bench network resnet50", "resnet50"),
    (f"bench {MOBILE} --modes fast", "fast"),
    ("bench smp:FPN-resnet18 --peers", "choose from: "),
    ("bench train nothing", "nothing"),
    (f"bench {TRAIN} --rounds 0", "rounds"),
    ("bench data imagenet", "imagenet"),
    ("bench data embedded --workers 0", "workers"),
)


@pytest.mark.parametrize(("words", "named"), REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(folder, words, named, monkeypatch):
    monkeypatch.chdir(folder / "empty")
    monkeypatch.delenv("RFLW_DATA", raising=False)
    few = replace(synthetic.KINDS["embedded"], sizes={"train": 16, "val": 2})
    monkeypatch.setitem(synthetic.KINDS, "embedded", few)
    code, out, err = rflw(words.format(tmp=folder))
    assert (code, out) == (2, "")
    assert err.startswith("rflw: ") and err.count("\n") == 1 and named in err
    assert list((folder / "empty").iterdir()) == []


def test_every_command_is_refused_something():
    for command in FROZEN["commands"]:
        assert any(words == command or words.startswith(f"{command} ") for words, _ in REFUSED)

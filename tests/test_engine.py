"""Checkpoints, prediction, evaluation, training."""
from dataclasses import replace
import importlib.util
import json
import math
import os
from pathlib import Path
import signal
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import torch
import torch.nn.functional as F

import rflw
from rflw import InputError, build, engine
from rflw.config import RECIPES, Recipe, Stage
from rflw.datasets.labels import LABELS
from rflw.datasets.synthetic import Embedded, scene
from rflw.metrics import confusion_matrix

CARD = {"classes": LABELS["embedded"].classes, "data": "embedded"}
PHOTO = np.random.RandomState(0).randint(0, 256, (50, 71, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build("refinenet-lw-mobilenet_v2", 6).eval()
    with torch.no_grad():  # balance the classes, so that a random network predicts several of them
        model.decoder.classifier.bias -= model(engine.normalise(PHOTO, model, torch.device("cpu"))).mean((0, 2, 3))
    return model


class TestCheckpoints:
    def test_save_and_load(self, model, tmp_path):
        engine.save(model, tmp_path / "x.safetensors", CARD)
        loaded = rflw.load(tmp_path / "x.safetensors")
        assert (loaded.name, loaded.training, loaded.card["data"]) == (model.name, False, "embedded")
        for (key, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(a.half().to(a.dtype), b), key
        assert (tmp_path / "x.safetensors").stat().st_size < 2.1 * sum(p.numel() for p in model.parameters()) + 1e6
        assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]

    def test_values_beyond_float16_are_kept(self, model, tmp_path):
        with torch.no_grad():
            model.encoder.stem.bn.running_var[0] = 1e6
        engine.save(model, tmp_path / "x.safetensors", CARD)
        model_again = rflw.load(tmp_path / "x.safetensors")
        assert model_again.encoder.stem.bn.running_var[0] == 1e6
        model.encoder.stem.bn.running_var[0] = 1

    def test_bad_files_are_refused(self, model, tmp_path):
        engine.save(model, tmp_path / "x.safetensors", CARD)
        whole = (tmp_path / "x.safetensors").read_bytes()
        (tmp_path / "cut.safetensors").write_bytes(whole[:-1000])
        (tmp_path / "text.safetensors").write_text("hello")
        from safetensors.torch import save_file
        save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
        save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors",
                  {"rflw": json.dumps({"model": model.name, **CARD})})
        for name, words in (("cut", "not a whole"), ("text", "not a whole"), ("foreign", "not a checkpoint of rflw"),
                            ("other", "missing"), ("none", "no such checkpoint")):
            with pytest.raises(InputError, match=words):
                rflw.load(tmp_path / f"{name}.safetensors")


class TestPredict:
    def test_is_the_best_class_of_the_resized_logits(self, model):
        x = torch.from_numpy(PHOTO).permute(2, 0, 1)[None] / 255
        x = (x - torch.tensor(model.mean).view(1, 3, 1, 1)) / torch.tensor(model.std).view(1, 3, 1, 1)
        with torch.inference_mode():
            logits = F.interpolate(model(x), size=(50, 71), mode="bilinear", align_corners=False)
        out = rflw.predict(model, PHOTO)
        assert out.shape == (50, 71) and out.dtype == np.uint8
        assert (out == logits.argmax(1)[0].numpy()).mean() > 0.999
        assert len(np.unique(out)) > 1

    def test_takes_paths_and_pil_images(self, model, tmp_path):
        Image.fromarray(PHOTO).save(tmp_path / "x.png")
        expected = rflw.predict(model, PHOTO)
        assert np.array_equal(rflw.predict(model, tmp_path / "x.png"), expected)
        assert np.array_equal(rflw.predict(model, str(tmp_path / "x.png")), expected)
        assert np.array_equal(rflw.predict(model, Image.fromarray(PHOTO)), expected)

    def test_keeps_the_size_whatever_the_network_sees(self, model):
        assert rflw.predict(model, PHOTO, short_side=40).shape == (50, 71)

    def test_leaves_the_mode_of_the_network(self, model):
        model.train()
        a = rflw.predict(model, PHOTO)
        assert model.training
        assert np.array_equal(a, rflw.predict(model.eval(), PHOTO))

    @pytest.mark.parametrize("size", [(1, 1), (32, 100)])
    def test_too_small(self, model, size):
        with pytest.raises(InputError, match=f"{size[1]}x{size[0]} pixels"):
            rflw.predict(model, np.zeros((*size, 3), np.uint8))


class TestEvaluate:
    def test_sums_the_matrices_of_predictions(self, model):
        data = [scene("val", i) for i in range(3)]
        matrices = engine.evaluate(model, data, "fp32")
        expected = [confusion_matrix(torch.from_numpy(rflw.predict(model, image)), torch.from_numpy(mask), 6)
                    for image, mask in data]
        assert torch.equal(matrices, torch.stack(expected))

    def test_scales_and_flips_are_averaged_as_probabilities(self, model):
        image, _ = scene("val", 0)
        x, size = engine.normalise(image, model, torch.device("cpu")), (96, 128)
        expected = 0
        with torch.inference_mode():
            for h, w in ((96, 128), (144, 192)):
                scaled = F.interpolate(x, (h, w), mode="bilinear", antialias=True)
                for dims in ((), (3,)):
                    logits = model(scaled.flip(dims)).flip(dims)
                    expected += F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1) / 4
        torch.testing.assert_close(engine.scores(model, image, size, "fp32", (1.0, 1.5), flip=True), expected)

    def test_summary(self):
        matrices = torch.tensor([[[3, 1, 0], [1, 5, 0], [0, 0, 0]]])
        assert engine.summary(matrices, ("a", "b", "c")) == {
            "miou": pytest.approx((3 / 5 + 5 / 7) / 2), "pixel_accuracy": 0.8,
            "iou": {"a": pytest.approx(3 / 5), "b": pytest.approx(5 / 7), "c": None},
            "miou_interval": pytest.approx(2 * [(3 / 5 + 5 / 7) / 2]),
            "miou_absent_as_one": pytest.approx((3 / 5 + 5 / 7 + 1) / 3),
            "frequency_weighted_iou": pytest.approx(0.4 * 3 / 5 + 0.6 * 5 / 7)}


TENSORBOARD = {"tensorboard"} if importlib.util.find_spec("tensorboard") else set()


class Few(Embedded):
    """The embedded set's first scenes only."""

    def __len__(self):
        return {"train": 10, "val": 2}[self.split]


def tiny(epochs=3, **changes) -> Recipe:
    stage = Stage("embedded", epochs, 1e-3, 5e-3, schedule="poly")
    return Recipe("tiny", "refinenet-lw-mobilenet_v2", (stage,), **({"crop": (48, 48), "weights": None, "batch": 4,
                  "precision": "fp32", "val_every": 2, "ema": 0.9, "jitter": 0.1} | changes))


def assert_equal(a, b, tolerance=0.0):
    for (key, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=key)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(engine, "open_dataset", lambda name, split, root: Few(split))


class TestFit:
    def test_lowers_the_loss_and_leaves_a_record(self, few, tmp_path):
        model, record = engine.fit(tiny(6, batch=5), tmp_path / "run", seed=1)
        losses = [row["loss"] for row in record["curve"]]
        assert losses[-1] < losses[0] and len(losses) == 6
        assert [("miou" in row) for row in record["curve"]] == [False, True, False, True, False, True]
        assert record["metrics"]["images"] == 2 and 0 <= record["metrics"]["miou"] <= 1
        assert record["config_hash"] == tiny(6, batch=5).hash() and record["seed"] == 1
        assert {p.name for p in (tmp_path / "run").iterdir()} == {
            ".lock", "log.csv", "last.pt", "best.safetensors", "model.safetensors", "record.json", *TENSORBOARD}
        kept = rflw.load(tmp_path / "run" / "model.safetensors")
        again = engine.summary(engine.evaluate(kept, Few("val"), "fp32"), LABELS["embedded"].classes)
        assert again["miou"] == record["metrics"]["miou"]
        path = rflw.records.write(record, tmp_path / "results")
        assert rflw.records.read(path)["metrics"] == json.loads(json.dumps(record["metrics"]))

    def test_killed_and_resumed_equals_an_unbroken_run_bit_for_bit(self, few, tmp_path, monkeypatch):
        whole, _ = engine.fit(tiny(), tmp_path / "whole")
        real, calls = engine.train_step, []

        def die_at_fifth_step(*args):
            calls.append(1)
            if len(calls) == 5:
                raise MemoryError
            return real(*args)
        monkeypatch.setattr(engine, "train_step", die_at_fifth_step)
        with pytest.raises(MemoryError):
            engine.fit(tiny(), tmp_path / "broken")
        monkeypatch.setattr(engine, "train_step", real)
        resumed, record = engine.fit(tiny(), tmp_path / "broken", resume=True)
        assert_equal(whole, resumed)
        assert len(record["curve"]) == 3

    @pytest.mark.parametrize("step", [1, 2, 5])  # in the middle and at the end of an epoch of two steps
    def test_asked_to_stop_it_saves_the_step_and_resumes_exactly(self, few, tmp_path, monkeypatch, step):
        whole, expected = engine.fit(tiny(), tmp_path / "whole")
        real, calls = engine.train_step, []

        def terminated(*args):
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)
        monkeypatch.setattr(engine, "train_step", terminated)
        with pytest.raises(KeyboardInterrupt):
            engine.fit(tiny(), tmp_path / "broken")
        assert len(calls) == step
        resumed, record = engine.fit(tiny(), tmp_path / "broken", resume=True)
        assert len(calls) == 6  # no step was made twice
        assert_equal(whole, resumed)
        assert [row["loss"] for row in record["curve"]] == [row["loss"] for row in expected["curve"]]

    def test_parts_of_a_batch_add_up_to_it(self, few, tmp_path):
        a, b = (engine.fit(tiny(2), tmp_path / str(n), accumulate=n)[0] for n in (1, 4))
        assert_equal(a, b, 1e-5)
        with pytest.raises(InputError, match="not shared evenly"):
            engine.fit(tiny(2), tmp_path / "3", accumulate=3)

    def test_two_processes_equal_one(self, few, tmp_path):
        """torchrun with two gloo processes: the same weights and metrics as one process with the whole batch."""
        alone, record = engine.fit(tiny(2), tmp_path / "alone")
        script = tmp_path / "two.py"
        script.write_text("from rflw import engine\nfrom test_engine import Few, tiny\n"
                          "engine.open_dataset = lambda name, split, root: Few(split)\n"
                          f"engine.fit(tiny(2), {str(tmp_path / 'both')!r})\n")
        paths = os.pathsep.join((str(Path(__file__).parent), str(rflw.records.REPOSITORY)))
        run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script],
                             env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        both = torch.load(tmp_path / "both" / "last.pt", weights_only=True)
        one = torch.load(tmp_path / "alone" / "last.pt", weights_only=True)
        for key, tensor in one["averaged"].items():
            torch.testing.assert_close(both["averaged"][key], tensor, rtol=1e-5, atol=1e-5)
        shared = json.loads((tmp_path / "both" / "record.json").read_text())
        assert shared["metrics"]["miou"] == pytest.approx(record["metrics"]["miou"], abs=1e-3)
        assert [row["loss"] for row in shared["curve"]] == pytest.approx([row["loss"] for row in record["curve"]], rel=1e-5)

    def test_a_folder_in_use_is_left_alone(self, few, tmp_path):
        with engine._Running(tmp_path), pytest.raises(InputError, match="another process"):
            engine.fit(tiny(1), tmp_path)

    def test_the_optimiser_may_start_anew_with_each_stage(self, few, tmp_path):
        once = tiny(1, ema=0.0)
        runs = [replace(once, stages=once.stages * 2, restart=restart) for restart in (False, True)]
        kept, anew = (engine.fit(run, tmp_path / str(run.restart))[0] for run in runs)
        assert not torch.equal(kept.decoder.classifier.weight, anew.decoder.classifier.weight)

    def test_seeds_differ(self, few, tmp_path):
        a, b = (engine.fit(tiny(1, ema=0.0), tmp_path / str(seed), seed=seed)[0] for seed in (0, 1))
        assert not torch.equal(a.decoder.classifier.weight, b.decoder.classifier.weight)

    def test_folders_of_other_runs_are_left_alone(self, few, tmp_path):
        engine.fit(tiny(1), tmp_path / "run")
        before = (tmp_path / "run" / "last.pt").read_bytes()
        with pytest.raises(InputError, match="--resume"):
            engine.fit(tiny(1), tmp_path / "run")
        with pytest.raises(InputError, match="another run"):
            engine.fit(tiny(1), tmp_path / "run", seed=5, resume=True)
        with pytest.raises(InputError, match="another run"):
            engine.fit(tiny(2), tmp_path / "run", resume=True)
        assert (tmp_path / "run" / "last.pt").read_bytes() == before

    def test_a_loss_that_is_not_finite_stops_the_run(self, few, tmp_path, monkeypatch):
        monkeypatch.setattr(engine, "loss_of", lambda logits, masks, pixels: logits.sum() * math.nan)
        with pytest.raises(InputError, match="loss is nan at epoch 1"):
            engine.fit(tiny(1), tmp_path / "run")

    def test_batch_norm_statistics_stay(self, few, tmp_path):
        fresh = build("refinenet-lw-mobilenet_v2", 6).state_dict()
        trained, _ = engine.fit(tiny(1), tmp_path / "run")
        for key, tensor in trained.state_dict().items():
            if "running" in key:
                assert torch.equal(tensor, fresh[key]), key
        assert not torch.equal(trained.encoder.stem.bn.bias, fresh["encoder.stem.bn.bias"])

    def test_too_few_images(self, few, tmp_path):
        with pytest.raises(InputError, match="batch of 16 from the 10 images"):
            engine.fit(tiny(1, batch=16), tmp_path / "run")

    def test_rates_of_encoder_and_decoder(self, few, tmp_path, monkeypatch):
        seen = []
        real = torch.optim.SGD.step
        monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a, **k: (
            seen.append([g["lr"] for g in self.param_groups]), real(self, *a, **k))[1])
        engine.fit(tiny(2), tmp_path / "run")
        factors = [(1 - step / 4) ** 0.9 for step in range(4)]
        assert seen == [[pytest.approx(1e-3 * f), pytest.approx(5e-3 * f)] for f in factors]


class TestBatches:
    def test_every_epoch_is_a_permutation_of_its_own(self):
        recipe = tiny(3, batch=5)
        keys = list(engine.batches(range(10), recipe, 0, seed=0, first_step=0, steps_per_epoch=2))
        epochs = [[i for batch in keys[2 * e:2 * e + 2] for _, i in batch] for e in range(3)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
        assert len({seed for batch in keys for seed, _ in batch}) == 30

    def test_may_start_anywhere(self):
        recipe = tiny(3, batch=5)
        whole = list(engine.batches(range(10), recipe, 0, 0, 0, 2))
        assert list(engine.batches(range(10), recipe, 0, 0, 3, 2)) == whole[3:]

    def test_processes_share_every_batch(self):
        recipe = tiny(3, batch=5)
        whole = list(engine.batches(range(10), recipe, 0, 0, 0, 2))
        shares = zip(*(engine.batches(range(10), recipe, 0, 0, 0, 2, rank, 2) for rank in (0, 1)))
        assert all(sorted(a + b) == sorted(batch) for (a, b), batch in zip(shares, whole, strict=True))


class TestLoss:
    def test_void_does_not_count(self):
        logits, masks = torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255)
        assert engine.loss_of(logits, masks, 1) == 0
        masks[0, 1, 2] = 2
        expected = -torch.log_softmax(logits[0, :, 1, 2], 0)[2]
        torch.testing.assert_close(engine.loss_of(logits, masks, 1), expected)
        torch.testing.assert_close(engine.loss_of(logits, masks, 4), expected / 4)

    def test_logits_are_resized_to_the_labels(self):
        logits, masks = torch.randn(1, 3, 2, 2), torch.zeros(1, 8, 8, dtype=torch.uint8)
        expected = F.cross_entropy(F.interpolate(logits, (8, 8), mode="bilinear"), masks.long())
        torch.testing.assert_close(engine.loss_of(logits, masks, 64), expected)


class TestPlaces:
    def test_devices_and_precisions(self):
        assert engine.pick_device("cpu").type == "cpu"
        with pytest.raises(InputError, match="tpu"):
            engine.pick_device("tpu")
        if not torch.cuda.is_available():
            with pytest.raises(InputError, match="no CUDA device"):
                engine.pick_device("cuda")
        assert engine.pick_precision("fp16", torch.device("cpu")) == "fp16"
        assert engine.pick_precision("auto", torch.device("cpu")) in ("bf16", "fp32")
        with pytest.raises(InputError, match="int3"):
            engine.pick_precision("int3", torch.device("cpu"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_what_exists(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    with torch.device("meta"):
        assert build(recipe.model, len(LABELS[recipe.data].classes)).num_classes

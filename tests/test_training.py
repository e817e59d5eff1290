"""Training: one step, one run, stopping and resuming, several processes."""

import csv
from dataclasses import replace
import json
import math
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import rflw
from rflw import InputError, build, checkpoint, evaluation, live, steps, training
from rflw.config import Recipe, Stage
from rflw.data.labels import LABELS
from rflw.data.readers import Cached
from rflw.data.synthetic import Scenes
from rflw.nn import refinenet
from rflw.nn.official import MOBILE, to_theirs
from rflw.training import Run, begin_with, fit

CLASSES, NAME = LABELS["embedded"].classes, "refinenet-lw-mobilenet_v2"


class Few(Scenes):
    """The first scenes of the synthetic set."""

    def __len__(self):
        return {"train": 10, "val": 2}[self.split]


def tiny(epochs=3, **changes) -> Recipe:
    """Epochs of two steps."""
    stage = Stage("embedded", epochs, 1e-3, 5e-3, schedule="poly")
    settings = {
        "model": NAME,
        "crop": (48, 48),
        "weights": None,
        "batch": 4,
        "precision": "fp32",
        "val_every": 2,
        "ema": 0.9,
        "jitter": 0.1,
    }
    return Recipe("tiny", stages=(stage,), **settings | changes)


def assert_equal(a, b, tolerance=0.0):
    for (key, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=key)


def losses(record) -> list[float]:
    return [row["loss"] for row in record["curve"]]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root: Few(split))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three epochs -> (folder, network, record)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "open_dataset", lambda name, split, root: Few(split))
        out = tmp_path_factory.mktemp("whole") / "run"
        return out, *fit(tiny(), out)


def before_step(monkeypatch, number, action):
    """Do something before a step of training -> the list of all steps' arguments."""
    calls, real = [], training.train_step

    def counted(*args):
        calls.append(args)
        if len(calls) == number:
            action()
        return real(*args)

    monkeypatch.setattr(training, "train_step", counted)
    return calls


class TestRun:
    def test_leaves_a_record_and_the_network_that_it_measured(self, whole, tmp_path):
        out, model, record = whole
        assert losses(record)[-1] < losses(record)[0] and len(record["curve"]) == 3
        assert ["miou" in row for row in record["curve"]] == [False, True, True]
        assert record["config_hash"] == tiny().hash() and record["metrics"]["images"] == 2
        files = {path.name for path in out.iterdir()} - {"tensorboard", ".lock"}
        kept = {"best.safetensors", "model.safetensors", "validation-matrices.npz"}
        assert files == kept | {"log.csv", "last.pt", "record.json"}
        network = rflw.load(out / "model.safetensors")
        assert_equal(network, model)
        matrices = evaluation.evaluate(network, Few("val"), "fp32")
        assert (np.load(out / "validation-matrices.npz")["matrices"] == matrices.numpy()).all()
        again = evaluation.summary(matrices, CLASSES)
        assert again["miou"] == record["metrics"]["miou"]
        assert rflw.records.read(out / "record.json")["metrics"]["miou"] == again["miou"]
        fresh = build(NAME, 6).state_dict()
        for key, tensor in model.state_dict().items():  # batch norm keeps its statistics alone
            assert "running" not in key or torch.equal(tensor, fresh[key]), key
        assert not torch.equal(model.encoder.stem.bn.bias, fresh["encoder.stem.bn.bias"])

    def test_the_log_and_tensorboard_say_what_the_record_says(self, whole):
        out, _, record = whole
        rows = list(csv.DictReader((out / "log.csv").read_text().splitlines()))
        assert [(float(row["loss"]), row["miou"], float(row["live"])) for row in rows] == [
            (row["loss"], str(row.get("miou", "")), min(live.of_stages(row["live"]).values()))
            for row in record["curve"]
        ]
        reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = reader.EventAccumulator(str(out / "tensorboard"))
        events.Reload()
        shares = ({f"live/{key}": x for key, x in row["live"].items()} for row in record["curve"])
        curve = [row | live for row, live in zip(record["curve"], shares)]
        for key in ("loss", "miou", "images_per_s", "live/stages.0.act"):
            assert [(event.step, event.value) for event in events.Scalars(key)] == [
                (n, pytest.approx(row[key], 1e-6)) for n, row in enumerate(curve, 1) if key in row
            ], key

    def test_two_stages_learned_statistics_a_smaller_scale_and_a_test_split(
        self, tmp_path, monkeypatch
    ):
        rates, memory, measured, real = [], [], [], training.evaluate

        def watched(model, data, *args, scales, **options):
            measured.append((data.split, scales))
            return real(model, data, *args, scales=scales, **options)

        def step(fabric, model, optimiser, *args):
            rates.append([group["lr"] for group in optimiser.param_groups])
            memory.append(bool(optimiser.state_dict()["state"]))
            return steps.train_step(fabric, model, optimiser, *args)

        monkeypatch.setattr(training, "evaluate", watched)
        monkeypatch.setattr(training, "train_step", step)
        once = tiny(1, restart=True, frozen_bn=False, val_scale=0.5, test="train")
        model, record = fit(replace(once, stages=once.stages * 2), tmp_path)
        expected = [[1e-3 * factor, 5e-3 * factor] for factor in (1, 0.5**0.9, 1, 0.5**0.9)]
        assert rates == [pytest.approx(pair) for pair in expected]
        assert memory == [False, True, False, True]
        fresh = build(NAME, 6).encoder.stem.bn.running_mean
        assert not torch.equal(model.encoder.stem.bn.running_mean, fresh)
        # validated after each epoch; the last weights are measured on both, on the test once
        assert measured == [("val", (0.5,))] * 3 + [("train", (0.5,))]
        assert model.card["short_side"] == 48
        metrics = record["metrics"]
        assert (metrics["images"], metrics["test"]["images"]) == (2, 10)
        matrices = torch.from_numpy(np.load(tmp_path / "test-matrices.npz")["matrices"])
        assert metrics["test"]["miou"] == evaluation.summary(matrices, CLASSES)["miou"]

    def test_the_best_and_the_last_weights_are_kept(self, tmp_path, monkeypatch):
        scores, real, write = iter([0.3, 0.5, 0.4, 0.4]), training.summary, training.write_whole
        monkeypatch.setattr(training, "summary", lambda *args: real(*args) | {"miou": next(scores)})
        seen = []

        def watched(path, how):
            write(path, how)
            if path.name == "last.pt":
                seen.append(torch.load(path, weights_only=True))

        monkeypatch.setattr(training, "write_whole", watched)
        fit(tiny(3, val_every=1), tmp_path)
        for name, epoch in (("best", 1), ("model", 2)):
            kept = rflw.load(tmp_path / f"{name}.safetensors").state_dict()
            for key, value in kept.items():
                mean = seen[epoch]["averaged"][f"module.{key}"]
                assert torch.equal(value, mean.half().to(mean.dtype)), (name, key)
        assert [saved["best"] for saved in seen] == [0.3, 0.5, 0.5]
        name = "decoder.classifier.weight"
        assert not torch.equal(seen[1]["averaged"][f"module.{name}"], seen[1]["model"][name])

    def test_two_processes_equal_one(self, tmp_path):
        """Under torchrun, with gloo: the weights of one process with the whole batch."""
        _, record = fit(tiny(1), tmp_path / "alone")
        script = (  # forks, so that PyTorch is imported once
            "from torch.distributed.launcher.api import LaunchConfig, elastic_launch\n"
            "from rflw import training\nfrom test_training import Few, tiny\n"
            "training.open_dataset = lambda name, split, root: Few(split)\n"
            "place = {'rdzv_backend': 'c10d', 'rdzv_endpoint': 'localhost:0', 'run_id': 'two'}\n"
            "how = LaunchConfig(1, 1, 2, **place, start_method='fork', monitor_interval=0.1)\n"
            f"elastic_launch(how, training.fit)(tiny(1), {str(tmp_path / 'both')!r})\n"
        )
        paths = os.pathsep.join((str(Path(__file__).parent), str(rflw.records.REPOSITORY)))
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        one, both = (
            torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("alone", "both")
        )
        for key, tensor in one["averaged"].items():
            torch.testing.assert_close(both["averaged"][key], tensor, rtol=1e-5, atol=1e-5)
        shared = json.loads((tmp_path / "both" / "record.json").read_text())
        assert shared["metrics"]["miou"] == pytest.approx(record["metrics"]["miou"], abs=1e-3)
        assert losses(shared) == pytest.approx(losses(record), rel=1e-5)


class TestResume:
    def test_a_killed_run_equals_an_unbroken_one(self, whole, tmp_path, monkeypatch):
        """One step after last.pt was written, in the second epoch."""

        def killed():
            raise RuntimeError("killed")

        calls = before_step(monkeypatch, 4, killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tiny(), tmp_path, save_every=0)
        model, record = fit(tiny(), tmp_path, resume=True)
        assert_equal(model, whole[1])
        assert losses(record) == losses(whole[2]) and len(calls) == 7

    def test_the_memory_of_adamw_and_dropout_resume_too(self, tmp_path, monkeypatch):
        wiring = replace(refinenet.MOBILE, dropout=0.5)
        monkeypatch.setitem(refinenet.WIRINGS, "mobile", wiring)
        recipe = tiny(1, optimiser="adamw")
        unbroken, _ = fit(recipe, tmp_path / "whole")
        calls = before_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, tmp_path / "broken")
        resumed, _ = fit(recipe, tmp_path / "broken", resume=True)
        assert_equal(unbroken, resumed)
        assert len(calls) == 2  # the step in which the signal came was finished and saved

    def test_a_second_signal_interrupts_at_once(self):
        with training.asked_to_stop() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)

    def test_other_runs_other_data_and_damaged_files_are_left_alone(self, whole, tmp_path):
        last = (whole[0] / "last.pt").read_bytes()
        for recipe, options, message in (
            (tiny(), {}, "--resume"),
            (tiny(), {"seed": 5, "resume": True}, "another run"),
            (tiny(2), {"resume": True}, "another run"),
        ):
            with pytest.raises(InputError, match=message):
                fit(recipe, whole[0], **options)
        assert (whole[0] / "last.pt").read_bytes() == last
        saved = torch.load(whole[0] / "last.pt", weights_only=True)
        damaged = "last.pt: (cannot be read|damaged)"
        for content, message in (
            (saved | {"data": saved["data"] | {"classes": []}}, "other data: classes$"),
            (saved | {"data": saved["data"] | {"embedded/val": ""}}, "other data: embedded/val$"),
            (b"cut off", damaged),
            ([1], damaged),
            ({"identity": None}, damaged),
            (saved | {"optimiser": {"state": {}}}, damaged),
        ):
            file = tmp_path / "last.pt"
            file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
            with pytest.raises(InputError, match=f"{message}[^\n]*$"):
                fit(tiny(), tmp_path, resume=True)
            assert not (tmp_path / "record.json").exists()

    def test_a_folder_in_use(self, tmp_path):
        with training.claimed(tmp_path, 0), pytest.raises(training.InUse, match="another process"):
            with training.claimed(tmp_path, 0):
                pass
        with training.claimed(tmp_path, 0):  # free again
            pass


class TestFailures:
    def test_a_loss_that_is_not_finite_is_on_record(self, tmp_path, monkeypatch):
        real, calls = steps.loss_of, []

        def diverges(*args):
            calls.append(1)
            return real(*args) * (math.nan if len(calls) > 3 else 1)

        monkeypatch.setattr(steps, "loss_of", diverges)
        message = "loss is nan at epoch 2, step 3 of stage 1.*last good checkpoint is .*last.pt"
        with pytest.raises(training.Failed, match=message):
            fit(tiny(2), tmp_path)
        record = rflw.records.read(tmp_path / "record.json")
        assert record["status"] == "failed" and "nan" in record["error"]
        assert len(record["curve"]) == 1 and record["metrics"] == {}
        assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2
        assert not (tmp_path / "model.safetensors").exists()

    def test_weights_that_are_not_finite_replace_no_good_ones(self, tmp_path, monkeypatch):
        """The loss of the step that spoils them is still finite."""
        real, calls = training.train_step, []

        def spoils(fabric, model, *args):
            calls.append(1)
            value = real(fabric, model, *args)
            if len(calls) == 2:
                with torch.no_grad():
                    model.module.decoder.classifier.weight[0] = math.nan
            return value

        monkeypatch.setattr(training, "train_step", spoils)
        with pytest.raises(training.Failed, match="not finite after step 1 of stage 1"):
            fit(tiny(1), tmp_path, save_every=0)
        saved = torch.load(tmp_path / "last.pt", weights_only=True)
        assert saved["step"] == 1 and not (tmp_path / "best.safetensors").exists()
        assert all(value.isfinite().all() for value in saved["model"].values())

    @pytest.mark.parametrize(
        ("function", "frozen", "good", "message"),
        [
            ("train_step", True, 0, "out of memory; --accumulate 2"),
            ("train_step", False, 0, "out of memory; a smaller crop or batch"),
            ("evaluate", True, 1, "out of memory in validation; --device cpu"),  # at the end
        ],
    )
    def test_too_little_memory_says_what_takes_less(
        self, tmp_path, monkeypatch, function, frozen, good, message
    ):
        answers = iter([getattr(training, function)] * good)
        fails = lambda *_, **__: torch.empty(2**60)
        monkeypatch.setattr(training, function, lambda *a, **o: next(answers, fails)(*a, **o))
        with pytest.raises(training.Failed, match=message):
            fit(tiny(1, frozen_bn=frozen), tmp_path)
        assert rflw.records.read(tmp_path / "record.json")["status"] == "failed"

    @pytest.mark.parametrize(
        ("recipe", "options", "message"),
        [
            (tiny(precision="fp16"), {"device": "cpu"}, "fp16 trains on CUDA devices only"),
            (tiny(), {"accumulate": 3}, "a batch of 4 cannot be cut in 3"),
            (tiny(), {"accumulate": 0}, "at least 0 and 1"),
            (tiny(frozen_bn=False), {"accumulate": 2}, "whole batches"),
            (tiny(), {"resident": True}, "--no-resident"),
            (tiny(batch=16), {}, "batch of 16 from the 10 images"),
        ],
    )
    def test_contradictions_are_refused_and_write_nothing(self, tmp_path, recipe, options, message):
        with pytest.raises(InputError, match=message):
            fit(recipe, tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()


def test_long_runs_on_cpus_are_compiled_and_elsewhere_the_whole_network(tmp_path, monkeypatch):
    run, made = Run(tiny(3, ema=0.0), tmp_path, device="cpu"), []  # 6 steps
    fabric, precision = training.settings(run)
    monkeypatch.setattr(training.pooling, "compile_pools", made.append)
    for least, able, compiled in ((6, True, True), (7, True, False), (6, False, False)):
        monkeypatch.setattr(training, "WORTH_COMPILING", least)
        monkeypatch.setattr(training.pooling, "can_compile", lambda able=able: able)
        job = training.make_job(run, training.open_data(run), fabric, precision, None)
        assert job.compiled == compiled and len(made) == 1
    monkeypatch.setattr(torch, "compile", lambda model: f"compiled {model}")
    assert steps.compiled_for("it", torch.device("cuda")) == "compiled it"


def test_sets_of_one_size_and_no_jitter_can_be_held():
    same, mixed = Cached(Few("val")), Cached(Few("val"))
    mixed.dataset.size = lambda i: (96, 127 + i)
    plain = tiny(jitter=0.0)
    assert training.can_be_held(plain, [same]) and not training.can_be_held(tiny(), [same])
    assert not training.can_be_held(plain, [same, mixed])
    assert not training.can_be_held(plain, [Few("val")])


@pytest.fixture
def ours(tmp_path):
    """A checkpoint to begin with."""
    torch.manual_seed(1)
    model, path = build(NAME, 6), tmp_path / "x.safetensors"
    checkpoint.save(model, path, {"classes": CLASSES, "data": "embedded"}, torch.float32)
    return model, path


def test_only_the_same_classes_keep_the_classifier_of_our_checkpoints(ours):
    for classes in (CLASSES, tuple("abcdef"), tuple("ab")):
        model = build(NAME, len(classes))
        before = {k: v.clone() for k, v in model.state_dict().items() if "classifier" in k}
        same = begin_with(model, ours[1], classes)
        assert same == (classes == CLASSES) and len(before) == 2
        for key, value in model.state_dict().items():
            fresh = key in before and not same
            assert torch.equal(value, before[key] if fresh else ours[0].state_dict()[key]), key


def test_only_as_many_classes_of_the_paper_keep_that_of_the_authors(tmp_path):
    theirs, path = build(NAME, 21), tmp_path / "x.pth.tar"
    state = {f"module.{to_theirs(k, MOBILE)}": v for k, v in theirs.state_dict().items()}
    torch.save({"segmenter": state}, path)
    model = build(NAME, 21)
    assert begin_with(model, path, LABELS["voc"].classes)
    assert_equal(model, theirs)
    for classes in (("yes", "no"), tuple(map(str, range(21)))):
        assert not begin_with(build(NAME, len(classes)), path, classes)


def test_a_run_begins_with_a_checkpoint(ours, tmp_path):
    still = (Stage("embedded", 1, 0.0, 0.0),)
    recipe = replace(tiny(init=str(ours[1]), ema=0.0), stages=still)
    assert_equal(fit(recipe, tmp_path / "run")[0], ours[0], 1e-3)  # kept as float16


def test_classes_of_all_stages_are_the_same():
    stages = (Stage("voc", 1, 1e-3, 1e-3), Stage("embedded", 1, 1e-3, 1e-3))
    with pytest.raises(InputError, match="voc and embedded have different classes"):
        steps.rehearse(replace(tiny(), stages=stages))


def test_every_epoch_is_a_permutation_of_its_own_which_may_start_anywhere_and_be_shared():
    def batches(seed=0, first=0, *share):
        return list(steps.batches(range(10), tiny(3, batch=5), 0, seed, first, 2, *share))

    whole = batches()
    epochs = [[i for batch in whole[2 * e : 2 * e + 2] for _, i in batch] for e in (0, 1)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1]
    assert len({seed for batch in whole for seed, _ in batch}) == 30
    assert batches(seed=1) != whole and batches(first=3) == whole[3:]
    shared = zip(batches(0, 0, 0, 2), batches(0, 0, 1, 2))
    assert [sorted(x + y) for x, y in shared] == [sorted(batch) for batch in whole]


class TestStep:
    @pytest.mark.parametrize("clip", [0.5, 0.0])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_gradients_are_clipped_and_parts_add_up(self, clip, accumulate):
        torch.manual_seed(0)
        fabric = steps.make_fabric(torch.device("cpu"), "fp32")
        bare = torch.nn.Conv2d(3, 2, 1)
        model, optimiser = fabric.setup(bare, torch.optim.SGD(bare.parameters(), lr=1.0))
        images, masks = 50 * torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 8, 8))
        loss = steps.loss_of(bare(images), masks, 128)
        gradients = torch.autograd.grad(loss, list(bare.parameters()))
        gradient = torch.cat([g.flatten() for g in gradients])
        before = torch.nn.utils.parameters_to_vector(bare.parameters()).detach().clone()
        value = steps.train_step(fabric, model, optimiser, images, masks, clip, accumulate)
        change = before - torch.nn.utils.parameters_to_vector(bare.parameters())
        scale = clip / gradient.norm() if clip else 1
        assert gradient.norm() > 1 and value == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(change, gradient * scale, rtol=1e-3, atol=1e-5)

    def test_the_running_mean_of_weights_and_statistics(self):
        model = torch.nn.BatchNorm2d(1)
        averaged = steps.averaging(model, 0.15)
        averaged.n_averaged.fill_(1)
        weight, mean = 1.0, 0.0
        for step, value in enumerate((4.0, 8.0)):
            with torch.no_grad():
                model.weight.fill_(value)
                model.running_mean.fill_(value)
            averaged.update_parameters(model)
            decay = min(0.15, (1 + step) / (10 + step))  # 0.1, then 0.15
            weight, mean = (decay * x + (1 - decay) * value for x in (weight, mean))
            assert averaged.module.weight.item() == pytest.approx(weight)
            assert averaged.module.running_mean.item() == pytest.approx(mean)


@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 5.0])])
def test_void_does_not_count_and_classes_may_weigh(weights):
    logits, masks = torch.randn(1, 2, 2, 2), torch.tensor([[[0, 1], [1, 255]]])
    logs, (a, b) = -torch.log_softmax(logits[0], 0), (1, 1) if weights is None else weights
    expected = (a * logs[0, 0, 0] + b * logs[1, 0, 1] + b * logs[1, 1, 0]) / 3
    torch.testing.assert_close(steps.loss_of(logits, masks, 3, weights), expected)
    assert steps.loss_of(logits, torch.full_like(masks, 255), 1, weights) == 0


def test_class_weights_by_hand():
    masks = ([[0, 0], [1, 255]], [[0, 0]])
    data = [(None, np.array(mask, dtype=np.uint8)) for mask in masks]
    weights = steps.class_weights
    assert weights(data, 3, 0.0) is None
    # shares 4/5, 1/5, 0: inverse roots 1.118, 2.236, divided by their mean over pixels, 1.3416
    torch.testing.assert_close(weights(data, 3, 0.5), torch.tensor([5 / 6, 5 / 3, 0.0]))
    torch.testing.assert_close(weights(data, 2, 1.0), torch.tensor([0.625, 2.5]))
    with pytest.raises(InputError, match="all pixels of the training images are void"):
        weights([(None, np.full((2, 2), 255, np.uint8))], 3, 0.5)

"""Training: one step, one run, stopping and going on, many processes."""

import csv
from dataclasses import replace
import importlib.util
import io
import json
import math
import multiprocessing
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import rflw
from rflw import InputError, build, checkpoint, evaluation, training
from rflw.config import Recipe, Stage
from rflw.data.labels import LABELS
from rflw.data.readers import Cached
from rflw.data.synthetic import Embedded
from rflw.nn.official import MOBILE, to_theirs
from rflw.recipes import RECIPES
from rflw.training import begin_with

TENSORBOARD = {"tensorboard"} if importlib.util.find_spec("tensorboard") else set()


class Few(Embedded):
    """The embedded set's first scenes only."""

    def __len__(self):
        return {"train": 10, "val": 2}[self.split]


def tiny(epochs=3, **changes) -> Recipe:
    stage = Stage("embedded", epochs, 1e-3, 5e-3, schedule="poly")
    model = changes.pop("model", "refinenet-lw-mobilenet_v2")
    return Recipe(
        "tiny",
        model,
        (stage,),
        **(
            {
                "crop": (48, 48),
                "weights": None,
                "batch": 4,
                "precision": "fp32",
                "val_every": 2,
                "ema": 0.9,
                "jitter": 0.1,
            }
            | changes
        ),
    )


def python(*words):
    """Run Python where these tests and the package can be imported."""
    paths = os.pathsep.join((str(Path(__file__).parent), str(rflw.records.REPOSITORY)))
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def assert_equal(a, b, tolerance=0.0):
    for (key, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=key)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root: Few(split))


class TestFit:
    def test_lowers_the_loss_and_leaves_a_record(self, few, tmp_path):
        model, record = training.fit(tiny(6, batch=5), tmp_path / "run", seed=1)
        losses = [row["loss"] for row in record["curve"]]
        assert losses[-1] < losses[0] and len(losses) == 6
        assert [("miou" in row) for row in record["curve"]] == [
            False,
            True,
            False,
            True,
            False,
            True,
        ]
        assert record["metrics"]["images"] == 2 and 0 <= record["metrics"]["miou"] <= 1
        assert record["config_hash"] == tiny(6, batch=5).hash() and record["seed"] == 1
        assert {p.name for p in (tmp_path / "run").iterdir()} == {
            ".lock",
            "log.csv",
            "last.pt",
            "best.safetensors",
            "model.safetensors",
            "record.json",
            *TENSORBOARD,
        }
        kept = rflw.load(tmp_path / "run" / "model.safetensors")
        again = evaluation.summary(
            evaluation.evaluate(kept, Few("val"), "fp32"), LABELS["embedded"].classes
        )
        assert again["miou"] == record["metrics"]["miou"]
        path = rflw.records.write(record, tmp_path / "results")
        assert rflw.records.read(path)["metrics"] == json.loads(json.dumps(record["metrics"]))

    @pytest.mark.parametrize(
        ("name", "optimiser"),
        [
            ("refinenet-lw-mobilenet_v2", "sgd"),
            ("refinenet-lw-mobilenet_v2", "adamw"),
            ("refinenet-lw-timm:resnet18", "sgd"),
        ],
    )  # this one has dropout
    def test_killed_and_resumed_equals_an_unbroken_run_bit_for_bit(
        self, few, tmp_path, monkeypatch, name, optimiser
    ):
        recipe = tiny(model=name, optimiser=optimiser)
        whole, _ = training.fit(recipe, tmp_path / "whole")
        real, calls = training.train_step, []

        def die_at_fifth_step(*args):
            calls.append(1)
            if len(calls) == 5:
                raise RuntimeError("killed")
            return real(*args)

        monkeypatch.setattr(training, "train_step", die_at_fifth_step)
        with pytest.raises(RuntimeError, match="killed"):
            training.fit(recipe, tmp_path / "broken")
        monkeypatch.setattr(training, "train_step", real)
        resumed, record = training.fit(recipe, tmp_path / "broken", resume=True)
        assert_equal(whole, resumed)
        assert len(record["curve"]) == 3

    @pytest.mark.parametrize(
        "step", [1, 2, 5]
    )  # in the middle and at the end of an epoch of two steps
    def test_asked_to_stop_it_saves_the_step_and_resumes_exactly(
        self, few, tmp_path, monkeypatch, step
    ):
        whole, expected = training.fit(tiny(), tmp_path / "whole")
        real, calls = training.train_step, []

        def terminated(*args):
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)

        monkeypatch.setattr(training, "train_step", terminated)
        with pytest.raises(KeyboardInterrupt):
            training.fit(tiny(), tmp_path / "broken")
        assert len(calls) == step
        resumed, record = training.fit(tiny(), tmp_path / "broken", resume=True)
        assert len(calls) == 6  # no step was made twice
        assert_equal(whole, resumed)
        assert [row["loss"] for row in record["curve"]] == [
            row["loss"] for row in expected["curve"]
        ]

    def test_a_killed_process_resumes_exactly(self, few, tmp_path, monkeypatch):
        """SIGKILL in the middle of the second epoch, from outside. Sums depend on the number of threads, in the last bit."""
        whole, _ = training.fit(tiny(), tmp_path / "whole")
        script = tmp_path / "one.py"
        script.write_text(
            "import os, signal, torch\nfrom rflw import training\nfrom test_training import Few, tiny\n"
            f"torch.set_num_threads({torch.get_num_threads()})\n"
            "training.open_dataset = lambda name, split, root: Few(split)\nreal, calls = training.train_step, []\n"
            "def step(*args):\n    calls.append(1)\n"
            "    if len(calls) == 4:\n        os.kill(os.getpid(), signal.SIGKILL)\n    return real(*args)\n"
            f"training.train_step = step\ntraining.fit(tiny(), {str(tmp_path / 'run')!r}, save_every=0)\n"
        )
        assert python(script).returncode == -signal.SIGKILL
        resumed, _ = training.fit(tiny(), tmp_path / "run", resume=True)
        assert_equal(whole, resumed)

    @pytest.mark.parametrize(
        "room, busy", [(training, "train_step"), (torch, "save"), (training, "evaluate")]
    )
    def test_a_worker_that_dies_is_told_of_in_one_line_whatever_is_done_then(
        self, few, tmp_path, monkeypatch, room, busy
    ):
        """The signal comes during a step, a checkpoint's write and validation."""
        whole, _ = training.fit(tiny(val_every=1), tmp_path / "whole")
        real = getattr(room, busy)

        def deadly(*args, **options):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
                time.sleep(5)  # the signal that it is gone ends this
            return real(*args, **options)

        monkeypatch.setattr(room, busy, deadly)
        with pytest.raises(
            InputError, match="^tiny: a worker process was killed, [^\n]*--resume goes on"
        ):
            training.fit(tiny(val_every=1), tmp_path / "broken", workers=1, save_every=0)
        monkeypatch.setattr(room, busy, real)
        resumed, _ = training.fit(tiny(val_every=1), tmp_path / "broken", resume=True)
        assert_equal(whole, resumed)

    def test_asked_to_stop_before_the_first_step_it_stops_at_once(self, few, tmp_path, monkeypatch):
        def asked(*_):
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it went on")

        with monkeypatch.context() as patch:
            patch.setattr(training, "class_weights", asked)
            with pytest.raises(KeyboardInterrupt):
                training.fit(tiny(), tmp_path / "run")
        assert [
            path.name for path in (tmp_path / "run").iterdir() if path.name not in TENSORBOARD
        ] == [".lock"]
        training.fit(tiny(), tmp_path / "run", resume=True)
        training.fit(tiny(), tmp_path / "whole")
        assert (tmp_path / "run/model.safetensors").read_bytes() == (
            tmp_path / "whole/model.safetensors"
        ).read_bytes()

    def test_asked_to_stop_in_the_last_measurement_it_stops_at_once_and_goes_on(
        self, few, tmp_path, monkeypatch
    ):
        whole = training.fit(tiny(), tmp_path / "whole")[1]
        real = training.evaluate

        def asked(*args, **options):
            if (tmp_path / "run/model.safetensors").exists():
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("it went on")
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(training, "evaluate", asked)
            with pytest.raises(KeyboardInterrupt):
                training.fit(tiny(), tmp_path / "run")
        assert not (tmp_path / "run/record.json").exists()
        assert training.fit(tiny(), tmp_path / "run", resume=True)[1]["metrics"] == whole["metrics"]

    def test_any_number_of_epochs_is_begun_at_once(self, few, tmp_path):
        with pytest.raises(TimeoutError):
            training.fit(
                tiny(10**9, val_every=10**9), tmp_path, compiled=False, until=time.monotonic()
            )
        assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 1

    def test_stops_when_the_time_is_spent(self, few, tmp_path):
        whole, _ = training.fit(tiny(1), tmp_path / "whole")
        with pytest.raises(TimeoutError):
            training.fit(tiny(1), tmp_path / "run", until=0)
        assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 1
        resumed, _ = training.fit(tiny(1), tmp_path / "run", resume=True)
        assert_equal(whole, resumed)

    def test_parts_of_a_batch_add_up_to_it(self, few, tmp_path):
        a, b = (training.fit(tiny(2), tmp_path / str(n), accumulate=n)[0] for n in (1, 4))
        assert_equal(a, b, 1e-5)
        with pytest.raises(InputError, match="not shared evenly"):
            training.fit(tiny(2), tmp_path / "3", accumulate=3)

    def test_images_on_the_device_train_and_resume_as_well(self, few, tmp_path):
        recipe = tiny(2, jitter=0.0)
        whole, record = training.fit(recipe, tmp_path / "whole", resident=True)
        assert record["resident"] and record["curve"][1]["loss"] < record["curve"][0]["loss"]
        with pytest.raises(TimeoutError):
            training.fit(recipe, tmp_path / "run", resident=True, until=0)
        with pytest.raises(InputError, match="another run"):
            training.fit(recipe, tmp_path / "run", resident=False, resume=True)
        resumed, record = training.fit(
            recipe, tmp_path / "run", resume=True
        )  # as it began, on a machine that would not have chosen so
        assert_equal(whole, resumed)
        assert record["resident"]
        with pytest.raises(InputError, match="--no-resident"):
            training.fit(tiny(1), tmp_path / "other", resident=True)

    def test_compiled_networks_train_alike(self, few, tmp_path):
        (a, plain), (b, fast) = (
            training.fit(tiny(1), tmp_path / str(compiled), compiled=compiled)
            for compiled in (False, True)
        )
        assert (plain["compiled"], fast["compiled"]) == (False, True)
        assert_equal(a, b, 1e-5)

    @pytest.mark.parametrize(
        ("steps", "able", "compiled"), [(2, True, True), (3, True, False), (2, False, False)]
    )
    def test_long_runs_on_cpus_are_compiled(
        self, few, tmp_path, monkeypatch, steps, able, compiled
    ):
        made = []
        monkeypatch.setattr(training, "WORTH_COMPILING", steps)
        monkeypatch.setattr(training.pooling, "can_compile", lambda: able)
        monkeypatch.setattr(training.pooling, "compile_pools", made.append)
        _, record = training.fit(tiny(1), tmp_path / "run")  # 2 steps
        assert record["compiled"] == compiled == bool(made)

    def test_half_precision_needs_a_cuda_device(self, few, tmp_path):
        with pytest.raises(InputError, match="fp16 trains on CUDA devices only"):
            training.fit(tiny(1, precision="fp16"), tmp_path / "run", device="cpu")
        assert not (tmp_path / "run").exists()

    def test_two_processes_equal_one(self, few, tmp_path):
        """torchrun with two gloo processes: the same weights and metrics as one process with the whole batch."""
        alone, record = training.fit(tiny(2), tmp_path / "alone")
        script = tmp_path / "two.py"
        script.write_text(
            "from rflw import training\nfrom test_training import Few, tiny\n"
            "training.open_dataset = lambda name, split, root: Few(split)\n"
            f"training.fit(tiny(2), {str(tmp_path / 'both')!r})\n"
        )
        run = python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script)
        assert run.returncode == 0, run.stderr
        both = torch.load(tmp_path / "both" / "last.pt", weights_only=True)
        one = torch.load(tmp_path / "alone" / "last.pt", weights_only=True)
        for key, tensor in one["averaged"].items():
            torch.testing.assert_close(both["averaged"][key], tensor, rtol=1e-5, atol=1e-5)
        shared = json.loads((tmp_path / "both" / "record.json").read_text())
        assert shared["metrics"]["miou"] == pytest.approx(record["metrics"]["miou"], abs=1e-3)
        assert [row["loss"] for row in shared["curve"]] == pytest.approx(
            [row["loss"] for row in record["curve"]], rel=1e-5
        )

    def test_the_log_tensorboard_and_the_record_say_the_same(self, few, tmp_path):
        _, record = training.fit(tiny(3), tmp_path / "run")
        with open(tmp_path / "run" / "log.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(float(row["loss"]), row["miou"]) for row in rows] == [
            (row["loss"], str(row.get("miou", ""))) for row in record["curve"]
        ] and rows[0]["miou"] == ""
        reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
        for key in ("loss", "miou", "images_per_s"):
            expected = [
                (epoch, row[key]) for epoch, row in enumerate(record["curve"], 1) if key in row
            ]
            assert [(event.step, event.value) for event in events.Scalars(key)] == [
                (epoch, pytest.approx(value, rel=1e-6)) for epoch, value in expected
            ], key

    def test_the_bar_shows_loss_score_speed_and_time_left(self, few, tmp_path, monkeypatch):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        training.fit(
            tiny(6), tmp_path / "run", progress=True
        )  # 12 steps; the bar's figures are renewed at the first and eleventh
        shown = terminal.getvalue()
        rows = csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines())
        curve = [float(row["miou"]) for row in rows if row["miou"]]
        found = re.findall(
            r"tiny s0: .* 1[01]/12 \[\d\d:\d\d<\d\d:\d\d,.*loss=(\d\.\d+), mIoU=(0\.\d+), images/s=\d+\.\d",
            shown,
        )
        assert found and found[-1][1] == f"{curve[1]:.3f}"  # that of the fourth epoch

    def test_the_best_and_the_last_weights_are_kept(self, few, tmp_path, monkeypatch):
        real, scores = training.summary, iter([0.3, 0.5, 0.4, 0.4])
        monkeypatch.setattr(training, "summary", lambda *args: real(*args) | {"miou": next(scores)})
        seen = []
        write = training.write_whole
        monkeypatch.setattr(
            training,
            "write_whole",
            lambda path, how: (
                write(path, how),
                path.name == "last.pt" and seen.append(torch.load(path, weights_only=True)),
            )[0],
        )
        training.fit(tiny(3, val_every=1), tmp_path / "run")
        for name, epoch in (("best", 1), ("model", 2)):
            kept = rflw.load(tmp_path / "run" / f"{name}.safetensors").state_dict()
            for key, value in seen[epoch]["averaged"].items():
                assert torch.equal(kept[key], value.half().to(value.dtype)), (name, key)
        assert [state["best"] for state in seen] == [0.3, 0.5, 0.5]
        assert not torch.equal(
            seen[1]["averaged"]["decoder.classifier.weight"],
            seen[1]["model"]["decoder.classifier.weight"],
        )

    def test_a_folder_in_use_is_left_alone(self, few, tmp_path):
        with training._Running(tmp_path), pytest.raises(InputError, match="another process"):
            training.fit(tiny(1), tmp_path)

    def test_the_optimiser_may_start_anew_with_each_stage(self, few, tmp_path):
        once = tiny(1, ema=0.0)
        runs = [replace(once, stages=once.stages * 2, restart=restart) for restart in (False, True)]
        kept, anew = (training.fit(run, tmp_path / str(run.restart))[0] for run in runs)
        assert not torch.equal(kept.decoder.classifier.weight, anew.decoder.classifier.weight)

    def test_seeds_differ(self, few, tmp_path):
        a, b = (
            training.fit(tiny(1, ema=0.0), tmp_path / str(seed), seed=seed)[0] for seed in (0, 1)
        )
        assert not torch.equal(a.decoder.classifier.weight, b.decoder.classifier.weight)

    def test_folders_of_other_runs_are_left_alone(self, few, tmp_path):
        training.fit(tiny(1), tmp_path / "run")
        before = (tmp_path / "run" / "last.pt").read_bytes()
        with pytest.raises(InputError, match="--resume"):
            training.fit(tiny(1), tmp_path / "run")
        with pytest.raises(InputError, match="another run"):
            training.fit(tiny(1), tmp_path / "run", seed=5, resume=True)
        with pytest.raises(InputError, match="another run"):
            training.fit(tiny(2), tmp_path / "run", resume=True)
        assert (tmp_path / "run" / "last.pt").read_bytes() == before

    def test_a_loss_that_is_not_finite_stops_the_run_and_is_on_record(
        self, few, tmp_path, monkeypatch
    ):
        real, calls = training.loss_of, []

        def diverges(*args):
            calls.append(1)
            return real(*args) * (math.nan if len(calls) > 3 else 1)

        monkeypatch.setattr(training, "loss_of", diverges)
        with pytest.raises(
            training.Failed,
            match="loss is nan at epoch 2, step 3 of stage 1.*last good checkpoint is .*last.pt",
        ):
            training.fit(tiny(2), tmp_path / "run")
        record = rflw.records.read(tmp_path / "run" / "record.json")
        assert (
            record["status"] == "failed"
            and "nan" in record["error"]
            and len(record["curve"]) == 1
            and record["metrics"] == {}
        )
        assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 2
        assert not (tmp_path / "run" / "model.safetensors").exists()

    @pytest.mark.parametrize(
        "step", [4, 3]
    )  # at the end of the second epoch, and asked to stop within it
    def test_weights_that_are_no_numbers_replace_no_good_ones(
        self, few, tmp_path, monkeypatch, step
    ):
        """The loss of the step that spoils them is still finite."""
        real, calls = training.train_step, []

        def spoils(fabric, model, *args):
            calls.append(1)
            value = real(fabric, model, *args)
            if len(calls) == step:
                with torch.no_grad():
                    model.module.decoder.classifier.weight[0] = math.nan
            return value

        monkeypatch.setattr(training, "train_step", spoils)
        stop = KeyboardInterrupt() if step == 3 else None
        monkeypatch.setattr(
            training._Running, "must_stop", lambda *_: stop if len(calls) == 3 else None
        )
        with pytest.raises(
            training.Failed,
            match=f"not finite after step {step - 1} of stage 1.*last good checkpoint is .*last.pt",
        ):
            training.fit(tiny(2), tmp_path / "run")
        last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
        assert last["step"] == 2 and all(value.isfinite().all() for value in last["model"].values())
        assert rflw.records.read(tmp_path / "run" / "record.json")["status"] == "failed"

    @pytest.mark.parametrize(
        "allocate",
        [lambda: torch.empty(2**60), lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA"))],
        ids=["cpu", "cuda"],
    )
    def test_too_little_memory_says_what_to_lower(self, few, tmp_path, monkeypatch, allocate):
        monkeypatch.setattr(training, "train_step", lambda *args: allocate())
        with pytest.raises(training.Failed, match="with 4 images at a time; --accumulate 2"):
            training.fit(tiny(1), tmp_path / "run")
        with pytest.raises(
            training.Failed, match="smaller crop or batch"
        ):  # parts would have statistics of their own
            training.fit(tiny(1, frozen_bn=False), tmp_path / "other")
        with pytest.raises(InputError, match="whole batches"):
            training.fit(tiny(1, frozen_bn=False), tmp_path / "other", accumulate=2)

    def test_too_little_memory_to_validate(self, few, tmp_path, monkeypatch):
        monkeypatch.setattr(training, "evaluate", lambda *args, **options: torch.empty(2**60))
        with pytest.raises(training.Failed, match="out of memory in validation.*--device cpu"):
            training.fit(tiny(1), tmp_path / "run")
        assert rflw.records.read(tmp_path / "run" / "record.json")["status"] == "failed"

    def test_batch_norm_statistics_stay(self, few, tmp_path):
        fresh = build("refinenet-lw-mobilenet_v2", 6).state_dict()
        trained, _ = training.fit(tiny(1), tmp_path / "run")
        for key, tensor in trained.state_dict().items():
            if "running" in key:
                assert torch.equal(tensor, fresh[key]), key
        assert not torch.equal(trained.encoder.stem.bn.bias, fresh["encoder.stem.bn.bias"])

    def test_batch_norm_learns_statistics_where_there_are_none(self, few, tmp_path):
        fresh = build("refinenet-lw-mobilenet_v2", 6).state_dict()
        trained, _ = training.fit(tiny(1, frozen_bn=False), tmp_path / "run")
        assert not torch.equal(
            trained.encoder.stem.bn.running_mean, fresh["encoder.stem.bn.running_mean"]
        )

    def test_too_few_images(self, few, tmp_path):
        with pytest.raises(InputError, match="batch of 16 from the 10 images"):
            training.fit(tiny(1, batch=16), tmp_path / "run")

    def test_rates_of_encoder_and_decoder(self, few, tmp_path, monkeypatch):
        seen = []
        real = torch.optim.SGD.step
        monkeypatch.setattr(
            torch.optim.SGD,
            "step",
            lambda self, *a, **k: (
                seen.append([g["lr"] for g in self.param_groups]),
                real(self, *a, **k),
            )[1],
        )
        training.fit(tiny(2), tmp_path / "run")
        factors = [(1 - step / 4) ** 0.9 for step in range(4)]
        assert seen == [[pytest.approx(1e-3 * f), pytest.approx(5e-3 * f)] for f in factors]


class TestBeginWith:
    """Weights to begin with, from a checkpoint of ours and of the authors."""

    CLASSES = LABELS["embedded"].classes

    @pytest.fixture
    def ours(self, tmp_path):
        torch.manual_seed(1)
        model = build("refinenet-lw-mobilenet_v2", len(self.CLASSES), weights=None)
        checkpoint.save(
            model,
            tmp_path / "x.safetensors",
            {"classes": self.CLASSES, "data": "embedded"},
            torch.float32,
        )
        return model, tmp_path / "x.safetensors"

    def test_the_same_classes_keep_the_classifier(self, ours):
        model = build("refinenet-lw-mobilenet_v2", len(self.CLASSES), weights=None)
        assert begin_with(model, ours[1], self.CLASSES)
        assert_equal(model, ours[0])

    @pytest.mark.parametrize(
        "classes", [tuple("abcdef"), tuple("ab")]
    )  # as many of other names, and fewer
    def test_other_classes_get_a_classifier_of_their_own(self, ours, classes):
        model = build("refinenet-lw-mobilenet_v2", len(classes), weights=None)
        before = {
            key: value.clone() for key, value in model.state_dict().items() if "classifier" in key
        }
        assert len(before) == 2 and not begin_with(model, ours[1], classes)
        for key, value in model.state_dict().items():
            assert torch.equal(
                value, before[key] if key in before else ours[0].state_dict()[key]
            ), key

    def test_the_authors_checkpoints(self, tmp_path):
        torch.manual_seed(2)
        theirs = build("refinenet-lw-mobilenet_v2", 21, weights=None)
        state = {
            f"module.{to_theirs(key, MOBILE)}": value for key, value in theirs.state_dict().items()
        }
        torch.save({"segmenter": state}, tmp_path / "x.pth.tar")
        model = build("refinenet-lw-mobilenet_v2", 21, weights=None)
        assert begin_with(model, tmp_path / "x.pth.tar", LABELS["voc"].classes)
        assert_equal(model, theirs)
        model = build("refinenet-lw-mobilenet_v2", 2, weights=None)
        assert not begin_with(model, tmp_path / "x.pth.tar", ("yes", "no"))
        for key, value in theirs.state_dict().items():
            assert "classifier" in key or torch.equal(model.state_dict()[key], value), key

    def test_another_networks_checkpoint_is_refused(self, ours):
        with pytest.raises(
            InputError,
            match="x.safetensors: a refinenet-lw-mobilenet_v2, this is a refinenet-lw-efficientnet_lite0",
        ):
            begin_with(
                build("refinenet-lw-efficientnet_lite0", 6, weights=None), ours[1], self.CLASSES
            )

    def test_a_run_begins_with_it(self, few, ours, tmp_path):
        still = replace(
            tiny(epochs=1, init=str(ours[1]), ema=0.0), stages=(Stage("embedded", 1, 0.0, 0.0),)
        )
        assert_equal(
            training.fit(still, tmp_path / "run", device="cpu")[0], ours[0], 1e-3
        )  # kept as float16


def test_sets_of_one_size_and_no_jitter_can_be_held(few):
    same, mixed, disk = Cached(Few("val")), Cached(Few("val")), Few("val")
    mixed.items[1] = (np.zeros((96, 127, 3), np.uint8), np.zeros((96, 127), np.uint8))
    plain = tiny(jitter=0.0)
    assert training.can_be_held(plain, [same]) and not training.can_be_held(
        tiny(jitter=0.1), [same]
    )
    assert not training.can_be_held(plain, [same, mixed]) and not training.can_be_held(
        plain, [disk]
    )


class TestRehearsal:
    @pytest.mark.parametrize("name", RECIPES)
    def test_every_recipe_makes_a_step_on_no_data(self, name):
        recipe = RECIPES[name]
        plan = training.rehearse(recipe)
        assert [stage["epochs"] for stage in plan["stages"]] == [
            stage.epochs for stage in recipe.stages
        ]
        assert plan["params"] > 1e6

    def test_classes_of_all_stages_are_the_same(self):
        stages = (Stage("voc", 1, 1e-3, 1e-3), Stage("embedded", 1, 1e-3, 1e-3))
        with pytest.raises(InputError, match="voc and embedded have different classes"):
            training.rehearse(replace(tiny(), stages=stages))


class TestBatches:
    def test_every_epoch_is_a_permutation_of_its_own(self):
        recipe = tiny(3, batch=5)
        keys = list(training.batches(range(10), recipe, 0, seed=0, first_step=0, steps_per_epoch=2))
        epochs = [[i for batch in keys[2 * e : 2 * e + 2] for _, i in batch] for e in range(3)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
        assert len({seed for batch in keys for seed, _ in batch}) == 30

    def test_may_start_anywhere(self):
        recipe = tiny(3, batch=5)
        whole = list(training.batches(range(10), recipe, 0, 0, 0, 2))
        assert list(training.batches(range(10), recipe, 0, 0, 3, 2)) == whole[3:]

    def test_processes_share_every_batch(self):
        recipe = tiny(3, batch=5)
        whole = list(training.batches(range(10), recipe, 0, 0, 0, 2))
        shares = zip(*(training.batches(range(10), recipe, 0, 0, 0, 2, rank, 2) for rank in (0, 1)))
        assert all(
            sorted(a + b) == sorted(batch) for (a, b), batch in zip(shares, whole, strict=True)
        )


class TestSavedState:
    """What last.pt may hold."""

    ROW = {"stage": 0, "epoch": 1, "loss": 0.5, "images_per_s": 3.5}

    @pytest.fixture(params=["sgd", "adamw"])
    def state(self, request):
        return self.one(request.param)

    def one(self, optimiser="adamw"):
        torch.manual_seed(0)
        model = torch.nn.BatchNorm2d(3)
        kind = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
        }[optimiser]
        state = training.State(model, kind(model.parameters()), torch.amp.GradScaler("cpu"), None)
        self.go_on(state)
        state.averaged = {key: value.clone() for key, value in model.state_dict().items()}
        return state

    def go_on(self, state):
        state.optimiser.zero_grad()
        state.model(torch.arange(24.0).reshape(2, 3, 2, 2)).square().sum().backward()
        state.optimiser.step()

    def saved(self, state) -> dict:
        file = io.BytesIO()
        torch.save(state.saved(), file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def test_a_whole_one_goes_on_as_if_it_had_not_stopped(self, state):
        state.stage, state.step, state.losses, state.best, state.wall_s = (
            1,
            8,
            [0.5, 1],
            0,
            2.5,
        )  # a step that ends the stage
        state.curve = [self.ROW, self.ROW | {"miou": None}, self.ROW | {"miou": 0.25}]
        saved = self.saved(state)
        other = self.one("sgd" if isinstance(state.optimiser, torch.optim.SGD) else "adamw")
        self.go_on(other)
        other.restore(saved, [4, 8])
        for each in (state, other):
            self.go_on(each)
            each.average(0.9)
        assert_equal(state.model, other.model)
        assert all(torch.equal(value, other.averaged[key]) for key, value in state.averaged.items())
        assert all(getattr(state, name) == getattr(other, name) for name in state.PLACE)
        assert str(state.optimiser.state_dict()) == str(other.optimiser.state_dict())

    def test_settings_are_the_recipes(self, state):
        saved = self.saved(state)
        for group in saved["optimiser"]["param_groups"]:
            group |= {"weight_decay": "x", "params": []}
        state.restore(saved, [4])
        assert state.optimiser.param_groups[0]["weight_decay"] != "x"
        self.go_on(state)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("stage", value) for value in ("x", 0.0, True, None, -1, 1, 99)),
            *(("step", value) for value in ("abc", 0.5, -5, 5, None)),
            *(("losses", value) for value in (None, ["x"], [math.nan], "12", 3)),
            *(
                ("curve", value)
                for value in (
                    "x",
                    None,
                    [3],
                    [{"zz": 1}],
                    [ROW | {"zz": 1}],
                    [ROW | {"loss": None}],
                    [ROW | {"miou": "x"}],
                    [{"epoch": 1}],
                    [ROW | {"loss": math.inf}],
                )
            ),
            *(
                (name, value)
                for name in ("best", "wall_s")
                for value in ("x", None, math.nan, [], True)
            ),
            *(
                (name, value)
                for name in ("averaged", "model")
                for value in ({}, [1], None, "x", {"weight": 3})
            ),
            ("scaler", {}),
            ("scaler", {"scale": "x"}),
            ("scaler", None),
            ("optimiser", None),
            ("optimiser", {"state": [1]}),
            ("optimiser", {"state": {0: "x"}}),
            ("optimiser", {"state": {7: {}, "x": {"step": torch.tensor(1.0)}}}),
        ],
    )
    def test_entries_of_other_types(self, state, name, value):
        before, saved = str(state.saved()), self.saved(state) | {name: value}
        with pytest.raises(InputError, match="^last.pt: not the state of this run [^\n]*$"):
            state.restore(saved, [4])
        assert str(state.saved()) == before

    @pytest.mark.parametrize("part", ["model", "averaged"])
    @pytest.mark.parametrize(
        "value",
        [
            torch.full((3,), math.nan),
            torch.full((3,), 1e300, dtype=torch.float64),
            torch.zeros(4),
            torch.zeros(3, dtype=torch.complex64),
            torch.zeros(1).expand(3),
            torch.zeros(3, device="meta"),
        ],
    )
    def test_weights_that_are_none(self, state, part, value):
        saved = self.saved(state)
        saved[part]["weight"] = value
        with pytest.raises(
            InputError, match=f"^last.pt: not the state of this run .{part}: weight: "
        ):
            state.restore(saved, [4])

    def test_averages_where_the_recipe_has_none(self, state):
        saved, state.averaged = self.saved(state), None
        with pytest.raises(InputError, match="averaged: weight: not part"):
            state.restore(saved, [4])
        state.restore(saved | {"averaged": None}, [4])
        assert state.averaged is None

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("exp_avg", torch.zeros(4)),
            ("exp_avg", torch.tensor(0.0)),
            ("exp_avg_sq", torch.full((3,), math.nan)),
            ("exp_avg_sq", "x"),
            ("exp_avg", torch.zeros(1).expand(3)),
            ("exp_avg", None),
            ("step", torch.tensor(-1.0)),
            ("step", torch.zeros(3)),
            ("step", "x"),
            ("step", 3),
            ("other", torch.zeros(3)),
        ],
    )
    def test_what_no_optimiser_keeps(self, name, value):
        state = self.one()
        saved = self.saved(state)
        saved["optimiser"]["state"][0][name] = value
        with pytest.raises(InputError, match="^last.pt: not the state of this run .optimiser: "):
            state.restore(saved, [4])
        saved = self.saved(state)
        del saved["optimiser"]["state"][0]["exp_avg"]
        with pytest.raises(InputError, match="not what it keeps of parameter 0"):
            state.restore(saved, [4])

    def test_scalers_of_other_types(self, state):
        for name, value in (("scale", math.nan), ("scale", "x"), ("growth_interval", 0.5)):
            saved = self.saved(state)
            assert name in saved["scaler"]
            saved["scaler"][name] = value
            with pytest.raises(InputError, match="its scaler is another one"):
                state.restore(saved, [4])

    @pytest.mark.parametrize(
        "identity", [{"seed": torch.zeros(2)}, {"resident": torch.zeros(2)}, [1], None]
    )
    def test_identities_of_other_types(self, few, tmp_path, identity):
        (tmp_path / "run").mkdir()
        torch.save({"identity": identity}, tmp_path / "run" / "last.pt")
        with pytest.raises(
            InputError, match="last.pt: not a whole checkpoint of a run|^[^\n]*holds another run"
        ):
            training.fit(tiny(1), tmp_path / "run", resume=True)

    def test_a_run_that_is_refused_writes_nothing(self, few, tmp_path):
        training.fit(tiny(1), tmp_path / "run")
        last = tmp_path / "run" / "last.pt"
        saved = torch.load(last, weights_only=True)
        saved["averaged"]["decoder.classifier.bias"][0] = math.nan
        torch.save(saved, last)
        for name in ("model.safetensors", "record.json", "log.csv"):
            (tmp_path / "run" / name).unlink()
        with pytest.raises(
            InputError, match="last.pt: .*averaged: decoder.classifier.bias: holds infinities"
        ):
            training.fit(tiny(1), tmp_path / "run", resume=True)
        assert not any(
            (tmp_path / "run" / name).exists()
            for name in ("model.safetensors", "record.json", "log.csv")
        )
        torch.save(saved | {"step": 3, "averaged": saved["model"]}, last)  # 2 steps make the stage
        with pytest.raises(InputError, match="its step is none of the stage's"):
            training.fit(tiny(1), tmp_path / "run", resume=True)


class TestStep:
    @pytest.mark.parametrize(("clip", "length"), [(0.5, 0.5), (0.0, None)])
    def test_gradients_are_cut_to_a_norm(self, clip, length):
        torch.manual_seed(0)
        fabric = training.make_fabric(torch.device("cpu"), "fp32")
        bare = torch.nn.Conv2d(3, 2, 1)
        model, optimiser = fabric.setup(bare, torch.optim.SGD(bare.parameters(), lr=1.0))
        images, masks = 50 * torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 8, 8))
        gradients = torch.autograd.grad(
            training.loss_of(bare(images), masks, 128), list(bare.parameters())
        )
        norm = torch.cat([g.flatten() for g in gradients]).norm().item()
        before = torch.nn.utils.parameters_to_vector(bare.parameters()).detach().clone()
        training.train_step(fabric, model, optimiser, images, masks, clip)
        step = (torch.nn.utils.parameters_to_vector(bare.parameters()) - before).norm().item()
        assert norm > 1 and step == pytest.approx(length or norm, rel=1e-4)

    def test_the_running_mean_of_weights(self):
        model = torch.nn.Linear(1, 1)
        state = training.State(
            model,
            None,
            None,
            {key: torch.full_like(value, 2.0) for key, value in model.state_dict().items()},
        )
        with torch.no_grad():
            model.weight.fill_(4.0)
        state.average(0.75)
        assert state.averaged["weight"].item() == 2.5  # 3/4 of 2 and 1/4 of 4


class TestLoss:
    def test_void_does_not_count(self):
        logits, masks = torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255)
        assert training.loss_of(logits, masks, 1) == 0
        masks[0, 1, 2] = 2
        expected = -torch.log_softmax(logits[0, :, 1, 2], 0)[2]
        torch.testing.assert_close(training.loss_of(logits, masks, 1), expected)
        torch.testing.assert_close(training.loss_of(logits, masks, 4), expected / 4)

    def test_logits_are_resized_to_the_labels(self):
        logits, masks = torch.randn(1, 3, 2, 2), torch.zeros(1, 8, 8, dtype=torch.uint8)
        expected = F.cross_entropy(F.interpolate(logits, (8, 8), mode="bilinear"), masks.long())
        torch.testing.assert_close(training.loss_of(logits, masks, 64), expected)

    def test_weights_of_classes(self):
        logits, masks = torch.randn(1, 2, 2, 2), torch.tensor([[[0, 1], [1, 255]]])
        logs = -torch.log_softmax(logits[0], 0)
        expected = (2 * logs[0, 0, 0] + 5 * logs[1, 0, 1] + 5 * logs[1, 1, 0]) / 3
        torch.testing.assert_close(
            training.loss_of(logits, masks, 3, torch.tensor([2.0, 5.0])), expected
        )


def test_class_weights_by_hand():
    data = [
        (None, np.array([[0, 0], [1, 255]], dtype=np.uint8)),
        (None, np.array([[0, 0]], dtype=np.uint8)),
    ]
    assert training.class_weights(data, 3, 0.0) is None
    # shares 4/5, 1/5, 0: inverse square roots 1.118, 2.236, divided by their mean over pixels, 1.3416
    torch.testing.assert_close(
        training.class_weights(data, 3, 0.5), torch.tensor([5 / 6, 5 / 3, 0.0])
    )
    torch.testing.assert_close(training.class_weights(data, 2, 1.0), torch.tensor([0.625, 2.5]))
    with pytest.raises(InputError, match="all pixels of the training images are void"):
        training.class_weights([(None, np.full((2, 2), 255, np.uint8))], 3, 0.5)

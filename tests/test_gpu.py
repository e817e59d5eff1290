"""The script for a GPU machine, rehearsed on a CPU."""

import subprocess
import sys

import pytest

from rflw import records
from rflw_study import campaign, gpu
from tests import standin

# A machine that has PyTorch, torchvision, timm, Lightning, pandas and what they bring, no more.
BARE = """
import builtins, sys
real = builtins.__import__
def bare(name, scope=None, *rest):
    missing = "typer click rich pydantic fvcore scipy h5py matplotlib seaborn torchao onnx av".split()
    if name.split(".")[0] in missing and str((scope or {}).get("__name__")).startswith("rflw"):
        raise ModuleNotFoundError(name)
    return real(name, scope, *rest)
builtins.__import__ = bare
from rflw_study import gpu, speed
speed.peaks = lambda *_: {"fp32_gmacs": 1.0, "bf16_gmacs": 1.0, "copy_gb_s": 1.0}  # half a minute
for part in sys.argv[2:]:
    gpu.main(["--device", "cpu", "--results", sys.argv[1], "--part", part])
"""


@pytest.fixture
def settings(tmp_path):
    return gpu.Settings("cpu", tmp_path, None, 60.0)


def test_needs_no_more_than_a_bare_machine_has(tmp_path):
    parts = ("bench-gpu-agreement", "bench-runtime-gpu-512x512-1")
    command = [sys.executable, "-c", BARE, str(tmp_path), *parts]
    done = subprocess.run(command, capture_output=True, text=True, cwd=records.REPOSITORY)
    assert done.returncode == 0, done.stderr
    record = records.read("bench-gpu-agreement", tmp_path)
    assert [row["what"] for row in record["metrics"]["rows"]] == ["logits", "loss", "step"]
    assert all(row["error"] == 0 and row["within"] for row in record["metrics"]["rows"])
    (row,) = records.read("bench-runtime-gpu-512x512-1", tmp_path)["metrics"]["rows"]
    assert row["counted"] == "products" and row["macs"] > 1e7


def test_agreement_with_another_device_and_its_absence(settings, monkeypatch):
    standin.attach(monkeypatch)
    there = gpu.Settings(standin.NAME, settings.results, None, 60.0)
    assert all(row["within"] for row in gpu.agreements(gpu.SMALL, (64, 64), there))
    real = gpu.train_step
    monkeypatch.setattr(  # a device that is off by a tenth
        gpu, "train_step", lambda f, net, o, x, *rest: real(f, net, o, x + 0.1 * x.is_cpu, *rest)
    )
    rows = gpu.agreements(gpu.SMALL, (64, 64), there)
    assert [row["within"] for row in rows] == [True, True, False]


def test_parts_come_in_order_within_their_time_and_only_once(settings, capsys):
    seconds = {}

    def do(name, own):
        seconds[name] = own.seconds
        if name != "bench-data-gpu":  # it fails
            (settings.results / f"{name}.json").touch()
            return "done"
        return "failed: why"

    ends = gpu.run(settings, do=do)
    assert list(ends) == list(gpu.PARTS) == list(seconds)
    assert max(seconds.values()) <= 60 and min(seconds.values()) >= gpu.LEAST
    again = gpu.run(settings, do=do)
    assert again.pop("bench-data-gpu") == "failed: why" and {*again.values()} == {"on record"}
    assert "bench-data-gpu: failed: why\n" in capsys.readouterr().out
    spent = gpu.run(gpu.Settings("cpu", settings.results / "other", None, 1.0), do=do)
    assert {*spent.values()} == {"no time was left"}


def test_a_part_that_fails_or_hangs_costs_no_other(settings, monkeypatch):
    def hangs(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu.subprocess, "run", hangs)
    assert gpu.apart("bench-data-gpu", settings) == "its time is spent"


def test_loading_and_training_are_rehearsed(settings, monkeypatch):
    monkeypatch.setattr("rflw.nn.pooling.compile_pools", lambda model: None)  # takes long
    for part in ("bench-data-gpu", "bench-train-gpu"):
        gpu.main(["--part", part, "--device", "cpu", "--results", str(settings.results)])
        record = records.read(part, settings.results)
        assert record["config"]["rehearsal"] and "gpu" not in record["hardware"]
        assert all(row["images_per_s"] > 0 for row in record["metrics"]["rows"])


def test_the_campaign_knows_what_is_on_record(settings, monkeypatch, capsys):
    def run_missing(tier, minutes, results, runs, root, only):
        assert tier == "cpu" and minutes < 1 and only == "embedded"
        assert {file.name for file in records.FOLDER.glob("*.json")} <= {
            file.name for file in results.iterdir()
        }
        run = campaign.Run(campaign.Experiment("embedded-x", 1, "cpu", ""), 0, "missing")
        (results / f"{run.name}.json").write_text("{}")
        yield run, "done: mIoU 50.0 %"

    monkeypatch.setattr(campaign, "run_missing", run_missing)
    gpu.campaign("gpu-campaign", settings)
    assert capsys.readouterr().out == "embedded-x-s0: done: mIoU 50.0 %\n"
    assert (settings.results / "embedded-x-s0.json").exists()


def test_refuses_a_machine_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "pick_device", lambda name: gpu.torch.device("cpu"))
    with pytest.raises(SystemExit, match="no accelerator here; --device cpu rehearses"):
        gpu.main(["--results", str(tmp_path)])

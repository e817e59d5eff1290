"""Trainings, data preparation and campaigns that are killed, starved or interrupted must go on to the
same end: python -m reliability.kills. Exit code 1 if one does not.

Every attempt runs in a process of its own, forked from this one, and is killed at a random moment.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
import os
from pathlib import Path
import random
import resource
import signal
import sys
import tempfile
import time
import traceback

import lightning.fabric  # noqa: F401 (imported once, not by every child)
import numpy as np
from PIL import Image
import torch

from rflw import cli, recipes, records, training
from rflw.config import Recipe, Stage
from rflw.data import synthetic
from rflw.data.labels import LABELS
from rflw.errors import InputError
from rflw_study import campaign, prepare

REFUSED = 2  # exit code after InputError
TINY = Recipe(
    "tiny",
    "refinenet-lw-mobilenet_v2",
    (Stage("embedded", 6, 1e-3, 5e-3, schedule="poly"),),
    crop=(48, 48),
    weights=None,
    batch=4,
    precision="fp32",
    val_every=1,
    ema=0.9,
    jitter=0.1,
)


class Few(synthetic.Scenes):
    """The first scenes of the synthetic set."""

    def __len__(self) -> int:
        return {"train": 8, "val": 2}[self.split]


# ------------------------------------------------------------ processes


def start(action: Callable[[], None], log: Path) -> int:
    """Fork a process that runs `action` and ends with 0, REFUSED after InputError, else 1."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        torch.set_num_threads(1)
        action()
        code = 0
    except InputError as e:
        print("InputError:", e, flush=True)
        code = REFUSED
    except SystemExit as e:
        code = e.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, seconds: float = 200) -> int:
    """The exit code of a process, minus the signal that ended it. One that hangs is an error."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a process hung for {seconds} s")


def completes(action: Callable[[], None], log: Path) -> float:
    """Run to the end -> seconds."""
    begin = time.monotonic()
    code = wait(start(action, log))
    assert code == 0, f"ended with {code}: {log.read_text()[-600:]}"
    return time.monotonic() - begin


def refuses(action: Callable[[], None], log: Path, words: str) -> None:
    code = wait(start(action, log))
    text = log.read_text()
    assert code == REFUSED and words in text, f"ended with {code}, not {words!r}: {text[-600:]}"


def kill_until_done(action, log: Path, kills: int, seconds: float, draw: random.Random) -> int:
    """Kill it at random moments of the `seconds` that it takes, then let it end -> kills.

    A process that was over before its moment leaves nothing to kill: then that was all.
    """
    for count in range(kills):
        child = start(action, log)
        time.sleep(draw.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        code = wait(child)
        if code == 0:
            return count
        assert code == -signal.SIGKILL, f"ended with {code}: {log.read_text()[-600:]}"
    completes(action, log)
    return kills


# ------------------------------------------------------------ trainings


def train(out: Path, recipe: Recipe = TINY) -> None:
    training.open_dataset = lambda name, split, root=None: Few(split)
    training.fit(recipe, out, resume=True, save_every=0.2)


def same_run(a: Path, b: Path) -> None:
    """Equal weights, curve and results, and no other files."""
    names = [sorted(p.name for p in run.iterdir() if p.name != "tensorboard") for run in (a, b)]
    assert names[0] == names[1], names
    for name in ("model.safetensors", "best.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), f"{name} differs"

    def lasting(run: Path) -> dict:
        record = records.read(run / "record.json")
        curve = [{k: v for k, v in row.items() if k != "images_per_s"} for row in record["curve"]]
        times = ("started", "wall_s", "peak_memory_mb", "sha256")
        return {k: v for k, v in record.items() if k not in times} | {"curve": curve}

    assert lasting(a) == lasting(b), "the record differs"


def killed_training(work: Path, kills: int, draw: random.Random) -> int:
    long = replace(TINY, stages=(replace(TINY.stages[0], epochs=6 + kills),))
    seconds = completes(lambda: train(work / "whole", long), work / "log")
    # A run that resumes for ever would be killed for ever: a moment is at most a third of a run.
    killed = kill_until_done(
        lambda: train(work / "broken", long), work / "log", kills, seconds / 3, draw
    )
    same_run(work / "whole", work / "broken")
    return killed


def full_disk(work: Path, *_) -> int:
    """Every write of a run fails in its turn; the run goes on when there is room."""
    log, sizes = work / "log", (0, 1000, 100_000, 9_000_000)
    completes(lambda: train(work / "whole"), log)
    for size in sizes:

        def starved(size=size):
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            train(work / "broken")

        assert wait(start(starved, Path(os.devnull))) == REFUSED, f"{size} bytes"
    completes(lambda: train(work / "broken"), log)
    same_run(work / "whole", work / "broken")
    return len(sizes)


def interrupted(work: Path, *_) -> int:
    """SIGTERM and Ctrl-C to the command line: a checkpoint, one line, exit code 130, and on."""
    completes(lambda: train(work / "whole"), work / "log")
    for number in (signal.SIGTERM, signal.SIGINT):
        out, log = work / f"broken-{number}", work / f"log-{number}"

        def command(*more, out=out):
            training.open_dataset = lambda name, split, root=None: Few(split)
            recipes.RECIPES["tiny"] = TINY
            results = str(work / f"results-{out.name}")
            sys.argv = ["rflw", "train", "tiny", "--out", str(out), "--results", results, *more]
            cli.run()

        def asked(number=number, command=command):
            step, calls = training.train_step, []

            def third(*args):
                calls.append(1)
                if len(calls) == 3:
                    os.kill(os.getpid(), number)
                return step(*args)

            training.train_step = third
            command()

        code = wait(start(asked, log))
        text = log.read_text()
        assert code == 130 and "--resume" in text and "Traceback" not in text, (code, text[-300:])
        completes(lambda command=command: command("--resume"), log)
        same_run(work / "whole", out)
    return 2


def two_at_once(work: Path, *_) -> int:
    """Of two processes on one folder, one trains and one is refused."""
    first = start(lambda: train(work / "run"), work / "log")
    until = time.monotonic() + 60
    while not (work / "run/last.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    refuses(lambda: train(work / "run"), work / "second", "another process")
    assert wait(first) == 0
    return 1


# ------------------------------------------------------------ data, campaigns


def voc(raw: Path, images: int = 20) -> None:
    """PASCAL VOC in its layout, of random pixels."""
    folder, draw = raw / "VOCdevkit/VOC2012", np.random.default_rng(0)
    for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (folder / part).mkdir(parents=True)
    for split in ("train", "val"):
        keys = [f"{split}_{i:03}" for i in range(images)]
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(keys) + "\n")
        for key in keys:
            image = Image.fromarray(draw.integers(0, 255, (240, 320, 3), np.uint8))
            image.save(folder / f"JPEGImages/{key}.jpg")
            mask = Image.fromarray(draw.integers(0, 21, (240, 320), np.uint8))
            mask.putpalette(LABELS["voc"].palette())
            mask.save(folder / f"SegmentationClass/{key}.png")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def killed_prepare(work: Path, kills: int, draw: random.Random) -> int:
    def run(name: str):
        return lambda: prepare.prepare("voc", work / "raw", work / name)

    voc(work / "raw")
    seconds = completes(run("whole"), work / "log")
    killed = kill_until_done(run("broken"), work / "log", kills, seconds, draw)
    assert contents(work / "broken/voc") == contents(work / "whole/voc"), "the folders differ"
    return killed


def killed_campaign(work: Path, kills: int, draw: random.Random) -> int:
    plans = {
        name: replace(TINY, name=name, model=f"refinenet-{name}-mobilenet_v2")
        for name in ("lw", "lw-nocrp")
    }

    def run(where: Path):
        training.open_dataset = lambda name, split, root=None: Few(split)
        campaign.GROUPS = ([campaign.Experiment(name, 2, "cpu", "a") for name in plans],)
        campaign.RECIPES, campaign.recipe = plans, plans.__getitem__
        for _, end in campaign.run_missing("cpu", 10, where / "results", where / "runs"):
            assert end.startswith("done"), end

    seconds = completes(lambda: run(work / "whole"), work / "log")
    killed = kill_until_done(lambda: run(work / "broken"), work / "log", kills, seconds / 3, draw)
    for name in (f"{name}-s{seed}" for name in plans for seed in range(2)):
        same_run(work / f"whole/runs/{name}", work / f"broken/runs/{name}")
    return killed


SCENARIOS = {
    "training": (killed_training, 30),
    "data prepare": (killed_prepare, 30),
    "campaign run": (killed_campaign, 15),
    "disk full": (full_disk, 0),
    "SIGTERM and Ctrl-C": (interrupted, 0),
    "two processes": (two_at_once, 0),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.kills", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="another one kills at other moments")
    parser.add_argument("--share", type=float, default=1.0, help="share of the kills")
    parser.add_argument("--only", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--results", type=Path, help="folder for a record of the figures")
    asked = parser.parse_args()
    command = f"python -m reliability.kills --seed {asked.seed} --share {asked.share:g}"
    config = {"share": asked.share}
    with (
        records.timed(
            "reliability-faults",
            command,
            "reliability",
            config,
            seed=asked.seed,
            folder=asked.results,
        ) as record,
        tempfile.TemporaryDirectory(prefix="rflw-kills-") as name,
    ):
        rows = {}
        for scenario in asked.only:
            action, kills = SCENARIOS[scenario]
            work, begin = Path(name) / scenario.replace(" ", "-"), time.monotonic()
            work.mkdir()
            draw = random.Random(f"{asked.seed} {scenario}")
            try:
                count = action(work, max(1, round(asked.share * kills)), draw)
                rows[scenario] = {"kills" if kills else "times": count, "held": True}
            except (AssertionError, TimeoutError, OSError) as e:
                rows[scenario] = {"held": False, "why": str(e)}
            rows[scenario]["seconds"] = round(time.monotonic() - begin, 1)
            print(scenario, rows[scenario], file=sys.stderr, flush=True)
        record["metrics"] = {
            "what": "faults",
            "kills": sum(row.get("kills", 0) for row in rows.values()),
            "held": sum(row["held"] for row in rows.values()),
            "scenarios": rows,
        }
    return 0 if all(row["held"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Processes that are killed, starved or interrupted, and what they leave, compared with what undisturbed ones leave.

Every scenario runs in a process of its own, forked from this one, which has imported all but computed nothing.
"""

from collections.abc import Callable
from contextlib import contextmanager
import ctypes
from dataclasses import replace
import faulthandler
import json
import os
from pathlib import Path
import random
import resource
import shutil
import signal
import sys
import threading
import time

import lightning.fabric  # noqa: F401 (costs seconds, once)
import numpy as np
from PIL import Image
import torch

from rflw import checkpoint, cli, evaluation, recipes, records, training
from rflw.config import Recipe, Stage
from rflw.data import synthetic
from rflw.errors import InputError
from rflw.nn.refinenet import build
from rflw_study import campaign, prepare
from rflw_study.campaign import Experiment

REFUSED = 2  # exit code of a scenario that ended with InputError
POINTS = ("step", "checkpoint", "validation", "any", "record")  # when a training is killed


class Few(synthetic.Embedded):
    """The embedded set's first scenes only."""

    def __len__(self) -> int:
        return {"train": 8, "val": 2}[self.split]


TINY = Recipe(
    "tiny",
    "refinenet-lw-mobilenet_v2",
    (Stage("embedded", 3, 1e-3, 5e-3, schedule="poly"),),
    crop=(48, 48),
    weights=None,
    batch=4,
    precision="fp32",
    val_every=1,
    ema=0.9,
    jitter=0.1,
)
LONG = replace(TINY, stages=(replace(TINY.stages[0], epochs=40),))  # to be killed many times


def forked(action: Callable[[], None], log: Path) -> int:
    """Start `action` in a child -> its process id. It exits with 0, with REFUSED after InputError, and with 1 after any other error;
    what it prints goes to `log`."""
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        faulthandler.dump_traceback_later(150)  # of one that hangs
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the harness
        action()
        code = 0
    except InputError as e:
        print("InputError:", e)
        code = REFUSED
    except SystemExit as e:
        code = e.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(child: int, seconds: float = 200) -> int:
    """Its exit code, minus the signal that ended it; a child that does not end is killed, and an error."""
    for _ in range(
        round(100 * seconds)
    ):  # looks, not a clock: a machine that was asleep is no hang
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a process hung for {seconds} s")


def completes(action: Callable[[], None], log: Path) -> None:
    code = ended(forked(action, log))
    if code:
        raise AssertionError(f"ended with {code}: {log.read_text()[-600:]}")


def refuses(action: Callable[[], None], log: Path, words: str) -> None:
    """It must end with one line that has these words."""
    code = ended(forked(action, log))
    text = log.read_text()
    lines = [line for line in text.splitlines() if line.startswith("InputError")]
    if code != REFUSED or words not in lines[-1]:
        raise AssertionError(f"ended with {code}, not with one line about {words!r}: {text[-600:]}")


# ---------------------------------------------------------------- where to die


def die_soon(most: float, draw: random.Random) -> None:
    threading.Timer(draw.uniform(0, most), os.kill, (os.getpid(), signal.SIGKILL)).start()


def armed(point: str, nth: int, seed: int) -> None:
    """In a child: have the process killed during the `nth` call of what `point` names, anywhere in it."""
    draw = random.Random(seed)
    if point == "any":
        die_soon(2.0, draw)
        return
    room, name, most, fits = {
        "step": (training, "train_step", 0.4, lambda args: True),
        "checkpoint": (training, "write_whole", 0.06, lambda args: args[0].name == "last.pt"),
        "validation": (training, "evaluate", 0.3, lambda args: True),
        "record": (records, "write_whole", 0.002, lambda args: args[0].suffix == ".json"),
        "file": (prepare, "write_whole", 0.004, lambda args: True),
        "image": (evaluation, "best", 0.05, lambda args: True),
        "progress": (checkpoint, "write_whole", 0.002, lambda args: True),
    }[point]
    real, calls = getattr(room, name), []

    def wrapped(*args, **options):
        if fits(args):
            calls.append(1)
            if len(calls) == nth:
                die_soon(most, draw)
        return real(*args, **options)

    setattr(room, name, wrapped)


def kill_until_done(
    action: Callable[[], None],
    log: Path,
    kills: int,
    points: tuple[str, ...],
    draw: random.Random,
    last: str | None = None,
) -> dict[str, int]:
    """Run it again and again, each time killed at another point, then to its end -> {point: times killed there}.

    last: the point that is left when the others are over, so that all the kills hit one run; None: then that was all.
    """
    killed, over = dict.fromkeys((*points, *([last] if last else [])), 0), False
    for i in range(3 * kills):
        if sum(killed.values()) == kills:
            break
        late = last and (over or sum(killed.values()) >= 0.8 * kills)
        point, nth, seed = (
            last if late else points[i % len(points)],
            draw.randint(1, 2),
            draw.random(),
        )

        def doomed(point=point, nth=nth, seed=seed):
            armed(point, 1 if point == "record" else nth, seed)
            action()

        code = ended(forked(doomed, log))
        if code == -signal.SIGKILL:
            killed[point] += 1
        elif code:
            raise AssertionError(f"ended with {code}: {log.read_text()[-600:]}")
        elif last:  # it was over before its time had come
            over = True
        else:
            break
    completes(action, log)
    return killed


# ---------------------------------------------------------------- training


def few() -> None:
    torch.set_num_threads(1)
    training.open_dataset = lambda name, split, root=None: Few(split)


def train(out: Path, recipe: Recipe = TINY, **options) -> None:
    few()
    training.fit(recipe, out, **({"resume": True, "save_every": 0.2} | options))


def same_run(a: Path, b: Path) -> None:
    """Weights bit for bit, curve and results; nothing else may be left."""
    names = [
        sorted(p.name for p in folder.iterdir() if p.name != "tensorboard") for folder in (a, b)
    ]
    assert names[0] == names[1], names
    for name in ("model.safetensors", "best.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), f"{name} differs"
    one, two = (torch.load(folder / "last.pt", weights_only=True) for folder in (a, b))
    for key in ("model", "averaged"):
        assert all(torch.equal(one[key][k], two[key][k]) for k in one[key]), (
            f"{key} in last.pt differs"
        )
    one, two = (records.read(folder / "record.json") for folder in (a, b))

    def lasting(record: dict) -> dict:
        curve = [{k: v for k, v in row.items() if k != "images_per_s"} for row in record["curve"]]
        times = ("started", "wall_s", "peak_memory_mb", "sha256", "curve")
        return {k: v for k, v in record.items() if k not in times} | {"curve": curve}

    assert lasting(one) == lasting(two), "the record differs"


def killed_training(work: Path, kills: int, draw: random.Random) -> dict:
    """One run, killed by SIGKILL again and again: during steps, validation, writes of checkpoints and of its record, and anywhere."""
    log, recipe = work / "log", LONG if kills > 5 else TINY
    completes(lambda: train(work / "whole", recipe), log)
    killed = kill_until_done(
        lambda: train(work / "broken", recipe),
        log,
        kills,
        tuple(draw.sample(POINTS[:-1], len(POINTS) - 1)),
        draw,
        last="record",
    )
    same_run(work / "whole", work / "broken")
    return {"kills": sum(killed.values()), "points": killed}


def full_disk(work: Path) -> dict:
    """Files of at most so many bytes: each write of a run fails in its turn, and it goes on when there is room."""
    log, times = work / "log", 0
    completes(lambda: train(work / "whole"), log)
    for size in (0, 1000, 100_000, 9_000_000):

        def starved(size=size):
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )
            train(work / "broken")

        code = ended(forked(starved, Path(os.devnull)))
        assert code == REFUSED, f"{size} bytes: ended with {code}"
        left = (
            [p.name for p in (work / "broken").glob(".*") if p.name != ".lock"]
            if (work / "broken").exists()
            else []
        )
        assert not left, f"{size} bytes: left {left}"
        times += 1
    completes(lambda: train(work / "broken"), log)
    same_run(work / "whole", work / "broken")
    voc(work / "raw")
    completes(lambda: prepare.prepare("voc", work / "raw", work / "prepared"), log)

    def cramped():
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        )
        prepare.prepare("voc", work / "raw", work / "again")

    refuses(cramped, work / "cramped", "cannot be written")
    completes(lambda: prepare.prepare("voc", work / "raw", work / "again"), log)
    assert contents(work / "again") == contents(work / "prepared"), "the prepared folder differs"
    sitting = evaluation.Sitting(8, 21, file=work / "kept")

    def cramped_sitting():
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        )
        sitting.write()

    refuses(cramped_sitting, work / "cramped", "cannot be written")
    assert not (work / "kept").exists(), "a part of an evaluation was kept"
    completes(sitting.write, log)
    return {"writes_refused": times + 2}


def read_only(work: Path) -> dict:
    """A folder that cannot be written in: one line, before anything is trained."""
    closed = work / "closed"
    closed.mkdir()
    closed.chmod(0o555)

    def as_nobody(action):
        def run():
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            action()

        return run

    for folder in (work, work.parent):
        folder.chmod(0o755)
    refuses(as_nobody(lambda: train(closed / "run")), work / "log", "cannot be written")
    refuses(as_nobody(lambda: train(closed)), work / "log", "cannot be written")
    refuses(
        as_nobody(lambda: records.write(dict.fromkeys(records.REQUIRED, "x"), closed)),
        work / "log",
        "cannot be written",
    )
    assert not list(closed.iterdir())
    return {"refused": 3}


def clock_goes_back(work: Path) -> dict:
    """An hour at each look at the clock, and files from the future."""
    log = work / "log"
    completes(lambda: train(work / "whole"), log)

    def backwards():
        real, looks = time.time, []

        def clock():
            looks.append(1)
            return real() - 3600 * len(looks)

        time.time = clock
        train(work / "broken")

    def doomed():
        armed("step", 4, 0)
        backwards()

    assert ended(forked(doomed, log)) == -signal.SIGKILL
    for path in (work / "broken").iterdir():
        os.utime(path, (time.time() + 10**8,) * 2)
    completes(backwards, log)
    same_run(work / "whole", work / "broken")
    assert records.read(work / "broken/record.json")["wall_s"] >= 0
    return {"looks_an_hour_apart": True}


def interrupted(work: Path) -> dict:
    """SIGTERM and Ctrl-C to the command line: a checkpoint, one line, exit code 130; it goes on to the same end."""
    completes(lambda: train(work / "whole"), work / "log")
    for number in (signal.SIGTERM, signal.SIGINT):
        out, log = work / f"broken-{number}", work / f"log-{number}"

        def command(out=out, resume=()):
            few()
            recipes.RECIPES["tiny"] = TINY
            sys.argv = [
                "rflw",
                "train",
                "tiny",
                "--out",
                str(out),
                "--results",
                str(work / f"results-{out.name}"),
                *resume,
            ]
            cli.main()

        def asked(number=number, command=command):
            real, calls = training.train_step, []

            def step(*args):
                calls.append(1)
                if len(calls) == 3:
                    os.kill(os.getpid(), number)
                return real(*args)

            training.train_step = step
            command()

        code = ended(forked(asked, log))
        assert code == 130, f"signal {number}: ended with {code}: {log.read_text()[-300:]}"
        assert (
            "rflw: interrupted; --resume goes on" in log.read_text()
            and "Traceback" not in log.read_text()
        )
        assert torch.load(out / "last.pt", weights_only=True)["step"] == 3
        completes(lambda command=command: command(resume=("--resume",)), log)
        same_run(work / "whole", out)
    return {"signals": 2, "exit_code": 130}


def two_at_once(work: Path) -> dict:
    """Of two processes on one folder, one trains and one is refused."""
    log = work / "log"
    first = forked(lambda: train(work / "run"), log)
    until = time.monotonic() + 60
    while not (work / "run/last.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    refuses(lambda: train(work / "run"), work / "second", "another process is training")
    assert ended(first) == 0
    completes(lambda: train(work / "whole"), log)
    same_run(work / "whole", work / "run")
    return {"refused": 1}


def worker_dies(work: Path) -> dict:
    """A process that augments images is killed: one line, and the run goes on with the next."""
    log = work / "log"
    completes(lambda: train(work / "whole"), log)

    def deadly():
        from rflw.data import transforms

        real, home = transforms.Augmented.__getitem__, os.getpid()

        def item(self, key):
            if os.getpid() != home and key[1] == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, key)

        transforms.Augmented.__getitem__ = item
        train(work / "broken", workers=1)

    refuses(deadly, log, "a worker process was killed")
    completes(lambda: train(work / "broken"), log)
    same_run(work / "whole", work / "broken")
    return {"refused": 1}


# ---------------------------------------------------------------- preparing data, the campaign


def voc(raw: Path, images: int = 12) -> None:
    """PASCAL VOC in its layout, of random pixels."""
    folder, draw = raw / "VOCdevkit/VOC2012", np.random.default_rng(0)
    for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (folder / part).mkdir(parents=True)
    for split in ("train", "val"):
        keys = [f"{split}_{i:03}" for i in range(images)]
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(keys) + "\n")
        for key in keys:
            Image.fromarray(draw.integers(0, 255, (240, 320, 3), np.uint8)).save(
                folder / f"JPEGImages/{key}.jpg"
            )
            mask = Image.fromarray(draw.integers(0, 21, (240, 320), np.uint8))
            mask.putpalette(prepare.LABELS["voc"].palette())
            mask.save(folder / f"SegmentationClass/{key}.png")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("[!.]*"))
        if p.is_file()
    }


def killed_prepare(work: Path, kills: int, draw: random.Random) -> dict:
    """SIGKILL while images, masks and lists are written."""
    voc(work / "raw", images=20)
    completes(lambda: prepare.prepare("voc", work / "raw", work / "whole"), work / "log")
    killed = kill_until_done(
        lambda: prepare.prepare("voc", work / "raw", work / "broken"),
        work / "log",
        kills,
        ("file",),
        draw,
    )
    assert contents(work / "broken") == contents(work / "whole"), "the prepared folder differs"
    return {"kills": sum(killed.values())}


def killed_campaign(work: Path, kills: int, draw: random.Random) -> dict:
    """SIGKILL while the runs of a campaign go on."""
    seeds = 1 + kills // 4  # a kill during a record's write may be the end of a run
    recipes = {
        name: replace(
            TINY,
            name=name,
            model=f"refinenet-{name}-mobilenet_v2",
            stages=(replace(TINY.stages[0], epochs=2),),
        )
        for name in ("lw", "lw-nocrp")
    }

    def run(where: Path):
        few()
        campaign.GROUPS = ([Experiment(name, seeds, "cpu", "a") for name in recipes],)
        campaign.RECIPES, campaign.recipe = recipes, recipes.__getitem__
        campaign._work = {(r.model, r.crop): 1 for r in recipes.values()}
        ends = [
            end.split(":")[0]
            for _, end in campaign.run_missing("cpu", 10, where / "results", where / "runs")
        ]
        assert set(ends) <= {"done"}, ends

    completes(lambda: run(work / "whole"), work / "log")
    killed = kill_until_done(lambda: run(work / "broken"), work / "log", kills, POINTS, draw)
    runs = [f"{name}-s{seed}" for name in recipes for seed in range(seeds)]
    for name in runs:
        same_run(work / f"whole/runs/{name}", work / f"broken/runs/{name}")
    left = sorted(p.name for p in (work / "broken/results").glob("[!.]*"))
    assert left == sorted(f"{name}.json" for name in runs), left
    return {"kills": sum(killed.values()), "points": killed}


def killed_evaluation(work: Path, kills: int, draw: random.Random) -> dict:
    """SIGKILL while images are measured and while what was measured is kept: every image counts once."""
    torch.manual_seed(0)
    model = build("refinenet-lw-mobilenet_v2", len(synthetic.LABELS["embedded"].classes))
    checkpoint.save(
        model,
        work / "net.safetensors",
        {"classes": synthetic.LABELS["embedded"].classes, "data": "embedded"},
    )

    def measure(name: str):
        torch.set_num_threads(1)
        sitting = evaluation.Sitting(
            8, model.num_classes, 1, work / f"{name}.kept", "the same", every=0.0
        )
        evaluation.evaluate(
            checkpoint.load(work / "net.safetensors"),
            Few("train"),
            "fp32",
            each=lambda *_: [float((~sitting.done).sum())],
            sitting=sitting,
        )

    completes(lambda: measure("whole"), work / "log")
    killed = kill_until_done(
        lambda: measure("broken"), work / "log", kills, ("image", "progress"), draw
    )
    one, two = (
        evaluation.Sitting(8, model.num_classes, 1, work / f"{name}.kept", "the same")
        for name in ("whole", "broken")
    )
    assert one.done.all() and all(
        torch.equal(getattr(one, part), getattr(two, part))
        for part in ("matrices", "done", "numbers")
    ), "what was measured differs"
    return {"kills": sum(killed.values()), "points": killed}


KILLED = {
    "training": (killed_training, 30),
    "data prepare": (killed_prepare, 30),
    "campaign run": (killed_campaign, 30),
    "evaluation": (killed_evaluation, 5),
}
OTHERS = {
    "disk full": full_disk,
    "read-only target": read_only,
    "clock goes back": clock_goes_back,
    "SIGTERM and Ctrl-C": interrupted,
    "two processes": two_at_once,
    "worker dies": worker_dies,
}


@contextmanager
def quietly():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(work: Path, seed: int = 0, share: float = 1.0, only: list[str] | None = None) -> dict:
    """Every scenario, in folders of `work` -> {"scenarios": {name: what it counted | {"seconds", "held", "why"}}}.

    share: of the kills. held: whether it went on to the same end, or was refused as it should be.
    """
    found = {}
    with quietly():
        for name in only or [*KILLED, *OTHERS]:
            folder, start = work / name.replace(" ", "-"), time.monotonic()
            folder.mkdir()
            try:
                if name in KILLED:
                    scenario, kills = KILLED[name]
                    counted = scenario(
                        folder, max(1, round(share * kills)), random.Random(f"{seed} {name}")
                    )
                else:
                    counted = OTHERS[name](folder)
                found[name] = counted | {"held": True}
            except (AssertionError, TimeoutError, InputError, OSError, RuntimeError) as e:
                found[name] = {"held": False, "why": str(e)}
            found[name]["seconds"] = round(time.monotonic() - start, 1)
            shutil.rmtree(folder, ignore_errors=True)
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    return {"scenarios": found}

"""What a machine with a GPU should measure, in order of worth, within its time: `make gpu`.

    python -m rflw_study.gpu --minutes 12 --results DIR

Every part is a process with its own time limit, so that a part that fails or hangs does not stop
the others. A part leaves a record in DIR and is not repeated if that is there. The script needs
torch, torchvision, timm, lightning, pandas and their dependencies. `--device cpu` rehearses it.
"""

from argparse import ArgumentParser
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
import shutil
import subprocess
import sys
import time

import torch

from rflw import records
from rflw.device import card, computes_in_bf16, pick_device
from rflw.errors import InputError
from rflw.nn.refinenet import build
from rflw.recipes import recipe
from rflw.steps import loss_of, make_fabric, make_optimiser, set_rates, train_step, training_mode

LW = tuple(f"refinenet-lw-{encoder}" for encoder in ("resnet50", "resnet101", "resnet152"))
TABLE_2 = (*(f"refinenet-{encoder}" for encoder in ("resnet50", "resnet101", "resnet152")), *LW)
REAL_TIME = (*LW, "refinenet-lw-mobilenet_v2", "refinenet-lw-nasnet_mobile")
SMALL = ("refinenet-lw-mobilenet_v2",)
STEPS = ("eager-fp32", "channels-last-fp32", "channels-last+fold+merge-fp32", "optimised-fp32")
HALF = ("eager-fp32", "channels-last+fold+merge-bf16", "optimised-bf16", "optimised-fp16")
NO_GRAPHS = ("eager-fp32", "channels-last+fold+merge+pools+compile-bf16", "optimised-bf16")
LEAST = 10.0  # seconds that must be left for a part to begin
START = 30.0  # seconds that a part may take in any case: imports alone can take 10


@dataclass(frozen=True)
class Settings:
    """What all parts share. On a CPU everything is small: that is a rehearsal."""

    device: str
    results: Path
    root: Path | None
    seconds: float  # of this part

    @property
    def small(self) -> bool:
        return self.device == "cpu"


def filed(name: str, settings: Settings, config: dict, metrics, config_hash: str = "") -> None:
    """Measure and write the record."""
    command = f"python -m rflw_study.gpu --part {name}"
    config = config | {"tf32": torch.backends.cudnn.allow_tf32, "rehearsal": settings.small}
    with records.timed(name, command, "bench", config, config_hash) as record:
        where = pick_device(settings.device)
        record["metrics"] = metrics()
        if where.type != "cpu":
            record["hardware"]["gpu"] = card(where)
    records.write(record, settings.results)


# ------------------------------------------------------------ the parts


def agreement(name: str, settings: Settings) -> None:
    """Logits, loss and a step of training against the CPU's, in single precision."""
    torch.backends.cudnn.allow_tf32 = False
    size = (64, 96) if settings.small else (256, 384)
    names = SMALL if settings.small else (*SMALL, LW[1], TABLE_2[1])
    filed(name, settings, {"size": size}, lambda: {"rows": agreements(names, size, settings)})


def agreements(names, size: tuple[int, int], settings: Settings) -> list[dict]:
    """[{"model", "what", "error" (relative), "within" (the tolerance)}]."""
    rows, places = [], (torch.device("cpu"), pick_device(settings.device))
    plan, x = recipe("paper-voc-lw-resnet50"), torch.randn(2, 3, *size)
    masks = torch.randint(0, 21, (2, *size), dtype=torch.uint8)
    for model in names:
        torch.manual_seed(0)
        first = build(model, 21).eval()
        seen = [step_of(deepcopy(first), plan, x.to(at), masks.to(at), at) for at in places]
        for (what, most), ours, theirs in zip(TOLERANCES.items(), *seen, strict=True):
            error = ((ours - theirs.cpu()).norm() / ours.norm()).item()
            rows.append({"model": model, "what": what, "error": error, "within": error < most})
    return rows


TOLERANCES = {"logits": 1e-3, "loss": 1e-3, "step": 1e-2}


def step_of(net, plan, x, masks, where) -> tuple:
    """Logits and loss of a network, and what a step of training adds to its weights."""
    net.to(where)
    with torch.no_grad():
        logits = net(x)
        loss = loss_of(logits, masks, masks.numel())
    before = torch.cat([weight.detach().flatten().clone() for weight in net.parameters()])
    training_mode(net)
    fabric = make_fabric(where, "fp32")
    wrapped, optimiser = fabric.setup(net, make_optimiser(net, plan))
    set_rates(optimiser, plan.stages[0], 0, 1)
    train_step(fabric, wrapped, optimiser, x, masks, plan.clip)
    after = torch.cat([weight.detach().flatten() for weight in net.parameters()])
    return logits, loss, after - before


def network(*names: str, modes=("eager-fp32",), size=(512, 512), batch: int = 1):
    """A part that times networks by the paper's protocol."""

    def part(name: str, settings: Settings) -> None:
        from rflw_study.speed import network_speed

        where = pick_device(settings.device)
        halves = {"bf16": computes_in_bf16(where), "fp16": where.type == "cuda"}
        possible = tuple(mode for mode in modes if halves.get(mode.rpartition("-")[2], True))
        options = {"modes": possible, "size": size, "batch": batch, "passes": 100, "classes": 21}
        if settings.small:
            options |= {"modes": possible[:2], "size": (64, 96), "passes": 2}
        chosen = SMALL if settings.small else names
        config = {"names": list(chosen), **options}
        measure = lambda: network_speed(chosen, device=settings.device, **options)
        filed(name, settings, config, measure)

    return part


def training(name: str, settings: Settings) -> None:
    """Speed of training Light-Weight RefineNet-101, on VOC where it is, else on drawn scenes."""
    from rflw_study.speed import training_speed

    plan = recipe("paper-voc-lw-resnet101")
    there = settings.root and (settings.root / "voc").exists()
    plan = plan if there else plan.on("embedded")
    if settings.small:
        plan = replace(plan, model=SMALL[0], crop=(64, 64), batch=2)
    how = {"steps": 1, "rounds": 1} if settings.small else {"steps": 8, "rounds": 3}
    measure = lambda: {"rows": training_speed(plan, settings.root, settings.device, **how)}
    filed(name, settings, asdict(plan), measure, plan.hash())


def loading(name: str, settings: Settings) -> None:
    """Images a second that are loaded and augmented, also on the device."""
    from rflw_study.speed import loading_speed

    plan = recipe("embedded-lw-efficientnet_lite0")
    small = {"workers": 1, "images": 2 * plan.batch, "rounds": 1}
    how = small if settings.small else {"workers": 8}
    measure = lambda: {"rows": loading_speed(plan, settings.root, settings.device, **how)}
    filed(name, settings, asdict(plan), measure, plan.hash())


def campaign(name: str, settings: Settings) -> None:
    """Runs that are missing, with what time is left; their folders stay, to be resumed."""
    from rflw_study.campaign import run_missing

    results = settings.results / "campaign"  # also what the repository has on record
    results.mkdir(exist_ok=True)
    for file in records.FOLDER.glob("*.json"):
        if not (results / file.name).exists():
            shutil.copy(file, results)
    tier, only = ("cpu", "embedded") if settings.small else ("gpu", "")
    minutes, runs = max(settings.seconds - 5, 1) / 60, settings.results / "runs"
    for run, end in run_missing(tier, minutes, results, runs, settings.root, only=only):
        print(f"{run.name}: {end}", flush=True)
        made = results / f"{run.name}.json"
        if made.exists():
            shutil.copy(made, settings.results)


def notebooks(name: str, settings: Settings) -> None:
    """Every notebook against its stored outputs, where jupyter and nbval are."""
    if not find_spec("nbval"):
        raise InputError("left out: nbval is not installed")
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "notebooks"]
    command += ["--collect-only"] if settings.small else []

    def compare() -> dict:
        done = subprocess.run(command, cwd=records.REPOSITORY, capture_output=True, text=True)
        print(done.stdout)
        return {"exit_code": done.returncode, "summary": done.stdout.strip().split("\n")[-1]}

    filed(name, settings, {"command": command[1:]}, compare)


# Each part by the name of its record, with the share of the time that it may take.
PARTS = {
    "bench-gpu-agreement": (0.1, agreement),
    "bench-runtime-gpu-468x625-1": (0.1, network(*TABLE_2, size=(468, 625))),
    "bench-runtime-gpu-512x512-1": (0.08, network(*REAL_TIME)),
    "bench-runtime-gpu-half": (0.2, network(LW[0], LW[1], modes=HALF)),
    "bench-data-gpu": (0.06, loading),
    "bench-train-gpu": (0.15, training),
    "bench-runtime-gpu-468x625-2": (0.1, network(*TABLE_2, size=(468, 625))),
    "bench-runtime-gpu-512x512-2": (0.08, network(*REAL_TIME)),
    "bench-runtime-gpu-steps": (0.15, network(LW[0], LW[1], modes=STEPS)),
    "bench-runtime-gpu-graphs": (0.15, network(LW[0], modes=NO_GRAPHS)),
    "bench-runtime-gpu-b8": (0.15, network(LW[0], LW[1], modes=HALF, batch=8)),
    "bench-runtime-gpu-468x625-3": (0.1, network(*TABLE_2, size=(468, 625))),
    "gpu-campaign": (1.0, campaign),
    "gpu-notebooks": (1.0, notebooks),
}


# ------------------------------------------------------------ the whole


def apart(name: str, settings: Settings) -> str:
    """Do a part in a process of its own -> how it ended."""
    logs = settings.results / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "rflw_study.gpu", "--part", name, "--device", settings.device]
    command += ["--results", str(settings.results), "--minutes", str(settings.seconds / 60)]
    command += ["--root", str(settings.root)] if settings.root else []
    with open(logs / f"{name}.log", "w") as log:
        into = {"stdout": log, "stderr": subprocess.STDOUT}
        try:
            code = subprocess.run(command, timeout=settings.seconds, **into).returncode
        except subprocess.TimeoutExpired:
            return "its time is spent"
    last = (logs / f"{name}.log").read_text().strip().split("\n")[-1]
    return "done" if code == 0 else f"failed: {last}"


def run(settings: Settings, parts=PARTS, do=apart) -> dict[str, str]:
    """Do what is not on record, in order, each part within its time -> how each ended."""
    ends, until = {}, time.monotonic() + settings.seconds
    settings.results.mkdir(parents=True, exist_ok=True)
    for name, (share, _) in parts.items():
        left = until - time.monotonic()
        if (settings.results / f"{name}.json").exists():
            ends[name] = "on record"
        elif left < LEAST:
            ends[name] = "no time was left"
        else:
            own = max(START, share * settings.seconds)
            if name == "gpu-campaign" and find_spec("nbval"):
                own = max(START, left / 2)  # the notebooks come after it
            ends[name] = do(name, replace(settings, seconds=min(own, left)))
        print(f"{name}: {ends[name]}", flush=True)
    return ends


def main(words: list[str] | None = None) -> None:
    """The command line."""
    parser = ArgumentParser(prog="python -m rflw_study.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=12.0, help="for all of it")
    parser.add_argument("--results", type=Path, required=True, help="folder of the records")
    parser.add_argument("--device", default="auto", help="cpu: a rehearsal on small sizes")
    parser.add_argument("--root", type=Path, help="folder of data sets; none is needed")
    parser.add_argument("--part", choices=PARTS, help="only this one, in this process")
    given = parser.parse_args(words)
    try:
        settings = Settings(given.device, given.results, given.root, 60 * given.minutes)
        if given.part:
            PARTS[given.part][1](given.part, settings)
            return
        if pick_device(given.device).type == "cpu" and not settings.small:
            raise InputError("no accelerator here; --device cpu rehearses on small sizes")
        ends = run(settings)
    except InputError as e:
        sys.exit(f"rflw_study.gpu: {e}")
    sys.exit(any(end.startswith("failed") for end in ends.values()))


if __name__ == "__main__":
    main()

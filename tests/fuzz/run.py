"""Attack the parsers with spoiled files, each in a process of its own that may die, hang or fill its memory without harm."""

from collections import Counter
import hashlib
import json
import mmap
import os
from pathlib import Path
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings

from hypothesis import HealthCheck, Phase, given, seed, settings
import torch

from rflw.errors import InputError

from .targets import TARGETS, Target

ROOM = (
    4 << 30
)  # bytes that a parser may take beyond what it has at first, before it is refused more
SLOW = 10  # seconds that one file may take
PREPARING = 300  # seconds that making the first, whole file may take, which for some is a training
STARTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
)


class Hang(BaseException):
    pass


class Over(BaseException):
    pass


def attack(
    names: list[str],
    seconds: float,
    start: int = 0,
    keep: Path | None = None,
    examples: int | None = None,
) -> dict:
    """Spoiled files for each target, for so many seconds or `examples` -> {"targets": {name: {"inputs", "taken", "refused", "crashes",
    "hangs", "escapes", "peak_mb", "slowest_s", "seconds"}}, "faults": [{"target", "what", "where", "input": name in `keep`}]}.

    taken: read without complaint; refused: with one line. crashes: another exception, or death of the process. hangs: more
    than SLOW seconds. escapes: something was started, or written outside of the target's folder.
    """
    found, faults = {}, []
    for name in names:
        figures, more = _attack(TARGETS[name], seconds / len(names), start, keep, examples)
        found[name] = figures
        faults += more
        print(f"{name:12} {figures}", file=sys.stderr, flush=True)
    return {"targets": found, "faults": faults}


def _attack(
    target: Target, seconds: float, start: int, keep: Path | None, examples: int | None
) -> tuple[dict, list[dict]]:
    counts, faults, deaths = Counter(), [], 0
    began = time.monotonic()
    peak = slowest = 0
    while time.monotonic() - began < seconds and deaths < 20:
        with tempfile.TemporaryDirectory(prefix="rflw-fuzz-") as name:
            folder = Path(name)
            ledger = mmap.mmap(
                -1, 4096
            )  # shared with the child: inputs, taken, refused, escapes, kilobytes, microseconds, heartbeat
            child = os.fork()
            if not child:
                _child(
                    target,
                    folder,
                    ledger,
                    seconds - (time.monotonic() - began),
                    start + 10_000 * deaths,
                    keep,
                    examples,
                )
            status, hung = _wait(child, ledger)
            inputs, taken, refused, escapes, kilobytes, longest, _ = struct.unpack_from(
                "<7q", ledger
            )
            counts.update(inputs=inputs, taken=taken, refused=refused, escapes=escapes)
            peak, slowest = max(peak, kilobytes), max(slowest, longest)
            told = folder / "faults.jsonl"
            mine = (
                [json.loads(line) for line in told.read_text().splitlines()]
                if told.exists()
                else []
            )
            if hung or os.WIFSIGNALED(status) or os.WEXITSTATUS(status):
                what = "hang, killed" if hung else f"died ({status})"
                mine.append(
                    {
                        "what": what,
                        "where": "the process",
                        "input": _kept(folder / "in" / target.file, keep, target),
                    }
                )
                deaths += 1
            else:
                deaths = 20
            faults += [{"target": target.name, **fault} for fault in mine]
    hangs = sum(fault["what"].startswith("hang") for fault in faults)
    escaped = sum(fault["what"].startswith("escape") for fault in faults)
    return {
        "inputs": counts["inputs"],
        "taken": counts["taken"],
        "refused": counts["refused"],
        "crashes": len(faults) - hangs - escaped,
        "hangs": hangs,
        "escapes": counts["escapes"],
        "peak_mb": peak // 1024,
        "slowest_s": round(slowest / 1e6, 2),
        "seconds": round(time.monotonic() - began, 1),
    }, faults


def _wait(child: int, ledger: mmap.mmap) -> tuple[int, bool]:
    """Its status, and whether it was killed because nothing went on for too long."""
    beat, since = None, time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status, False
        now = struct.unpack_from("<q", ledger, 48)[0]
        if now != beat:
            beat, since = now, time.monotonic()
        elif time.monotonic() - since > (3 * SLOW if beat else PREPARING):
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], True
        time.sleep(0.05)


def _child(
    target: Target,
    folder: Path,
    ledger,
    seconds: float,
    start: int,
    keep: Path | None,
    examples: int | None,
) -> None:
    try:
        _attacks(target, folder, ledger, seconds, start, keep, examples)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(9)


def _attacks(
    target: Target,
    folder: Path,
    ledger,
    seconds: float,
    start: int,
    keep: Path | None,
    examples: int | None,
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    inside, told, seen = folder / "in", open(folder / "faults.jsonl", "w"), set()
    path = target.prepare(inside)
    strategy = target.strategy()
    os.environ.pop(
        "PYTORCH_NVML_BASED_CUDA_CHECK", None
    )  # Fabric's: with it optimisers ask the driver's library, which is no escape
    numbers, escapes = [0] * 7, []
    base = _peak(reset=True)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    signal.signal(signal.SIGALRM, _raise_hang)
    watched = []

    def watch(event: str, args: tuple) -> None:
        if watched and (
            event in STARTS
            and args[0] is not None
            or event == "open"
            and _writes(args)
            and not _below(args[0], folder)
        ):
            escapes.append(f"{event} {args[0]!r}"[:200])

    sys.addaudithook(watch)
    until, limit = time.monotonic() + seconds, examples or 500

    def one(content: bytes) -> None:
        if time.monotonic() > until:
            raise Over
        path.write_bytes(content)
        numbers[0] += 1
        began = time.perf_counter()
        fault = None
        signal.setitimer(signal.ITIMER_REAL, SLOW)
        watched.append(1)
        try:
            target.parse(inside)
            numbers[1] += 1
        except InputError as e:
            numbers[2] += 1
            if "\n" in str(e):
                fault = ("crash: more than a line", str(e)[:100], "")
        except Hang as e:
            fault = ("hang", *_where(e))
        except Exception as e:
            fault = (f"crash: {type(e).__name__}: {str(e)[:200]}", *_where(e))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            watched.clear()
        if escapes:
            fault = (f"escape: {escapes[0]}", "", "")
            numbers[3] += 1
            escapes.clear()
        numbers[4] = max(numbers[4], _peak() - base)
        numbers[5] = max(numbers[5], int(1e6 * (time.perf_counter() - began)))
        numbers[6] += 1
        struct.pack_into("<7q", ledger, 0, *numbers)
        if fault and fault[:2] not in seen:
            seen.add((fault[0], fault[1]))
            told.write(
                json.dumps(
                    {
                        "what": fault[0],
                        "where": fault[1],
                        "trace": fault[2],
                        "input": _kept(path, keep, target),
                    }
                )
                + "\n"
            )
            told.flush()

    while time.monotonic() < until:
        run = settings(
            max_examples=limit,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(seed(start)(given(strategy)(one)))
        try:
            run()
        except Over:
            return
        start += 1
        if examples:
            return


def _raise_hang(*_) -> None:
    raise Hang


def _where(error: BaseException) -> tuple[str, str]:
    """The last line of the package that an exception went through, and the whole path."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}rflw{os.sep}" in frame.filename]
    return (
        f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "elsewhere",
        " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-6:]),
    )


def _writes(args: tuple) -> bool:
    mode, flags = args[1], args[2]
    return (
        any(c in mode for c in "wax+")
        if isinstance(mode, str)
        else bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
    )


def _below(path, folder: Path) -> bool:
    if isinstance(path, int):
        return True
    text = os.path.realpath(os.fsdecode(path))
    return text.startswith(os.path.realpath(folder)) or text in (os.devnull,)


def _peak(reset: bool = False) -> int:
    """Kilobytes of the process at its largest."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def _kept(path: Path, keep: Path | None, target: Target) -> str | None:
    if keep is None or not path.exists():
        return None
    keep.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes()
    copy = keep / f"{target.name}-{hashlib.sha256(content).hexdigest()[:8]}{path.suffix}"
    shutil.copyfile(path, copy)
    return copy.name

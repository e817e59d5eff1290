"""How long passes take, what they cost, and what the device could do at best: any functions, any network.

The paper's protocol (section 4): random input, passes counted after warm-up, mean and standard deviation. Here several calls take
turns in one run, so that their ratios hold on a machine that does other things, too.
"""

from collections.abc import Callable
from copy import deepcopy
import ctypes
from math import prod
from pathlib import Path
import sys
import time

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from rflw.trace import record

# ---------------------------------------------------------------- time


def interleaved(
    calls: dict[str, Callable[[], object]],
    device: torch.device,
    passes: int = 100,
    warmup: int = 3,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Milliseconds of each pass of each call, (passes,): one of every call, then again. On CUDA measured by its own events.

    warmup: passes of each that do not count. On a CPU a short pause comes before each pass: threads of the pass before, which wait for
    more work by spinning, would take the processor from a call that has threads of its own.
    """
    found = {name: np.empty(passes) for name in calls}
    for turn in tqdm(
        range(-warmup, passes), desc="passes", file=sys.stderr, disable=not progress or None
    ):
        for name, call in calls.items():
            if device.type == "cpu":
                time.sleep(0.02)
            value = _milliseconds(call, device)
            if turn >= 0:
                found[name][turn] = value
    return found


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end)
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def statistics(milliseconds: np.ndarray) -> dict[str, float]:
    """-> {"mean", "std" (of the sample), "median", "p5", "p95"}."""
    p5, median, p95 = np.percentile(milliseconds, [5, 50, 95])
    std = milliseconds.std(ddof=1) if len(milliseconds) > 1 else 0.0
    return {
        name: round(float(value), 4)
        for name, value in {
            "mean": milliseconds.mean(),
            "std": std,
            "median": median,
            "p5": p5,
            "p95": p95,
        }.items()
    }


def ratio(slow: np.ndarray, fast: np.ndarray, draws: int = 2000, seed: int = 0) -> dict[str, float]:
    """How many times faster: medians' ratio of two calls that took turns -> {"ratio", "low", "high"}, the 95 % interval by drawing
    turns anew with replacement (bootstrap, Efron, 1979)."""
    turns = np.random.default_rng(seed).integers(0, len(slow), (draws, len(slow)))
    drawn = np.median(slow[turns], axis=1) / np.median(fast[turns], axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "ratio": round(float(np.median(slow) / np.median(fast)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


# ---------------------------------------------------------------- the device


@torch.inference_mode()
def peaks(device: torch.device, precisions: tuple[str, ...] = ("fp32", "bf16")) -> dict[str, float]:
    """What the device reaches at best -> {"fp32_gmacs", "bf16_gmacs": 10^9 multiply-adds a second, "copy_gb_s": 10^9 bytes read or
    written a second}.

    Best of six large matrix products and of six 1x1 convolutions, which other libraries compute, and of six copies.
    """
    n, channels = (8192, 4096) if device.type == "cuda" else (3072, 1024)
    found = {}
    for precision in precisions:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        a = torch.randn(n, n, device=device).to(dtype)
        conv = nn.Conv2d(channels, channels, 1, bias=False).to(
            device, dtype, memory_format=torch.channels_last
        )
        x = torch.randn(1, channels, 128, 128, device=device).to(
            dtype, memory_format=torch.channels_last
        )
        product = min(_milliseconds(lambda a=a: a @ a, device) for _ in range(7))
        convolution = min(_milliseconds(lambda conv=conv, x=x: conv(x), device) for _ in range(7))
        found[f"{precision}_gmacs"] = round(
            max(n**3 / product, channels**2 * 128**2 / convolution) / 1e6, 1
        )
    source = torch.zeros(2**26, device=device)  # 268 MB
    target = torch.empty_like(source)
    best = min(_milliseconds(lambda: target.copy_(source), device) for _ in range(7))
    return found | {"copy_gb_s": round(2 * source.nbytes / best / 1e6, 1)}


def traffic(model: nn.Module, size: tuple[int, int], width: int = 4) -> int:
    """Bytes that one pass moves if every operation reads its inputs and weights and writes its result, once, from memory: what a
    plain graph does, and what joining operations saves. width: bytes a value. Nothing is computed."""
    steps = record(deepcopy(model).to("meta"), torch.empty(1, 3, *size, device="meta"))
    moved = sum(
        prod(step.shape) + step.params + sum(prod(steps[i].shape) for i in step.inputs if i >= 0)
        for step in steps
    )
    return width * moved


def roofline(macs: float, moved: float, peak_gmacs: float, copy_gb_s: float) -> float:
    """Milliseconds below which no pass can be: of arithmetic at the peak or of memory at the copies' rate, whichever is more
    (Williams, Waterman and Patterson, 2009)."""
    return max(macs / peak_gmacs, moved / copy_gb_s) / 1e6


# ---------------------------------------------------------------- memory and energy


def weights_mb(model: nn.Module) -> float:
    """10^6 bytes of a network's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / 1e6


def working_mb(call: Callable[[], object], device: torch.device) -> float | None:
    """10^6 bytes that a pass needs at its peak beyond what is there before it; None where the system does not tell. On CPUs the
    growth of the process's resident memory, which Linux counts."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier passes freed is not this one's
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _resident("VmRSS")
        call()
        return (_resident("VmHWM") - before) / 1e6
    except (OSError, AttributeError, TypeError):
        return None


def _resident(field: str) -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return 1024 * int(line.split()[1])


def joules(call: Callable[[], object], device: torch.device, passes: int = 20) -> float | None:
    """Energy of a pass, the whole card's or all processor packages'; None where the device does not report it."""
    counter = _energy_counter(device)
    if counter is None:
        return None
    before = counter()
    for _ in range(passes):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    spent = counter() - before
    return spent / passes if spent > 0 else None  # a counter that ran over


def _energy_counter(device: torch.device) -> Callable[[], float] | None:
    """Joules since some time, from NVIDIA's library or Linux's RAPL."""
    try:
        if device.type == "cuda":
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        files = sorted(Path("/sys/class/powercap").glob("intel-rapl:[0-9]*/energy_uj"))
        packages = [file for file in files if file.parent.name.count(":") == 1]
        [file.read_text() for file in packages]
        return (lambda: sum(int(file.read_text()) for file in packages) / 1e6) if packages else None
    except Exception:  # no such library, card, counter or permission, each with a type of its own
        return None

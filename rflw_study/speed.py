"""Speed of networks, of training and of loading.

The paper's protocol (section 4): random input, passes counted after warm-up, mean and standard
deviation. Here modes take turns in one run, so that their ratios hold on a busy machine.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
import ctypes
from io import BytesIO
from math import prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
import time
from types import SimpleNamespace

import numpy as np
from PIL import Image
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from rflw import deploy
from rflw.checkpoint import checkpoint_file, load
from rflw.complexity import KIND_OF, count, parameters
from rflw.config import Recipe
from rflw.data.images import read_image
from rflw.data.on_device import OnDevice
from rflw.data.readers import labels_of, open_dataset
from rflw.data.transforms import Augmented, training_transform
from rflw.device import (
    PRECISIONS,
    card,
    computes_in_bf16,
    keep_freed_memory,
    pick_device,
    pick_precision,
)
from rflw.errors import InputError, enough_memory
from rflw.nn.encoders import IMAGENET_MEAN, IMAGENET_STD
from rflw.nn.refinenet import RefineNet, build
from rflw.prediction import normalise, upsample
from rflw.steps import (
    batches,
    compiled_for,
    make_fabric,
    make_loader,
    make_optimiser,
    train_step,
    training_mode,
)
from rflw.trace import record, tensors
from rflw_study.layers import hooked


class InONNXRuntime(nn.Module):
    """A network as onnxruntime runs its exported file, on a CPU.

    Takes (B, 3, H, W) float32, normalised; returns float32 logits.
    """

    def __init__(self, model: RefineNet, calibration: list[np.ndarray] | None = None):
        super().__init__()
        with TemporaryDirectory() as folder:
            deploy.export(model, f"{folder}/net.onnx", calibration=calibration)
            self.run = deploy.onnx_runner(f"{folder}/net.onnx")
        self.name, self.num_classes = model.name, model.num_classes
        self.mean, self.std = model.mean, model.std

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x.contiguous())


# ------------------------------------------------------------ time


def interleaved(
    calls: dict[object, Callable[[], object]],
    device: torch.device,
    passes: int = 100,
    warmup: int = 3,
    progress: bool = False,
) -> dict[object, np.ndarray]:
    """Milliseconds of each pass of each call, (passes,); the calls take turns.

    On a CPU a short pause comes before each pass: threads of the pass before, which wait for more
    work by spinning, would take the processor from a call that has threads of its own.

    Args:
        warmup: Passes of each that do not count.
    """
    times = {name: np.empty(passes) for name in calls}
    for turn in tqdm(range(-warmup, passes), "passes", disable=not progress or None):
        for name, call in calls.items():
            if device.type == "cpu":
                time.sleep(0.02)
            value = _milliseconds(call, device)
            if turn >= 0:
                times[name][turn] = value
    return times


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end)
    start = _now(device)
    call()
    return 1000 * (_now(device) - start)


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def statistics(milliseconds: np.ndarray) -> dict[str, float]:
    """{"mean", "std" (of the sample), "median", "p5", "p95"}."""
    p5, middle, p95 = np.percentile(milliseconds, [5, 50, 95])
    std = milliseconds.std(ddof=1) if len(milliseconds) > 1 else 0.0
    values = {"mean": milliseconds.mean(), "std": std, "median": middle, "p5": p5, "p95": p95}
    return {name: round(float(value), 4) for name, value in values.items()}


def speedup(slow: np.ndarray, fast: np.ndarray, draws: int = 2000) -> dict[str, float]:
    """How many times faster: the ratio of medians of two calls that took turns.

    Returns:
        {"ratio", "low", "high"}, the 95 % interval by drawing turns anew with replacement
        (bootstrap, Efron, 1979).
    """
    turns = np.random.default_rng(0).integers(0, len(slow), (draws, len(slow)))
    drawn = np.median(slow[turns], axis=1) / np.median(fast[turns], axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    values = {"ratio": np.median(slow) / np.median(fast), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in values.items()}


# ------------------------------------------------------------ the device


@torch.inference_mode()
def peaks(device: torch.device, precisions: Sequence[str] = ("fp32", "bf16")) -> dict[str, float]:
    """The device's best rates, of six large matrix products, 1x1 convolutions and copies.

    Returns:
        dict: {"fp32_gmacs", "bf16_gmacs": 10^9 multiply-adds a second, "copy_gb_s": 10^9 bytes read
        or written a second}.
    """
    n, channels = (3072, 1024) if device.type == "cpu" else (8192, 4096)

    def best(call) -> float:
        return min(_milliseconds(call, device) for _ in range(7))

    rates = {}
    for precision in precisions:
        dtype = PRECISIONS[precision]
        layout = {"dtype": dtype, "memory_format": torch.channels_last}
        a = torch.randn(n, n, device=device).to(dtype)
        conv = nn.Conv2d(channels, channels, 1, bias=False).to(device, **layout)
        x = torch.randn(1, channels, 128, 128, device=device).to(**layout)
        product = n**3 / best(lambda a=a: a @ a)
        convolution = channels**2 * 128**2 / best(lambda conv=conv, x=x: conv(x))
        rates[f"{precision}_gmacs"] = round(max(product, convolution) / 1e6, 1)
    source = torch.zeros(2**26, device=device)  # 268 MB
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / best(lambda: target.copy_(source))
    return rates | {"copy_gb_s": round(copied / 1e6, 1)}


def traffic(model: nn.Module, size: tuple[int, int], width: int = 4) -> int:
    """Bytes that one pass of a plain graph moves; nothing is computed.

    Every operation reads its inputs and weights from memory and writes its result, once. That is
    what joining operations saves.

    Args:
        width: Bytes a value.
    """
    steps = record(deepcopy(model).to("meta"), torch.empty(1, 3, *size, device="meta"))
    moved = sum(
        prod(step.shape) + step.params + sum(prod(steps[i].shape) for i in step.inputs if i >= 0)
        for step in steps
    )
    return width * moved


def roofline(macs: float, moved: float, peak_gmacs: float, copy_gb_s: float) -> float:
    """The least milliseconds of a pass (Williams, Waterman and Patterson, 2009).

    The slower of arithmetic at the peak and of memory at the rate of copies.
    """
    return max(macs / peak_gmacs, moved / copy_gb_s) / 1e6


def weights_mb(model: nn.Module) -> float:
    """10^6 bytes of a network's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / 1e6


def working_mb(call: Callable[[], object], device: torch.device) -> float | None:
    """10^6 bytes that a pass needs at its peak beyond those in use before it; None if unknown.

    On CPUs the growth of the process's resident memory, which Linux counts.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))  # kB

    try:
        ctypes.CDLL(None).malloc_trim(0)  # earlier passes' memory is not this one's
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = status("VmRSS")
        call()
        return 1024 * (status("VmHWM") - before) / 1e6
    except (OSError, AttributeError, TypeError):
        return None


def joules(call: Callable[[], object], device: torch.device, passes: int = 20) -> float | None:
    """Energy of a pass, the whole card's or all processor packages'; None if unknown."""
    counter = _energy_counter(device)
    if counter is None:
        return None
    before = counter()
    for _ in range(passes):
        call()
    _now(device)  # when all is done
    spent = counter() - before
    return spent / passes if spent > 0 else None  # a counter that ran over


def _energy_counter(device: torch.device) -> Callable[[], float] | None:
    """Joules since some time, from NVIDIA's library or Linux's RAPL."""
    try:
        if device.type == "cuda":
            import pynvml

            pynvml.nvmlInit()
            card = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3
        files = sorted(Path("/sys/class/powercap").glob("intel-rapl:[0-9]*/energy_uj"))
        packages = [file for file in files if file.parent.name.count(":") == 1]
        [file.read_text() for file in packages]
        return (lambda: sum(int(file.read_text()) for file in packages) / 1e6) if packages else None
    except Exception:  # no such library, card, counter or permission, each with a type of its own
        return None


# ------------------------------------------------------------ networks

# A mode's name is a precision after "eager", the plain graph in NCHW; "onnx", the exported file in
# onnxruntime; "optimised", all of these steps; or some of them joined by "+", in this order.
STEPS = ("memory", "channels-last", "fold", "merge", "pools", "compile", "graphs")
# Other people's networks to set beside the paper's, by the encoder that they share with it.
SMP = ("DeepLabV3Plus", "FPN", "Unet")
PEERS = {
    encoder: (
        *(f"torchvision:{name}" for name in torchvision),
        *(f"smp:{decoder}-{encoder}" for decoder in SMP),
    )
    for encoder, torchvision in {
        "resnet50": ("deeplabv3_resnet50", "fcn_resnet50"),
        "resnet101": ("deeplabv3_resnet101", "fcn_resnet101"),
        "mobilenet_v2": ("lraspp_mobilenet_v3_large",),
    }.items()
}


class _Out(nn.Module):
    """torchvision's networks answer with a dict."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["out"]


def network(name: str, num_classes: int = 21) -> nn.Module:
    """A network in evaluation mode on the CPU.

    Args:
        name: A checkpoint of ours, by name or file; "torchvision:NAME" or "smp:DECODER-ENCODER"
            (segmentation_models.pytorch), with random weights; or a network of `build`.

    Raises:
        InputError: For an unknown name.
    """
    library, _, own = name.partition(":")
    try:
        if library == "torchvision":
            from torchvision.models import get_model

            net = get_model(own, weights=None, weights_backbone=None, num_classes=num_classes)
            return _Out(net).eval()
        if library == "smp":
            import segmentation_models_pytorch as smp

            decoder, _, encoder = own.partition("-")
            options = {"encoder_weights": None, "classes": num_classes}
            return smp.create_model(decoder, encoder, **options).eval()
    except ImportError as e:
        raise InputError(f"{name}: pip install 'rflw[peers]'") from e
    except (ValueError, KeyError, TypeError) as e:
        why = " ".join(str(e).split())[:200]
        raise InputError(f"{name}: {library} has no such network ({why})") from e
    return load(name) if checkpoint_file(name).exists() else build(name, num_classes).eval()


def prepared(
    model: nn.Module, mode: str, device: torch.device, calibration: list[np.ndarray] | None = None
) -> nn.Module:
    """A network in a mode: (B, 3, H, W) float32 on the device -> logits there.

    Raises:
        InputError: For an unknown mode, or one that the device cannot do.
    """
    steps, _, precision = mode.rpartition("-")
    parts = set(steps.split("+"))
    known = steps in ("optimised", "onnx") or mode == "eager-fp32"
    known = known or steps == "+".join(step for step in STEPS if step in parts)
    if precision not in deploy.PRECISIONS or not known:
        raise InputError(
            f"unknown mode {mode!r}; choose from: eager-fp32, optimised-PRECISION, onnx-PRECISION, "
            f"or steps joined by + ({', '.join(STEPS)}) and -PRECISION "
            f"({', '.join(deploy.PRECISIONS)})"
        )
    if steps == "eager":
        return model.to(device, memory_format=torch.contiguous_format)
    if precision == "int8" and calibration is None:
        raise InputError(f"{mode}: name the data whose images calibrate it")
    shown = calibration if precision == "int8" else None
    if steps == "onnx":
        here = device.type == "cpu" and isinstance(model, RefineNet)
        if precision not in ("fp32", "int8") or not here:
            raise InputError(f"{mode}: networks of this package in fp32 or int8, on CPUs")
        return InONNXRuntime(model, shown)
    if steps == "optimised":
        return deploy.optimise(model.to(device), precision, calibration=shown)
    # "memory" is of the process, not the network
    switches = {name: name in parts for name in ("fold", "merge", "pools", "graphs")}
    switches |= {"channels_last": "channels-last" in parts, "compiled": "compile" in parts}
    return deploy.optimise(model.to(device), precision, calibration=shown, **switches)


def network_speed(
    names: Iterable[str],
    modes: Iterable[str] = (),
    size: tuple[int, int] = (512, 512),
    batch: int = 1,
    device: str = "auto",
    passes: int = 100,
    classes: int = 21,
    calibration: list[np.ndarray] | None = None,
    progress: bool = False,
    whole_way: bool = False,
    layers: bool = False,
) -> dict:
    """Time forward passes by the paper's protocol, all on the same random images.

    Args:
        modes: As `prepared` takes; none: the plain graph; all steps in fp32 and, if possible, bf16.
        calibration: Images (H, W, 3) that calibrate int8.
        whole_way, layers: Also time what `way_of_a_photo` and `layer_times` tell.

    Returns:
        dict: {"rows": one for each network and mode, "peaks": see `peaks`, "threads", "gpu"}.

    Raises:
        InputError: For unknown networks and modes, and sizes that a network does not take.
    """
    where = pick_device(device)
    if passes < 1 or batch < 1 or min(size) < 1:
        raise InputError(f"{passes} passes of {batch} images of {size[0]}x{size[1]}: one at least")
    precisions = ("fp32", "bf16") if computes_in_bf16(where) else ("fp32",)
    default = ["eager-fp32", *(f"optimised-{precision}" for precision in precisions)]
    modes = list(dict.fromkeys(modes)) or default
    too_large = f"{batch} images of {size[0]}x{size[1]}: too large for the memory"
    with enough_memory(too_large):
        images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(where)
    rows, nets, calls, outputs = [], {}, {}, {}
    for name in dict.fromkeys(names):
        torch.manual_seed(0)
        model = network(name, classes)
        work = _work(model, images)
        for mode in modes:
            key = name, mode
            nets[key] = prepared(deepcopy(model), mode, where, calibration)
            calls[key] = _pass(nets[key], images, mode)
            with enough_memory(f"{name}, {mode}, {too_large}"):
                outputs[key] = calls[key]()
            rows.append(_described(key, nets[key], images) | work)
    before = peaks(where, precisions)
    times = interleaved(calls, where, passes, progress=progress)
    best = {name: max(before[name], rate) for name, rate in peaks(where, precisions).items()}
    for row in rows:
        key, first = (row["model"], row["mode"]), (row["model"], modes[0])
        row |= _rates(row, times[key], times[first], best)
        row |= _difference(outputs[key], outputs[first]) | _costs(nets[key], calls[key], where)
        if whole_way:
            row["whole_way_ms"] = way_of_a_photo(nets[key], size, where, min(passes, 20))
        if layers:
            row["layers"] = layer_times(nets[key], images, best, min(passes, 20))
    gpu = None if where.type == "cpu" else card(where)
    return {"rows": rows, "peaks": best, "threads": torch.get_num_threads(), "gpu": gpu}


def _pass(net: nn.Module, images: Tensor, mode: str) -> Callable[[], Tensor]:
    keep = mode.startswith(("optimised", "onnx", "memory"))

    @torch.inference_mode()
    def call() -> Tensor:
        if images.device.type == "cpu":
            keep_freed_memory(keep)
        return net(images)

    return call


def _work(model: nn.Module, images: Tensor) -> dict:
    """What a pass of the plain graph takes: "params", "macs", "bytes" (see `traffic`)."""
    size, more = tuple(images.shape[-2:]), {}
    try:
        macs = count(model, size)["macs"]["total"]
    except ModuleNotFoundError:  # a bare GPU machine has no fvcore
        with FlopCounterMode(display=False) as counter:
            deepcopy(model).to("meta")(torch.empty(1, 3, *size, device="meta"))
        macs, more = counter.get_total_flops() // 2, {"counted": "products"}
    macs, moved = (len(images) * n for n in (macs, traffic(model, size)))
    return {"params": parameters(model), "macs": macs, "bytes": moved} | more


def _described(key: tuple[str, str], net: nn.Module, images: Tensor) -> dict:
    """What is timed. "steps": those that were taken; "left_out": {step: why not}."""
    return {
        "model": key[0],
        "mode": key[1],
        "device": images.device.type,
        "size": list(images.shape[-2:]),
        "batch": len(images),
        "steps": list(getattr(net, "steps", ())),
        "left_out": getattr(net, "left_out", {}),
    }


def _rates(row: dict, times: np.ndarray, first: np.ndarray, peaks: dict[str, float]) -> dict:
    """How fast a row is, by itself, against its model's first mode, and against the device."""
    latency, precision = statistics(times), row["mode"].rpartition("-")[2]
    peak, width = peaks.get(f"{precision}_gmacs"), 2 if precision in ("bf16", "fp16") else 4
    rate = row["macs"] / latency["median"] / 1e6
    share = bound = None
    if peak is not None:
        share = float(f"{rate / peak:.4g}")
        moved = row["bytes"] * width / 4
        bound = round(roofline(row["macs"], moved, peak, peaks["copy_gb_s"]), 4)
    return {
        "latency_ms": latency,
        "images_per_s": round(1000 * row["batch"] / latency["mean"], 4),
        "faster": speedup(first, times),
        "gmacs_per_s": float(f"{rate:.4g}"),
        "share_of_peak": share,
        "roofline_ms": bound,
    }


def _difference(logits: Tensor, first: Tensor) -> dict:
    """Relative error of the logits against the first mode's, and the share of equal classes."""
    error = ((logits - first).norm() / first.norm()).item()
    same = (logits.argmax(1) == first.argmax(1)).float().mean().item()
    return {"error": float(f"{error:.3e}"), "agreement": round(same, 6)}


def _costs(net: nn.Module, call: Callable, device: torch.device) -> dict:
    """Memory and energy; None if unknown. onnxruntime keeps its own memory."""
    apart = isinstance(net, InONNXRuntime)
    costs = {
        "weights_mb": None if apart else weights_mb(net),
        "working_mb": None if apart else working_mb(call, device),
        "joules": joules(call, device),
    }
    return {name: None if value is None else round(value, 3) for name, value in costs.items()}


@torch.inference_mode()
def way_of_a_photo(
    net: nn.Module, size: tuple[int, int], device: torch.device, passes: int = 20
) -> dict[str, float]:
    """Median milliseconds of each step from a JPEG in memory to its class map.

    Returns:
        {"decode", "prepare", "network", "classes" (resized to the photo, best class), "total"}.
    """
    rows, columns = (side // 16 + 1 for side in size)
    blocks = np.random.RandomState(0).randint(0, 256, (rows, columns, 3)).astype(np.uint8)
    photo, file = Image.fromarray(blocks).resize(size[::-1], Image.Resampling.BICUBIC), BytesIO()
    photo.save(file, "JPEG", quality=90)
    like = net if hasattr(net, "mean") else SimpleNamespace(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    spans = {name: [] for name in ("decode", "prepare", "network", "classes")}
    for turn in range(passes + 1):  # the first warms up
        marks = [time.perf_counter()]
        image = read_image(Image.open(BytesIO(file.getvalue())))
        marks.append(time.perf_counter())
        x = normalise(image, like, device)
        marks.append(_now(device))
        logits = net(x)
        marks.append(_now(device))
        upsample(logits, size).argmax(1).to(torch.uint8).cpu().numpy()
        marks.append(time.perf_counter())
        for name, begin, end in zip(spans, marks, marks[1:]):
            spans[name] += [1000 * (end - begin)] if turn else []
    result = {name: round(median(values), 3) for name, values in spans.items()}
    return result | {"total": round(sum(result.values()), 3)}


class _Clock(TorchFunctionMode):
    """Times every operation of a pass; `part` is the child of the network at work."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.part, self.rows = device, "", []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        start = _now(self.device)
        result = func(*args, **(kwargs or {}))
        ms, made = 1000 * (_now(self.device) - start), tensors(result)
        if made:
            kind, macs = _kind(func.__name__.strip("_"), args, made[0])
            moved = sum(x.nbytes for x in (*tensors((args, kwargs)), *made))
            self.rows.append((self.part, kind, ms, macs, moved if kind != "other" else 0))
        return result


def _kind(name: str, args: tuple, made: Tensor) -> tuple[str, int]:
    """The kind of an operation, and its multiply-adds where it is a convolution."""
    if name != "conv2d":
        more = {"interpolate": "resize", "add": "sum", "iadd": "sum", "maximum": "pool"}
        return more.get(name) or KIND_OF.get(name, "other"), 0
    per_value, side = args[1][0].numel(), args[1].shape[-1]
    depthwise = "depthwise " if args[1].shape[1] == 1 < args[0].shape[1] else ""
    return f"{depthwise}{side}x{side} conv", made.numel() * per_value


@torch.inference_mode()
def layer_times(
    net: nn.Module, images: Tensor, peaks: dict[str, float], passes: int = 20
) -> list[dict]:
    """Where the time of a pass goes: by part of the network and kind of layer.

    Args:
        net: A network. In compiled code and in onnxruntime there are no operations to be seen.
        images: What it takes.
        peaks: Of the device, see `peaks`.

    Returns:
        Rows {"part", "kind", "operations", "ms" (median over passes, summed), "macs", "bytes",
        "roofline_ms" (summed over the operations; None if the peak is unknown)}, slowest first.
    """
    if getattr(net, "compiled", None) is not None or isinstance(net, InONNXRuntime):
        return []
    inner = getattr(net, "net", net)
    clock, turns = _Clock(images.device), []
    hooks = [
        child.register_forward_pre_hook(lambda *_, name=name: setattr(clock, "part", name))
        for name, child in inner.named_children()
    ]
    with hooked(hooks):
        for _ in range(passes + 1):  # the first warms up
            with clock:
                net(images)
            turns.append(clock.rows)
            clock.rows, clock.part = [], ""
    peak = peaks.get(f"{getattr(net, 'precision', 'fp32')}_gmacs")
    groups = defaultdict(list)
    for same in zip(*turns[1:]):  # one operation of every pass
        part, kind, _, macs, moved = same[0]
        bound = roofline(macs, moved, peak, peaks["copy_gb_s"]) if peak else 0
        groups[part, kind].append((median(ms for _, _, ms, _, _ in same), macs, moved, bound))
    rows = []
    for (part, kind), values in groups.items():
        ms, macs, moved, bound = map(sum, zip(*values))
        sums = {"ms": round(ms, 3), "macs": macs, "bytes": moved}
        sums["roofline_ms"] = round(bound, 3) if peak else None
        rows.append({"part": part, "kind": kind, "operations": len(values)} | sums)
    return sorted(rows, key=lambda row: -row["ms"])


# ------------------------------------------------------------ training and loading


class _First:
    """The first images of a data set, decoded once."""

    def __init__(self, dataset, number: int):
        self.name, self.ids = dataset.name, dataset.ids[:number]
        self.items = [dataset[i] for i in range(len(self.ids))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def _on_device(dataset, device: torch.device) -> OnDevice | None:
    """None for images of several sizes."""
    try:
        return OnDevice(dataset, device)
    except InputError:
        return None


def training_speed(
    recipe: Recipe, root=None, device: str = "auto", steps: int = 4, rounds: int = 3
) -> list[dict]:
    """Images a second of the training loop, augmentation included; the median round counts.

    Modes: plain (fp32, NCHW); the recipe's precision with channels last; that compiled, as `fit`
    does it; that with the images held and augmented on the device.
    """
    if steps < 1 or rounds < 1:
        raise InputError(f"{rounds} rounds of {steps} steps: one at least")
    where, files = pick_device(device), open_dataset(recipe.data, recipe.stages[-1].split, root)
    keys = list(batches(files, recipe, 0, 0, 0, len(files) // recipe.batch))[:steps]
    dataset = _First(files, steps * recipe.batch)  # decoded before the clock starts
    keys = [[(seed, i % len(dataset)) for seed, i in batch] for batch in keys]
    fast = pick_precision(recipe.precision, where)
    last = f"train-{fast}-channels-last"
    ways = {
        "train-fp32-nchw": ("fp32", torch.contiguous_format, False, dataset),
        last: (fast, torch.channels_last, False, dataset),
        f"{last}-compiled": (fast, torch.channels_last, True, dataset),
    }
    if held := _on_device(dataset, where):
        ways[f"{last}-compiled-resident"] = fast, torch.channels_last, True, held
    trainings = {name: _training(recipe, where, *way) for name, way in ways.items()}
    calls = {name: lambda train=train: train(keys) for name, train in trainings.items()}
    return _in_turn(calls, {"model": recipe.model}, recipe, where, len(keys), rounds)


def _training(recipe: Recipe, device, precision: str, layout, compiled: bool, data) -> Callable:
    """A function that trains a network of its own on batches of keys and returns the seconds."""
    fabric = make_fabric(device, precision)
    model = build(recipe.model, len(labels_of(recipe.data).classes))
    model.to(device, memory_format=layout)
    training_mode(model, recipe.frozen_bn)
    forward = compiled_for(model, device) if compiled else model
    wrapped, optimiser = fabric.setup(forward, make_optimiser(model, recipe))

    def train(keys) -> float:
        start = time.perf_counter()
        for images, masks in make_loader(data, recipe, model, keys):
            images = images.to(device, memory_format=layout)
            train_step(fabric, wrapped, optimiser, images, masks.to(device), recipe.clip)
        return time.perf_counter() - start

    return train


def loading_speed(
    recipe: Recipe,
    root=None,
    device: str = "auto",
    workers: int = 2,
    images: int = 256,
    rounds: int = 3,
) -> list[dict]:
    """Images a second of what a recipe's training loads; the median round counts.

    Modes: decoding files; augmenting decoded images; the whole loader in the training process and
    with worker processes; and, for images of one size, held and augmented on the device. Time
    begins with the first batch, since a training starts its workers once.

    Args:
        images: How many each round takes, the same in all modes; at most these are held in memory.
    """
    if workers < 1 or rounds < 1 or images < 2 * recipe.batch:
        raise InputError(
            f"{workers} workers, {rounds} rounds, {images} images: at least one, one and two "
            f"batches ({2 * recipe.batch}) are needed"
        )
    where, files = pick_device(device), open_dataset(recipe.data, recipe.stages[-1].split, root)
    first = _First(files, images)
    keys = [(i, i % len(first)) for i in range(images - images % recipe.batch)]
    keys = [keys[start : start + recipe.batch] for start in range(0, len(keys), recipe.batch)]
    model = build(recipe.model, 2, None)  # for its mean and deviation
    settings = recipe.crop, recipe.scale, recipe.min_side, recipe.flip, recipe.jitter
    augmented = Augmented(first, training_transform(*settings, model.mean, model.std))
    pin = where.type == "cuda"
    modes = {
        "decode": lambda: ([files[i] for _, i in batch] for batch in keys),
        "augment": lambda: ([augmented[key] for key in batch] for batch in keys),
        "loader": lambda: make_loader(first, recipe, model, keys),
        f"loader-{workers}-workers": lambda: make_loader(
            first, recipe, model, keys, workers, pin=pin
        ),
    }
    if held := _on_device(first, where):
        modes["resident"] = lambda: make_loader(held, recipe, model, keys)

    def timed(loader) -> float:
        stream = iter(loader())
        next(stream)
        start = _now(where)
        for _ in stream:
            pass
        return _now(where) - start

    calls = {name: lambda loader=loader: timed(loader) for name, loader in modes.items()}
    return _in_turn(calls, {"data": recipe.data}, recipe, where, len(keys) - 1, rounds)


def _in_turn(
    calls: dict[str, Callable[[], float]], first: dict, recipe: Recipe, where, taken: int, rounds
) -> list[dict]:
    """Rows with the images a second of functions that return seconds, of the median round."""
    place = {"device": where.type, "size": list(recipe.crop), "batch": recipe.batch}
    seconds = {name: [] for name in calls}
    for turn in range(rounds + 1):  # the first warms up
        for name, call in calls.items():
            seconds[name] += [call()][:turn]
    return [
        first | {"mode": name} | place | {"images_per_s": taken * recipe.batch / median(values)}
        for name, values in seconds.items()
    ]

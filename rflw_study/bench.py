"""Speed: of networks, of training and of loading. Modes take turns in one run, so that a noisy machine is noisy to all."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from io import BytesIO
from statistics import median
import time
from types import SimpleNamespace

import numpy as np
from PIL import Image
import torch
from torch import Tensor, nn

from rflw import deploy
from rflw.checkpoint import checkpoint_file, load
from rflw.complexity import count
from rflw.config import Recipe
from rflw.data.images import read_image
from rflw.data.on_device import OnDevice
from rflw.data.readers import labels_of, open_dataset
from rflw.data.transforms import Augmented, training_transform
from rflw.device import computes_in_bf16, keep_freed_memory, pick_device, pick_precision
from rflw.errors import InputError, enough_memory
from rflw.nn.encoders import IMAGENET_MEAN, IMAGENET_STD
from rflw.nn.refinenet import RefineNet, build
from rflw.prediction import normalise, upsample
from rflw.training import (
    batches,
    compiled_for,
    make_fabric,
    make_loader,
    make_optimiser,
    train_step,
    training_mode,
)
from rflw_study import runtime

# ---------------------------------------------------------------- networks

# What a mode's name is made of: "eager" is the plain graph in NCHW, "optimised" all of these, else some of them joined by "+", in
# this order; and a precision. "onnx" is the exported file in onnxruntime. "memory": CPUs keep what was freed.
STEPS = ("memory", "channels-last", "fold", "merge", "pools", "compile", "graphs")
# Other people's networks to set beside the paper's, by the encoder that they share with it
PEERS = {
    "resnet50": (
        "torchvision:deeplabv3_resnet50",
        "torchvision:fcn_resnet50",
        "smp:DeepLabV3Plus-resnet50",
        "smp:FPN-resnet50",
        "smp:Unet-resnet50",
    ),
    "resnet101": (
        "torchvision:deeplabv3_resnet101",
        "torchvision:fcn_resnet101",
        "smp:DeepLabV3Plus-resnet101",
        "smp:FPN-resnet101",
        "smp:Unet-resnet101",
    ),
    "mobilenet_v2": (
        "torchvision:lraspp_mobilenet_v3_large",
        "smp:DeepLabV3Plus-mobilenet_v2",
        "smp:FPN-mobilenet_v2",
        "smp:Unet-mobilenet_v2",
    ),
}


class _Out(nn.Module):
    """torchvision's networks answer with a dict."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["out"]


def network(name: str, num_classes: int = 21) -> nn.Module:
    """A checkpoint of ours, by name or file; "torchvision:NAME" or "smp:DECODER-ENCODER" (segmentation_models.pytorch), with random
    weights; or else `build(name)`. In evaluation mode, on the CPU. Raises InputError for what is none of these."""
    library, _, own = name.partition(":")
    try:
        if library == "torchvision":
            from torchvision.models import get_model

            return _Out(
                get_model(own, weights=None, weights_backbone=None, num_classes=num_classes)
            ).eval()
        if library == "smp":
            import segmentation_models_pytorch as smp

            decoder, _, encoder = own.partition("-")
            return smp.create_model(
                decoder, encoder, encoder_weights=None, classes=num_classes
            ).eval()
    except ImportError as e:
        raise InputError(f"{name}: pip install 'rflw[peers]'") from e
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"{name}: {library} has no such network ({' '.join(str(e).split())[:200]})"
        ) from e
    return load(name) if checkpoint_file(name).exists() else build(name, num_classes).eval()


def prepared(
    model: nn.Module, mode: str, device: torch.device, calibration: list[np.ndarray] | None = None
) -> nn.Module:
    """A network as a mode has it: (B, 3, H, W) float32 on the device -> logits there. Raises InputError for an unknown mode or one
    that the device cannot do."""
    steps, _, precision = mode.rpartition("-")
    known = {"eager", "optimised", "onnx"}
    parts = set(steps.split("+"))
    right = steps in known or steps == "+".join(step for step in STEPS if step in parts)
    if (
        precision not in deploy.PRECISIONS
        or not right
        or (steps == "eager" and precision != "fp32")
    ):
        raise InputError(
            f"unknown mode {mode!r}: eager-fp32, optimised-PRECISION, onnx-PRECISION, or steps joined by + "
            f"({', '.join(STEPS)}) and -PRECISION ({', '.join(deploy.PRECISIONS)})"
        )
    if steps == "eager":
        return model.to(device, memory_format=torch.contiguous_format)
    if precision == "int8" and calibration is None:
        raise InputError(f"{mode}: name the data whose images calibrate it")
    shown = calibration if precision == "int8" else None
    if steps == "onnx":
        if (
            precision not in ("fp32", "int8")
            or device.type != "cpu"
            or not isinstance(model, RefineNet)
        ):
            raise InputError(f"{mode}: networks of this package in fp32 or int8, on CPUs")
        return deploy.InONNXRuntime(model, shown)
    if steps == "optimised":
        return deploy.optimise(model.to(device), precision, calibration=shown)
    switches = {
        name: name in parts for name in ("fold", "merge", "pools", "graphs")
    }  # "memory" is of the process, not the network
    return deploy.optimise(
        model.to(device),
        precision,
        channels_last="channels-last" in parts,
        compiled="compile" in parts,
        calibration=shown,
        **switches,
    )


def network_speed(
    names: Iterable[str],
    modes: Iterable[str] = (),
    size: tuple[int, int] = (512, 512),
    batch: int = 1,
    device: str = "auto",
    passes: int = 100,
    classes: int = 21,
    whole_way: bool = False,
    calibration: list[np.ndarray] | None = None,
    progress: bool = False,
) -> dict:
    """Time forward passes by the paper's protocol -> {"rows": [...], "peaks": see `runtime.peaks`, "threads", "gpu"}.

    A row for each network and mode: {"model", "mode", "device", "size", "batch", "latency_ms": {mean, std, median, p5, p95},
    "images_per_s", "faster": {ratio, low, high} than its model's first mode, "params", "macs", "bytes" (`runtime.traffic`),
    "gmacs_per_s", "share_of_peak" of matrix products, "roofline_ms", "weights_mb", "working_mb", "joules", "error" (relative, of the
    logits) and "agreement" (share of pixels) against the first mode, "steps", "left_out"}. All take turns on the same random images.
    modes: as `prepared` takes; none: the plain graph, and all steps in fp32 and, where the device computes in it, bf16.
    whole_way: adds "whole_way_ms" of decoding a JPEG, preparing, network, resizing with argmax, and "total" (batch 1).
    Raises InputError for unknown networks and modes, and sizes that a network does not take.
    """
    where = pick_device(device)
    if passes < 1 or batch < 1 or min(size) < 1:
        raise InputError(f"{passes} passes of {batch} images of {size[0]}x{size[1]}: one at least")
    modes = list(dict.fromkeys(modes)) or ["eager-fp32", "optimised-fp32"] + [
        "optimised-bf16"
    ] * computes_in_bf16(where)
    with enough_memory(f"{batch} images of {size[0]}x{size[1]}: too large for the memory"):
        images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(where)
    rows, calls, outputs, nets = [], {}, {}, {}
    for name in dict.fromkeys(names):
        torch.manual_seed(0)
        model = network(name, classes)
        counted, moved = count(model, size), runtime.traffic(model, size)
        for mode in modes:
            net = prepared(deepcopy(model), mode, where, calibration)
            calls[name, mode] = call = _pass(
                net, images, mode.startswith(("optimised", "onnx", "memory"))
            )
            with enough_memory(
                f"{name}, {mode}, {batch} images of {size[0]}x{size[1]}: too large for the memory"
            ):
                outputs[name, mode] = call()
            nets[name, mode] = net
            rows.append(
                {
                    "model": name,
                    "mode": mode,
                    "device": where.type,
                    "size": list(size),
                    "batch": batch,
                    "params": counted["params"],
                    "macs": batch * counted["macs"]["total"],
                    "bytes": batch * moved,
                    "steps": list(getattr(net, "steps", ())),
                    "left_out": getattr(net, "left_out", {}),
                }
            )
    precisions = ("fp32", "bf16") if computes_in_bf16(where) else ("fp32",)
    before = runtime.peaks(where, precisions)
    times = runtime.interleaved(calls, where, passes, progress=progress)
    peaks = {
        name: max(before[name], rate) for name, rate in runtime.peaks(where, precisions).items()
    }  # the machine may be busy once
    for row in rows:
        key, first = (row["model"], row["mode"]), (row["model"], modes[0])
        latency, precision = runtime.statistics(times[key]), row["mode"].rpartition("-")[2]
        peak, width = peaks.get(f"{precision}_gmacs"), 2 if precision in ("bf16", "fp16") else 4
        rate, apart = row["macs"] / latency["median"] / 1e6, outputs[key] - outputs[first]
        row |= {
            "latency_ms": latency,
            "images_per_s": round(1000 * batch / latency["mean"], 4),
            "faster": runtime.ratio(times[first], times[key]),
            "gmacs_per_s": float(f"{rate:.4g}"),
            "share_of_peak": None if peak is None else float(f"{rate / peak:.4g}"),
            "roofline_ms": None
            if peak is None
            else round(
                runtime.roofline(row["macs"], row["bytes"] * width / 4, peak, peaks["copy_gb_s"]), 4
            ),
            "error": float(f"{(apart.norm() / outputs[first].norm()).item():.3e}"),
            "agreement": round(
                (outputs[key].argmax(1) == outputs[first].argmax(1)).float().mean().item(), 6
            ),
            "weights_mb": round(runtime.weights_mb(nets[key]), 3),
            "working_mb": _rounded(runtime.working_mb(calls[key], where)),
            "joules": _rounded(runtime.joules(calls[key], where)),
        }
        if isinstance(nets[key], deploy.InONNXRuntime):  # which keeps its own memory
            row |= {"weights_mb": None, "working_mb": None}
        if whole_way:
            row["whole_way_ms"] = way_of_a_photo(nets[key], size, where, min(passes, 20))
    return {
        "rows": rows,
        "peaks": peaks,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(where) if where.type == "cuda" else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _pass(net: nn.Module, images: Tensor, keep: bool) -> Callable[[], Tensor]:
    @torch.inference_mode()
    def call() -> Tensor:
        if images.device.type == "cpu":
            keep_freed_memory(keep)
        return net(images)

    return call


@torch.inference_mode()
def way_of_a_photo(
    net: nn.Module, size: tuple[int, int], device: torch.device, passes: int = 20
) -> dict[str, float]:
    """Median milliseconds of each step from a JPEG of the given size in memory to its class map -> {"decode", "prepare", "network",
    "classes" (resized to the photo, best class), "total"}."""
    small = (
        np.random.RandomState(0)
        .randint(0, 256, (size[0] // 16 + 1, size[1] // 16 + 1, 3))
        .astype(np.uint8)
    )
    file = BytesIO()
    Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=90
    )
    like = net if hasattr(net, "mean") else SimpleNamespace(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    spans = {name: [] for name in ("decode", "prepare", "network", "classes")}
    for turn in range(passes + 1):
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


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ---------------------------------------------------------------- training and loading


def training_speed(
    recipe: Recipe, root=None, device: str = "auto", steps: int = 4, rounds: int = 3
) -> list[dict]:
    """Images a second of the training loop, augmentation included: plain (fp32, NCHW), then the recipe's precision with
    channels last, then compiled, too, as `fit` does it, then with the images held and augmented on the device as well. Modes
    take turns, so that a noisy machine is noisy to all; the median round counts.
    """
    if steps < 1 or rounds < 1:
        raise InputError(f"{rounds} rounds of {steps} steps: one at least")
    where = pick_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    files = open_dataset(recipe.data, recipe.stages[-1].split, root)
    keys = list(batches(files, recipe, 0, 0, 0, len(files) // recipe.batch))[:steps]
    dataset = _First(files, steps * recipe.batch)  # decoded before the clock starts
    keys = [[(seed, i % len(dataset)) for seed, i in batch] for batch in keys]
    fast = pick_precision(recipe.precision, where)
    ways, last = (
        [("fp32", torch.contiguous_format, False, dataset, "train-fp32-nchw")],
        f"train-{fast}-channels-last",
    )
    ways += [
        (fast, torch.channels_last, compiled, dataset, last + "-compiled" * compiled)
        for compiled in (False, True)
    ]
    if held := _resident(dataset, where):
        ways.append((fast, torch.channels_last, True, held, f"{last}-compiled-resident"))
    modes = []
    for precision, memory_format, compiled, data, name in ways:
        fabric = make_fabric(where, precision)
        model = build(recipe.model, len(labels_of(recipe.data).classes)).to(
            where, memory_format=memory_format
        )
        training_mode(model, recipe.frozen_bn)
        wrapped, optimiser = fabric.setup(
            compiled_for(model, where) if compiled else model, make_optimiser(model, recipe)
        )
        modes.append((name, fabric, model, wrapped, optimiser, memory_format, data, []))
    for turn in range(rounds + 1):  # the first warms up
        for _, fabric, model, wrapped, optimiser, memory_format, data, rates in modes:
            start = time.perf_counter()
            for images, masks in make_loader(data, recipe, model, keys):
                train_step(
                    fabric,
                    wrapped,
                    optimiser,
                    images.to(where, memory_format=memory_format),
                    masks.to(where),
                    recipe.clip,
                )
            if turn:
                rates.append(len(keys) * recipe.batch / (time.perf_counter() - start))
    return [
        {
            "model": recipe.model,
            "mode": name,
            "device": where.type,
            "size": list(recipe.crop),
            "batch": recipe.batch,
            "images_per_s": median(rates),
        }
        for name, *_, rates in modes
    ]


def loading_speed(
    recipe: Recipe,
    root=None,
    device: str = "auto",
    workers: int = 2,
    images: int = 256,
    rounds: int = 3,
) -> list[dict]:
    """Images a second of what a recipe's training loads: decoding files; augmenting decoded images; the whole loader in the
    training process and with worker processes; and, where the images are of one size, held and augmented on the device.

    images: how many each round takes, the same in all modes; those held in memory are no more than these. Time begins with the
    first batch, since a training starts its workers once. The median round counts.
    """
    if workers < 1 or rounds < 1 or images < 2 * recipe.batch:
        raise InputError(
            f"{workers} workers, {rounds} rounds, {images} images: one, one and two batches ({2 * recipe.batch}) at least"
        )
    where = pick_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    files = open_dataset(recipe.data, recipe.stages[-1].split, root)
    first = _First(files, images)
    indices = [i % len(first) for i in range(images - images % recipe.batch)]
    keys = [
        list(enumerate(indices))[start : start + recipe.batch]
        for start in range(0, len(indices), recipe.batch)
    ]
    model = build(recipe.model, 2, None)  # for its mean and deviation
    augmented = Augmented(
        first,
        training_transform(
            recipe.crop,
            recipe.scale,
            recipe.min_side,
            recipe.flip,
            recipe.jitter,
            model.mean,
            model.std,
        ),
    )
    modes = {
        "decode": lambda: ([files[i] for _, i in batch] for batch in keys),
        "augment": lambda: ([augmented[key] for key in batch] for batch in keys),
        "loader": lambda: make_loader(first, recipe, model, keys),
        f"loader-{workers}-workers": lambda: make_loader(
            first, recipe, model, keys, workers, pin=where.type == "cuda"
        ),
    }
    if held := _resident(first, where):
        modes["resident"] = lambda: make_loader(held, recipe, model, keys)
    rates = {name: [] for name in modes}
    for turn in range(rounds + 1):  # the first warms up
        for name, loader in modes.items():
            stream = iter(loader())
            next(stream)
            start = time.perf_counter()
            for _ in stream:
                pass
            if where.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                rates[name].append((len(keys) - 1) * recipe.batch / (time.perf_counter() - start))
    return [
        {
            "data": recipe.data,
            "mode": name,
            "device": where.type,
            "size": list(recipe.crop),
            "batch": recipe.batch,
            "images_per_s": median(found),
        }
        for name, found in rates.items()
    ]


class _First:
    """The first images of a data set, decoded once."""

    def __init__(self, dataset, number: int):
        self.name, self.ids = dataset.name, dataset.ids[:number]
        self.items = [dataset[i] for i in range(len(self.ids))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def _resident(dataset, device: torch.device) -> OnDevice | None:
    """None where the images are of several sizes."""
    try:
        return OnDevice(dataset, device)
    except InputError:
        return None

"""Speed: images a second of training and of loading. Modes take turns in one run, so that a noisy machine is noisy to all."""
from statistics import median
import time

import torch

from rflw.config import Recipe
from rflw.datasets.readers import labels_of, open_dataset
from rflw.datasets.resident import ResidentSet
from rflw.datasets.transforms import Augmented, training_transform
from rflw.engine import pick_device, pick_precision
from rflw.errors import InputError
from rflw.nn.refinenet import build
from rflw.training import (
    batches,
    compiled_for,
    keep_freed_memory,
    make_fabric,
    make_loader,
    make_optimiser,
    train_step,
    training_mode,
)


def training_speed(recipe: Recipe, root=None, device: str = "auto", steps: int = 4, rounds: int = 3) -> list[dict]:
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
    ways, last = [("fp32", torch.contiguous_format, False, dataset, "train-fp32-nchw")], f"train-{fast}-channels-last"
    ways += [(fast, torch.channels_last, compiled, dataset, last + "-compiled" * compiled) for compiled in (False, True)]
    if held := _resident(dataset, where):
        ways.append((fast, torch.channels_last, True, held, f"{last}-compiled-resident"))
    modes = []
    for precision, memory_format, compiled, data, name in ways:
        fabric = make_fabric(where, precision)
        model = build(recipe.model, len(labels_of(recipe.data).classes)).to(where, memory_format=memory_format)
        training_mode(model, recipe.frozen_bn)
        wrapped, optimiser = fabric.setup(compiled_for(model, where) if compiled else model, make_optimiser(model, recipe))
        modes.append((name, fabric, model, wrapped, optimiser, memory_format, data, []))
    for turn in range(rounds + 1):  # the first warms up
        for _, fabric, model, wrapped, optimiser, memory_format, data, rates in modes:
            start = time.perf_counter()
            for images, masks in make_loader(data, recipe, model, keys):
                train_step(fabric, wrapped, optimiser, images.to(where, memory_format=memory_format), masks.to(where),
                           recipe.clip)
            if turn:
                rates.append(len(keys) * recipe.batch / (time.perf_counter() - start))
    return [{"model": recipe.model, "mode": name, "device": where.type, "size": list(recipe.crop), "batch": recipe.batch,
             "images_per_s": median(rates)} for name, *_, rates in modes]


def loading_speed(recipe: Recipe, root=None, device: str = "auto", workers: int = 2, images: int = 256, rounds: int = 3) -> list[dict]:
    """Images a second of what a recipe's training loads: decoding files; augmenting decoded images; the whole loader in the
    training process and with worker processes; and, where the images are of one size, held and augmented on the device.

    images: how many each round takes, the same in all modes; those held in memory are no more than these. Time begins with the
    first batch, since a training starts its workers once. The median round counts.
    """
    if workers < 1 or rounds < 1 or images < 2 * recipe.batch:
        raise InputError(f"{workers} workers, {rounds} rounds, {images} images: one, one and two batches ({2 * recipe.batch}) at least")
    where = pick_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    files = open_dataset(recipe.data, recipe.stages[-1].split, root)
    first = _First(files, images)
    indices = [i % len(first) for i in range(images - images % recipe.batch)]
    keys = [list(enumerate(indices))[start:start + recipe.batch] for start in range(0, len(indices), recipe.batch)]
    model = build(recipe.model, 2, None)  # for its mean and deviation
    augmented = Augmented(first, training_transform(recipe.crop, recipe.scale, recipe.min_side, recipe.flip, recipe.jitter,
                                                    model.mean, model.std))
    modes = {
        "decode": lambda: ([files[i] for _, i in batch] for batch in keys),
        "augment": lambda: ([augmented[key] for key in batch] for batch in keys),
        "loader": lambda: make_loader(first, recipe, model, keys),
        f"loader-{workers}-workers": lambda: make_loader(first, recipe, model, keys, workers, pin=where.type == "cuda"),
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
    return [{"data": recipe.data, "mode": name, "device": where.type, "size": list(recipe.crop), "batch": recipe.batch,
             "images_per_s": median(found)} for name, found in rates.items()]


class _First:
    """The first images of a data set, decoded once."""

    def __init__(self, dataset, number: int):
        self.name, self.ids = dataset.name, dataset.ids[:number]
        self.items = [dataset[i] for i in range(len(self.ids))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def _resident(dataset, device: torch.device) -> ResidentSet | None:
    """None where the images are of several sizes."""
    try:
        return ResidentSet(dataset, device)
    except InputError:
        return None

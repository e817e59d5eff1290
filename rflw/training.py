"""Training by a recipe: one run, from its seed to its record, that stops and goes on exactly."""

from collections.abc import Iterable
from contextlib import contextmanager
import csv
from dataclasses import asdict, dataclass, field
import hashlib
import logging
import math
import os
from pathlib import Path
import re
import resource
import shutil
import signal
import sys
import threading
import time

import numpy as np
import torch
from torch import Tensor, nn
import torch.nn.functional as F
from tqdm import tqdm

from rflw import live, records
from rflw.checkpoint import SHIPPED, checkpoint_file, load, save, weights_of
from rflw.config import Recipe
from rflw.data.labels import LABELS, VOID, Labels
from rflw.data.on_device import OnDevice
from rflw.data.readers import (
    Cached,
    blocks,
    in_memory,
    labels_of,
    manifest_hash,
    of_one_size,
    open_dataset,
    spread,
)
from rflw.device import keep_freed_memory, pick_device, pick_precision
from rflw.errors import InputError, enough_memory
from rflw.evaluation import evaluate, summary
from rflw.nn import official, pooling
from rflw.nn.official import load_tensors
from rflw.nn.refinenet import RefineNet, build, init_decoder
from rflw.prediction import upsample, views
from rflw.recipes import OWN, RECIPES
from rflw.records import write_whole

WORTH_COMPILING = 200  # steps of a run from which on it saves more time than it costs
WORKER_GONE = "DataLoader worker"  # PyTorch's error begins with it
COLUMNS = (
    "stage",
    "epoch",
    "loss",
    "miou",
    "live",
    "images_per_s",
)  # of log.csv; live: the smallest share of a stage
CARD_SIDE = {
    "camvid": 360,
    "embedded": 96,
    "nyu": 468,
}  # pixels of the shorter side of what a network was trained on


class Failed(InputError):
    """Training cannot go on: a loss that is not finite, or too little memory. The record says so."""


class InUse(InputError):
    """Another process trains in the run's folder."""


# ---------------------------------------------------------------- one step


def derive(*parts) -> int:
    """A seed from what it is for: the same parts give the same seed, any other part another one."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())


def training_mode(model: nn.Module, frozen_bn: bool = True) -> None:
    """Train, with batch norm statistics frozen ("we keep batch norm statistics frozen", section 4) unless asked otherwise."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(not frozen_bn)


def begin_with(model: RefineNet, path: str | Path, classes: tuple[str, ...]) -> bool:
    """Copy the weights of a checkpoint, ours or the authors', into a network for `classes` -> whether the classifier's, too: it
    stays as it is if the classes differ (the authors' files have no names: if their number does).

    Raises InputError for another network's checkpoint.
    """
    name, weights, theirs = weights_of(path)
    if name != model.name:
        raise InputError(f"{path}: a {name}, this is a {model.name}")
    kept = (
        len(weights["decoder.classifier.weight"]) == len(classes)
        if theirs is None
        else theirs == tuple(classes)
    )
    if not kept:
        weights = {
            key: value
            for key, value in weights.items()
            if not key.startswith("decoder.classifier.")
        }
    model.load_state_dict(weights, strict=False)
    return kept


def make_optimiser(model: RefineNet, recipe: Recipe) -> torch.optim.Optimizer:
    """With one group for the encoder and one for the decoder; `set_rates` sets their rates before each step."""
    groups = [
        {"params": list(model.encoder.parameters())},
        {"params": list(model.decoder.parameters())},
    ]
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        groups, lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def set_rates(optimiser, stage, step: int, steps_per_epoch: int) -> None:
    factor = stage.lr_factor(step, steps_per_epoch)
    for group, rate in zip(optimiser.param_groups, (stage.encoder_lr, stage.decoder_lr)):
        group["lr"] = rate * factor


def class_weights(dataset, num_classes: int, exponent: float) -> Tensor | None:
    """(K,) weights of the loss, (1 / frequency) ** exponent over the data set's labels, 1 in the mean over pixels; a class
    without pixels gets 0. None for an exponent of 0."""
    if not exponent:
        return None
    pixels = sum(np.bincount(dataset[i][1].ravel(), minlength=256) for i in range(len(dataset)))[
        :num_classes
    ]
    if not pixels.sum():
        raise InputError("all pixels of the training images are void: there is nothing to learn")
    share = torch.from_numpy(pixels / pixels.sum())
    weights = torch.where(share > 0, share.clamp(min=1e-12) ** -exponent, 0)
    return (weights / (weights * share).sum()).float()


def loss_of(
    logits: Tensor, masks: Tensor, pixels: Tensor | int, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy on logits resized to the labels, summed over pixels that are not void and divided by `pixels`.

    pixels: how many are not void in the whole batch, of which this may be a part. Parts then add up to the mean over the
    batch, however it was cut; a batch of void gives 0. weights: of the classes, (K,).
    """
    total = F.cross_entropy(
        upsample(logits, masks.shape[-2:]),
        masks.long(),
        weights,
        ignore_index=VOID,
        reduction="sum",
    )
    return total / pixels


def train_step(
    fabric,
    model: nn.Module,
    optimiser,
    images: Tensor,
    masks: Tensor,
    clip: float,
    accumulate: int = 1,
    weights: Tensor | None = None,
) -> float:
    """Forward, backward, clip, step -> the loss of the whole batch over all processes. Where it is not finite, weights stay
    as they are. accumulate: parts that the batch is cut into, to save memory; the gradient is that of the whole."""
    pixels = fabric.all_reduce((masks != VOID).sum(), reduce_op="sum").clamp(min=1)
    optimiser.zero_grad()
    value = torch.zeros((), device=images.device)
    parts = list(zip(images.chunk(accumulate), masks.chunk(accumulate)))
    for i, (x, y) in enumerate(parts):
        with fabric.no_backward_sync(model, enabled=i + 1 < len(parts)):
            loss = loss_of(model(x), y, pixels, weights)
            fabric.backward(
                loss * fabric.world_size
            )  # DDP takes the mean over processes; shares must add up
        value += loss.detach()
    value = fabric.all_reduce(value, reduce_op="sum").item()
    if clip:
        fabric.clip_gradients(model, optimiser, max_norm=clip, error_if_nonfinite=False)
    if math.isfinite(value):
        optimiser.step()
    return value


def batches(
    dataset,
    recipe: Recipe,
    stage: int,
    seed: int,
    first_step: int,
    steps_per_epoch: int,
    rank: int = 0,
    world: int = 1,
):
    """Keys of every batch of a stage from `first_step` on: (augmentation seed, index) of its items.

    Every epoch is a permutation of its own, drawn from the seed and the epoch alone; what is left over at its end,
    too little for a batch, is dropped. Of `world` processes each takes its share of every batch.
    """
    for epoch in range(first_step // steps_per_epoch, recipe.stages[stage].epochs):
        generator = torch.Generator().manual_seed(derive("order", seed, stage, epoch))
        order = torch.randperm(len(dataset), generator=generator)
        for step in range(max(first_step, epoch * steps_per_epoch), (epoch + 1) * steps_per_epoch):
            batch = order[step % steps_per_epoch * recipe.batch :][: recipe.batch].tolist()
            yield [(derive("augment", seed, stage, epoch, i), i) for i in batch[rank::world]]


def make_loader(
    dataset,
    recipe: Recipe,
    model: RefineNet,
    keys: Iterable[list],
    workers: int = 0,
    pin: bool = False,
):
    """Batches of augmented images and masks for the given keys, in their order; those of a OnDevice are on its device."""
    from torch.utils.data import DataLoader

    if isinstance(dataset, OnDevice):
        return (
            dataset.batch(
                batch,
                recipe.crop,
                recipe.scale,
                recipe.min_side,
                recipe.flip,
                model.mean,
                model.std,
            )
            for batch in keys
        )

    from rflw.data.transforms import Augmented, training_transform

    transform = training_transform(
        recipe.crop,
        recipe.scale,
        recipe.min_side,
        recipe.flip,
        recipe.jitter,
        model.mean,
        model.std,
    )
    return DataLoader(
        Augmented(dataset, transform), batch_sampler=keys, num_workers=workers, pin_memory=pin
    )


def make_fabric(device: torch.device, precision: str):
    """Lightning Fabric: places the model, scales the loss where the precision needs it, and joins the processes that
    `torchrun` started (DDP: NCCL on CUDA, gloo on CPUs)."""
    from lightning.fabric import Fabric  # costs seconds: only training pays them

    logging.getLogger("lightning").setLevel(logging.WARNING)  # it announces the precision on stderr
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    fabric = Fabric(
        accelerator=device.type,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision],
    )
    if world > 1:
        fabric.launch()
    return fabric


# ---------------------------------------------------------------- one run


MEMORIES = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
}  # of each parameter


def is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_count(value, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def is_row(value) -> bool:
    """Whether it is an epoch's row in the curve of a run."""
    return (
        isinstance(value, dict)
        and value.keys() - {"miou", "live"} == {*COLUMNS} - {"miou", "live"}
        and all(
            is_number(v)
            or (name == "miou" and v is None)
            or (name == "live" and isinstance(v, dict))
            for name, v in value.items()
        )
    )


@dataclass
class State:
    """What changes while a run goes on: all of it is in last.pt, so that a run goes on as if it had never stopped."""

    model: RefineNet
    optimiser: torch.optim.Optimizer
    scaler: object  # fabric's precision, which scales losses in fp16
    averaged: dict | None  # running mean of the weights
    stage: int = 0
    step: int = 0  # of the stage
    losses: list[float] = field(default_factory=list)  # of the epoch, so far
    curve: list[dict] = field(default_factory=list)  # a row an epoch
    best: float = -1.0  # validation mIoU
    wall_s: float = 0.0  # of earlier sittings
    warned: bool = False  # that a stage is dying

    PLACE = ("stage", "step", "losses", "curve", "best", "wall_s")
    PARTS = ("model", "optimiser", "scaler")

    def saved(self) -> dict:
        return (
            {name: getattr(self, name) for name in self.PLACE}
            | {name: getattr(self, name).state_dict() for name in self.PARTS}
            | {"averaged": self.averaged}
        )

    def restore(self, saved: dict, steps: list[int]) -> None:
        """steps: of each stage. Raises InputError for what `saved` did not make."""
        try:
            fault = next(self._faults(saved, steps), None)
            if fault:
                raise ValueError(fault)
            self.model.load_state_dict(saved["model"])
            self.scaler.load_state_dict(saved["scaler"])
            # its settings are the recipe's
            self.optimiser.load_state_dict(
                self.optimiser.state_dict() | {"state": saved["optimiser"]["state"]}
            )
            for key, value in (self.averaged or {}).items():
                value.copy_(saved["averaged"][key])
            for name in self.PLACE:
                setattr(self, name, saved[name])
        except Exception as e:  # torch raises many types for what does not fit
            raise InputError(
                f"last.pt: not the state of this run ({' '.join(str(e).split())})"
            ) from e

    def _faults(self, saved: dict, steps: list[int]):
        """What is wrong with the entries of `saved`; each is looked at only when those before it are sound."""
        if not is_count(saved["stage"], len(steps) - 1):
            yield "its stage is none of the recipe's"
        if not is_count(saved["step"], steps[saved["stage"]]):
            yield "its step is none of the stage's"
        if not (isinstance(saved["losses"], list) and all(map(is_number, saved["losses"]))):
            yield "its losses are no numbers"
        if not (isinstance(saved["curve"], list) and all(map(is_row, saved["curve"]))):
            yield "its curve is not a row an epoch"
        for name in ("best", "wall_s"):
            if not is_number(saved[name]):
                yield f"its {name} is no number"
        for name, own in (("model", self.model.state_dict()), ("averaged", self.averaged or {})):
            theirs = {} if saved[name] is None else saved[name]
            fault = official.first_not_numbers(theirs) or official.first_fault(theirs, own)
            if fault:
                yield f"{name}: {fault}"
        own = self.scaler.state_dict()
        if saved["scaler"].keys() != own.keys() or not all(
            type(v) is type(own[k]) and is_number(v) for k, v in saved["scaler"].items()
        ):
            yield "its scaler is another one"
        parameters = dict(
            enumerate(p for group in self.optimiser.param_groups for p in group["params"])
        )
        names = next(names for kind, names in MEMORIES.items() if isinstance(self.optimiser, kind))
        for number, memory in saved["optimiser"]["state"].items():
            values = {
                name: value
                for name, value in memory.items()
                if value is not None or name != "momentum_buffer"
            }
            fault = official.first_not_numbers(values)
            if fault:
                yield f"optimiser: {fault}"
            shapes = {
                name: () if name == "step" else tuple(parameters[number].shape)
                for name in names
                if memory
            }
            if (
                memory.keys() != shapes.keys()
                or any(tuple(v.shape) != shapes[k] for k, v in values.items())
                or values.get("step", 0) < 0
            ):
                yield f"optimiser: not what it keeps of parameter {number}"

    @torch.no_grad()
    def average(self, decay: float) -> None:
        for key, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.averaged[key].lerp_(value, 1 - decay)


def fit(
    recipe: Recipe,
    out: str | Path,
    seed: int = 0,
    root=None,
    device: str = "auto",
    resume: bool = False,
    workers: int = 0,
    progress: bool = False,
    memory_format=torch.channels_last,
    accumulate: int = 1,
    compiled: bool | None = None,
    resident: bool | None = None,
    save_every: float = 300.0,
    until: float = math.inf,
) -> tuple[RefineNet, dict]:
    """Train a network by a recipe -> (network in evaluation mode, record). Files go to the folder `out`: `log.csv`,
    `last.pt` (to resume from), `best.safetensors` (of the best validation so far, in every epoch that validates),
    TensorBoard's where it is installed, and at the end `model.safetensors` (the last weights) and `record.json`.

    accumulate: parts that a batch is cut into, to save memory. compiled: have torch.compile speed the network up, on CPUs the
    decoder's pools only, which gain most (`rflw.nn.pooling`); None: on CPUs, if the run is long enough and a C++ compiler is there.
    resident: hold the images on the device and augment them there (`rflw.data.on_device`); None: on CUDA, where the recipe
    allows it.
    save_every: seconds between writes of `last.pt`, which is also written after each epoch and at a stop. until: when on
    time.monotonic()'s clock to stop; raises TimeoutError then. SIGTERM and Ctrl-C stop after the step: KeyboardInterrupt.
    Under `torchrun` the processes share every batch, and the first of them writes.
    Raises InputError for missing data or a folder that holds another run, InUse if another process trains in it, and Failed,
    with a record that says so, for a loss that is not finite or too little memory.
    """
    out, started, clock = Path(out), records.now(), time.perf_counter()
    if workers < 0 or accumulate < 1:
        raise InputError(f"{workers} workers, a batch in {accumulate} parts: at least 0 and 1")
    where = pick_device(device)
    precision = pick_precision(recipe.precision, where)
    if precision == "fp16" and where.type == "cpu":
        raise InputError(f"{recipe.name}: fp16 trains on CUDA devices only; bf16 or fp32 on a CPU")
    labels = labels_of(recipe.data)
    opened = {}  # stages may share a data set
    for stage in recipe.stages:
        if (stage.data, stage.split) not in opened:
            opened[stage.data, stage.split] = in_memory(open_dataset(stage.data, stage.split, root))
    sets = [opened[stage.data, stage.split] for stage in recipe.stages]
    validation = in_memory(open_dataset(recipe.data, recipe.validation, root))
    test = in_memory(open_dataset(recipe.data, recipe.test, root)) if recipe.test else None
    for stage, data in zip(recipe.stages, sets):
        if len(data) < recipe.batch:
            raise InputError(
                f"{recipe.name}: a batch of {recipe.batch} from the {len(data)} images of {stage.data}"
            )
        if labels_of(stage.data).classes != labels.classes:
            raise InputError(
                f"{recipe.name}: {stage.data} and {recipe.data} have different classes"
            )
    saved = _open_run(out, resume, where)
    if resident is None:  # a run goes on as it began, on another kind of device, too
        resident = (
            saved["identity"].get("resident", False)
            if saved
            else where.type == "cuda" and can_be_held(recipe, opened.values())
        )
    elif resident and recipe.jitter:
        raise InputError(
            f"{recipe.name}: changes of colour are not made on the device; train with --no-resident"
        )
    identity = {"recipe": recipe.hash(), "seed": seed} | ({"resident": True} if resident else {})
    if saved and saved["identity"] != identity:
        raise InputError(f"{out}: holds another run ({saved['identity']}), this is {identity}")
    # read before anything is trained or written, so that a damaged file or a wrong label shows now
    hashes = {
        f"{data.name}/{data.split}": manifest_hash(data)
        for data in (*opened.values(), validation, test)
        if data
    }
    if recipe.init:
        hashes["init"] = hashlib.sha256(checkpoint_file(recipe.init).read_bytes()).hexdigest()
    records.make_folder(out)

    fabric = make_fabric(where, precision)
    rank, world, where = fabric.global_rank, fabric.world_size, fabric.device
    if recipe.batch % (world * accumulate):
        raise InputError(
            f"{recipe.name}: a batch of {recipe.batch} is not shared evenly by {world} processes x {accumulate} parts"
        )
    if world * accumulate > 1 and not recipe.frozen_bn:
        raise InputError(
            f"{recipe.name}: batch norm learns its statistics from whole batches; train in one process, without --accumulate"
        )
    if where.type == "cpu":
        keep_freed_memory()
    if resident:
        with enough_memory(
            f"{recipe.name}: its data set does not fit into the device's memory; --no-resident reads it from files"
        ):
            held = {id(data): OnDevice(data, where) for data in opened.values()}
        sets = [held[id(data)] for data in sets]
    torch.manual_seed(derive("init", seed))
    model = build(
        recipe.model, len(labels.classes), None if recipe.init or saved else recipe.weights
    )
    init_decoder(model.decoder, recipe.decoder_init)
    if recipe.init and not saved:
        kept = begin_with(model, recipe.init, labels.classes)
        if rank == 0 and progress:
            print(
                f"{recipe.name}: begins with {recipe.init}, its classifier {'too' if kept else 'made anew'}",
                file=sys.stderr,
            )
    model = model.to(where, memory_format=memory_format)
    steps = [stage.epochs * (len(data) // recipe.batch) for stage, data in zip(recipe.stages, sets)]
    if compiled is None:
        compiled = where.type == "cpu" and sum(steps) >= WORTH_COMPILING and pooling.can_compile()
    wrapped, optimiser = fabric.setup(
        compiled_for(model, where) if compiled else model, make_optimiser(model, recipe)
    )
    state = State(
        model,
        optimiser,
        fabric.strategy.precision,
        {k: v.detach().clone() for k, v in model.state_dict().items()} if recipe.ema else None,
    )
    if saved:
        state.restore(saved, steps)
    origin = (
        saved.get("weights") if saved else model.encoder.origin
    )  # of what the run began with, on whatever machine
    card = {
        "classes": labels.classes,
        "data": recipe.data,
        "recipe": recipe.name,
        "seed": seed,
        "commit": records.provenance()["commit"],
        "short_side": CARD_SIDE.get(recipe.data)
        and round(recipe.val_scale * CARD_SIDE[recipe.data]),
    } | ({"encoder_weights": origin} if origin else {})

    def sound():
        """Raises Failed for weights that are no numbers, which a finite loss may leave: they must not replace good ones."""
        if not all(value.isfinite().all() for value in model.state_dict().values()):
            raise Failed(
                f"{recipe.name}: weights are not finite after step {state.step - 1} of stage {state.stage + 1}; "
                "lower the learning rates"
            )

    def save_state():
        sound()
        if rank == 0:
            content = {"identity": identity, "weights": origin} | state.saved()
            content["wall_s"] += time.perf_counter() - clock
            write_whole(out / "last.pt", lambda partial: _torch_save(content, partial))

    def measure(network, data=validation) -> Tensor:
        with enough_memory(
            f"{recipe.name}: out of memory in validation, whose images are whole; --device cpu goes on without",
            Failed,
        ):
            matrices = evaluate(
                network, data, precision, scales=(recipe.val_scale,), rank=rank, world=world
            )
        return fabric.all_reduce(matrices, reduce_op="sum").cpu()

    def look() -> dict[str, float]:
        with _weights(model, state.averaged):
            modes = {module: module.training for module in model.modules()}
            shares = live.live_units(
                model.eval(),
                lambda i: views(model, validation[i][0], precision, (recipe.val_scale,)),
                spread(live.IMAGES, len(validation)),
            )
            for module, mode in modes.items():
                module.training = mode
        stage, share = min(live.of_stages(shares).items(), key=lambda item: item[1])
        if share < 0.5 and not state.warned and rank == 0:
            state.warned = True
            tqdm.write(
                f"{recipe.name}: only {100 * share:.0f} % of the units of decoder.{stage} are alive: the others are 0 for every "
                "image. A longer warm-up or lower rates keep them",
                file=sys.stderr,
            )
        return shares

    def validate() -> float | None:
        sound()
        with _weights(model, state.averaged):
            miou = summary(measure(model), labels.classes)["miou"]
            if (miou or 0) > state.best:
                state.best = miou or 0
                if rank == 0:
                    save(model, out / "best.safetensors", card)
        return miou

    def record(status: str, **more) -> dict:
        hardware = records.provenance()
        if where.type == "cuda":
            hardware["hardware"]["gpu"] = torch.cuda.get_device_name(where)
        return (
            {
                "name": f"{recipe.name}-s{seed}",
                "kind": "train",
                "command": _command(recipe, seed),
                "config": asdict(recipe),
                "config_hash": recipe.hash(),
                "seed": seed,
                **hardware,
                "started": started,
                "wall_s": round(state.wall_s + time.perf_counter() - clock, 1),
                "status": status,
                "precision": precision,
                "processes": world,
                "resident": resident,
                "compiled": compiled,
                "peak_memory_mb": peak_memory_mb(where),
                "data": hashes,
                "curve": state.curve,
                "metrics": {},
            }
            | ({"weights": origin} if origin else {})
            | more
        )

    with _Running(out if rank == 0 else None) as running:
        logger = _tensorboard(out) if rank == 0 else None
        training_mode(model, recipe.frozen_bn)
        try:
            for number in range(state.stage, len(recipe.stages)):
                with _unless_workers_die(recipe):
                    _train_stage(
                        recipe,
                        number,
                        sets[number],
                        seed,
                        state,
                        fabric,
                        wrapped,
                        running,
                        look,
                        validate,
                        save_state,
                        workers=workers,
                        progress=progress and rank == 0,
                        memory_format=memory_format,
                        accumulate=accumulate,
                        save_every=save_every,
                        until=until,
                        log=out if rank == 0 else None,
                        logger=logger,
                    )
        except Failed as e:
            if rank == 0:
                kept = (
                    f"the last good checkpoint is {out / 'last.pt'}"
                    if (out / "last.pt").exists()
                    else "there is no checkpoint yet"
                )
                records.write(record("failed", error=f"{e}; {kept}"), out, "record")
                raise Failed(f"{e}; {kept}") from e
            raise
        if state.averaged is not None:
            model.load_state_dict(state.averaged)
        if rank == 0:
            save(model, out / "model.safetensors", card)
        fabric.barrier()
        model = load(out / "model.safetensors").to(
            where
        )  # what is kept is what is measured: float16 weights
        scored = {}
        for part, data in (("validation", validation), ("test", test)):
            if data is not None:
                matrices = measure(model, data)
                scored[part] = summary(matrices, labels.classes, blocks(data)) | {
                    "images": len(data)
                }
                if rank == 0:
                    np.savez_compressed(
                        out / f"{part}-matrices.npz", matrices=matrices.numpy(), ids=data.ids
                    )
        done = record(
            "done",
            metrics=scored["validation"] | {key: scored[key] for key in scored if key == "test"},
        )
        if rank == 0:
            records.write(done, out, "record")
        if logger:
            logger.finalize("success")
    return model, done


def can_be_held(recipe: Recipe, sets) -> bool:
    """Whether the data sets can be held and augmented on the device, see `rflw.data.on_device`."""
    return not recipe.jitter and all(
        isinstance(data, Cached) and of_one_size(data) for data in sets
    )


def compiled_for(model: RefineNet, device: torch.device) -> nn.Module:
    """The network as torch.compile makes it faster. On CPUs only its pools: compiled whole, it trains more slowly there."""
    if device.type != "cpu":
        pooling.keep_code_private()
        return torch.compile(model)
    pooling.compile_pools(model)
    return model


def _train_stage(
    recipe: Recipe,
    number: int,
    data,
    seed: int,
    state: State,
    fabric,
    wrapped,
    running,
    look,
    validate,
    save_state,
    *,
    workers: int,
    progress: bool,
    memory_format,
    accumulate: int,
    save_every: float,
    until: float,
    log,
    logger,
) -> None:
    """From where the state is to the end of a stage; see `fit`. Raises KeyboardInterrupt, TimeoutError or Failed."""
    stage, per_epoch, where = recipe.stages[number], len(data) // recipe.batch, fabric.device
    rank, world = fabric.global_rank, fabric.world_size
    weights = class_weights(data, state.model.num_classes, recipe.balance)
    weights = weights if weights is None else weights.to(where)
    if recipe.restart and state.step == 0:
        state.optimiser.state.clear()
    keys = batches(data, recipe, number, seed, state.step, per_epoch, rank, world)
    loader = make_loader(data, recipe, state.model, keys, workers, pin=where.type == "cuda")
    bar = tqdm(
        total=stage.epochs * per_epoch,
        initial=state.step,
        desc=f"{recipe.name} s{seed}",
        unit="step",
        file=sys.stderr,
        disable=not progress or None,
    )
    lower = (
        f"--accumulate {2 * accumulate} computes the same in smaller parts"
        if recipe.frozen_bn
        else "batch norm needs them at once: a recipe with a smaller crop or batch takes less"
    )
    full = f"{recipe.name}: out of memory with {recipe.batch // world // accumulate} images at a time; {lower}"
    since, seen, written = time.perf_counter(), 0, time.perf_counter()
    running.steps = True
    for images, masks in loader:
        step = state.step
        set_rates(state.optimiser, stage, step, per_epoch)
        torch.manual_seed(
            derive("dropout", seed, number, step, rank)
        )  # so that resuming changes nothing
        images = images.to(where, memory_format=memory_format, non_blocking=True)
        masks = masks.to(where, non_blocking=True)
        with enough_memory(full, Failed):
            value = train_step(
                fabric, wrapped, state.optimiser, images, masks, recipe.clip, accumulate, weights
            )
        if not math.isfinite(value):
            raise Failed(
                f"{recipe.name}: the loss is {value} at epoch {step // per_epoch + 1}, step {step} of stage "
                f"{number + 1}; lower the learning rates"
            )
        if state.averaged is not None:
            state.average(min(recipe.ema, (1 + step) / (10 + step)))
        state.losses.append(value)
        state.step, seen = step + 1, seen + recipe.batch
        bar.update()
        if progress and step % 10 == 0:
            miou = next(
                (row["miou"] for row in reversed(state.curve) if row.get("miou") is not None),
                math.nan,
            )
            bar.set_postfix(
                {
                    "loss": f"{value:.3f}",
                    "mIoU": f"{miou:.3f}",
                    "images/s": f"{seen / (time.perf_counter() - since):.1f}",
                }
            )
        epoch, inside = divmod(state.step, per_epoch)
        if not inside:
            row = {
                "stage": number,
                "epoch": epoch,
                "loss": sum(state.losses) / len(state.losses),
                "images_per_s": seen / (time.perf_counter() - since),
                "live": look(),
            }
            if epoch % recipe.val_every == 0 or epoch == stage.epochs:
                row["miou"] = validate()
            state.curve.append(row)
            state.losses = []
            if log:
                _write_log(log / "log.csv", state.curve)
            if logger:
                logger.log_metrics(
                    {k: row[k] for k in ("loss", "miou", "images_per_s") if row.get(k) is not None}
                    | {f"live/{name}": share for name, share in row["live"].items()},
                    len(state.curve),
                )
        stop = running.must_stop(fabric, until)
        if not inside or stop or time.perf_counter() - written > save_every:
            save_state()
            written = time.perf_counter()
        if not inside:
            since, seen = time.perf_counter(), 0
        if stop:
            bar.close()
            raise stop
    bar.close()
    running.steps = False
    state.stage, state.step = number + 1, 0


@contextmanager
def _unless_workers_die(recipe: Recipe):
    """Raises InputError where a process that makes batches is gone. PyTorch tells of it by a signal, and so in whatever is done then."""
    try:
        yield
    except RuntimeError as e:
        if WORKER_GONE not in str(e):
            raise
        raise InputError(
            f"{recipe.name}: a worker process was killed, perhaps for want of memory: --resume goes on, with fewer "
            "--workers"
        ) from e


def _open_run(out: Path, resume: bool, where: torch.device) -> dict | None:
    """What last.pt in the folder holds, None where there is none. Raises InputError if it must not be gone on with."""
    last = out / "last.pt"
    try:
        if not last.exists():
            return None
    except OSError as e:
        raise InputError(f"{out}: cannot be read ({e.strerror})") from e
    if not resume:
        raise InputError(f"{out}: holds a run already; --resume goes on with it")
    try:
        saved = load_tensors(last, where)
        if not (
            isinstance(saved["identity"], dict)
            and all(type(value) in (str, int, bool) for value in saved["identity"].values())
        ):
            raise TypeError("its identity is settings by name")
        if not all(
            isinstance(value, str | None) for value in (saved.get("weights") or {}).values()
        ):
            raise TypeError("its weights are named by texts")
    except InputError:
        raise
    except Exception as e:  # torch raises many types for files that are cut off or foreign
        raise InputError(f"{last}: not a whole checkpoint of a run ({type(e).__name__})") from e
    return saved


class _Running:
    """Within it, no other process can train in the folder `out`, and, while there are `steps`, SIGTERM and Ctrl-C only raise a flag, so
    that a step and its checkpoint are finished first; a second one, and one before or after them, interrupts at once. Raises InUse
    if the folder is taken."""

    def __init__(self, out: Path | None):
        self.out, self.claim, self.before, self.steps, self.asked = out, None, {}, False, False

    def __enter__(self):
        if self.out is not None:
            import fcntl

            try:
                self.claim = open(self.out / ".lock", "w")  # held until the end, however it comes
            except OSError as e:
                raise InputError(f"{self.out}: cannot be written ({e.strerror})") from e
            try:
                fcntl.flock(self.claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                self.claim.close()
                raise InUse(f"{self.out}: another process is training in this folder") from e
        if threading.current_thread() is threading.main_thread():
            self.before = {
                number: signal.signal(number, self._ask)
                for number in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def _ask(self, *_):
        if self.asked or not self.steps:
            raise KeyboardInterrupt
        self.asked = True

    def must_stop(self, fabric, until: float) -> BaseException | None:
        """What to raise now, the same in all processes."""
        reason = 2.0 if self.asked else 1.0 if time.monotonic() > until else 0.0
        if fabric.world_size > 1:
            reason = fabric.all_reduce(
                torch.tensor(reason, device=fabric.device), reduce_op="max"
            ).item()
        return {0.0: None, 1.0: TimeoutError("the time is spent"), 2.0: KeyboardInterrupt()}[reason]

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.claim:
            self.claim.close()


class _weights:
    """Within it, `model` has the averaged weights, if there are any."""

    def __init__(self, model: nn.Module, averaged: dict | None):
        self.model, self.averaged = model, averaged

    def __enter__(self):
        if self.averaged is not None:
            self.own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            self.model.load_state_dict(self.averaged)

    def __exit__(self, *exception):
        if self.averaged is not None:
            self.model.load_state_dict(self.own)


def _tensorboard(out: Path):
    """A logger for TensorBoard, or None where it is not installed."""
    from lightning.fabric.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(out, name="tensorboard", version="")
    except ModuleNotFoundError:
        return None


def _torch_save(content, path: str) -> None:
    try:
        torch.save(content, path)
    except RuntimeError as e:  # its word for a full disk
        if WORKER_GONE in str(e):
            raise
        raise OSError(str(e).splitlines()[0]) from e


def _write_log(path: Path, curve: list[dict]) -> None:
    def write(partial: str) -> None:
        with open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(
                row | {"live": min(live.of_stages(row["live"]).values())} for row in curve
            )

    write_whole(path, write)


def peak_memory_mb(device: torch.device) -> int:
    """Peak of the device's memory on CUDA, of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _command(recipe: Recipe, seed: int) -> str:
    """What repeats a run: with what differs from the shipped recipe."""
    command = f"rflw train {recipe.name} --seed {seed}"
    shipped = OWN if recipe.name == OWN.name else RECIPES.get(recipe.name, recipe)
    if recipe.data != shipped.data:
        command += f" --data {recipe.data}"
    if recipe.init != shipped.init:
        command += f" --init {recipe.init}"
    if recipe.stages[-1].epochs != shipped.stages[-1].epochs:
        command += f" --epochs {recipe.stages[-1].epochs}"
    return command


# ---------------------------------------------------------------- around a run


def rehearse(recipe: Recipe) -> dict:
    """One step of a recipe without data and without arithmetic, on PyTorch's meta device -> {"params", "stages": [{"data",
    "epochs", "encoder_lr", "decoder_lr": at the first and last step}]}. Raises InputError for what cannot be trained."""
    labels = labels_of(recipe.data)
    with torch.device("meta"):
        model = build(recipe.model, len(labels.classes))
        init_decoder(model.decoder, recipe.decoder_init)
        training_mode(model, recipe.frozen_bn)
        optimiser = make_optimiser(model, recipe)
        set_rates(optimiser, recipe.stages[0], 0, 1)
        images, masks = (
            torch.empty(recipe.batch, 3, *recipe.crop),
            torch.zeros(recipe.batch, *recipe.crop, dtype=torch.uint8),
        )
        loss_of(model(images), masks, 1).backward()
    optimiser.step()  # outside: AdamW counts its steps on the processor
    stages = []
    for stage in recipe.stages:
        if labels_of(stage.data).classes != labels.classes:
            raise InputError(
                f"{recipe.name}: {stage.data} and {recipe.data} have different classes"
            )
        ends = [stage.lr_factor(step, 1) for step in (0, stage.epochs - 1)]
        stages.append(
            {
                "data": stage.data,
                "epochs": stage.epochs,
                "encoder_lr": [stage.encoder_lr * f for f in ends],
                "decoder_lr": [stage.decoder_lr * f for f in ends],
            }
        )
    return {"params": sum(p.numel() for p in model.parameters()), "stages": stages}


def publish(
    run: str | Path, name: str, shipped: Path = SHIPPED, results: Path = records.FOLDER
) -> list[Path]:
    """Ship a finished run: its network as `name` among the checkpoints, with a card, and its record -> the three files.

    Raises InputError, and ships nothing, if the run has no whole record or its network is not the one that it is of.
    """
    run, shipped = Path(run), Path(shipped)
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"{name!r}: a name of letters, digits, - and _")
    record = records.read(run / "record.json")
    model = load(run / "model.safetensors")
    if (model.card.get("recipe"), model.card.get("seed")) != (
        record["config"].get("name"),
        record["seed"],
    ):
        raise InputError(f"{run}: model.safetensors is not of the run in record.json")
    card = records.card(
        record,
        run / "model.safetensors",
        name,
        LABELS.get(model.card["data"], Labels((), ())).licence,
    )
    write_whole(
        shipped / f"{name}.safetensors",
        lambda partial: shutil.copyfile(run / "model.safetensors", partial),
    )
    write_whole(shipped / f"{name}.md", lambda partial: Path(partial).write_text(card))
    return [shipped / f"{name}.safetensors", shipped / f"{name}.md", records.write(record, results)]

"""One step of training, and what it is made of: order, batches, loss, optimiser, rates, running mean."""

from collections.abc import Iterable, Iterator
import hashlib
import logging
import math
import os

import numpy as np
import torch
from torch import Tensor, nn
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

from rflw.config import Recipe, Stage
from rflw.data.labels import VOID, Labels
from rflw.data.on_device import OnDevice
from rflw.data.readers import labels_of
from rflw.errors import InputError
from rflw.nn import pooling
from rflw.nn.refinenet import RefineNet, build, init_decoder
from rflw.prediction import upsample


def derive(*parts) -> int:
    """A seed from what it is for: equal parts give equal seeds, other parts other seeds."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())


def training_mode(model: nn.Module, frozen_bn: bool = True) -> None:
    """Train, by default with "batch norm statistics frozen" (section 4)."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(not frozen_bn)


def make_optimiser(model: RefineNet, recipe: Recipe) -> torch.optim.Optimizer:
    """With a group each for encoder and decoder; `set_rates` sets their rates at each step."""
    groups = [{"params": list(part.parameters())} for part in (model.encoder, model.decoder)]
    decay = recipe.weight_decay
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, weight_decay=decay)


def set_rates(optimiser, stage: Stage, step: int, steps_per_epoch: int) -> None:
    """Set the rates of encoder and decoder for a step of a stage."""
    factor = stage.lr_factor(step, steps_per_epoch)
    for group, rate in zip(optimiser.param_groups, (stage.encoder_lr, stage.decoder_lr)):
        group["lr"] = rate * factor


def class_weights(dataset, num_classes: int, exponent: float) -> Tensor | None:
    """(K,) weights of the loss: (1 / frequency) ** exponent, with a mean of 1 over pixels.

    A class without pixels has weight 0; an exponent of 0 gives None. Raises InputError where all
    pixels are void.
    """
    if not exponent:
        return None
    counts = sum(np.bincount(dataset[i][1].ravel(), minlength=256) for i in range(len(dataset)))
    pixels = counts[:num_classes]
    if not pixels.sum():
        raise InputError("all pixels of the training images are void: there is nothing to learn")
    share = torch.from_numpy(pixels / pixels.sum())
    weights = torch.where(share > 0, share.clamp(min=1e-12) ** -exponent, 0)
    return (weights / (weights * share).sum()).float()


def loss_of(
    logits: Tensor, masks: Tensor, pixels: Tensor | int, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy on logits resized to the labels, summed over labelled pixels, over `pixels`.

    Args:
        logits: (B, K, H/4, W/4).
        masks: (B, H, W) class numbers; void is left out.
        pixels: how many are labelled in the whole batch, of which this may be a part. Parts add up
            to the mean over the batch, however it was cut; a batch of void gives 0.
        weights: (K,) of the classes.
    """
    logits = upsample(logits, masks.shape[-2:])
    loss = F.cross_entropy(logits, masks.long(), weights, ignore_index=VOID, reduction="sum")
    return loss / pixels


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
    """Forward, backward, clip, step -> the loss of the whole batch over all processes.

    Where the loss is not finite, weights stay as they are.

    Args:
        images: (B, 3, H, W).
        masks: (B, H, W).
        clip: largest norm of the gradient; 0 for any.
        accumulate: parts that the batch is cut into, to save memory; the gradient is the same.
        weights: (K,) of the classes.
    """
    pixels = fabric.all_reduce((masks != VOID).sum(), reduce_op="sum").clamp(min=1)
    optimiser.zero_grad()
    value = torch.zeros((), device=images.device)
    parts = list(zip(images.chunk(accumulate), masks.chunk(accumulate)))
    for i, (x, y) in enumerate(parts):
        with fabric.no_backward_sync(model, enabled=i + 1 < len(parts)):
            loss = loss_of(model(x), y, pixels, weights)
            # DDP takes the mean over processes; shares must add up
            fabric.backward(loss * fabric.world_size)
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
) -> Iterator[list[tuple[int, int]]]:
    """Keys of every batch of a stage from `first_step`: (augmentation seed, index) of its items.

    Every epoch is a permutation of its own, drawn from the seed and the epoch alone; images that
    are too few for another batch are dropped. Of `world` processes each takes its share of every
    batch.
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
    """Augmented (images, masks) for each list of keys; of an OnDevice they are on its device."""
    from torch.utils.data import DataLoader

    geometry = (recipe.crop, recipe.scale, recipe.min_side, recipe.flip)
    if isinstance(dataset, OnDevice):
        return (dataset.batch(batch, *geometry, model.mean, model.std) for batch in keys)

    from rflw.data.transforms import Augmented, training_transform

    transform = training_transform(*geometry, recipe.jitter, model.mean, model.std)
    augmented = Augmented(dataset, transform)
    return DataLoader(augmented, batch_sampler=keys, num_workers=workers, pin_memory=pin)


def make_fabric(device: torch.device, precision: str):
    """Lightning Fabric: places the model and scales the loss where the precision needs it.

    It joins the processes that `torchrun` started (DDP: NCCL on CUDA, gloo on CPUs).
    """
    from lightning.fabric import Fabric  # costs seconds: only training pays them
    from lightning.fabric.accelerators import ACCELERATOR_REGISTRY, CPUAccelerator
    from lightning.fabric.plugins import MixedPrecision
    from lightning.fabric.strategies import SingleDeviceStrategy

    for logger in ("lightning", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.WARNING)  # they announce the precision
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world > 1 and device.type not in ("cpu", "cuda"):
        raise InputError(f"{world} processes: on CUDA devices and CPUs only, not on {device.type}")
    accelerator, strategy = device.type, "ddp" if world > 1 else "auto"
    if accelerator not in ACCELERATOR_REGISTRY.available_accelerators():
        accelerator, strategy = CPUAccelerator(), SingleDeviceStrategy(device)
        accelerator.setup_device = lambda _: None  # one that Lightning does not know, such as XPU
    half = {"bf16": "bf16-mixed", "fp16": "16-mixed"}.get(precision)
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world // local,
        strategy=strategy,
        plugins=[MixedPrecision(half, device.type)] if half else [],
    )
    if world > 1:
        fabric.launch()
    return fabric


def compiled_for(model: RefineNet, device: torch.device) -> nn.Module:
    """The network as torch.compile speeds it up: on CPUs only its pools, else it gets slower."""
    if device.type != "cpu":
        return torch.compile(model)
    pooling.compile_pools(model)
    return model


def averaging(model: nn.Module, decay: float) -> AveragedModel:
    """The running mean of a network's weights and statistics, with a decay that grows at first."""

    @torch.no_grad()
    def update(means: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
        step = int(updates) - 1  # it counts from 1, so that the first weights have a share
        share = 1 - min(decay, (1 + step) / (10 + step))
        for mean, value in zip(means, values):
            if mean.is_floating_point():
                mean.lerp_(value, share)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def rehearse(recipe: Recipe) -> dict:
    """One step of a recipe without data and arithmetic, on PyTorch's meta device.

    Returns:
        dict: {"params", "stages": [{"data", "epochs", "encoder_lr", "decoder_lr"}]}, with the rates
        at the first and last epoch.

    Raises:
        InputError: for what cannot be trained.
    """
    labels = labels_of(recipe.data)
    with torch.device("meta"):
        model = build(recipe.model, len(labels.classes))
        init_decoder(model.decoder, recipe.decoder_init)
        training_mode(model, recipe.frozen_bn)
        optimiser = make_optimiser(model, recipe)
        set_rates(optimiser, recipe.stages[0], 0, 1)
        images = torch.empty(recipe.batch, 3, *recipe.crop)
        masks = torch.zeros(recipe.batch, *recipe.crop, dtype=torch.uint8)
        loss_of(model(images), masks, 1).backward()
    optimiser.step()  # outside: AdamW counts its steps on the processor
    stages = []
    for stage in recipe.stages:
        check_classes(recipe, stage, labels)
        ends = [stage.lr_factor(epoch, 1) for epoch in (0, stage.epochs - 1)]
        rates = {
            part: [getattr(stage, part) * factor for factor in ends]
            for part in ("encoder_lr", "decoder_lr")
        }
        stages.append({"data": stage.data, "epochs": stage.epochs, **rates})
    return {"params": sum(p.numel() for p in model.parameters()), "stages": stages}


def check_classes(recipe: Recipe, stage: Stage, labels: Labels) -> None:
    """Raises InputError for a stage whose data set has other classes than the last stage's."""
    if labels_of(stage.data).classes != labels.classes:
        raise InputError(f"{recipe.name}: {stage.data} and {recipe.data} have different classes")

"""Dead units: a large first step kills them, a warm-up keeps them alive, new weights revive them."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from rflw import live, training
from rflw.config import Recipe
from rflw.nn.blocks import conv

MARKS = (1, 2, 5, 10, 20, 50, 100, 150, 200, 300, 400)  # steps after which units are looked at


def first_steps(
    recipe: Recipe, warmup: int, steps: int = 200, seed: int = 0, root=None, device: str = "auto"
) -> list[dict]:
    """Train the first steps of a recipe with another warm-up.

    Args:
        recipe: what is trained, without a running mean of weights.
        warmup: steps of the warm-up, 0 for none.
        steps: how many to train.
        seed, root, device: as `rflw.train` takes them.

    Returns:
        list: A row for each step of `MARKS`, {"step", "loss": of this batch, "live": {stage: share
        of its units that are alive on a few validation images}}.
    """
    first = replace(recipe.stages[0], warmup=warmup)
    plan = replace(recipe, stages=(first, *recipe.stages[1:]), ema=0.0)
    run = training.Run(plan, Path(), seed, root, device)
    fabric, precision = training.settings(run)
    job = training.make_job(run, training.open_data(run), fabric, precision, None)
    training.training_mode(job.model, plan.frozen_bn)
    rows = []
    for images, masks in islice(training.remaining(job), steps):
        loss = training.step(job, images, masks)
        job.state.step += 1
        if job.state.step in (*MARKS, steps):
            shares = live.of_stages(training.look(job))
            rows.append({"step": job.state.step, "loss": loss, "live": shares})
    return rows


@torch.no_grad()
def revive(model: nn.Module, forward, images, rounds: int = 20) -> int:
    """Give dead units of a trained decoder without RCUs new incoming weights, in place.

    As ReDo does (Sokar et al., 2023), but outgoing weights stay: CRP's terms use them, too. Units
    that are still dead get others in the next of `rounds`. `forward` is called with each of
    `images`, as by `rflw.live`; PyTorch's global generator draws. Returns how many stay dead.
    """
    stages = model.decoder.stages
    for _ in range(rounds):
        dead = live.dead_units(model, forward, images)
        if not any(units.any() for units in dead.values()):
            break
        for i, stage in enumerate(stages):
            ends_in = [stage.adapt] if isinstance(stage.adapt, nn.Conv2d) else [*stage.reduce]
            if i:
                ends_in.append(stages[i - 1].fuse)  # the coarser path is added, too
            for layer in ends_in:
                fresh = conv(layer.in_channels, layer.out_channels, layer.kernel_size[0])
                units = dead[f"stages.{i}.act"]
                layer.weight[units] = fresh.weight.to(layer.weight)[units]
    return sum(int(units.sum()) for units in live.dead_units(model, forward, images).values())

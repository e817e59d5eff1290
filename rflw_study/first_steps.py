"""The first steps of a training: a large first step kills units, and a warm-up keeps them alive."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

from rflw import live, training
from rflw.config import Recipe

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

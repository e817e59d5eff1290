"""What a training shows while it runs, and how it is asked to stop."""

from contextlib import contextmanager
import math
from pathlib import Path
import signal
import threading

import pandas as pd
from tqdm import tqdm

from rflw import live
from rflw.records import write_whole

COLUMNS = ["stage", "epoch", "loss", "miou", "live", "images_per_s"]  # of log.csv


def progress_bar(job, steps: list[int]) -> tqdm:
    """A bar over all steps of a run, given those of each stage."""
    run, done = job.run, sum(steps[: job.state.stage]) + job.state.step
    name, hidden = f"{run.recipe.name} s{run.seed}", not (run.progress and job.first) or None
    return tqdm(total=sum(steps), initial=done, desc=name, unit="step", disable=hidden)


def show(bar: tqdm, state, images_per_s: float) -> None:
    """Move the bar by a step; every tenth renews loss, score and speed."""
    bar.update()
    if state.step % 10 == 1 and not bar.disable:
        scores = [row["miou"] for row in state.curve if row.get("miou") is not None]
        numbers = {"loss": f"{state.losses[-1]:.3f}", "mIoU": f"{[math.nan, *scores][-1]:.3f}"}
        bar.set_postfix(numbers | {"images/s": f"{images_per_s:.1f}"})


def write_log(path: Path, curve: list[dict]) -> None:
    """The curve as a table; `live` is the smallest share of a stage."""
    rows = [row | {"live": min(live.of_stages(row["live"]).values())} for row in curve]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_whole(path, lambda partial: table.to_csv(partial, index=False))


def tensorboard(out: Path):
    """A logger for TensorBoard, or None where it is not installed."""
    from lightning.fabric.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(out, name="tensorboard", version="")
    except ModuleNotFoundError:
        return None


@contextmanager
def asked_to_stop():
    """A list that is filled by SIGTERM or Ctrl-C; a second one interrupts at once."""
    asked, before = [], {}

    def ask(number, _):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

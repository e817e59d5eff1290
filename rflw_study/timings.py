"""Timings on record: what records of `rflw bench network` tell about ratios. No torch.

Only rows of one record took turns on one machine, so ratios are made of these alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import nan, pi, sqrt
from typing import TYPE_CHECKING

from rflw_study.statistics import Interval, mean_ratio

if TYPE_CHECKING:
    import pandas

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
MODES = {
    "eager-fp32": "plain",
    "optimised-fp32": "optimised, fp32",
    "optimised-bf16": "optimised, bf16",
}
ENCODERS = {
    "efficientnet_lite": "EfficientNet-Lite",
    "mobilenet_v2": "MobileNet-v2",
    "resnet": "ResNet-",
}


def timings(records: Iterable[dict], scaling: bool = False) -> list[dict]:
    """The rows of records named "bench-runtime...", with what their records tell about them.

    Those named "bench-runtime-scaling..." are for comparing image sizes: left out, or all there is.

    Returns:
        Rows of `speed.network_speed`, each with "record" (its name), "where" (the graphics card,
        or processor and cores), "passes", "peaks"; and, from its mode, "precision" and "done", the
        set of its steps.
    """
    rows = []
    for record in records:
        if record["kind"] != "bench" or not record["name"].startswith("bench-runtime"):
            continue
        if record["name"].startswith("bench-runtime-scaling") != scaling:
            continue
        hardware, metrics = record["hardware"], record["metrics"]
        cpu = f"{hardware['cpu']}, {hardware['cores']} cores"
        for row in metrics["rows"]:
            more = {
                "record": record["name"],
                "passes": record["config"].get("passes", 1),
                "peaks": metrics.get("peaks", {}),
                "where": hardware.get("gpu", "a GPU") if row["device"] == "cuda" else cpu,
                "precision": row["mode"].rpartition("-")[2],
                "done": _done(row),
            }
            rows.append(row | more)
    return rows


def _done(row: dict) -> frozenset[str]:
    """The steps that were done, whatever the mode asked for. Keeping memory is one on CPUs."""
    start = row["mode"].rpartition("-")[0].split("+")[0]
    steps = {step.partition(":")[0] for step in row.get("steps", ())} - {*PRECISIONS}
    if start == "onnx":
        steps = {"onnx"}
    if start in ("memory", "optimised", "onnx") and row["device"] == "cpu":
        steps.add("memory")
    return frozenset(steps)


def _together(row: dict) -> tuple:
    """What rows share that can be compared."""
    return row["record"], row["device"], *row["size"], row["batch"]


def ratio(over: dict, under: dict) -> Interval:
    """How many times longer the first of two rows of one record takes, 95 % over passes.

    Medians, because a pass that something else interrupted tells nothing about a network. Their
    spread is that of a normal distribution with the same 5th and 95th percentile. A row without
    medians counts with its mean.
    """
    centres = [_centre(row["latency_ms"]) for row in (over, under)]
    return mean_ratio(*centres, n=min(over["passes"], under["passes"]))


def _centre(latency: dict) -> tuple[float, float]:
    """A row's median, and the standard deviation that a mean would need to be as uncertain."""
    if not {"median", "p5", "p95"} <= set(latency):
        return latency["mean"], latency.get("std", nan)
    return latency["median"], sqrt(pi / 2) * (latency["p95"] - latency["p5"]) / (2 * 1.644854)


def pairs(rows: Iterable[dict], slow: str, fast: str) -> list[dict]:
    """Rows of the second of two networks, with the first's of the same record, mode, size, batch.

    Returns:
        Rows with "slower", the first network's, and "ratio", how many times longer that takes.
    """
    rows = list(rows)
    slower = {(*_together(row), row["mode"]): row for row in rows if row["model"] == slow}
    return [
        row | {"slower": slower[key], "ratio": ratio(slower[key], row)}
        for row in rows
        if row["model"] == fast and (key := (*_together(row), row["mode"])) in slower
    ]


def gains(rows: Iterable[dict]) -> list[dict]:
    """Rows with one step more, or one precision less, than another of the same record and network.

    Returns:
        Rows with "step", "before" (the other's mode) and "ratio", how many times longer that takes.
    """
    rows = list(rows)
    return [
        after | {"step": step, "before": before["mode"], "ratio": ratio(before, after)}
        for after in rows
        for before in rows
        if (before["model"], _together(before)) == (after["model"], _together(after))
        and (step := _step(before, after))
    ]


def _step(before: dict, after: dict) -> str | None:
    """The only step, or the precision, in which two rows differ."""
    more = after["done"] - before["done"]
    if before["precision"] == after["precision"]:
        return next(iter(more)) if before["done"] < after["done"] and len(more) == 1 else None
    same = before["done"] == after["done"] and before["precision"] == "fp32"
    return after["precision"] if same else None


def fastest(rows: Iterable[dict]) -> list[dict]:
    """Of each record, size, batch and network, the row of the mode that takes least time."""
    best = {}
    for row in rows:
        key = *_together(row), row["model"]
        best[key] = min(best.get(key, row), row, key=lambda other: _centre(other["latency_ms"])[0])
    return list(best.values())


def chosen(rows: Iterable[dict], **wanted) -> list[dict]:
    """Rows that have the wanted values.

    Of several of one device, network, mode, size and batch, that with most passes, and of these the
    one from the largest record: its rows were timed together.
    """
    best, rows = {}, list(rows)
    together = Counter(row["record"] for row in rows)
    for row in rows:
        key = row["where"], row["model"], row["mode"], *row["size"], row["batch"]
        if all(row[name] == value for name, value in wanted.items()):
            rivals = best.get(key, row), row
            best[key] = max(rivals, key=lambda it: (it["passes"], together[it["record"]]))
    return list(best.values())


def pixels(size: Sequence[int]) -> str:
    """(height, width) as screens are named: "640x480"."""
    return f"{size[1]}x{size[0]}"


def short(model: str) -> str:
    """A network's name in the book: "LW, ResNet-50"."""
    model = model.replace("refinenet-lw-", "LW, ").replace("refinenet-", "original, ")
    for name, words in ENCODERS.items():
        model = model.replace(name, words)
    return model


def mode_name(mode: str) -> str:
    """A mode's name in the book: "plain", "memory + fold, fp32"."""
    steps, _, precision = mode.rpartition("-")
    return MODES.get(mode, f"{steps.replace('+', ' + ')}, {precision}")


def table(lines: Sequence[dict], *index: str) -> pandas.DataFrame:
    """Lines under the given index, or one line that says that nothing was measured.

    An index value that all lines share stands above the table (not that of the last index).
    """
    import pandas

    if not lines:
        return pandas.DataFrame({"on record": ["not measured"]})
    frame = pandas.DataFrame(lines)
    shared = [name for name in index[:-1] if frame[name].nunique() == 1]
    frame.columns.name = ", ".join(
        f"batch {frame[name][0]}" if name == "batch" else str(frame[name][0]) for name in shared
    )
    return frame.drop(columns=shared).set_index([name for name in index if name not in shared])

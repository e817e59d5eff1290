"""Timings on record: what records of `rflw bench network` say of ratios. No torch.

Only rows of one record took turns on one machine, so ratios are made of these alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan, pi, sqrt
from typing import TYPE_CHECKING

from rflw_study.statistics import Interval, mean_ratio

if TYPE_CHECKING:
    import pandas

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def timings(found: Iterable[dict]) -> list[dict]:
    """Records -> the rows of those named "bench-runtime...", each with what its record says of it: "record" (its name), "where" (the
    graphics card, or processor and cores), "passes", "peaks"; and, from its mode, "precision" and "done", the set of its steps."""
    rows = []
    for record in found:
        if record["kind"] != "bench" or not record["name"].startswith("bench-runtime"):
            continue
        hardware, metrics = record["hardware"], record["metrics"]
        for row in metrics["rows"]:
            cuda = row["device"] == "cuda"
            rows.append(
                row
                | {
                    "record": record["name"],
                    "passes": record["config"].get("passes", 1),
                    "peaks": metrics.get("peaks", {}),
                    "where": hardware.get("gpu", "a GPU")
                    if cuda
                    else f"{hardware['cpu']}, {hardware['cores']} cores",
                    "precision": row["mode"].rpartition("-")[2],
                    "done": _done(row),
                }
            )
    return rows


def _done(row: dict) -> frozenset[str]:
    """The steps of a row: those that were done, whatever its mode asked for. Memory that is kept is one on CPUs."""
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
    """How many times longer the first of two rows of one record takes, with the 95 % interval over passes.

    Of medians: a pass that something else interrupted says nothing of a network. Their spread is that of a normal distribution with the
    same 5th and 95th percentile. A row without medians counts with its mean.
    """
    return mean_ratio(
        *(_centre(row["latency_ms"]) for row in (over, under)),
        n=min(over["passes"], under["passes"]),
    )


def _centre(latency: dict) -> tuple[float, float]:
    """A row's median, and the standard deviation that a mean would need to be as uncertain."""
    if not {"median", "p5", "p95"} <= set(latency):
        return latency["mean"], latency.get("std", nan)
    return latency["median"], sqrt(pi / 2) * (latency["p95"] - latency["p5"]) / (2 * 1.644854)


def pairs(rows: Iterable[dict], slow: str, fast: str) -> list[dict]:
    """Rows of the second of two networks, each with "slower", the first's row in the same record, mode, size and batch, and "ratio", how
    many times longer that takes."""
    rows = list(rows)
    slower = {(*_together(row), row["mode"]): row for row in rows if row["model"] == slow}
    return [
        row | {"slower": slower[key], "ratio": ratio(slower[key], row)}
        for row in rows
        if row["model"] == fast and (key := (*_together(row), row["mode"])) in slower
    ]


def gains(rows: Iterable[dict]) -> list[dict]:
    """Rows that have one step more, or one precision less, than another of the same record and network, each with "step", "before" (the
    other's mode) and "ratio", how many times longer the other takes."""
    rows, found = list(rows), []
    for after in rows:
        for before in rows:
            if (before["model"], _together(before)) != (after["model"], _together(after)):
                continue
            more = after["done"] - before["done"]
            if (
                before["precision"] == after["precision"]
                and before["done"] < after["done"]
                and len(more) == 1
            ):
                step = next(iter(more))
            elif (
                before["precision"] == "fp32" != after["precision"]
                and before["done"] == after["done"]
            ):
                step = after["precision"]
            else:
                continue
            found.append(
                after | {"step": step, "before": before["mode"], "ratio": ratio(before, after)}
            )
    return found


def fastest(rows: Iterable[dict]) -> list[dict]:
    """Of each record, size, batch and network, the row of the mode that takes least time."""
    best = {}
    for row in rows:
        key = *_together(row), row["model"]
        if key not in best or _centre(row["latency_ms"])[0] < _centre(best[key]["latency_ms"])[0]:
            best[key] = row
    return list(best.values())


def chosen(rows: Iterable[dict], **wanted) -> list[dict]:
    """Rows that have the wanted values; of several of one device, network, mode, size and batch, that with most passes."""
    found = {}
    for row in rows:
        key = row["where"], row["model"], row["mode"], *row["size"], row["batch"]
        if all(row[name] == value for name, value in wanted.items()):
            found[key] = max(found.get(key, row), row, key=lambda one: one["passes"])
    return list(found.values())


def pixels(size: Sequence[int]) -> str:
    """(height, width) as screens are named: "640x480"."""
    return f"{size[1]}x{size[0]}"


def table(lines: Sequence[dict], *index: str) -> pandas.DataFrame:
    """Lines under the given index, or one line that says that nothing was measured. What all lines share of the index, but for its last
    column, stands in the corner, once."""
    import pandas

    frame = pandas.DataFrame(lines or [dict.fromkeys(index, "") | {"on record": "not measured"}])
    shared = [one for one in index[:-1] if frame[one].nunique() == 1]
    frame.columns.name = ", ".join(
        f"batch {frame[one][0]}" if one == "batch" else str(frame[one][0]) for one in shared
    )
    return frame.drop(columns=shared).set_index([one for one in index if one not in shared])

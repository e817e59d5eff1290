"""Ratios of timings on record: of rows that took turns, and of no others."""

from math import isnan

import numpy as np
import pytest

from rflw_study import timings


def row(model, mode, mean, steps=(), size=(512, 512), batch=1, device="cpu", std=0.0):
    return {
        "model": model,
        "mode": mode,
        "device": device,
        "size": list(size),
        "batch": batch,
        "steps": list(steps),
        "latency_ms": {"mean": mean, "std": std},
    }


def record(name, *rows, passes=100, **hardware):
    return {
        "name": name,
        "kind": "bench",
        "config": {"passes": passes},
        "hardware": {"cpu": "Fast", "cores": 2} | hardware,
        "metrics": {"rows": list(rows), "peaks": {"fp32_gmacs": 100}},
    }


def test_rows_know_their_record_and_machine():
    found = timings.timings(
        [
            record(
                "bench-runtime-a",
                row("lw", "eager-fp32", 5),
                row("lw", "eager-fp32", 1, device="cuda"),
                gpu="Card",
            ),
            record("bench-train-a", row("lw", "eager-fp32", 5)),
            {"kind": "train", "name": "bench-runtime-x"},
        ]
    )
    assert [(r["record"], r["where"], r["passes"], r["peaks"], r["precision"]) for r in found] == [
        ("bench-runtime-a", "Fast, 2 cores", 100, {"fp32_gmacs": 100}, "fp32"),
        ("bench-runtime-a", "Card", 100, {"fp32_gmacs": 100}, "fp32"),
    ]


@pytest.mark.parametrize(
    ("mode", "steps", "device", "done"),
    [
        ("eager-fp32", (), "cpu", set()),
        ("onnx-int8", (), "cpu", {"onnx", "memory"}),
        ("memory+channels-last-fp32", ("channels-last",), "cpu", {"memory", "channels-last"}),
        (
            "optimised-bf16",
            ("fold", "pools: maxima", "channels-last", "bf16", "compile"),
            "cpu",
            {"memory", "fold", "pools", "channels-last", "compile"},
        ),
        (
            "channels-last+fold+merge-fp32",
            ("fold", "channels-last"),
            "cpu",
            {"fold", "channels-last"},
        ),  # there was nothing to merge
        ("optimised-fp32", ("fold", "compile", "graphs"), "cuda", {"fold", "compile", "graphs"}),
    ],
)
def test_steps_are_those_that_were_done(mode, steps, device, done):
    found = timings.timings([record("bench-runtime-a", row("lw", mode, 1, steps, device=device))])
    assert found[0]["done"] == done


def test_pairs_are_of_one_record_mode_size_and_batch():
    rows = timings.timings(
        [
            record(
                "bench-runtime-a",
                row("original", "eager-fp32", 30, std=3),
                row("lw", "eager-fp32", 10, std=2),
                row("lw", "memory-fp32", 9),
                row("lw", "eager-fp32", 8, size=(64, 64)),
                row("lw", "eager-fp32", 7, batch=2),
                passes=25,
            ),
            record("bench-runtime-b", row("lw", "eager-fp32", 1)),
        ]
    )
    (only,) = timings.pairs(rows, "original", "lw")
    assert only["latency_ms"]["mean"] == 10 and only["ratio"].mean == 3 and only["ratio"].n == 25
    assert only["ratio"].low < 3 < only["ratio"].high
    bare = [one | {"latency_ms": {"mean": 2}} for one in rows[:2]]
    assert isnan(timings.ratio(*bare).low)  # a record of others need not say the spread


def test_ratios_are_of_medians_where_they_are_known():
    slow, fast = (row("lw", mode, 1) | {"passes": 100} for mode in ("eager-fp32", "optimised-fp32"))
    random = np.random.default_rng(0)
    draws = random.normal(30, 3, (4000, 100)), random.normal(10, 2, (4000, 100))
    for one, values in zip((slow, fast), draws):
        p5, median, p95 = np.percentile(values, [5, 50, 95])
        one["latency_ms"] = {
            "mean": 1e9,
            "std": 1e9,
            "median": median,
            "p5": p5,
            "p95": p95,
        }  # one pass was interrupted for long
    ours = timings.ratio(slow, fast)
    low, high = np.percentile(np.median(draws[0], 1) / np.median(draws[1], 1), [2.5, 97.5])
    assert (ours.mean, ours.low, ours.high) == tuple(
        pytest.approx(value, rel=0.01) for value in (3, low, high)
    )


def test_gains_are_of_one_step_or_of_the_precision():
    rows = timings.timings(
        [
            record(
                "bench-runtime-a",
                *(
                    row("lw", mode, mean, steps)
                    for mode, mean, steps in (
                        ("eager-fp32", 100, ()),
                        ("memory-fp32", 50, ()),
                        ("memory+fold-fp32", 40, ("fold",)),
                        ("memory+fold+merge-fp32", 40, ("fold",)),
                        ("memory+fold+compile-fp32", 10, ("fold", "compile")),
                        ("memory+fold+compile-bf16", 5, ("fold", "bf16", "compile")),
                    )
                ),
                row("other", "memory-fp32", 1),
            )
        ]
    )
    found = {
        (one["step"], one["before"], one["mode"]): one["ratio"].mean for one in timings.gains(rows)
    }
    assert found == {
        ("memory", "eager-fp32", "memory-fp32"): 2,
        ("fold", "memory-fp32", "memory+fold-fp32"): 1.25,
        ("fold", "memory-fp32", "memory+fold+merge-fp32"): 1.25,
        ("compile", "memory+fold-fp32", "memory+fold+compile-fp32"): 4,
        ("compile", "memory+fold+merge-fp32", "memory+fold+compile-fp32"): 4,
        ("bf16", "memory+fold+compile-fp32", "memory+fold+compile-bf16"): 2,
    }


def test_fastest_mode_of_each_network():
    rows = timings.timings(
        [
            record(
                "bench-runtime-a",
                row("lw", "eager-fp32", 5),
                row("lw", "optimised-fp32", 2),
                row("x", "eager-fp32", 9),
                row("lw", "eager-fp32", 3, batch=2),
            )
        ]
    )
    assert [
        (one["model"], one["batch"], one["latency_ms"]["mean"]) for one in timings.fastest(rows)
    ] == [("lw", 1, 2), ("x", 1, 9), ("lw", 2, 3)]


def test_chosen_rows_have_the_wanted_values_and_most_passes():
    few, many = (
        {
            "where": "here",
            "model": "a",
            "mode": "eager-fp32",
            "size": [2, 3],
            "batch": 1,
            "passes": n,
        }
        for n in (3, 5)
    )
    other = few | {"batch": 2}
    assert timings.chosen([few, many, other]) == [many, other]
    assert timings.chosen([many, few, other], batch=1) == [many]
    assert timings.chosen([few], mode="eager-bf16") == []


def test_a_table_shows_what_all_lines_share_once():
    lines = [
        {"device": "cpu", "batch": 1, "mode": mode, "ms": ms} for mode, ms in (("a", 4), ("b", 5))
    ]
    frame = timings.table(lines, "device", "batch", "mode")
    assert (frame.columns.name, frame.index.tolist(), frame.columns.tolist()) == (
        "cpu, batch 1",
        ["a", "b"],
        ["ms"],
    )
    assert frame.ms.tolist() == [4, 5]
    apart = timings.table([*lines, lines[0] | {"device": "gpu"}], "device", "batch", "mode")
    assert (apart.columns.name, apart.index.names) == ("batch 1", ["device", "mode"])
    assert timings.table([], "device", "mode")["on record"].tolist() == ["not measured"]


def test_sizes_are_named_width_first():
    assert timings.pixels((480, 640)) == "640x480"

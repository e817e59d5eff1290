"""Times, ratios, peaks and records of them are what their definitions say."""

from math import isnan

import numpy as np
import pytest
import torch
from torch import nn

from rflw import InputError, build
from rflw.complexity import count
from rflw_study import speed, timings

CPU = torch.device("cpu")
LIGHT = "refinenet-lw-efficientnet_lite0"


def row(model, mode, mean, steps=(), size=(512, 512), batch=1, device="cpu", std=0.0):
    latency = {"mean": mean, "std": std}
    place = {"device": device, "size": list(size), "batch": batch}
    return {"model": model, "mode": mode, "steps": list(steps), "latency_ms": latency} | place


def record(name, *rows, passes=100, **hardware):
    return {
        "name": name,
        "kind": "bench",
        "config": {"passes": passes},
        "hardware": {"cpu": "Fast", "cores": 2} | hardware,
        "metrics": {"rows": list(rows), "peaks": {"fp32_gmacs": 100}},
    }


def test_calls_take_turns_in_milliseconds_and_warming_up_does_not_count(monkeypatch):
    order, clock = [], [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])

    def call(name):
        order.append(name)
        clock[0] += len(order)  # seconds

    calls = {name: lambda name=name: call(name) for name in "ab"}
    times = speed.interleaved(calls, CPU, passes=2, warmup=1)
    assert order == list("ababab")
    assert times["a"].tolist() == [3000, 5000] and times["b"].tolist() == [4000, 6000]


def test_statistics_by_hand():
    std = round(50**0.5 / 2, 4)  # squares of deviations: 9 + 4 + 1 + 0 + 36
    expected = {"mean": 4, "std": std, "median": 3, "p5": 1.2, "p95": 8.8}
    assert speed.statistics(np.array([1.0, 2, 3, 4, 10])) == expected
    assert speed.statistics(np.array([5.0]))["std"] == 0


def test_speedup_and_its_interval():
    same = speed.speedup(np.full(9, 8.0), np.full(9, 2.0))
    assert same == {"ratio": 4, "low": 4, "high": 4}
    fast = np.linspace(1, 2, 50)
    assert speed.speedup(3 * fast, fast)["ratio"] == 3
    noisy = np.random.default_rng(0).normal(10, 1, (2, 200))
    found = speed.speedup(2 * noisy[0], noisy[1])
    assert found["low"] < 2 < found["high"] and found["high"] - found["low"] < 0.3


def test_peaks_are_rates_of_what_was_timed(monkeypatch):
    monkeypatch.setattr(speed, "_milliseconds", lambda call, device: 2.0)
    small = {2: [4, 4], 4: [1, 4, 2, 2]}
    monkeypatch.setattr(torch, "randn", lambda *size, device: torch.zeros(small[len(size)]))
    assert speed.peaks(CPU, ("fp32",)) == {
        "fp32_gmacs": round(3072**3 / 2 / 1e6, 1),
        "copy_gb_s": round(2 * 2**28 / 2 / 1e6, 1),
    }


def test_traffic_of_two_convolutions_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    # each writes its result, the second and third read one, weights once; the image not at all
    values = 4 * 8 * 8 + (4 * 3 * 9 + 4) + 2 * 4 * 8 * 8 + 2 * 8 * 8 + 4 * 8 * 8 + 8
    assert speed.traffic(net, (8, 8)) == 4 * values
    assert speed.traffic(net, (8, 8), width=2) == 2 * values
    assert next(net.parameters()).device == CPU


def test_roofline_and_memory_by_hand():
    assert speed.roofline(2e9, 1e6, peak_gmacs=100, copy_gb_s=10) == 20  # 2 G at 100 G/s
    assert speed.roofline(2e6, 1e9, peak_gmacs=100, copy_gb_s=10) == 100  # 1 GB at 10 GB/s
    assert speed.weights_mb(nn.Conv2d(3, 5, 3)) == 4 * (5 * 3 * 9 + 5) / 1e6
    found = speed.working_mb(lambda: torch.ones(2**24), CPU)  # 67 MB
    assert found is None or 60 < found < 90


def test_rows_of_a_network(monkeypatch):
    monkeypatch.setattr(speed, "peaks", lambda *_: {"fp32_gmacs": 100.0, "copy_gb_s": 10.0})
    modes = ["eager-fp32", "channels-last-fp32", "channels-last+fold+merge-fp32"]
    options = {"batch": 2, "passes": 2, "classes": 4, "whole_way": True, "layers": True}
    found = speed.network_speed([LIGHT], modes, (48, 64), **options)
    first, second, third = found["rows"]
    assert [row["mode"] for row in found["rows"]] == modes
    counted = count(build(LIGHT, 4), (48, 64))
    for row in found["rows"]:
        assert (row["size"], row["batch"], row["params"]) == ([48, 64], 2, counted["params"])
        assert row["macs"] == 2 * counted["macs"]["total"]
        assert row["error"] < 1e-4 and row["agreement"] > 0.99
        latency, rate = row["latency_ms"], row["macs"] / row["latency_ms"]["median"] / 1e6
        assert row["images_per_s"] == pytest.approx(2000 / latency["mean"], rel=1e-3)
        assert row["gmacs_per_s"] == pytest.approx(rate, rel=0.01)
        assert row["share_of_peak"] == pytest.approx(rate / 100, rel=0.01)
        way = dict(row["whole_way_ms"])
        assert way.pop("total") == pytest.approx(sum(way.values()), abs=0.01)
        assert list(way) == ["decode", "prepare", "network", "classes"]
        assert {layer["part"] for layer in row["layers"]} >= {"encoder", "decoder"}
    assert first["faster"] == {"ratio": 1, "low": 1, "high": 1} and first["error"] == 0
    assert third["weights_mb"] < second["weights_mb"] and "fold" in third["steps"]


def test_layers_of_a_pass():
    net, images = nn.Module(), torch.randn(2, 6, 20, 30)
    net.first = nn.Conv2d(6, 6, 3, groups=6, bias=False)
    net.second = nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.MaxPool2d(2))
    net.forward = lambda x: net.second(net.first(x)) + 1
    rows = speed.layer_times(net, images, {"fp32_gmacs": 2.0, "copy_gb_s": 4.0}, passes=2)
    assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)
    found = {(row["part"], row["kind"]): row for row in rows}
    before, after, pooled = 2 * 6 * 18 * 28, 2 * 5 * 18 * 28, 2 * 5 * 9 * 14  # values
    expected = {  # multiply-adds, values that are read or written
        ("first", "depthwise 3x3 conv"): (9 * before, images.numel() + 54 + before),
        ("second", "1x1 conv"): (6 * after, before + 30 + 5 + after),
        ("second", "activation"): (0, 2 * after),
        ("second", "pool"): (0, after + pooled),
        ("second", "sum"): (0, 2 * pooled),
    }
    assert found.keys() == expected.keys()
    for key, (macs, values) in expected.items():
        row = found[key]
        assert (row["operations"], row["macs"], row["bytes"]) == (1, macs, 4 * values)
        assert row["roofline_ms"] == pytest.approx(max(macs / 2, values) / 1e6, abs=5e-4)
        assert row["ms"] > 0
    assert speed.layer_times(net, images, {}, passes=1)[0]["roofline_ms"] is None
    net.compiled = nn.Sequential()  # is false by itself, as what torch.compile returns may be
    assert speed.layer_times(net, images, {}, passes=1) == []


def test_other_peoples_networks():
    for name in ("torchvision:lraspp_mobilenet_v3_large", "smp:FPN-mobilenet_v2"):
        assert name in speed.PEERS["mobilenet_v2"]
        with torch.no_grad():
            assert speed.network(name, 3)(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_settings_and_modes_that_cannot_be_are_refused():
    for options, message in (
        ({"passes": 0}, "one at least"),
        ({"batch": 10**9}, "1000000000 images of 512x512: too large for the memory"),
        ({"names": ["torchvision:nope"]}, "nope"),
        ({"names": ["smp:Nope-x"]}, "Nope"),
    ):
        with pytest.raises(InputError, match=message):
            speed.network_speed(**{"names": ["refinenet-lw-mobilenet_v2"]} | options)
    for mode, message in (
        ("eager-bf16", "unknown mode"),
        ("merge+fold-fp32", "unknown mode"),
        ("onnx-bf16", "networks of this package in fp32 or int8, on CPUs"),
        ("optimised-int8", "optimised-int8: .* calibrate"),
    ):
        with pytest.raises(InputError, match=message):
            speed.prepared(nn.Conv2d(3, 2, 1), mode, CPU)


def test_rows_know_their_record_and_machine():
    plain, card = row("lw", "eager-fp32", 5), row("lw", "eager-fp32", 1, device="cuda")
    runtime, train = (record("bench-runtime-a", plain, card, gpu="Card"), record("bench-x", plain))
    sizes = record("bench-runtime-scaling-64", card)
    records = [runtime, train, sizes, {"kind": "train", "name": "bench-runtime-x"}]
    (size,) = timings.timings(records, scaling=True)
    assert size["record"] == "bench-runtime-scaling-64"
    found = timings.timings(records)
    assert [one["where"] for one in found] == ["Fast, 2 cores", "Card"]
    for one in found:
        assert (one["record"], one["passes"], one["precision"]) == ("bench-runtime-a", 100, "fp32")
        assert one["peaks"] == {"fp32_gmacs": 100}


def test_steps_are_those_that_were_done():
    for mode, steps, device, done in (
        ("eager-fp32", "", "cpu", ""),
        ("onnx-int8", "", "cpu", "onnx memory"),
        ("memory+channels-last-fp32", "channels-last", "cpu", "memory channels-last"),
        ("optimised-bf16", "fold pools:maxima bf16 compile", "cpu", "memory fold pools compile"),
        ("channels-last+fold+merge-fp32", "fold channels-last", "cpu", "fold channels-last"),
        ("optimised-fp32", "fold compile graphs", "cuda", "fold compile graphs"),
    ):
        one = row("lw", mode, 1, steps.split(), device=device)
        (found,) = timings.timings([record("bench-runtime-a", one)])
        assert found["done"] == set(done.split())


def test_pairs_are_of_one_record_mode_size_and_batch():
    rows = [
        row("original", "eager-fp32", 30, std=3),
        row("lw", "eager-fp32", 10, std=2),
        row("lw", "memory-fp32", 9),
        row("lw", "eager-fp32", 8, size=(64, 64)),
        row("lw", "eager-fp32", 7, batch=2),
    ]
    other = record("bench-runtime-b", row("lw", "eager-fp32", 1))
    rows = timings.timings([record("bench-runtime-a", *rows, passes=25), other])
    (only,) = timings.pairs(rows, "original", "lw")
    assert only["latency_ms"]["mean"] == 10 and only["slower"]["latency_ms"]["mean"] == 30
    ratio = only["ratio"]
    assert ratio.mean == 3 and ratio.n == 25 and ratio.low < 3 < ratio.high
    bare = [one | {"latency_ms": {"mean": 2}} for one in rows[:2]]
    assert isnan(timings.ratio(*bare).low)  # records of others may lack the spread


def test_ratios_are_of_medians_where_they_are_known():
    random = np.random.default_rng(0)
    draws = random.normal(30, 3, (4000, 100)), random.normal(10, 2, (4000, 100))
    rows = []
    for values in draws:  # in each, one pass was interrupted for long
        p5, median, p95 = np.percentile(values, [5, 50, 95])
        latency = {"mean": 1e9, "std": 1e9, "median": median, "p5": p5, "p95": p95}
        rows.append({"passes": 100, "latency_ms": latency})
    found = timings.ratio(*rows)
    low, high = np.percentile(np.median(draws[0], 1) / np.median(draws[1], 1), [2.5, 97.5])
    assert (found.mean, found.low, found.high) == pytest.approx((3, low, high), rel=0.01)


def test_gains_are_of_one_step_or_of_the_precision():
    modes = (
        ("eager-fp32", 100, ()),
        ("memory-fp32", 50, ()),
        ("memory+fold-fp32", 40, ("fold",)),
        ("memory+fold+compile-fp32", 10, ("fold", "compile")),
        ("memory+fold+compile-bf16", 5, ("fold", "bf16", "compile")),
    )
    rows = [row("lw", *mode) for mode in modes] + [row("other", "memory-fp32", 1)]
    rows = timings.timings([record("bench-runtime-a", *rows)])
    assert {(one["step"], one["before"]): one["ratio"].mean for one in timings.gains(rows)} == {
        ("memory", "eager-fp32"): 2,
        ("fold", "memory-fp32"): 1.25,
        ("compile", "memory+fold-fp32"): 4,
        ("bf16", "memory+fold+compile-fp32"): 2,
    }


def test_the_fastest_of_each_network_and_that_with_most_passes():
    modes = [("a", "eager-fp32", 3), ("b", "eager-fp32", 1), ("a", "fold-fp32", 2)]
    rows = [row(*mode) for mode in modes]
    records = [record(f"bench-runtime-{n}", *rows, passes=n) for n in (10, 30, 20)]
    fastest = timings.fastest(timings.timings(records[:1]))
    found = [(best["model"], best["mode"]) for best in fastest]
    assert found == [("a", "fold-fp32"), ("b", "eager-fp32")]
    rows = timings.timings(records)
    for mode, models in (("eager-fp32", ["a", "b"]), ("fold-fp32", ["a"])):
        chosen = timings.chosen(rows, mode=mode)
        assert [(one["model"], one["passes"]) for one in chosen] == [(m, 30) for m in models]
    assert len(timings.chosen(rows)) == 3 and timings.chosen(rows, batch=2) == []

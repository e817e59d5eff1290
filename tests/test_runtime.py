"""Times, ratios and peaks are what their definitions say; `rflw bench` prints them."""

from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from rflw import InputError
from rflw.complexity import count
from rflw.nn.refinenet import build
from rflw_study import bench, runtime

CPU = torch.device("cpu")


def test_calls_take_turns_and_warming_up_does_not_count(monkeypatch):
    order = []
    monkeypatch.setattr(
        runtime, "_milliseconds", lambda call, device: (call(), float(len(order)))[1]
    )
    times = runtime.interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, passes=2, warmup=1
    )
    assert order == list("ababab")
    assert times["a"].tolist() == [3, 5] and times["b"].tolist() == [4, 6]


def test_milliseconds_are_milliseconds(monkeypatch):
    clock = iter((1.0, 1.25))
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(clock))
    assert runtime._milliseconds(lambda: None, CPU) == 250


def test_statistics_by_hand():
    found = runtime.statistics(np.array([1.0, 2, 3, 4, 10]))
    assert found == {
        "mean": 4,
        "std": round(50**0.5 / 2, 4),
        "median": 3,
        "p5": 1.2,
        "p95": 8.8,
    }  # squares: 9 + 4 + 1 + 0 + 36
    assert runtime.statistics(np.array([5.0]))["std"] == 0


def test_ratio_and_its_interval():
    fast = np.linspace(1, 2, 50)
    assert runtime.ratio(3 * fast, fast) == {
        "ratio": 3,
        "low": pytest.approx(3, abs=1),
        "high": pytest.approx(3, abs=1),
    }
    same = runtime.ratio(np.full(9, 8.0), np.full(9, 2.0))
    assert same == {"ratio": 4, "low": 4, "high": 4}
    noisy = np.random.default_rng(0).normal(10, 1, (2, 200))
    found = runtime.ratio(2 * noisy[0], noisy[1])
    assert found["low"] < 2 < found["high"] and found["high"] - found["low"] < 0.3


def test_peaks_are_rates_of_what_was_timed(monkeypatch):
    monkeypatch.setattr(runtime, "_milliseconds", lambda call, device: (call(), 2.0)[1])
    monkeypatch.setattr(
        torch,
        "randn",
        lambda *size, device: torch.zeros(*([4, 4] if len(size) == 2 else [1, 1024, 128, 128])),
    )
    found = runtime.peaks(CPU, ("fp32",))
    assert found == {
        "fp32_gmacs": round(3072**3 / 2 / 1e6, 1),
        "copy_gb_s": round(2 * 2**28 / 2 / 1e6, 1),
    }


def test_traffic_of_two_convolutions_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    # each writes its result; the second and third read one; weights once. The image itself is not counted
    values = 4 * 8 * 8 + (4 * 3 * 9 + 4) + 2 * 4 * 8 * 8 + 2 * 8 * 8 + 4 * 8 * 8 + 8
    assert (
        runtime.traffic(net, (8, 8)) == 4 * values
        and runtime.traffic(net, (8, 8), width=2) == 2 * values
    )
    assert next(net.parameters()).device == CPU


def test_roofline_is_the_slower_of_arithmetic_and_memory():
    assert runtime.roofline(2e9, 1e6, peak_gmacs=100, copy_gb_s=10) == 20  # 2 G at 100 G/s
    assert runtime.roofline(2e6, 1e9, peak_gmacs=100, copy_gb_s=10) == 100  # 1 GB at 10 GB/s


def test_memory_of_a_pass_and_of_weights():
    net = nn.Conv2d(3, 5, 3)
    assert runtime.weights_mb(net) == 4 * (5 * 3 * 9 + 5) / 1e6

    def call():
        torch.ones(2**24)  # 67 MB

    found = runtime.working_mb(call, CPU)
    assert found is None or 60 < found < 90


def test_joules_are_per_pass(monkeypatch):
    spent = [0.0]
    monkeypatch.setattr(runtime, "_energy_counter", lambda device: lambda: spent[0])

    def call():
        spent[0] += 3

    assert runtime.joules(call, CPU, passes=4) == 3
    assert runtime.joules(lambda: None, CPU) is None
    monkeypatch.setattr(runtime, "_energy_counter", lambda device: None)
    assert runtime.joules(call, CPU) is None


class TestBench:
    def test_rows(self):
        modes = ["eager-fp32", "channels-last-fp32", "channels-last+fold+merge-fp32"]
        found = bench.network_speed(
            ["refinenet-lw-efficientnet_lite0"],
            modes,
            (48, 64),
            batch=2,
            passes=2,
            classes=4,
            whole_way=True,
        )
        assert [row["mode"] for row in found["rows"]] == modes and found["peaks"]["fp32_gmacs"] > 0
        counted = count(build("refinenet-lw-efficientnet_lite0", 4), (48, 64))
        for row in found["rows"]:
            assert (row["macs"], row["params"], row["size"], row["batch"]) == (
                2 * counted["macs"]["total"],
                counted["params"],
                [48, 64],
                2,
            )
            assert row["error"] < 1e-4 and row["agreement"] > 0.99
            assert row["images_per_s"] == pytest.approx(2000 / row["latency_ms"]["mean"], rel=1e-3)
            assert row["gmacs_per_s"] == pytest.approx(
                row["macs"] / row["latency_ms"]["median"] / 1e6, rel=0.01
            )
            way = row["whole_way_ms"]
            assert way["total"] == pytest.approx(
                sum(way[part] for part in ("decode", "prepare", "network", "classes")), abs=0.01
            )
        assert (
            found["rows"][0]["faster"] == {"ratio": 1, "low": 1, "high": 1}
            and found["rows"][0]["error"] == 0
        )
        assert found["rows"][2]["weights_mb"] < found["rows"][1]["weights_mb"]

    def test_other_peoples_networks(self):
        for name, shape in (
            ("torchvision:lraspp_mobilenet_v3_large", (64, 64)),
            ("smp:FPN-mobilenet_v2", (64, 64)),
        ):
            net = bench.network(name, 3)
            with torch.no_grad():
                assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 3, *shape)
        for names in bench.PEERS.values():
            assert all(
                prod((name.count(":"), name.startswith(("torchvision:", "smp:")))) for name in names
            )

    def test_refuses_what_it_does_not_know(self, monkeypatch):
        for name in ("torchvision:nope", "smp:Nope-resnet50", "nope"):
            with pytest.raises(InputError, match="(?i)nope"):
                bench.network(name)
        model = build("refinenet-lw-mobilenet_v2", 2).eval()
        for mode in ("fast", "eager-bf16", "fold+melt-fp32", "optimised-fp8", "onnx-bf16"):
            with pytest.raises(InputError, match=mode.replace("+", r"\+")):
                bench.prepared(model, mode, CPU)
        with pytest.raises(InputError, match="calibrate"):
            bench.prepared(model, "optimised-int8", CPU)
        with pytest.raises(InputError, match="one at least"):
            bench.network_speed(["refinenet-lw-mobilenet_v2"], passes=0)
        with pytest.raises(InputError, match="32x64"):
            bench.network_speed(["refinenet-lw-mobilenet_v2"], size=(32, 64))
        with pytest.raises(
            InputError, match="1000000000 images of 512x512: too large for the memory"
        ):
            bench.network_speed(["refinenet-lw-mobilenet_v2"], batch=10**9)

        class Picky(nn.Conv2d):
            def forward(self, x):
                raise RuntimeError("sides must be\nmultiples of 32")

        monkeypatch.setattr(bench, "network", lambda name, classes: Picky(3, 2, 1))
        with pytest.raises(
            InputError, match=r"50x70: the network cannot be traced .*sides must be multiples of 32"
        ):
            bench.network_speed(["smp:x"], ["eager-fp32"], (50, 70), passes=1)

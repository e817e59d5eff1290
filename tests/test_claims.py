"""The verdict: from claims and records alone, and changed by a record alone."""

from dataclasses import asdict, replace
import json
import math

import pytest

from rflw import InputError, records
from rflw.recipes import RECIPES
from rflw_study import claims, evidence, paper
from rflw_study.statistics import Interval

COMPLEXITY = records.read("complexity")
COUNTED = {row["model"]: row for row in COMPLEXITY["metrics"]["rows"]}
CLAIMS = {claim.id: claim for claim in claims.load()}
CPU = {"cpu": "a processor", "cores": 2}
GPU = CPU | {"gpu": "Some Card"}


class Folder:
    """Records, of which `add` makes one of a kind, and the verdicts by them."""

    def __init__(self):
        self.records = []

    def add(self, name, kind, metrics, config=None, seed=0, status="done", hardware=CPU):
        record = {"name": name, "kind": kind, "metrics": metrics, "config": config or {}}
        record |= {"seed": seed, "status": status, "hardware": hardware}
        evidence.verify(record)
        self.records = [r for r in self.records if r["name"] != name] + [record]

    def train(self, recipe, *scores, seeds=None, **changes):
        config = asdict(RECIPES[recipe]) | changes
        for seed, score in zip(seeds or range(len(scores)), scores):
            self.add(f"{recipe}-s{seed}", "train", {"miou": score and score / 100}, config, seed)

    def verdict(self, id):
        return claims.judge(CLAIMS[id], self.records)

    def verdicts(self, *ids):
        return [self.verdict(id).verdict for id in ids]


@pytest.fixture
def results():
    return Folder()


def claim(**changes):
    return replace(claims.Claim("x", "quote", "Table 1", "own", 5.0, 1, "percent", "="), **changes)


def interval(mean, low=math.nan, high=math.nan, n=3):
    return Interval(mean, low, high, n)


# ---------------------------------------------------------------- the claims


def test_every_number_of_the_paper_is_a_claim_once():
    own = [c for c in CLAIMS.values() if c.test]
    assert len(claims.load()) == len(CLAIMS) and len(own) > 80
    cells = [CLAIMS[cell.id] for cell in paper.cells()]
    assert sum(bool(c.test) for c in cells) == 6 + 18 + 17 + 6 + 2  # counted on the page
    assert {s.id for s in paper.statements() if s.kind == "result"} <= CLAIMS.keys()
    assert all((c.test is not None) == (c.source == "own") for c in CLAIMS.values())
    assert all(c.reason and c.tolerance >= 0 for c in own)


def test_numbers_come_from_the_tables_and_the_text():
    cell = CLAIMS["table3-refinenet-lw-101-test-miou"]
    assert (cell.value, cell.stated, cell.where) == (82.0, "82.0 %", "Table 3")
    assert cell.test.model == "refinenet-lw-resnet101"
    assert CLAIMS["table1-refinenet-101-lw-flops"].test.size == "512x512"
    assert CLAIMS["speedup-fastest"].value == 55 / 20
    assert CLAIMS["speedup-table2-152"].value == 69.37 / 35.82
    tolerances = {
        "table1-refinenet-101-lw-flops": 0.5,
        "params-mobilenet-v2": 0.05,
        "table2-refinenet-50-runtime": 2 * 0.46,
        "speedup-fastest": 55 / 20 / 4,
        "rcu-redundant": 1.0,
    }
    assert {id: CLAIMS[id].tolerance for id in tolerances} == pytest.approx(tolerances)
    assert CLAIMS["drop-without-rcu-original"].stated == "> 5 %"


def test_reasons_of_tolerances_are_true():
    def both(table, depth, column):
        original, light = f"RefineNet-{depth}", f"RefineNet-LW-{depth}"
        return paper.value(table, original, column), paper.value(table, light, column)

    one_scale = [(2, d, c) for d in (50, 101) for c in ("NYUD mIoU", "Person mIoU")]
    one_scale += [(3, 101, "test mIoU"), (3, 152, "test mIoU")]
    losses = [original - light for original, light in (both(*cell) for cell in one_scale)]
    assert round(max(losses), 1) == 0.9
    times = [both(2, depth, "Runtime") for depth in (50, 101, 152)]
    assert round(min(slow / fast for slow, fast in times), 2) == 1.94


@pytest.mark.parametrize(
    ("relation", "tolerance", "ours", "holds"),
    [
        ("=", 0.5, interval(5.5), True),
        ("=", 0.5, interval(5.6), False),
        ("=", 0.5, interval(4.4), False),
        ("=", 0.5, interval(5.0, 4.6, 5.4), True),
        ("=", 0.5, interval(5.0, 4.4, 5.6), None),
        ("=", 0.5, interval(6, 5.6, 6.4), False),
        ("=", 0.5, interval(4, 3, 4.5 - 1e-9), None),
        ("=", 0.5, interval(7, 5.5 + 1e-9, 8), None),
        (">", 0, interval(5.0), False),
        (">", 0, interval(5.1), True),
        (">", 1, interval(9, 8, 10), True),
        (">=", 0, interval(5.0), True),
        (">=", 1, interval(4.0), True),
        (">=", 1, interval(3.9), False),
        (">=", 1, interval(4.5, 3.9, 5.1), None),
        ("<", 1, interval(6.0), False),
        ("<", 1, interval(5.9), True),
        ("<", 1, interval(5, 4, 6.1), None),
        ("<", 1, interval(8, 7, 9), False),
    ],
)
def test_tolerance_and_interval(relation, tolerance, ours, holds):
    assert claim(relation=relation, tolerance=tolerance).holds(ours) is holds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "5.0 %"),
        ({"relation": ">"}, "> 5.0 %"),
        ({"relation": ">="}, "5.0 %"),
        ({"relation": ">=", "value": 0.0}, "≥ 0.0 %"),
        ({"relation": "<", "unit": "x"}, "< 5.0 times"),
        ({"value": None}, "no number"),
        ({"unit": "", "decimals": 0}, "5"),
    ],
)
def test_what_the_paper_states_in_words(changes, words):
    assert claim(**changes).stated == words


@pytest.mark.parametrize(
    ("ours", "changes", "words"),
    [
        (interval(-0.04, -0.11, 0.04), {"unit": "points"}, "0.0 [-0.1, 0.0] points"),
        (interval(46.349653), {"unit": "M", "decimals": 0}, "46.35 M"),
        (interval(1464.0), {"unit": "images", "decimals": 0}, "1464 images"),
        (interval(54.639), {"decimals": 2}, "54.64 %"),
        (interval(2.0), {"unit": "x"}, "2.00 times"),
        (interval(2.0), {"unit": "ms", "decimals": 0}, "2.0 ms"),
    ],
)
def test_ours_in_words(ours, changes, words):
    assert claims.shown(ours, claim(**changes)) == words


# ---------------------------------------------------------------- scores and differences


CELL = "table3-refinenet-lw-50-val-miou"  # 78.5


def test_a_run_on_voc_answers_the_cell_of_table_3(results):
    before = results.verdict(CELL)
    assert before.verdict == "not tested" and before.ours is None
    assert "rflw train paper-voc-lw-resnet50" in before.says
    results.train("paper-voc-lw-resnet50", 78.1)
    after = results.verdict(CELL)
    assert after.verdict == "reproduced" and after.ours.mean == pytest.approx(78.1)
    assert after.records == ("paper-voc-lw-resnet50-s0",)
    assert results.verdicts("table3-refinenet-lw-101-val-miou") == ["not tested"]


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ((77.5,), "reproduced"),
        ((77.4,), "not reproduced"),
        ((78.4, 78.5, 78.6), "reproduced"),
        ((76.0, 79.0, 78.0), "partly"),
        ((70.0, 70.1, 70.2), "not reproduced"),
        ((None,), "not tested"),
    ],
)
def test_scores_over_seeds(results, scores, verdict):
    results.train("paper-voc-lw-resnet50", *scores)
    judged = results.verdict(CELL)
    assert judged.verdict == verdict
    seeds = f"{len(scores)} seed{'s' * (len(scores) > 1)}"
    assert scores == (None,) or judged.says.startswith(f"paper-voc-lw-resnet50, {seeds}: ")


def test_other_data_and_other_settings_never_answer_a_score(results):
    results.train("camvid-lw-resnet50", 78.5)
    short = RECIPES["paper-voc-lw-resnet50"].with_epochs(2)
    results.add("short", "train", {"miou": 0.785}, asdict(short))
    results.add("failed", "train", {}, asdict(RECIPES["paper-voc-lw-resnet50"]), status="failed")
    judged = results.verdict(CELL)
    assert judged.verdict == "not tested" and "short has other settings" in judged.says


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"scales": [0.5, 1.0]}, False),
        ({"flip": True}, False),
        ({"split": "train"}, False),
        ({"data": "camvid"}, False),
    ],
)
def test_a_checkpoint_of_the_authors_counts_at_one_scale(results, changes, counts):
    config = {"checkpoint": "a/b.tar", "model": "refinenet-lw-resnet50", "data": "voc"}
    config |= {"split": "val", "scales": [1.0], "flip": False}
    results.add("eval-x", "eval", {"miou": 0.78}, config | changes)
    judged = results.verdict(CELL)
    assert (judged.verdict == "reproduced") is counts
    assert not counts or judged.says == "b.tar, evaluated: 78.0 %"


def test_against_a_printed_score_the_weaker_network_counts(results):
    results.train("paper-nyu-lw-resnet50", 43.0)
    assert results.verdicts("nyud-close") == ["not tested"]  # the other one is missing
    results.train("paper-nyu-lw-resnet101", 42.5)
    judged = results.verdict("nyud-close")
    assert judged.verdict == "not reproduced" and judged.ours.mean == pytest.approx(42.5 - 43.6)
    assert len(judged.records) == 2


DROP = "drop-without-rcu-original"  # claimed: more than 5 points


def drop(results, kind, first, second):
    results.train(f"{kind}-norcu-efficientnet_lite0", *first)
    results.train(f"{kind}-original-efficientnet_lite0", *second)


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ((6.0, 6.5, 7.0), "supported"),
        ((1.0, 1.5, 2.0), "contradicted"),
        ((2.0, 5.0, 8.0), "undecided"),
        ((6.0,), "undecided"),
    ],
)
def test_differences_on_substitute_data(results, gaps, verdict):
    first = [50.0 + seed for seed in range(len(gaps))]
    drop(results, "camvid", first, [score + gap for score, gap in zip(first, gaps)])
    assert results.verdicts(DROP) == [f"{verdict} on substitute data"]


def test_one_seed_is_shown_and_decides_nothing(results):
    drop(results, "camvid", (50.0,), (51.0,))
    drop(results, "embedded", (50.0, 50.1), (60.0, 60.1))
    judged = results.verdict(DROP)
    assert judged.verdict == "supported on substitute data" and "1 seed: 1.0" in judged.says
    assert judged.ours.mean == pytest.approx(10)


def test_only_seeds_of_both_count(results):
    results.train("camvid-norcu-efficientnet_lite0", 50.0, 51.0)
    results.train("camvid-original-efficientnet_lite0", 60.0, 61.0, seeds=(2, 3))
    assert results.verdicts(DROP) == ["not tested"]


def test_data_sets_that_disagree_leave_it_undecided_and_the_paper_s_own_decide(results):
    drop(results, "camvid", (50.0, 50.1), (60.0, 60.1))
    drop(results, "embedded", (98.0, 98.1), (98.2, 98.3))
    judged = results.verdict(DROP)
    assert judged.verdict == "undecided on substitute data" and len(judged.records) == 8
    results.train("paper-voc-norcu-resnet101", 74.0)
    results.train("paper-voc-original-resnet101", 81.0)
    judged = results.verdict(DROP)
    assert judged.verdict == "reproduced" and judged.ours.mean == pytest.approx(7)
    assert judged.level == "re-trained on the paper's data"


# ---------------------------------------------------------------- counts, times, data


def test_counts_are_rounded_as_printed_or_met_by_another_rule(results):
    results.records = [COMPLEXITY]
    judged = results.verdict("table2-refinenet-lw-101-params")
    assert (judged.verdict, judged.ours.mean) == ("reproduced", 46.349653)
    other = results.verdict("table3-refinenet-lw-mobilenet-v2-flops")  # printed: 9.3
    assert other.verdict == "partly" and "2 norm" in other.says
    assert other.ours.mean == pytest.approx((8583872512 + 557056000) / 1e9)
    assert results.verdicts("no-specific-changes") == ["not reproduced"]


def test_each_kind_of_layer_is_counted_or_not():
    """Convolutions always; pools, activations, resizing or not; norms not, once or twice."""
    rules = [evidence.COUNTING, *evidence.OTHER_COUNTING]
    assert len({*rules}) == len(rules) == 2 * 3 * 2 * 2
    columns = [{rule[i] for rule in rules} for i in range(5)]
    assert columns == [{1}, {0, 1}, {0, 1, 2}, {0, 1}, {0, 1}]


@pytest.mark.parametrize(
    ("size", "counts"), [([512, 512], True), ([512, 1024], False), ([1024, 512], False)]
)
def test_counts_are_those_at_the_paper_s_size(results, size, counts):
    rows = [row | {"size": size} for row in COUNTED.values()]
    results.add("complexity", "complexity", {"rows": rows})
    assert (results.verdict("table1-refinenet-101-flops").ours is not None) is counts


def test_savings_shares_and_changes_by_hand(results):
    """60 M of which the decoder holds 45, 20 M with light-weight RCUs, 10 M without."""

    def row(form, depth, params, conv, decoder):
        macs = dict.fromkeys(evidence.KINDS, 0)
        part = {"params": decoder * 10**6, "macs": macs | {"conv": 9 * conv // 10, "pool": 1}}
        part["kernels"] = {"1x1": 26}
        whole = {"model": f"refinenet{form}-{depth}", "size": [512, 512], "taps": 4}
        whole |= {"params": params * 10**6, "parts": {"decoder": part}}
        return whole | {"macs": macs | {"conv": conv, "pool": 10, "norm": 10**9}}

    rows = [row("", "resnet50", 60, 4090, 45), row("", "resnet101", 60, 4090, 45)]
    rows += [row("", "resnet152", 63, 4090, 45), row("-lw-rcu", "resnet101", 20, 1015, 1)]
    rows += [row("-lw", f"resnet{depth}", 10, 1015, 1) for depth in (50, 101, 152)]
    rows += [row("-lw", "mobilenet_v2", 10, 1015, 1) | {"taps": 6}]
    results.add("complexity", "complexity", {"rows": rows})
    expected = {
        "model-reduction": "6.00 times",
        "params-omitted": "83.3 %",
        "params-saved": "66.7 %",
        "params-reduction": "3.00 times",
        "flops-reduction": "convolutions and pools: 4.00 times",
        "decoder-parameters": "71.4 %",  # 45 of 63 M
        "expensive-parameters": "75.0 %",
        "expensive-flops": "convolutions and pools: 89.8 %",  # 3682 of 4100
        "one-3x3-left": "0 convolutions",
        "no-specific-changes": "2 convolutions",
        "any-network": "4 networks",
        "table2-refinenet-lw-101-params": "10.00 M",  # rules are of operations alone
    }
    assert {id: results.verdict(id).says for id in expected} == expected
    results.records[0]["metrics"]["rows"].pop(0)
    assert "no count of refinenet-resnet50" in results.verdict("model-reduction").says


def test_counts_on_record_are_those_of_the_code():
    import torch

    from rflw import build
    from rflw.complexity import count, kernels

    wanted = {m for c in CLAIMS.values() if c.kind == "count" for m in c.test.networks}
    assert wanted == COUNTED.keys()
    for name in ("refinenet-resnet101", "refinenet-lw-rcu-resnet101", "refinenet-lw-mobilenet_v2"):
        with torch.device("meta"):
            model, row = build(name, 21), COUNTED[name]
        assert row["params"] == sum(p.numel() for p in model.parameters()), name
        assert row["parts"]["decoder"]["kernels"] == kernels(model.decoder)
        assert row["taps"] == sum(map(len, model.encoder.channels))
    small = count(build("refinenet-lw-mobilenet_v2", 21), (64, 64))["macs"]
    grown = {kind: 64 * macs for kind, macs in small.items()}  # all maps grow with the image
    assert COUNTED["refinenet-lw-mobilenet_v2"]["macs"] == grown


def bench(original, light, size=(468, 625), device="cuda", depths=(50, 101, 152), **changes):
    row = {"mode": "eager-fp32", "device": device, "size": list(size), "batch": 1} | changes
    times = {}
    for depth in depths:
        times[f"refinenet-resnet{depth}"] = original + light * (depth == 50)  # 50 gains most
        times[f"refinenet-lw-resnet{depth}"] = light
    return {"rows": [row | {"model": m, "latency_ms": {"mean": ms}} for m, ms in times.items()]}


def test_ratios_of_times_are_answered_by_graphics_cards(results):
    results.add("bench-runtime-cpu", "bench", bench(900.0, 300.0, device="cpu"))
    judged = results.verdict("nyud-speedup")
    assert judged.verdict == "not tested"
    assert "a processor, 2 cores: 3.00 times (does not count)" in judged.says
    results.add("bench-runtime-gpu", "bench", bench(30.0, 12.0), hardware=GPU)
    judged = results.verdict("nyud-speedup")
    assert judged.verdict == "reproduced" and judged.ours.mean == 2.5
    assert results.verdicts("speedup-table2-152") == ["not reproduced"]  # 1.94, give a quarter
    assert results.verdicts("speedup-fastest") == ["not tested"]  # at the other size
    other = GPU | {"gpu": "Another"}
    results.add("bench-runtime-other", "bench", bench(30.0, 20.0), hardware=other)
    assert results.verdicts("nyud-speedup") == ["partly"]


def test_the_smallest_of_ratios_from_several_records(results):
    for depth in (50, 101):
        each = bench(30.0, 12.0, depths=[depth])
        results.add(f"bench-runtime-{depth}", "bench", each, hardware=GPU)
    assert results.verdicts("nyud-speedup") == ["not tested"]  # the third is missing
    assert results.verdict("speedup-table2-101").ours.mean == 2.5
    last = bench(24.0, 12.0, depths=[152])
    results.add("bench-runtime-152", "bench", last, hardware=GPU)
    assert results.verdict("nyud-speedup").says == "Some Card: 2.00 times"


@pytest.mark.parametrize("changes", [{"mode": "compiled-fp32"}, {"batch": 8}])
def test_other_modes_and_batches_do_not_answer(results, changes):
    results.add("bench-runtime-gpu", "bench", bench(30.0, 12.0, **changes), hardware=GPU)
    assert results.verdicts("nyud-speedup") == ["not tested"]


@pytest.mark.parametrize(
    ("gpu", "verdict"), [("H100", "not tested"), ("GeForce GTX 1080 Ti", "reproduced")]
)
def test_milliseconds_are_answered_by_the_paper_s_card(results, gpu, verdict):
    hardware = CPU | {"gpu": gpu}
    results.add("bench-runtime-a", "bench", bench(35.0, 19.5), hardware=hardware)
    frames = bench(50.0, 1000 / 55.3, size=(512, 512))
    results.add("bench-runtime-b", "bench", frames, hardware=hardware)
    assert results.verdicts("table2-refinenet-50-runtime", "fps-fastest-lw") == [verdict] * 2
    assert verdict == "not tested" or results.verdict("fps-fastest-lw").says == f"{gpu}: 55.3 FPS"


def test_data_sets_are_counted(results):
    parts = {
        "train": {"images": 1464, "pixels": {"background": 9, "cat": 3, "cow": 0}},
        "val": {"images": 1448, "pixels": {"dog": 1}},
    }
    results.add("check-voc", "check", {"data": "voc", "splits": parts})
    assert results.verdicts("voc-train", "voc-val") == ["reproduced", "not reproduced"]
    assert results.verdict("voc-classes").ours.mean == 2  # cat and dog
    assert "no split test" in results.verdict("voc-images").says
    assert results.verdicts("person-train") == ["not tested"]


# ---------------------------------------------------------------- blocks


def network(form, data="camvid", seed=0):
    short = form.removeprefix("refinenet").removeprefix("-") or "original"
    return {
        "model": f"{form}-efficientnet_lite0",
        "checkpoint": f"{data}-{short}-efficientnet_lite0-s{seed}",
        "data": data,
    }


def heads(*miou, accuracy=0.9):
    def scores(value):
        return {"miou": [value / 100 + s / 1000 for s in range(3)], "accuracy": [accuracy] * 3}

    places = zip(("before RCU", "after RCU", "after CRP"), miou)
    return {"places": {place: {"heads": {"conv": scores(value)}} for place, value in places}}


def test_heads_say_what_a_block_adds(results):
    results.add("probe-lw", "probe", heads(20, 60, 60), network("refinenet-lw-rcu"))
    segmentation, classification = "crp-drives-segmentation", "crp-drives-classification"
    assert results.verdicts(segmentation) == ["not tested"]  # not the original decoder
    results.add("probe-original", "probe", heads(54, 54.5, 58), network("refinenet"))
    words = ["supported on substitute data", "contradicted on substitute data"]
    assert results.verdicts(segmentation, classification) == words
    assert results.verdict(segmentation).ours.mean == pytest.approx(3.5 - 0.5)
    assert results.verdict("rcu-marginal-segmentation").ours.mean == pytest.approx(0.5)
    full = heads(54, 54.5, 58, accuracy=1.0)
    results.add("probe-original", "probe", full, network("refinenet"))
    for id in (classification, "rcu-marginal-classification"):  # nothing can be added
        judged = results.verdict(id)
        assert judged.verdict == "not tested" and "all right before the blocks" in judged.says
    assert results.verdicts("table4-after-crp-miou") == ["not tested"]
    results.add("probe-voc", "probe", heads(54, 54.5, 58), network("refinenet", "voc"))
    cells = "table4-after-crp-miou", "table4-after-crp-acc"
    assert results.verdicts(*cells) == ["reproduced", "not reproduced"]


def test_saturated_rcus_can_be_switched_off(results):
    def add(name, form, without, seed):
        metrics = {"miou": 0.602, "groups": {"all RCU": {"miou_without": without}}}
        results.add(name, "saturation", metrics, network(form, seed=seed))

    add("saturation-0", "refinenet-lw-rcu", 0.60, 0)
    assert results.verdicts("rcu-saturated") == ["undecided on substitute data"]
    add("saturation-1", "refinenet-lw-rcu", 0.601, 1)
    add("saturation-original", "refinenet", 0.1, 0)
    judged = results.verdict("rcu-saturated")
    assert judged.verdict == "supported on substitute data"
    assert judged.ours.mean == pytest.approx(-0.15)


def fields(sides, **changes):
    layers = {
        place: {"side": {"mean": side, "low": side - 4, "high": side + 4, "n": 16}}
        for place, side in sides.items()
    }
    return {"method": "occlusion", "size": [360, 480], "images": 50, "layers": layers} | changes


def test_ratios_of_fields_hold_for_all_that_the_intervals_allow(results):
    light = {"before CRP": 60, "after CRP": 90, "after the first sum": 94, "last layer": 100}
    results.add("erf-lw", "erf", fields(light), network("refinenet-lw"))
    judged = results.verdict("field-enlarged-by-crp")
    assert judged.verdict == "supported on substitute data"
    ours = judged.ours.mean, judged.ours.low, judged.ours.high
    assert ours == pytest.approx((90 / 60, 86 / 64, 94 / 56))
    assert results.verdicts("field-enlarged-by-sum") == ["undecided on substitute data"]
    gradient = fields({"before CRP": 90, "after CRP": 60}, method="gradient")
    results.add("erf-gradient", "erf", gradient, network("refinenet-lw"))
    judged = results.verdict("field-enlarged-by-crp")
    assert judged.verdict == "supported on substitute data"
    assert "0.67 [0.60, 0.74] times (does not count)" in judged.says


def test_fields_are_compared_where_training_and_measurement_are_the_same(results):
    results.add("erf-lw", "erf", fields({"last layer": 100}), network("refinenet-lw"))
    original = network("refinenet")
    short = original | {"checkpoint": "camvid-short-original-efficientnet_lite0-s0"}
    for name, config, changes in (
        ("a", short, {}),
        ("b", network("refinenet", seed=1), {}),
        ("c", original, {"size": [180, 240]}),
        ("d", original, {"method": "activation"}),
        ("e", network("refinenet", "embedded"), {}),
    ):
        results.add(f"erf-{name}", "erf", fields({"last layer": 100}, **changes), config)
    assert results.verdicts("field-same-size") == ["not tested"]
    for side, word in ((200, "contradicted"), (101, "supported")):
        results.add("erf-original", "erf", fields({"last layer": side}), original)
        assert results.verdicts("field-same-size") == [f"{word} on substitute data"]


def test_a_layer_whose_units_are_all_dead_has_no_field(results):
    light = fields({"before CRP": 90})
    light["layers"]["after CRP"] = {"theoretical": [None, None], "dead": 256}
    results.add("erf-lw", "erf", light, network("refinenet-lw"))
    assert results.verdicts("field-enlarged-by-crp") == ["not tested"]


def test_what_chapters_end_with(tmp_path):
    rows = claims.beside(["field", "picture"], tmp_path)
    assert len(rows) == 8 and {row["verdict"] for row in rows} == {"not tested"}
    (row,) = claims.beside(["saturation"])
    assert (row["where"], row["number"]) == ("section 3.3", "≥ 0 points")
    assert row["seen"].startswith("What is saturated adds nothing. ")


# ---------------------------------------------------------------- faults are named


@pytest.mark.parametrize(
    ("kind", "metrics", "config", "says"),
    [
        ("seance", {}, {}, "unknown experiment .kind 'seance'.; choose from: bench, "),
        ("train", {"miou": 0.5}, {"name": "mine"}, "unknown recipe 'mine'"),
        ("eval", {"miou": 1.001}, {}, "mIoU 1.001 is not from 0 to 1"),
        ("eval", {"miou": -0.001}, {}, "mIoU -0.001 is not"),
        ("eval", {"miou": "high"}, {}, "mIoU 'high' is not"),
    ],
)
def test_a_record_of_an_unknown_experiment_is_named(results, kind, metrics, config, says):
    with pytest.raises(InputError, match=f"^record x: {says}"):
        results.add("x", kind, metrics, config)


@pytest.mark.parametrize("miou", [0, 0.0, 1.0, None])
def test_records_of_known_experiments_are_taken(results, miou):
    results.add("x", "train", {"miou": miou}, {"name": "own"})
    results.add("pictures", "pictures", {})
    assert len(results.records) == 2


def test_a_record_that_lacks_what_its_kind_has_is_named(results):
    results.add("probe-x", "probe", heads(54, 54.5), network("refinenet"))
    with pytest.raises(InputError, match="^claim crp-drives-segmentation: .*'after CRP'"):
        results.verdict("crp-drives-segmentation")


def test_an_edited_record_is_named(tmp_path):
    path = records.write(records.read("check-camvid"), tmp_path)
    path.write_text(path.read_text().replace('"images": 367', '"images": 368'))
    with pytest.raises(InputError, match="check-camvid.json: .*edited by hand"):
        claims.verdicts(tmp_path)


PARAMETERS = "- {cells: [1, Parameters], tolerance: printed, test: {count: params}}"
REDUCED = "- {statement: params-reduction, tolerance: limit, test: {count: params, saved: [[refinenet-resnet101, refinenet-lw-rcu-resnet101]]}}"
TRAIN = "- {statement: voc-train, tolerance: printed, test: {check: voc, splits: [train]}}"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("claims:\n", "claims: [\n", "cannot be read ("),
        ("tolerances:\n", "limits:\n", "tolerances: Field required"),
        ("    digits: 0.5\n", "", "tolerances.printed: Value error, needs one of value, digits"),
        ("claims:\n", "claims:\n- 3\n", "claim 1: Input should be a valid dictionary"),
        ("claims:\n", "claims:\n- {value: 3}\n", "claim 1: needs one of cells, statement,"),
        (PARAMETERS, "", "no claim for table 1, RefineNet-101 [46], Parameters"),
        (REDUCED, "", "no claim for statement params-reduction"),
        (TRAIN, f"{TRAIN}\n{TRAIN}", "(voc-train): a second claim 'voc-train'"),
        (
            PARAMETERS,
            "- {cells: [1, Parameters], tolerance: printed}",
            "claim 1 ([1, 'Parameters']): table1-refinenet-101-parameters: no test",
        ),
        ("voc-train,", "voc-trains,", "(voc-trains): no statement 'voc-trains' in the text"),
        ("voc-train, tolerance: printed", "voc-train, tolerance: generous", "'generous'; choose"),
        ("voc-train, tolerance: printed", "voc-train, verdict: reproduced", "verdict: Extra"),
        ("check: voc, splits: [train]", "look: voc", "(voc-train): not a test of one kind"),
        ("check: voc, splits: [train]", "check: camvid, splits: [train]", "should be 'voc', 'nyu'"),
        ("check: voc, splits: [train]", "check: voc", "needs one of splits, classes"),
        (
            "score: voc, split: test, model: refinenet-lw-resnet50",
            "score: voc, model: refinenet-lw-resnet50",
            "(voc-test-fastest): split: Field required",
        ),
        ("count: params, model: refinenet-lw-mobilenet_v2", "count: params", "no network to count"),
        ("{count: encoders}", "{count: sheep}", "(any-network): count: Input should be 'params'"),
        ("norcu-resnet101, paper", "norcu-resnet102, paper", "unknown recipe 'paper-voc-norcu-re"),
        ('"<"\n  tolerance: close\n  test: {probe: rcu, measure: miou}', "about", "relation: In"),
    ],
)
def test_a_fault_in_the_file_is_one_line_that_names_the_claim(tmp_path, old, new, says):
    text = claims.FILE.read_text()
    assert text.count(old) == 1
    (tmp_path / "claims.yaml").write_text(text.replace(old, new))
    with pytest.raises(InputError) as caught:
        claims.load(tmp_path / "claims.yaml")
    message = str(caught.value)
    assert says in message and "claims.yaml" in message and "\n" not in message


def test_the_committed_ledger():
    judged = claims.verdicts()
    counts = claims.tally(judged)
    assert sum(counts.values()) == len(judged)
    assert counts["quoted"] == sum(not v.claim.test for v in judged)
    assert counts["reproduced"] >= 28  # the counts; whatever else is on record
    names = {path.stem for path in records.FOLDER.glob("*.json")}
    for v in judged:
        assert v.verdict in claims.VERDICTS and v.says and set(v.records) <= names
        assert (v.ours is None) == (v.verdict == "not tested")
        assert not ("VOC" in v.claim.level and "substitute" in v.verdict)
        row = v.row()
        assert (row["paper"], row["verdict"]) == (v.claim.value, v.verdict)
        assert row["evidence"] == {"records": list(v.records), "says": v.says}
        assert row["interval"] is None or row["interval"][0] <= row["ours"] <= row["interval"][1]
        json.dumps(row, allow_nan=False)

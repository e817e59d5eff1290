"""The verdict: from claims and records alone, and changed by a record alone."""

from dataclasses import asdict, replace
import json
import math
import subprocess

import pytest

from rflw import InputError, records
from rflw.recipes import COMPARED, COMPARED_ON, RECIPES, _compared
from rflw_study import claims, evidence, paper
from rflw_study.statistics import Interval

COMPLEXITY = records.read("complexity")
COUNTED = {row["model"]: row for row in COMPLEXITY["metrics"]["rows"]}
CLAIMS = {claim.id: claim for claim in claims.load()}
CPU = {"cpu": "a processor", "cores": 2}
GPU = CPU | {"gpu": "Some Card"}
LATER = "2027-01-01T00:00:00+00:00"  # than any margin


class Folder:
    """Records, of which `add` makes one of a kind, and the verdicts by them."""

    def __init__(self):
        self.records = []

    def add(self, name, kind, metrics, config=None, seed=0, status="done", hardware=CPU, **more):
        record = {"name": name, "kind": kind, "metrics": metrics, "config": config or {}}
        record |= {"seed": seed, "status": status, "hardware": hardware, "started": LATER} | more
        evidence.verify(record)
        self.records = [r for r in self.records if r["name"] != name] + [record]

    def train(self, recipe, *scores, seeds=None, live=1.0, started=LATER, **changes):
        config = asdict(RECIPES[recipe]) | changes
        curve = [{"live": {} if live is None else {"stages.0.act": live, "stages.1.act": 1.0}}]
        for seed, score in zip(seeds or range(len(scores)), scores):
            metrics = {"miou": score and score / 100}
            more = {"curve": curve, "started": started}
            self.add(f"{recipe}-s{seed}", "train", metrics, config, seed, **more)

    def verdict(self, id):
        return claims.judge(CLAIMS[id], self.records)

    def verdicts(self, *ids):
        return [self.verdict(id).verdict for id in ids]


@pytest.fixture
def results():
    return Folder()


@pytest.fixture
def tuned(monkeypatch):
    """The recipes of the protocol, which the grid has yet to choose."""
    for data in COMPARED_ON:
        for form in COMPARED:
            recipe = _compared(data, form, "sgd", "default", f"{data}-tuned", 2)
            monkeypatch.setitem(RECIPES, recipe.name, recipe)


def claim(**changes):
    return replace(claims.Claim("x", "quote", "Table 1", "own", 5.0, 1, "percent", "="), **changes)


def interval(mean, low=math.nan, high=math.nan, n=3):
    return Interval(mean, low, high, n)


# ---------------------------------------------------------------- the claims


def test_every_number_of_the_paper_is_a_claim_once():
    own = [c for c in CLAIMS.values() if c.test]
    assert len(claims.load()) == len(CLAIMS) and len(own) > 80
    assert all(c.level in evidence.LEVELS and c.aim for c in own)
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
        "table1-refinenet-101-lw-flops": 0.02 * 52,
        "params-mobilenet-v2": 0.05,
        "table2-refinenet-50-runtime": 2 * 0.46,
        "speedup-fastest": 55 / 20 / 4,
        "rcu-saturated": 1.0,
    }
    assert {id: CLAIMS[id].tolerance for id in tolerances} == pytest.approx(tolerances)
    assert CLAIMS["drop-without-rcu-original"].stated == "> 5 %"


@pytest.mark.parametrize(
    ("relation", "tolerance", "ours", "holds"),
    [
        ("=", 0.5, interval(5.5), True),
        ("=", 0.5, interval(5.6), False),
        ("=", 0.5, interval(4.4), False),
        ("=", 0.5, interval(5.0, 4.4, 5.6), None),
        ("=", 0.5, interval(6, 5.6, 6.4), False),
        ("=", 0.5, interval(4, 3, 4.5 - 1e-9), None),
        (">", 0, interval(5.0), False),
        (">", 1, interval(9, 8, 10), True),
        (">=", 0, interval(5.0), True),
        (">=", 1, interval(3.9), False),
        (">=", 1, interval(4.5, 3.9, 5.1), None),
        ("<", 1, interval(6.0), False),
        ("<", 1, interval(5, 4, 6.1), None),
    ],
)
def test_tolerance_and_interval(relation, tolerance, ours, holds):
    assert claim(relation=relation, tolerance=tolerance).holds(ours) is holds


@pytest.mark.parametrize(
    ("changes", "ours", "stated", "shown"),
    [
        ({}, interval(54.639), "5.0 %", "54.6 %"),
        ({"decimals": 2}, interval(54.639), "5.00 %", "54.64 %"),
        ({"relation": ">"}, interval(9.0, 8.0, 10.0), "> 5.0 %", "9.0 [8.0, 10.0] %"),
        (
            {"relation": ">=", "unit": "points"},
            interval(-0.04, -0.11, 0.04),
            "5.0 points",
            "0.0 [-0.1, 0.0] points",
        ),
        ({"relation": ">=", "value": 0.0}, interval(0.0), "≥ 0.0 %", "0.0 %"),
        ({"relation": "<", "unit": "x"}, interval(2.0), "< 5.0 times", "2.00 times"),
        ({"value": None}, interval(1.0), "no number", "1.0 %"),
        ({"unit": "M", "decimals": 0}, interval(46.349653), "5 M", "46.35 M"),
        ({"unit": "images", "decimals": 0}, interval(1464.0), "5 images", "1464 images"),
    ],
)
def test_numbers_in_words(changes, ours, stated, shown):
    assert claim(**changes).stated == stated
    assert claims.shown(ours, claim(**changes)) == shown


# ---------------------------------------------------------------- scores and differences


CELL = "table3-refinenet-lw-50-val-miou"  # 78.5
CELL_LEVEL = "the paper's cell"


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ((78.5, 78.6), "not decided"),  # fewer than three trainings
        ((78.4, 78.5, 78.6), "reproduced"),
        ((76.0, 79.0, 78.0), "partly"),
        ((70.0, 70.1, 70.2), "not reproduced"),
        ((None,), "not tested"),
    ],
)
def test_scores_over_seeds(results, scores, verdict):
    results.train("paper-voc-lw-resnet50", *scores)
    judged = results.verdict(CELL)
    assert (judged.verdict, judged.level) == (verdict, "the paper's cell")
    assert results.verdicts("table3-refinenet-lw-101-val-miou") == ["not tested"]
    assert scores == (None,) or f", {len(scores)} trainings: " in judged.says


@pytest.mark.parametrize(
    "changes",
    [{}, {"scales": [0.5, 1.0]}, {"flip": True}, {"split": "train"}, {"data": "camvid"}],
)
def test_only_the_same_data_settings_and_scale_answer_a_score(results, changes):
    results.train("camvid-lw-resnet50", 78.5, 78.5, 78.5)
    short = RECIPES["paper-voc-lw-resnet50"].with_epochs(2)
    results.add("short", "train", {"miou": 0.785}, asdict(short))
    results.add("failed", "train", {}, asdict(RECIPES["paper-voc-lw-resnet50"]), status="failed")
    assert "rflw train paper-voc-lw-resnet50" in results.verdict(CELL).says
    config = {"checkpoint": "a/b.tar", "model": "refinenet-lw-resnet50", "data": "voc"}
    config |= {"split": "val", "scales": [1.0], "flip": False}
    results.add("eval-x", "eval", {"miou": 0.78}, config | changes)
    assert results.verdicts(CELL) == ["not tested" if changes else "reproduced"]
    assert changes or results.verdict(CELL).says == "b.tar, evaluated: 78.0 %"


# ---------------------------------------------------------------- the rules of the protocol


KEPT, MATTERS, DROP = "aim-i", "context-by-pooling", "drop-without-rcu-original"
FORMS = {
    KEPT: ("lw", "original"),
    MATTERS: ("lw", "lw-nocrp"),
    DROP: ("original", "norcu"),
}


def pair(results, id, gaps, data="camvid", base=60.0, **changes):
    """Runs whose differences by seed are `gaps`."""
    encoder = COMPARED_ON[data]
    better, other = (f"{data}-tuned-{form}-{encoder}" for form in FORMS[id])
    results.train(other, *(base + seed for seed in range(len(gaps))), **changes)
    results.train(better, *(base + seed + gap for seed, gap in enumerate(gaps)), **changes)


EVEN = (0.2, -0.2, 0.1, -0.1, 0.0)  # 90 %: 0.0 +- 0.15


def around(mean, spread=1.0):
    return [mean + spread * gap for gap in EVEN]


@pytest.mark.parametrize(
    ("id", "gaps", "verdict"),
    [
        (KEPT, around(0.0), "supported"),
        (KEPT, around(-0.5), "supported"),  # worse by less than the margin
        (KEPT, around(3.0), "supported"),  # better
        (KEPT, around(-3.0), "contradicted"),
        (KEPT, around(0.0, 6.0), "not decided"),
        (MATTERS, around(3.0), "supported"),
        (MATTERS, around(0.0), "contradicted"),  # equivalent: it matters less than the margin
        (MATTERS, around(-3.0), "contradicted"),
        (MATTERS, around(0.5, 6.0), "not decided"),
        (DROP, around(7.0), "supported"),
        (DROP, around(3.0), "contradicted"),
        (DROP, around(5.0), "not decided"),
    ],
)
def test_equivalence_decides(results, tuned, id, gaps, verdict):
    before = results.verdict(id)
    assert (before.verdict, before.ours) == ("not decided", None)
    assert before.says.startswith(
        "no trainings of both decoders by the protocol yet on camvid, nyu"
    )
    pair(results, id, gaps)
    judged = results.verdict(id)
    assert (judged.verdict, judged.level) == (f"{verdict} on substitute data", "substitute data")
    assert "5 of 5 seeds" in judged.says and len(judged.records) == 10


def test_the_paper_s_data_outrank_a_substitute(results, tuned):
    pair(results, KEPT, around(0.0))
    pair(results, KEPT, around(0.0)[:3], "nyu")
    judged = results.verdict(KEPT)
    assert judged.verdict == "supported on the paper's data" and judged.ours.n == 3
    assert judged.level == "the paper's data or encoder in another combination"


def test_seeds_of_both_count_and_fewer_than_three_decide_nothing(results, tuned):
    results.train("camvid-tuned-original-efficientnet_lite0", 60.0, 60.0, 60.0)
    results.train("camvid-tuned-lw-efficientnet_lite0", 60.0, 60.0, 60.0, seeds=(1, 2, 3))
    judged = results.verdict(KEPT)
    assert judged.verdict == "not decided" and judged.ours.n == 2
    assert "fewer than 3 seeds" in judged.says


@pytest.mark.parametrize("data", ["camvid", "nyu"])
def test_one_contrary_seed_blocks_supported(results, tuned, data):
    pair(results, KEPT, [*around(0.0), *around(0.0), *around(0.0)])
    if data == "camvid":
        results.train("camvid-tuned-lw-efficientnet_lite0", 60.0 - 1.1, seeds=[0])
    else:
        pair(results, KEPT, (-1.1,), "nyu")
    assert results.verdicts(KEPT) == ["not decided on substitute data"]


def test_ceilings_do_not_vote(results, tuned):
    pair(results, KEPT, around(0.0), base=93.5)  # to 97.5: 95.5 in the mean
    judged = results.verdict(KEPT)
    assert judged.verdict == "not decided"
    assert "does not count: camvid is too easy: the better form scores 95.5 %" in judged.says


@pytest.mark.parametrize(
    ("live", "says"),
    [(0.09, "stages.0 is dead: 9 % of its units are alive"), (None, "was not recorded")],
)
def test_networks_that_are_dead_or_unknown_do_not_vote(results, tuned, live, says):
    pair(results, KEPT, around(0.0), live=live)
    judged = results.verdict(KEPT)
    assert judged.verdict == "not decided" and says in judged.says
    pair(results, KEPT, around(0.0), live=0.10)
    assert results.verdicts(KEPT) == ["supported on substitute data"]
    name = "camvid-tuned-original-efficientnet_lite0"
    results.train(name, 80.0, seeds=[4], live=0.0)  # the other seeds still vote
    judged = results.verdict(KEPT)
    assert judged.verdict == "supported on substitute data" and judged.ours.n == 4


def test_holm_corrects_within_a_data_set(results, tuned):
    """Mean 0.3, error 0.21: t to the margin is 3.3 of 4 degrees, p 0.015: under 5 %, not a fifth."""
    gaps = around(0.3, 3.0)
    differences = dict(enumerate(gaps))
    family = dict.fromkeys("abcde", evidence.Difference(differences, (), "equivalent", ""))
    same = dict.fromkeys("abcde", evidence.protocol().comparisons["accuracy-kept"])
    alone = {"a": family["a"]}
    assert evidence._corrected(alone, 1.0, same)["a"].outcome == "equivalent"
    assert {d.outcome for d in evidence._corrected(family, 1.0, same).values()} == {"undecided"}


def test_old_evidence_does_not_decide(results):
    for form, scores in (("lw", (98.0, 98.1, 98.2)), ("original", (98.1, 98.3, 98.4))):
        results.train(f"embedded-{form}-efficientnet_lite0", *scores)
        results.train(f"camvid-short-{form}-efficientnet_lite0", *scores)
    assert results.verdict(KEPT).verdict == "not decided" and not results.verdict(KEPT).records


@pytest.mark.parametrize("id", [KEPT, "nyud-speedup"])
def test_a_margin_that_is_newer_than_its_runs_is_named(results, tuned, id):
    pair(results, KEPT, around(0.0))
    results.add("bench-runtime-gpu", "bench", bench(30.0, 12.0), hardware=GPU)
    judged = results.verdict(id)
    assert judged.verdict.startswith("supported")
    fixed = "abc1234 2027-06-01T00:00:00+00:00"
    with pytest.raises(InputError, match=f"claim {id}: its tolerance .abc1234.* is newer than "):
        claims.judge(replace(CLAIMS[id], fixed=fixed), results.records)


def git(*words):
    run = subprocess.run(["git", *words], cwd=claims.FILE.parent, capture_output=True, text=True)
    return run.stdout.strip()


def test_tolerances_stand_since_the_commit_that_they_name():
    """Where the history is at hand. Of the protocol it is the last that changed what decides."""
    for fixed in {c.fixed for c in CLAIMS.values() if c.fixed}:
        commit, _, day = fixed.partition(" ")
        assert git("show", "-s", "--format=%aI", commit) in ("", day)
    decides = r"^ *(margin|least_seeds|live_share|ceiling|scored):|better:"
    log = ("log", "-1", "-s", "--diff-merges=first-parent", "--format=%h %aI", f"-G{decides}")
    if git("rev-parse", "--is-shallow-repository") == "false":
        last = git(*log, "--", "../protocol.yaml")
        assert last.partition(" ")[2] in ("", evidence.protocol().fixed.partition(" ")[2])


def test_families_of_encoders_are_trained_and_alive(results):
    results.train("camvid-lw-efficientnet_lite0", 60.0)
    results.train("camvid-lw-efficientnet_lite1", 60.0)
    results.train("camvid-lw-resnet50", 60.0, live=0.0)
    judged = results.verdict("aim-iv")
    assert judged.verdict == "not decided" and judged.ours.mean == 1
    results.train("paper-nyu-lw-resnet50", 60.0)
    results.train("nyu-long-lw-mobilenet_v2", 40.0)
    judged = results.verdict("aim-iv")
    assert judged.verdict == "supported on substitute data" and judged.ours.mean == 3


def test_the_paper_s_own_numbers():
    """By hand: 1 / (54.18 ms x 0.8962) is 20.6 FPS; 72.1 - 73.6, 41.7 - 42.5, 76.2 - 75.7."""
    verdicts = {
        "fps-fastest-original": ("agrees with the paper's own numbers", 20.5943),
        "cityscapes-close": ("disagrees with the paper's own numbers", -1.5),
        "nyud-close": ("consistent by construction", -0.8),
        "mobile-outperform": ("agrees with the paper's own numbers", 0.5),
    }
    for id, (verdict, ours) in verdicts.items():
        judged = claims.judge(CLAIMS[id], [])
        assert (judged.verdict, judged.level) == (verdict, "computed")
        assert judged.ours.mean == pytest.approx(ours, abs=1e-3)


# ---------------------------------------------------------------- counts, times, data


def test_counts_are_rounded_as_printed_or_met_by_both_rules(results):
    results.records = [COMPLEXITY]
    judged = results.verdict("table2-refinenet-lw-101-params")
    assert (judged.verdict, judged.ours.mean) == ("reproduced", 46.349653)
    assert results.verdicts("table1-refinenet-101-lw-flops") == ["reproduced"]
    other = results.verdict(
        "table3-refinenet-lw-mobilenet-v2-flops"
    )  # printed: 9.3, 2 % of it 0.19
    assert other.verdict == "partly" and "the author's counter: 8.62 B" in other.says
    assert other.ours.mean == pytest.approx((8583872512 + 557056000) / 1e9)
    for cell in ("parameters", "flops"):  # the width of RCUs was inferred from these
        id = f"table1-refinenet-101-lw-with-rcu-{cell}"
        assert results.verdicts(id) == ["consistent by construction"]
    assert results.verdicts("one-3x3-left") == ["partly"]  # in the final form alone


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
        "flops-reduction": "convolutions and pools: 4.00 times; the author's counter: 4.03 times",
        "decoder-parameters": "71.4 %",  # 45 of 63 M
        "expensive-parameters": "75.0 %",
        # 3682 of 4100, 3681 of 4090
        "expensive-flops": "convolutions and pools: 89.8 %; the author's counter: 90.0 %",
        "no-specific-changes": "2 encoders",  # behind ResNet-101's decoder: the other two ResNets
        "slight-portion": "83.3 %",
        "table2-refinenet-lw-101-params": "10.00 M",
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


def test_ratios_of_times_are_decided_on_substitute_hardware(results):
    results.add("bench-runtime-cpu", "bench", bench(900.0, 300.0, device="cpu"))
    judged = results.verdict("nyud-speedup")
    assert judged.verdict == "supported on substitute hardware"
    assert (
        judged.says == "a processor, 2 cores: 3.00 [2.70, 3.30] times"
    )  # one process: ten percent
    results.add("bench-runtime-gpu", "bench", bench(30.0, 12.0), hardware=GPU)
    assert results.verdict("nyud-speedup").level == "substitute hardware"
    # 1.94 give or take a quarter: 2.5 times is beyond, and a process alone may be off by a tenth
    assert results.verdicts("speedup-table2-152") == ["not decided on substitute hardware"]
    assert results.verdicts("speedup-fastest") == ["not tested"]  # at the other size
    other = GPU | {"gpu": "Another"}
    results.add("bench-runtime-other", "bench", bench(30.0, 20.0), hardware=other)
    assert results.verdicts("nyud-speedup") == ["not decided on substitute hardware"]


def test_processes_are_what_is_counted(results):
    for number, original in enumerate((26.0, 27.0, 28.0)):
        each = bench(original, 10.0)
        results.add(f"bench-runtime-{number}", "bench", each, hardware=GPU)
    judged = results.verdict("nyud-speedup")
    assert judged.ours.n == 3 and judged.ours.mean == pytest.approx(2.7)
    assert judged.ours.low == pytest.approx(2.7 - 4.302653 * 0.1 / math.sqrt(3))


def test_the_smallest_of_ratios_from_several_records(results):
    for depth in (50, 101):
        each = bench(30.0, 12.0, depths=[depth])
        results.add(f"bench-runtime-{depth}", "bench", each, hardware=GPU)
    assert results.verdicts("nyud-speedup") == ["not tested"]  # the third is missing
    assert results.verdict("speedup-table2-101").ours.mean == 2.5
    last = bench(24.0, 12.0, depths=[152])
    results.add("bench-runtime-152", "bench", last, hardware=GPU)
    assert results.verdict("nyud-speedup").says == "Some Card: 2.00 [1.80, 2.20] times"


@pytest.mark.parametrize("changes", [{"mode": "compiled-fp32"}, {"batch": 8}])
def test_other_modes_and_batches_do_not_answer(results, changes):
    results.add("bench-runtime-gpu", "bench", bench(30.0, 12.0, **changes), hardware=GPU)
    assert results.verdicts("nyud-speedup") == ["not tested"]


@pytest.mark.parametrize(
    ("gpu", "passes", "verdict"),
    [
        ("H100", 100, "not tested"),
        ("GeForce GTX 1080 Ti", 99, "not tested"),  # the paper's protocol has 100 passes
        ("GeForce GTX 1080 Ti", 100, "partly"),  # one process is known to a tenth
    ],
)
def test_milliseconds_are_answered_by_the_paper_s_card(results, gpu, passes, verdict):
    config, hardware = {"passes": passes}, CPU | {"gpu": gpu}
    results.add("bench-runtime-a", "bench", bench(35.0, 19.5), config, hardware=hardware)
    judged = results.verdict("table2-refinenet-50-runtime")
    assert judged.verdict == verdict
    assert verdict == "not tested" or judged.level == "the paper's cell"


LISTED = {"train": {"images": 1464}, "val": {"images": 1449}, "test": {"images": 1456}}


def test_data_sets_are_counted(results):
    parts = {
        "train": {"images": 1464, "pixels": {"background": 9, "cat": 3, "cow": 0}},
        "val": {"images": 1448, "pixels": {"dog": 1}},
    }
    results.add("check-voc", "check", {"data": "voc", "splits": parts})
    assert results.verdicts("voc-train", "voc-val") == ["reproduced", "not reproduced"]
    assert results.verdict("voc-classes").ours.mean == 2  # cat and dog
    assert results.verdicts("voc-images") == ["not tested"]  # the test part is missing
    results.add("check-voc-lists", "check", {"data": "voc", "splits": LISTED})
    assert results.verdict("voc-images").ours.mean == 1464 + 1449 + 1456
    assert results.verdicts("person-train") == ["not tested"]


# ---------------------------------------------------------------- blocks


def network(form, data="camvid", seed=0):
    short = form.removeprefix("refinenet").removeprefix("-") or "original"
    return {
        "model": f"{form}-efficientnet_lite0",
        "checkpoint": f"{data}-{short}-efficientnet_lite0-s{seed}",
        "data": data,
        "patch": 11,
        "stride": 3,
    }


def measured(results, kind, form, metrics, seeds=3, live=1.0, data="camvid", name=""):
    """The same of several trainings; `metrics` are by seed, or the same for all."""
    for seed in range(seeds):
        config = network(form, data, seed)
        if data == "camvid":
            recipe = config["checkpoint"].rpartition("-s")[0]
            results.train(recipe, 60.0, seeds=[seed], live=live)
        each = metrics[seed] if isinstance(metrics, list) else metrics
        results.add(f"{kind}-{name or form}-{seed}", kind, each, config)


def heads(*miou, accuracy=0.9, majority=0.5):
    def scores(value):
        parts = {"miou": [value / 100 + s / 1000 for s in range(3)], "accuracy": [accuracy] * 3}
        return parts | {"majority": majority}

    places = zip(("before RCU", "after RCU", "after CRP"), miou)
    return {"places": {place: {"heads": {"conv": scores(value)}} for place, value in places}}


def test_heads_say_what_a_block_adds(results):
    measured(results, "probe", "refinenet-lw-rcu", heads(20, 60, 60))
    segmentation, classification = "crp-drives-segmentation", "crp-drives-classification"
    assert results.verdicts(segmentation) == ["not tested"]  # not the original decoder
    measured(results, "probe", "refinenet", heads(54, 54.5, 58))
    words = ["supported on substitute data", "contradicted on substitute data"]
    assert results.verdicts(segmentation, classification) == words
    assert results.verdict(segmentation).ours.mean == pytest.approx(3.5 - 0.5)
    assert results.verdict("rcu-marginal-segmentation").ours.mean == pytest.approx(0.5 - 3.5 / 2)
    for why, changes in (
        ("all answers are right before the blocks", {"accuracy": 1.0}),
        ("a constant answer is right in 91 %", {"majority": 0.91}),
    ):
        measured(results, "probe", "refinenet", heads(54, 54.5, 58, **changes))
        for id in (classification, "rcu-marginal-classification"):  # nothing can be added
            judged = results.verdict(id)
            assert judged.verdict == "not decided" and why in judged.says


def test_seeds_of_heads_are_no_trainings(results):
    """Three seeds of heads on each of two networks: n is 2, and one contrary network blocks."""
    measured(results, "probe", "refinenet", heads(54, 54.5, 58), seeds=2)
    judged = results.verdict("crp-drives-segmentation")
    assert judged.verdict == "not decided" and judged.ours.n == 2
    assert "2 trainings" in judged.says and "fewer than 3" in judged.says
    many = [heads(54, 54.5, 58)] * 9 + [heads(54, 55.5, 56)]
    measured(results, "probe", "refinenet", many, seeds=10)
    assert results.verdict("crp-drives-segmentation").ours.low > 0
    assert results.verdicts("crp-drives-segmentation") == ["not decided on substitute data"]


def test_cells_of_table_4_need_voc(results):
    assert results.verdicts("table4-after-crp-miou") == ["not tested"]
    measured(results, "probe", "refinenet", heads(54, 54.5, 58), data="voc")
    judged = results.verdict("table4-after-crp-miou")
    assert (
        judged.verdict == "not decided"
        and "live units in its training was not recorded" in judged.says
    )


def saturated(without, miou=0.602, moved=1.5):
    terms = {"decoder.stages.0.rcu_in.0": {"weight": moved, "untrained_weight": 1.0}}
    return {"miou": miou, "groups": {"all RCU": {"miou_without": without}}, "terms": terms}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"moved": 1.04}, "the norm of its RCU weights (1.040 times"),
        ({"miou": 0.96, "without": 0.96}, "too close to a perfect score: 96.0 %"),
    ],
)
def test_saturated_rcus_can_be_switched_off(results, changes, says):
    three = [saturated(without) for without in (0.600, 0.601, 0.602)]
    measured(results, "saturation", "refinenet-lw-rcu", three)
    judged = results.verdict("rcu-saturated")
    assert judged.verdict == "supported on substitute data"
    assert judged.ours.mean == pytest.approx(-0.1)
    measured(results, "saturation", "refinenet-lw-rcu", saturated(**{"without": 0.6} | changes))
    judged = results.verdict("rcu-saturated")
    assert judged.verdict == "not decided" and says in judged.says


def fields(sides, **changes):
    layers = {
        place: {"side": {"mean": side, "low": side - 4, "high": side + 4, "n": 16}}
        for place, side in sides.items()
    }
    return {"method": "occlusion", "size": [360, 480], "images": 50, "layers": layers} | changes


def test_ratios_of_fields_are_of_trainings(results):
    light = [
        fields({"before CRP": 60, "after CRP": after, "after the first sum": after + 4 * seed - 4})
        for seed, after in enumerate((88, 90, 92))
    ]
    measured(results, "erf", "refinenet-lw", light)
    judged = results.verdict("field-enlarged-by-crp")
    assert judged.verdict == "supported on substitute data" and judged.ours.n == 3
    half = 2.919986 * (2 / 60) / math.sqrt(3)
    assert (judged.ours.mean, judged.ours.high) == pytest.approx((1.5, 1.5 + half))
    assert results.verdicts("field-enlarged-by-sum") == ["not decided on substitute data"]
    assert results.verdict("field-before-crp").ours.mean == pytest.approx(100 * 60**2 / 360 / 480)
    gradient = fields({"before CRP": 90, "after CRP": 60}, method="gradient")
    measured(results, "erf", "refinenet-lw", gradient, name="gradient")
    judged = results.verdict("field-enlarged-by-crp")
    assert judged.verdict == "supported on substitute data"
    assert "0.67 [0.67, 0.67] times (does not count: gradients measure something" in judged.says


def test_ratios_are_made_class_by_class(results):
    """By hand: classes 1.2 and 0.9 times as large have a geometric mean of 1.0392."""
    sides = {"refinenet-lw": [24.0 * 2, 45.0 * 2], "refinenet": [20.0 * 2, 50.0 * 2]}
    for form, own in sides.items():
        layer = {"side": {"mean": sum(own) / 2}, "units": [0, 3], "sides": own}
        metrics = fields({}) | {"layers": {"last layer": layer}}
        measured(results, "erf", form, metrics)
    assert results.verdict("field-same-size").ours.mean == pytest.approx(math.sqrt(1.08))


def test_a_patch_does_not_resolve_small_fields(results):
    measured(results, "erf", "refinenet-lw", fields({"before CRP": 24, "after CRP": 90}))
    judged = results.verdict("field-enlarged-by-crp")  # twice the patch and a step make 25
    assert (
        judged.verdict == "not decided"
        and "cannot measure fields smaller than 25 pixels" in judged.says
    )


def test_fields_are_compared_where_training_and_measurement_are_the_same(results):
    measured(results, "erf", "refinenet-lw", fields({"last layer": 100}))
    for name, data, changes in (
        ("c", "camvid", {"size": [180, 240]}),
        ("d", "camvid", {"method": "activation"}),
        ("e", "embedded", {}),
    ):
        other = fields({"last layer": 100}, **changes)
        measured(results, "erf", "refinenet", other, data=data, name=name)
    assert results.verdicts("field-same-size") == ["not tested"]
    for side, word in ((200, "contradicted"), (101, "supported")):
        measured(results, "erf", "refinenet", fields({"last layer": side}), name="same")
        assert results.verdicts("field-same-size") == [f"{word} on substitute data"]


def test_fields_in_theory_need_no_training(results):
    for form, side in (("refinenet", 3507), ("refinenet-lw", 1875)):
        layers = {"last layer": {"theoretical": [side, side]}}
        results.add(f"erf-{form}", "erf", fields({}) | {"layers": layers}, network(form))
    judged = results.verdict("kernels-enlarge-field")
    assert (judged.verdict, judged.level) == ("reproduced", "computed")
    assert judged.ours.mean == pytest.approx(3507 / 1875)


def test_compression_takes_a_network_that_is_alive(results):
    name = "camvid-lw-efficientnet_lite0-s0"
    config = {"checkpoint": name, "model": "refinenet-lw-efficientnet_lite0", "data": "camvid"}
    config |= {"split": "val", "scales": [1.0], "flip": False}
    results.add("eval-a", "eval", {"miou": 0.602}, config)
    results.add("eval-b", "eval", {"miou": 0.601, "deployed": "int8"}, config)
    half = config | {"scales": [0.5]}  # another scale is another pair
    results.add("eval-c", "eval", {"miou": 0.1, "deployed": "int8"}, half)
    for live, verdict in ((0.0, "not decided"), (1.0, "supported on substitute data")):
        results.train(name.removesuffix("-s0"), 60.2, live=live)
        assert results.verdicts("compression-on-top") == [verdict]


def test_repeats_and_settings_are_counted_apart():
    assert CLAIMS["table3-refinenet-101-flops"].repeats == "table1-refinenet-101-flops"
    assert CLAIMS["voc-test-fastest"].repeats == "table3-refinenet-lw-50-test-miou"
    assert CLAIMS["params-reduction"].repeats == "params-saved"  # the same in other words
    assert not CLAIMS["table1-refinenet-101-flops"].repeats
    judged = [claims.judge(claim, []) for claim in CLAIMS.values()]
    counts = claims.tally(judged)
    assert counts["own"] == counts["distinct"] + counts["repeats"] + counts["settings"]
    assert counts["settings"] == 20 and counts["not tested"] <= counts["distinct"]
    assert counts["own"] + counts["quoted"] == len(judged)


def test_what_others_measured_is_theirs():
    theirs = claims.others()
    assert theirs.keys() <= CLAIMS.keys() and "aim-i" in theirs
    for row in (row for rows in theirs.values() for row in rows):
        assert row["who"] and row["what"] and "https://" in row["source"]


# ---------------------------------------------------------------- faults are named


@pytest.mark.parametrize(
    ("kind", "metrics", "config", "says"),
    [
        ("seance", {}, {}, "unknown experiment .kind 'seance'.; choose from: bench, "),
        ("train", {"miou": 0.5}, {"name": "mine"}, "unknown recipe 'mine'"),
        ("eval", {"miou": 1.001}, {}, "mIoU 1.001 is not from 0 to 1"),
        ("eval", {"miou": "high"}, {}, "mIoU 'high' is not"),
    ],
)
def test_a_record_of_an_unknown_experiment_is_named(results, kind, metrics, config, says):
    with pytest.raises(InputError, match=f"^record x: {says}"):
        results.add("x", kind, metrics, config)


def test_a_record_that_lacks_what_its_kind_has_is_named(results):
    results.add("probe-x", "probe", heads(54, 54.5), network("refinenet"))  # no CRP
    with pytest.raises(InputError, match="^claim crp-drives-segmentation: .*'after CRP'"):
        results.verdict("crp-drives-segmentation")


REDUCED = "- {statement: params-reduction, tolerance: limit, level: computed, aim: ii, repeats: params-saved, construction: true, test: {count: params, saved: [[refinenet-resnet101, refinenet-lw-rcu-resnet101]]}}"
TRAIN = "- {statement: voc-train, tolerance: printed, level: cell, aim: data, test: {check: voc, splits: [train]}}"
TEST = "check: voc, splits: [train]"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("claims:\n", "claims: [\n", "cannot be read ("),
        ("    digits: 0.5\n", "", "tolerances.printed: needs one of value, digits"),
        ("claims:\n", "claims:\n- 3\n", "claim 1: Input should be a valid dictionary"),
        (REDUCED, "", "no claim for statement params-reduction"),
        (TRAIN, f"{TRAIN}\n{TRAIN}", "(voc-train): a second claim 'voc-train'"),
        (TRAIN, TRAIN.replace(", test: {check: voc, splits: [train]}", ""), "voc-train: no test"),
        (TRAIN, TRAIN.replace(", level: cell", ""), "voc-train: no level"),
        (TRAIN, TRAIN.replace("voc-train", "voc-trains"), "no statement 'voc-trains' in the text"),
        (TRAIN, TRAIN.replace("printed", "generous"), "unknown tolerance 'generous'; choose"),
        (TRAIN, TRAIN.replace("tolerance: printed", "verdict: partly"), "verdict: Extra"),
        (TEST, "look: voc", "(voc-train): not a test of one kind"),
        (TEST, "check: camvid, splits: [train]", "check: Input should be 'voc', 'nyu'"),
        (TEST, "check: voc", "needs one of splits, classes"),
        ("{compare: crp-matters}", "{compare: crp}", "comparison 'crp'; choose from: accuracy-"),
        ("count: params, model: refinenet-lw-mobilenet_v2", "count: params", "no network to count"),
        ("{fps: [2, RefineNet-50,", "{fps: [2, RefineNet-51,", "no row 'RefineNet-51'"),
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
    assert counts["own"] + counts["quoted"] == len(judged)
    assert counts["reproduced"] >= 20  # the counts; whatever else is on record
    names = {path.stem for path in records.FOLDER.glob("*.json")}
    for v in judged:
        assert v.verdict in claims.VERDICTS and v.says and set(v.records) <= names
        assert v.verdict != "not tested" or v.ours is None
        # the words of a verdict carry its level
        assert not v.claim.test or v.level in evidence.LEVELS
        for level, on in claims.ON.items():
            assert v.verdict.endswith(f" on {on}") is (level == v.level and " on " in v.verdict)
        assert v.verdict not in ("reproduced", "partly", "not reproduced") or v.level in (
            "computed",
            "the paper's cell",
        )
        row = v.row()
        assert (row["paper"], row["verdict"]) == (v.claim.value, v.verdict)
        assert row["evidence"] == {"records": list(v.records), "says": v.says}
        assert row["interval"] is None or row["interval"][0] <= row["ours"] <= row["interval"][1]
        json.dumps(row, allow_nan=False)

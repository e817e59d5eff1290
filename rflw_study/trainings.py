"""Trainings on record by decoder and seed, and their differences, as the book's chapters show them."""

from statistics import fmean

import pandas as pd

from rflw import live, records
from rflw.recipes import CHOSEN, COMPARED, OPTIMISED, short
from rflw_study import evidence, figures, timings
from rflw_study.statistics import Interval, mean_interval, paired_difference

DECODERS = {
    "lw": "LW",
    "lw-rcu": "LW with RCU",
    "lw-nocrp": "LW without CRP",
    "lw-top2": "LW, two coarsest levels",
    "lw-crp-convs": "LW, CRP without pools",
    "lw-crp-pools": "LW, CRP without convolutions",
    "norcu": "original without RCU",
    "original": "original",
}
FORMS = {form: DECODERS[short(form)] for form in ("refinenet", "refinenet-lw-rcu", "refinenet-lw")}


def _model(record: dict) -> str:
    """The form of a record's network: "refinenet-lw"."""
    return record["config"]["model"].rpartition("-")[0]


def _form(record: dict) -> str:
    return short(_model(record))


def decoder(record: dict) -> str:
    """The decoder of a record's network, by its name in the book."""
    return DECODERS[_form(record)]


def named(model: str) -> str:
    """A network in few words: "LW without CRP, EfficientNet-Lite0"."""
    form, _, encoder = model.rpartition("-")
    return f"{DECODERS[short(form)]}, {timings.short(encoder)}"


def network(record: dict) -> dict:
    """Data, decoder and seed of the network that a record measured."""
    recipe, _, seed = record["config"]["checkpoint"].rpartition("-s")
    kind = next((f" {word}" for word in ("short", "long", "tuned") if f"-{word}-" in recipe), "")
    data = record["config"]["data"] + kind
    return {"data": data, "decoder": decoder(record), "network's seed": seed}


def finished() -> list[dict]:
    """Records of all trainings that came to their end."""
    return [r for r in records.read_all() if r["kind"] == "train" and r["status"] == "done"]


def untrained(done: list[dict], recipes: str) -> str:
    """The compared decoders without a run of the recipes that begin so, in words."""
    seen = {decoder(record) for record in done if record["config"]["name"].startswith(recipes)}
    names = (DECODERS[short(form)] for form in COMPARED)
    return ", ".join(name for name in names if name not in seen) or "none"


def scores(done: list[dict], name: str) -> dict[int, float]:
    """{seed: validation mIoU in percent} of a recipe's runs."""
    runs = [record for record in done if record["config"]["name"] == name]
    return {record["seed"]: 100 * record["metrics"]["miou"] for record in runs}


def by_decoder(done: list[dict], data: str) -> dict[str, dict[int, float]]:
    """Scores of the decoders that were trained on some data, on EfficientNet-Lite0."""
    found = {
        words: scores(done, f"{data}-{form}-efficientnet_lite0") for form, words in DECODERS.items()
    }
    return {words: values for words, values in found.items() if values}


def by_class(done: list[dict], data: str) -> pd.DataFrame:
    """mIoU and IoU of each class in percent, and the last loss: means over a decoder's seeds."""
    rows: dict[str, list[dict]] = {}
    for record in done:
        if record["config"]["name"].startswith(f"{data}-"):
            shares = {"mIoU": record["metrics"]["miou"]} | record["metrics"]["iou"]
            row = {name: 100 * share for name, share in shares.items()}
            row["training loss"] = record["curve"][-1]["loss"]
            rows.setdefault(decoder(record), []).append(row)
    means = {name: pd.DataFrame(rows[name]).mean() for name in DECODERS.values() if name in rows}
    return pd.DataFrame(means).T.rename_axis("decoder")


def means(groups: dict[str, dict[int, float]], axis, label: str) -> None:
    """A row for each group: a point for each seed, their mean and its interval."""
    points = {name: list(values.values()) for name, values in groups.items() if values}
    intervals = {name: mean_interval(values) for name, values in points.items()}
    figures.seed_points(points, intervals, axis, label)


def grid(done: list[dict], data: tuple[str, ...]) -> pd.DataFrame:
    """What the grid found on data sets: mIoU and smallest share of live units, a column a setting.

    A star marks the setting that a decoder is compared with.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for record in done:
        kind, _, cell = record["config"]["name"].partition("-grid-")
        how, _, init = cell.rpartition(f"-{_form(record)}-")[0].rpartition("-")
        if cell and kind in data:
            setting = how if init == "default" else f"{how}, {init}"
            name = decoder(record) if kind == data[0] else f"{kind}: {decoder(record)}"
            lowest = min(live.of_stages(record["curve"][-1]["live"]).values())
            chosen = "*" * (CHOSEN.get((kind, _model(record))) == (how, init))
            score = f"{100 * record['metrics']['miou']:.1f}{chosen}"
            rows.setdefault((name, "mIoU, %"), {})[setting] = score
            rows.setdefault((name, "live, %"), {})[setting] = f"{100 * lowest:.0f}"
    order = [f"{how}{init}" for how in OPTIMISED for init in ("", ", normal")]
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=("decoder", ""))
    return frame[[setting for setting in order if setting in frame]]


def comparison(groups: dict[str, dict[int, float]]) -> None:
    """A figure of the scores of all decoders, and of their differences to LW within seeds."""
    gaps = {name: paired_difference(groups["LW"], groups[name]) for name in groups if name != "LW"}
    gaps = {name: gap for name, gap in gaps.items() if gap}
    upper, lower = figures.row_panels(groups, gaps)
    means(groups, upper, "validation mIoU, %")
    figures.differences(gaps, lower, "difference to LW, points", figures.palette(gaps))


def compared(data: str, recorded: list[dict]) -> pd.DataFrame:
    """A figure and a table of the protocol's runs on one data set, and what they decide."""
    on, groups, gaps, rows = evidence.protocol().data[data], {}, {}, []
    for form in sorted(COMPARED, key=lambda form: [*DECODERS].index(short(form))):
        if runs := evidence.scored(data, form, recorded):
            groups[DECODERS[short(form)]] = {seed: runs[seed][0] for seed in sorted(runs)}
    for name, each in evidence.differences(data, recorded).items():
        pair = evidence.protocol().comparisons[name]
        line = " - ".join(DECODERS[short(form)] for form in (pair.better, pair.other))
        points = [each.points[seed] for seed in sorted(each.points)]
        gap = mean_interval(points, 0.90) if points else None
        gaps |= {line: gap} if gap else {}
        none = "none counts" if each.against else "not run yet"
        row = {"difference": line, "mean [90 %]": f"{gap:z.1f}" if gap else none}
        row["margin"] = f"more than {pair.at_least:g}" if pair.at_least else f"±{on.margin:g}"
        by_seed = ", ".join(f"{point:+z.1f}" for point in points)
        rows.append(row | {"outcome": each.against or each.outcome, "by seed": by_seed})
    upper, lower = figures.row_panels(groups, gaps)
    means(groups, upper, "mIoU on the frames that are scored, %")
    lower.axvspan(-on.margin, on.margin, color="0.9", zorder=0)
    figures.differences(gaps, lower, "difference within seeds, points")
    return pd.DataFrame(rows).set_index("difference")


def meaning(gap: Interval | None, best: float = 0.0) -> str:
    """What an interval of differences allows us to say; `best`: the better decoder's mean."""
    if gap is None:
        return "not run yet"
    if best > 100 * evidence.protocol().votes.ceiling:
        return "does not count: over the ceiling"
    if gap.n < 2:
        return "no conclusion: one seed"
    if gap.low > 0 or gap.high < 0:
        return "higher" if gap.low > 0 else "lower"
    return "not decided: the interval contains 0"


def differences(groups: dict[str, dict[int, float]], pairs) -> pd.DataFrame:
    """Differences within seeds: of each pair of names, the second's score less the first's."""
    rows = []
    for first, second in pairs:
        both = [groups.get(name, {}) for name in (first, second)]
        gap, seeds = paired_difference(*both), both[0].keys() & both[1].keys()
        best = max(fmean(scores[seed] for seed in seeds) for scores in both) if gap else 0.0
        row = {"difference": f"{second} - {first}"}
        row |= {"points of mIoU [95 %]": f"{gap:z.1f}" if gap else ""}
        rows.append(row | {"seeds": gap.n if gap else "", "meaning": meaning(gap, best)})
    return pd.DataFrame(rows).set_index("difference")

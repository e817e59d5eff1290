"""What the book's pages show of claims, records, recipes and packages: see `derived`."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from importlib import metadata
import json
from pathlib import Path
import re

from markupsafe import Markup
from origins import CLAIMS, RECORDS, commit, hardware
from packaging.version import Version
import pandas as pd
import yaml

from rflw.config import Recipe, Stage
from rflw.recipes import OWN, RECIPES
from rflw.records import REPOSITORY
from rflw_study import claims, evidence, paper
from rflw_study.statistics import paired_difference

BREAK, CODE = Markup("<br>"), Markup("<code>{}</code>")
# The first words of verdicts: what a mark tells. The colour tells the level.
MARKS = {
    "reproduced": "✓",
    "consistent by construction": "○",
    "partly": "≈",
    "not reproduced": "✗",
    "supported": "+",
    "contradicted": "−",
    "agrees": "=",
    "disagrees": "≠",
    "not decided": "?",
    "not tested": "·",
}
NOT_MEASURED = "not measured yet"
WORDS = {"num_statements": "statements", "num_branches": "branches in all"}
WORDS |= {"peak_mb": "peak memory, MiB", "slowest_s": "slowest file, s"}


def table(caption: str, columns: str) -> Callable:
    """Makes a table of a function that yields rows: cells, or attributes of `<tr>` before them.

    Args:
        columns: Their headings, with | between.
    """

    def decorate(rows_of):
        @wraps(rows_of)
        def shown(book):
            rows = [row if isinstance(row[0], dict) else ({}, *row) for row in rows_of(book)]
            return caption, columns.split("|"), rows

        return shown

    return decorate


def topics(book) -> dict[str, dict]:
    """What `topics.yaml` says of each aim, with the verdicts on the paper's own claims under it.

    Claims that repeat another are left out.
    """
    return {
        aim: topic | {"verdicts": [v for v in book.verdicts if v.claim.aim == aim and once(v)]}
        for aim, topic in _topics(book)["aims"].items()
    }


def once(v) -> bool:
    """Whether a claim is the paper's own, and said for the first time."""
    return bool(v.claim.test) and not v.claim.repeats


def _topics(book) -> dict:
    return yaml.safe_load((Path(book.env.srcdir) / "book/topics.yaml").read_text(encoding="utf-8"))


def mark(verdict: str) -> tuple[str, str]:
    """The first words of a verdict and its mark."""
    return next((words, sign) for words, sign in MARKS.items() if verdict.startswith(words))


def folded(summary: str, lines) -> Markup:
    html = "<details><summary>{}</summary>{}</details>"
    return Markup(html).format(summary, BREAK.join(filter(None, lines)))


@table(
    "Every claim: what the paper says, what we measured, and the verdict.",
    "claim|paper|ours|level of evidence|verdict|evidence",
)
def ledger(book):
    topic = _topics(book)
    order = [*topic["aims"], ""]
    head = {f"aim-{aim}" for aim in order}
    place = lambda v: (order.index(v.claim.aim), v.claim.id not in head)
    for v in sorted(book.verdicts, key=place):  # each aim heads its claims
        claim, ours = v.claim, claims.shown(v.ours, v.claim) if v.ours else "none"
        is_waiting = claim.test and is_open(v) and " on " not in v.verdict
        level = f"none yet (needed: {v.level})" if is_waiting else v.level
        attributes = {
            "id": f"claim-{claim.id}",
            "data-verdict": v.verdict,
            "data-aim": topic["aims"][claim.aim]["title"] if claim.test else "quoted",
            "data-level": "none yet" if is_waiting else v.level,
            "data-source": "quoted" if not claim.test else "repeated" if claim.repeats else "own",
            "data-where": claim.where,
        }
        why = folded("tolerance and test", (_tolerance(claim), claim.note)) if claim.test else ""
        quote = Markup('<a class="where" href="#claim-{}">{}</a> <q>{}</q>{}').format(
            claim.id, claim.where, claim.quote, why
        )
        verdict = Markup('<span class="verdict">{}</span>').format(v.verdict)
        yield attributes, quote, claim.stated, ours, level, verdict, _evidence(book, topic, v, ours)


def _evidence(book, topic: dict, v, ours: str) -> Markup:
    """What the records say of a claim, their links, what others measured, and the chapter."""
    links = [book.record(name) for name in v.records]
    links = folded(f"{len(links)} records", links) if len(links) > 3 else BREAK.join(links)
    chapter = book.titled(topic["kinds"][v.claim.kind]) if v.claim.test else ""
    repeats = Markup('Repeats the claim <a href="#claim-{0}">{0}</a>.').format(v.claim.repeats)
    parts = (
        v.says if v.says != ours else "",
        links,
        *_theirs(v.claim),
        v.claim.repeats and repeats,
        chapter and Markup("Chapter: {}").format(chapter),
    )
    return BREAK.join(filter(None, parts))


def is_open(v) -> bool:
    """Whether a verdict decides nothing."""
    return mark(v.verdict)[0] in ("not decided", "not tested")


def _tolerance(claim) -> str:
    """The margin or tolerance of a claim, why it is what it is, and since when it stands."""
    if not claim.test:
        return ""
    if claim.kind == "compare":
        on = evidence.protocol().data
        margins = " ".join(
            f"{data}: {each.margin:g} points ({' '.join(each.reason.split()).rstrip('.')})."
            + _since(each.fixed)
            for data, each in on.items()
        )
        return f"Margin for {margins}"
    unit = "points" if claim.unit == "percent" else claims.UNITS.get(claim.unit, claim.unit)
    rule = f"Tolerance {claim.tolerance:.3g} {unit}".strip()
    return f"{rule}: {claim.reason.rstrip('.')}.{_since(claim.fixed)}"


def _since(fixed: str) -> str:
    """Since when a margin or tolerance stands, if that is known."""
    return f" Fixed in commit {' on '.join(fixed.split())}." if fixed else ""


def _theirs(claim) -> list[Markup]:
    """What others measured of a claim, marked as theirs."""
    line = Markup(
        '<span class="theirs">Measured by others, not by us: {who}, {what}{value}. {source}</span>'
    )
    rows = []
    for row in claims.others().get(claim.id, ()):
        words, _, link = row["source"].partition("https://")
        link, _, more = link.partition(" ")
        source = Markup('{}<a href="https://{}">{}</a> {}').format(words, link, link, more)
        value = row["value"] and f": {row['value']}"
        rows.append(line.format(**row | {"value": value, "source": source}))
    return rows


def claim_counts(book):
    found = {topic["title"]: topic["verdicts"] for topic in topics(book).values()}
    found["all"] = [v for verdicts in found.values() for v in verdicts]
    rows = []
    for verdict in (*claims.VERDICTS, "all"):
        counts = [sum(verdict in (v.verdict, "all") for v in vs) or "" for vs in found.values()]
        query = f"?verdict={verdict.replace(' ', '+')}&source=own#ledger"
        link = verdict if verdict == "all" else book.link(verdict, CLAIMS, query)
        if counts[-1]:
            rows.append(({}, link, *counts))
    caption = "The paper's distinct claims and settings of data sets: how many have each verdict, by topic."
    return caption, ["verdict", *found], rows


def squares(book) -> Markup:
    """A square for each of the paper's claims: coloured by level, marked by what came out."""
    uri = book.env.app.builder.get_relative_uri(book.env.docname, CLAIMS)
    square = Markup(
        '<a class="square" data-verdict="{0}" data-level="{6}" href="{1}#claim-{2}" '
        'aria-label="{3}, {2}: {0}" title="{3}: {4} ({0})">{5}</a>'
    )
    row = Markup(
        '<div class="about"><span class="word">{}</span><span class="squares">{}</span></div>'
    )
    key = Markup('<span><i class="square" {2} aria-hidden="true">{1}</i> {0}</span>')
    rows, seen, levels = [], set(), set()
    for topic in topics(book).values():
        verdicts = sorted(topic["verdicts"], key=lambda v: claims.VERDICTS.index(v.verdict))
        drawn = []
        for v in verdicts:
            words, sign = mark(v.verdict)
            level = "" if is_open(v) else v.level
            seen.add(words)
            levels.add(level)
            claim = v.claim
            drawn.append(
                square.format(v.verdict, uri, claim.id, claim.where, claim.quote, sign, level)
            )
        rows.append(row.format(topic["title"], Markup().join(drawn)))
    keys = [key.format(words, sign, "") for words, sign in MARKS.items() if words in seen]
    for level in (level for level in (*evidence.LEVELS, "") if level in levels):
        attribute = Markup('data-level="{}"').format(level)
        keys.append(key.format(level or "no evidence yet", "", attribute))
    html = Markup('<div class="verdicts">{}</div><div class="key">{}</div>')
    return html.format(Markup().join(rows), Markup().join(keys))


@table(
    "The paper's four aims (section 4), and what we found for each.",
    "aim|the paper says|our verdict|key number|what the number is, and the evidence",
)
def aims(book):
    judged = {v.claim.id: v for v in book.verdicts}
    for aim, topic in list(_topics(book)["aims"].items())[:4]:
        v = judged[f"aim-{aim}"]
        verdict = Markup('<b class="verdict">{}</b>').format(
            book.link(v.verdict, CLAIMS, f"#claim-aim-{aim}")
        )
        quote = Markup("<q>{}</q>").format(v.claim.quote)
        number = claims.shown(v.ours, v.claim) if v.ours else "none yet"
        on = f"Evidence: {v.says if is_open(v) else v.level}."
        where = [*_theirs(v.claim), *filter(None, map(book.titled, topic["pages"]))]
        yield topic["title"], quote, verdict, number, BREAK.join([v.claim.note, on, *where])


@table(
    "Checks within the paper: its numbers, and what they imply.",
    "numbers in the paper|what else the paper says|what follows",
)
def itself(book):
    """Nothing of ours is in it."""
    area = evidence.AREA
    for which, model in (
        ("fastest-original", "RefineNet-50"),
        ("fastest-lw", "RefineNet-LW-50"),
        ("slowest-original", "RefineNet-152"),
        ("slowest-lw", "RefineNet-LW-152"),
    ):
        ms, fps = paper.cell(2, model, "Runtime"), paper.statement(f"fps-{which}")
        implied = f"{1000 / (ms.value * area):.1f} FPS, if time grows with the area"
        yield f"{model}: {ms} ms at 625x468", f"{fps.value:.0f} FPS at 512x512", implied
    models = ("RefineNet-101", "RefineNet-LW-101")
    ms = [paper.value(2, model, "Runtime") for model in models]
    ops = [paper.value(3, model, "FLOPS") for model in models]
    saved = f"{ops[0] / ops[1]:.2f} times fewer operations"
    both = f"ResNet-101: {ops[0]:.0f} and {ops[1]:.0f} B, {ms[0]} and {ms[1]} ms"
    yield both, saved, f"{ms[0] / ms[1]:.2f} times faster"
    for model, b, t in zip(models, ops, ms):
        rate = f"{2 * b / area / t:.1f} TFLOP/s, a multiply-add being two operations"
        yield f"{model}: {b:.0f} B at 512x512, {t} ms at 625x468", "nothing about the rate", rate
    for form in ("", "LW-"):
        deeper, less = (paper.value(2, f"RefineNet-{form}{n}", "Runtime") for n in (101, 50))
        added = f"{deeper - less:.2f} ms for the same layers of the encoder"
        yield (
            f"RefineNet-{form}101 and -50: {deeper} and {less} ms",
            "the encoder is the same",
            added,
        )
    classes = int(paper.statement("voc-classes").value)
    for place in ("Before RCU", "After CRP"):
        right = paper.value(4, place, "acc")
        wrong = f"{(1 - right / 100) * classes:.2f} of {classes} answers wrong for an image"
        nothing = f"a head that always answers no is wrong at least once per image: at most {100 - 100 / classes:.0f} %"
        where = f"Table 4, {place[0].lower()}{place[1:]}: {right} %"
        yield where, f"{classes} classes", f"{wrong}; {nothing}"
    test = "NYUDv2 has 654 test images, Person-Part has 1817 validation images"
    two = 'Table 2: "on the test sets of NYUDv2 and PASCAL Person-Part"'
    yield two, test, "no test set of Person-Part"
    five = 'Table 5: "on the test set of PASCAL Context"'
    yield five, "Context has 5105 validation images", "the numbers are for the validation images"


@table(
    "All records. Each name is a link to the file.",
    "record and command|kind|seed|commit|hardware|date|minutes|mIoU|scored on",
)
def records(book):
    file = Markup(f'<a href="{"../" * book.env.docname.count("/")}results/{{0}}.json">{{0}}</a>')
    for name, record in book.records.items():
        miou = record["metrics"].get("miou")
        command = Markup("{} <div>{}</div>").format(file.format(name), record["command"])
        took, day = f"{record['wall_s'] / 60:.1f}", record["started"][:10]
        score = "" if miou is None else f"{100 * miou:.1f} %"
        score = score if record["status"] == "done" else record["status"]
        origin = (record["kind"], record["seed"], commit(record), hardware(record), day, took)
        scored = scored_on(record) if score else ""
        yield {"id": f"record-{name}"}, command, *origin, score, scored


def scored_on(record: dict) -> str:
    """Data set, split and scale of a record's mIoU."""
    config = record["config"]
    data = config.get("data") or config["stages"][-1]["data"]
    split = config.get("split") if record["kind"] != "train" else config.get("validation", "val")
    scales = config.get("scales") or [config.get("val_scale", 1)]
    return f"{data}/{split}" + (f", images scaled by {figure(scales)}" if scales != [1] else "")


def spent(book) -> pd.DataFrame:
    """What each record took."""
    return pd.DataFrame(
        {
            "study": r["kind"] != "train",
            "experiment": r["config"]["name"] if r["kind"] == "train" else r["kind"],
            "failed": r["status"] != "done",
            "minutes": r["wall_s"] / 60,
            "memory": r.get("peak_memory_mb") or 0,
            "hardware": hardware(r),
        }
        for r in book.records.values()
    )


@table(
    "Every experiment: number of runs, time, memory and hardware.",
    "experiment|runs|failed runs|median minutes per run|total hours|peak memory, GiB|hardware",
)
def compute(book):
    for (_, name), runs in spent(book).groupby(["study", "experiment"]):
        median, hours = f"{runs.minutes.median():.1f}", f"{runs.minutes.sum() / 60:.2f}"
        memory = f"{runs.memory.max() / 1024:.1f}" if runs.memory.max() else ""
        machines = BREAK.join(sorted(set(runs.hardware)))
        yield name, len(runs), runs.failed.sum(), median, hours, memory, machines


@table("All records by hardware.", "hardware|records|hours")
def machines(book):
    sums = spent(book).groupby("hardware").minutes.agg(["count", "sum"])
    sums.loc["all"] = sums.sum()
    for name, number, minutes in sums.itertuples():
        yield name, int(number), f"{minutes / 60:.1f}"


@table("How long it takes to run everything.", "command|what it does|time|hardware|record")
def times(book):
    bench = book.records.get("bench-rerun", {"metrics": {"rows": []}})
    minutes = {row["what"]: row["minutes"] for row in bench["metrics"]["rows"]}
    for command, does in (
        ("make book", "executes every notebook, renders the book"),
        ("make test", "unit tests; every notebook against its stored outputs"),
    ):
        cells = (NOT_MEASURED, "", "")
        if command in minutes:
            cells = f"{minutes[command]:.1f} minutes", hardware(bench), book.record("bench-rerun")
        yield CODE.format(command), does, *cells
    runs = [r for r in book.records.values() if r["kind"] == "train" and r["status"] == "done"]
    for tier in ("cpu", "gpu"):
        mine = [r for r in runs if ("gpu" in r["hardware"]) == (tier == "gpu")]
        does, cells = "the trainings that take too long on a processor", (NOT_MEASURED, "", "")
        if mine:
            does = f"the trainings; the time is that of the {len(mine)} on record"
            took = f"{sum(r['wall_s'] for r in mine) / 3600:.1f} hours"
            machines = BREAK.join(sorted({hardware(r) for r in mine}))
            cells = took, machines, book.link("records", RECORDS)
        yield CODE.format(f"rflw campaign run --tier {tier}"), does, *cells


@table(
    "How mIoU changes with one setting. The 95 % interval over seeds is given where there are several seeds.",
    "setting|change in mIoU|seeds|data|from",
)
def effects(book):
    """The pairs of `effects.csv`: runs that differ in nothing but one setting."""
    pairs = pd.read_csv(Path(book.env.srcdir) / "book/effects.csv")
    for setting, before, after, data in pairs.itertuples(index=False):
        first, second = scores(book, before), scores(book, after)
        change = paired_difference(
            {seed: score for seed, (score, _) in first.items()},
            {seed: score for seed, (score, _) in second.items()},
        )
        if change:
            seeds = sorted(first.keys() & second.keys())
            links = [book.record(runs[seed][1]) for seed in seeds for runs in (first, second)]
            links = folded(f"{len(links)} records", links)
            yield setting, f"{change:+.1f} points", change.n, data, links


def scores(book, name: str) -> dict[int, tuple[float, str]]:
    """{seed: (mIoU in percent, record)} of a recipe's trainings, or of one evaluation."""
    runs = evidence.trained(book.records.values(), name).values()
    found = [book.records[name]] if name in book.records else runs
    return {r["seed"]: (100 * r["metrics"]["miou"], r["name"]) for r in found}


@table("Versions of the packages with which the records were made.", "package|versions")
def versions(book):
    used = [pair for record in book.records.values() for pair in record["versions"].items()]
    for package, found in pd.DataFrame(used, columns=["package", "version"]).groupby("package"):
        yield package, ", ".join(sorted(set(found.version), key=Version))


@table(
    "The packages in the lock file, and the licences that their metadata name.",
    "package|version|licence",
)
def licences(book):
    """Packages that are for other systems are left out."""
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    for name, version in sorted(set(re.findall(r"(?m)^([A-Za-z0-9][\w.-]*)==([^\s;]+)", lock))):
        try:
            package = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        line = (package.get("License") or "").strip()
        text = "" if len(line) >= 80 or "\n" in line else line  # some have all of it there
        classes = [c for c in package.get_all("Classifier") or () if c.startswith("License ::")]
        named = package.get("License-Expression") or text
        named = named or ", ".join(each.split(" :: ")[-1] for each in classes)
        yield name, version, named or "not named in its metadata"


@table(
    "Parameters and multiply-adds at 512x512 pixels with 21 classes; convolutions and pools are "
    "counted.",
    "network|parameters, M|multiply-adds, B|parameters in the decoder, %|multiply-adds, as a bar",
)
def explorer(book):
    """`explore.js` counts these networks anew for other sizes, classes and conventions."""
    for row in book.records["complexity"]["metrics"]["rows"]:
        model, params, macs = row["model"], row["params"], row["macs"]
        decoder = row["parts"]["decoder"]["params"]
        data = {key: row[key] for key in ("classes", "size", "params", "macs")}
        attributes = {"data-model": model, "data-counts": json.dumps(data | {"decoder": decoder})}
        billions = f"{(macs['conv'] + macs['pool']) / 1e9:.2f}"
        share, bar = f"{100 * decoder / params:.0f}", Markup('<span class="bar"></span>')
        yield attributes, model, f"{params / 1e6:.2f}", billions, share, bar


@table("The settings of a recipe and its stages.", "setting|default|meaning")
def recipe_defaults(book):
    source = (REPOSITORY / "rflw/config.py").read_text(encoding="utf-8")
    meaning = dict(re.findall(r"(?m)^    (\w+): .+?  # (.+)$", source))
    for kind in (Recipe, Stage):
        for f in fields(kind):
            if f.name != "note":
                default = "must be given" if f.default is MISSING else figure(f.default)
                yield CODE.format(f.name), default, meaning.get(f.name, "")


@table(
    "All recipes outside the grid, and the settings that are not the default.",
    "recipe|network|stages: data, epochs, learning rates of encoder and decoder|other settings",
)
def recipes(book):
    for recipe in (OWN, *(r for r in RECIPES.values() if "-grid-" not in r.name)):
        stages = [
            f"{s.data} {s.epochs} epochs: {s.encoder_lr:g}, {s.decoder_lr:g}{changed(s)}"
            for s in recipe.stages
        ]
        settings = changed(recipe).removeprefix("; ")
        yield CODE.format(recipe.name), recipe.model, BREAK.join(stages), settings


def changed(settings: Recipe | Stage) -> str:
    """The settings that are not the default, without those that have a column of their own."""
    columns = ("name", "model", "stages", "note", "data", "epochs", "encoder_lr", "decoder_lr")
    values = [(f, getattr(settings, f.name)) for f in fields(settings) if f.name not in columns]
    return "".join(f"; {f.name} {figure(value)}" for f, value in values if value != f.default)


def figure(value) -> str:
    """A value of a setting or a record as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)) and value:
        return ", ".join(map(figure, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value in (None, "", (), []) else str(value)


@table(
    "The tests of reliability and their results.", "test|results|command|minutes|hardware|record"
)
def reliability(book):
    for name, record in book.records.items():
        if record["kind"] == "reliability":
            metrics = record["metrics"]
            what = " of ".join([metrics["what"], *metrics.get("modules", ())])
            lines = []
            for key, value in metrics.items():
                if isinstance(value, int | float):
                    is_share = isinstance(value, float) and value <= 1
                    shown = f"{value:.1%}" if is_share else figure(value)
                    lines.append(f"{WORDS.get(key, key.replace('_', ' '))}: {shown}")
            took, command = f"{record['wall_s'] / 60:.1f}", CODE.format(record["command"])
            yield what, BREAK.join(lines), command, took, hardware(record), book.record(name)

"""What the book's pages show of claims, records, recipes and packages: see `derived`."""

from dataclasses import MISSING, fields
from importlib import metadata
import json
from pathlib import Path
import re
import runpy

from markupsafe import Markup
from origins import CLAIMS, RECORDS, commit, hardware
import pandas as pd
import yaml

from rflw.config import Recipe, Stage
from rflw.recipes import RECIPES
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


def ledger(book):
    topic = _topics(book)
    order = [*topic["aims"], ""]
    columns = ["claim", "paper", "ours", "level of evidence", "verdict", "evidence"]
    quoted = Markup('<a class="where" href="#claim-{}">{}</a> <q>{}</q>{}')
    rows = []
    head = {f"aim-{aim}" for aim in order}
    place = {v: (order.index(v.claim.aim), v.claim.id not in head) for v in book.verdicts}
    for v in sorted(book.verdicts, key=place.get):  # each aim heads its claims
        claim, ours = v.claim, claims.shown(v.ours, v.claim) if v.ours else "none"
        sort = "quoted" if not claim.test else "repeated" if claim.repeats else "own"
        about = topic["aims"][claim.aim]["title"] if claim.test else "quoted"
        repeats = claim.repeats and Markup('Repeats <a href="#claim-{0}">{0}</a>.').format(
            claim.repeats
        )
        why = folded("tolerance and test", (_tolerance(claim), claim.note))
        links = [book.record(name) for name in v.records]
        links = folded(f"{len(links)} records", links) if len(links) > 3 else BREAK.join(links)
        chapter = book.titled(topic["kinds"][claim.kind]) if claim.test else ""
        chapter = chapter and Markup("Chapter: {}").format(chapter)
        says = v.says if v.says != ours else ""
        evidence = BREAK.join(filter(None, (says, links, *_theirs(claim), repeats, chapter)))
        quote = quoted.format(claim.id, claim.where, claim.quote, why if claim.test else "")
        verdict = Markup('<span class="verdict">{}</span>').format(v.verdict)
        open_ = claim.test and mark(v.verdict)[0] in ("not decided", "not tested")
        level = f"none yet: asks for {v.level}" if open_ else v.level
        data = {"data-verdict": v.verdict, "data-aim": about}
        data["data-level"] = "none yet" if open_ else v.level
        attributes = {"id": f"claim-{claim.id}"} | data
        attributes |= {"data-source": sort, "data-where": claim.where}
        rows.append((attributes, quote, claim.stated, ours, level, verdict, evidence))
    return "Every claim, what the paper says, what was measured.", columns, rows


def _tolerance(claim) -> str:
    """The margin or tolerance of a claim, why it is what it is, and since when it stands."""
    if not claim.test:
        return ""
    if claim.kind == "compare":
        on = evidence.protocol().data
        margins = " ".join(
            f"{data}: {each.margin:g} points. {' '.join(each.reason.split())}"
            for data, each in on.items()
        )
        return f"Margins {margins} {' of '.join(filter(None, ('Fixed', *evidence.fixed())))}."
    unit = claims.UNITS.get(claim.unit, claim.unit)
    since = f" Since {claim.fixed}." if claim.fixed else ""
    return f"Tolerance {claim.tolerance:.3g} {unit}: {claim.reason}.{since}"


def _theirs(claim) -> list[Markup]:
    """What others measured of a claim, marked as theirs."""
    line = Markup('<span class="theirs">Theirs, not ours: {who}, {what}{value}. {source}</span>')
    return [
        line.format(**row | {"value": row["value"] and f": {row['value']}"})
        for row in claims.others().get(claim.id, ())
    ]


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
    caption = "The paper's own claims by verdict and by what they are about, each counted once."
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
            level = "" if words in ("not decided", "not tested") else v.level
            seen.add(words)
            levels.add(level)
            claim = v.claim
            drawn.append(
                square.format(v.verdict, uri, claim.id, claim.where, claim.quote, sign, level)
            )
        rows.append(row.format(topic["title"], Markup().join(drawn)))
    keys = [key.format(words, sign, "") for words, sign in MARKS.items() if words in seen]
    for level in (level for level in evidence.LEVELS if level in levels):
        keys.append(key.format(level, "", Markup('data-level="{}"').format(level)))
    html = Markup('<div class="verdicts">{}</div><div class="key">{}</div>')
    return html.format(Markup().join(rows), Markup().join(keys))


def aims(book):
    """The paper's four aims: what it says, what was found, the key number, and on what evidence."""
    judged = {v.claim.id: v for v in book.verdicts}
    rows = []
    for aim, topic in list(topics(book).items())[:4]:
        v, under = judged[f"aim-{aim}"], [v.verdict for v in topic["verdicts"]]
        count = [(words, sum(mark(u)[0] == words for u in under)) for words in MARKS]
        counts = f"Of {len(under)} claims: {', '.join(f'{n} {words}' for words, n in count if n)}."
        number = claims.shown(v.ours, v.claim) if v.ours else "none yet"
        number = BREAK.join(filter(None, (number, v.claim.note)))
        on = v.level if mark(v.verdict)[0] not in ("not decided", "not tested") else v.says
        verdict = Markup('<b class="verdict">{}</b>').format(
            book.link(v.verdict, CLAIMS, f"#claim-aim-{aim}")
        )
        quote = Markup("<q>{}</q>").format(v.claim.quote)
        where = [*_theirs(v.claim), *filter(None, map(book.titled, topic["pages"]))]
        found = BREAK.join([verdict, counts])
        rows.append(({}, topic["title"], quote, found, number, BREAK.join([on, *where])))
    caption = "The paper's four aims (section 4), and what is known of each."
    return (
        caption,
        ["aim", "the paper says", "what we found", "key number", "on which evidence"],
        rows,
    )


def itself(book):
    """What the paper's own numbers imply: nothing of ours is in it."""
    area = evidence.AREA
    rows = []
    for id, model in (
        ("fps-fastest-original", "RefineNet-50"),
        ("fps-fastest-lw", "RefineNet-LW-50"),
        ("fps-slowest-original", "RefineNet-152"),
        ("fps-slowest-lw", "RefineNet-LW-152"),
    ):
        ms, fps = paper.cell(2, model, "Runtime"), paper.statement(id)
        implied = f"{1000 / (ms.value * area):.1f} FPS, if time grows with the area"
        rows.append(
            ({}, f"{model}: {ms} ms at 625x468", f"{fps.value:.0f} FPS at 512x512", implied)
        )
    heavy, light = "RefineNet-101", "RefineNet-LW-101"
    ms = [paper.value(2, model, "Runtime") for model in (heavy, light)]
    ops = [paper.value(3, model, "FLOPS") for model in (heavy, light)]
    saved = f"{ops[0] / ops[1]:.2f} times fewer operations"
    faster = f"{ms[0] / ms[1]:.2f} times faster"
    rows.append(
        ({}, f"ResNet-101: {ops[0]:.0f} and {ops[1]:.0f} B, {ms[0]} and {ms[1]} ms", saved, faster)
    )
    for model, b, t in zip((heavy, light), ops, ms):
        rate = f"{2 * b / area / t:.1f} TFLOP/s, a multiply-add being two operations"
        rows.append(({}, f"{model}: {b:.0f} B at 512x512, {t} ms at 625x468", "no rate", rate))
    test = "NYUDv2's 654 images are named as for testing, Person-Part's 1817 as for validation"
    rows.append(
        (
            {},
            'Table 2: "on the test sets of NYUDv2 and PASCAL Person-Part"',
            test,
            "no test set of Person-Part",
        )
    )
    rows.append(
        (
            {},
            'Table 5: "on the test set of PASCAL Context"',
            "5105 validation images",
            "no test set of Context",
        )
    )
    caption = "The paper against itself: what it prints, and what its own numbers imply."
    return caption, ["from", "the paper also says", "which implies"], rows


def records(book):
    columns = "record and command|kind|seed|commit|hardware|date|minutes|status|mIoU".split("|")
    file = Markup(f'<a href="{"../" * book.env.docname.count("/")}results/{{0}}.json">{{0}}</a>')
    rows = []
    for name, record in book.records.items():
        miou = record["metrics"].get("miou")
        command = Markup("{} <div>{}</div>").format(file.format(name), record["command"])
        took, day = f"{record['wall_s'] / 60:.1f}", record["started"][:10]
        score = "" if miou is None else f"{100 * miou:.1f} %"
        origin = (record["kind"], record["seed"], commit(record), hardware(record), day, took)
        rows.append(({"id": f"record-{name}"}, command, *origin, record["status"], score))
    return "Every record; its name leads to the file.", columns, rows


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


def compute(book):
    columns = (
        "experiment|runs|failed|minutes a run, median|hours in all|memory, GiB at most|hardware"
    )
    rows = []
    for (_, name), runs in spent(book).groupby(["study", "experiment"]):
        median, hours = f"{runs.minutes.median():.1f}", f"{runs.minutes.sum() / 60:.2f}"
        memory = f"{runs.memory.max() / 1024:.1f}" if runs.memory.max() else ""
        machines = BREAK.join(sorted(set(runs.hardware)))
        rows.append(({}, name, len(runs), runs.failed.sum(), median, hours, memory, machines))
    return "Every experiment: its runs, and what they took.", columns.split("|"), rows


def machines(book):
    sums = spent(book).groupby("hardware").minutes.agg(["count", "sum"])
    sums.loc["all"] = sums.sum()
    rows = [({}, name, int(n), f"{minutes / 60:.1f}") for name, n, minutes in sums.itertuples()]
    return "All records by the hardware that they ran on.", ["hardware", "records", "hours"], rows


def times(book):
    rows = []
    bench = book.records.get("bench-rerun", {"metrics": {"rows": []}})
    minutes = {row["what"]: row["minutes"] for row in bench["metrics"]["rows"]}
    for command, does in (
        ("make book", "executes every notebook, renders the book"),
        ("make test", "unit tests; every notebook against its stored outputs"),
    ):
        cells = (NOT_MEASURED, "", "")
        if command in minutes:
            took = f"{minutes[command]:.1f} minutes"
            cells = took, hardware(bench), book.record("bench-rerun")
        rows.append(({}, CODE.format(command), does, *cells))
    runs = [r for r in book.records.values() if r["kind"] == "train" and r["status"] == "done"]
    for tier in ("cpu", "gpu"):
        mine = [r for r in runs if ("gpu" in r["hardware"]) == (tier == "gpu")]
        command = CODE.format(f"rflw campaign run --tier {tier}")
        does, cells = "the trainings that a processor is too slow for", (NOT_MEASURED, "", "")
        if mine:
            does = f"the {len(mine)} trainings on record, one after another"
            took = f"{sum(r['wall_s'] for r in mine) / 3600:.1f} hours"
            link = book.link("records", RECORDS)
            cells = took, BREAK.join(sorted({hardware(r) for r in mine})), link
        rows.append(({}, command, does, *cells))
    columns = ["command", "what it does", "takes", "hardware", "from"]
    return "What it takes to run everything again.", columns, rows


def effects(book):
    """The pairs of `effects.csv`: runs that differ in nothing but one setting."""
    rows = []
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
            rows.append(({}, setting, f"{change:+.1f} points", change.n, data, links))
    caption = "What one setting changes in mIoU, with the 95 % interval over seeds where there are several."
    return caption, ["setting", "change in mIoU", "seeds", "data", "from"], rows


def scores(book, name: str) -> dict[int, tuple[float, str]]:
    """{seed: (mIoU in percent, record)} of a recipe's trainings, or of one evaluation."""
    if not name.startswith("eval-"):
        return evidence.scores(book.records.values(), name)
    record = book.records.get(name)
    return {record["seed"]: (100 * record["metrics"]["miou"], name)} if record else {}


def versions(book):
    used = [pair for record in book.records.values() for pair in record["versions"].items()]
    rows = []
    for package, found in pd.DataFrame(used, columns=["package", "version"]).groupby("package"):
        rows.append(({}, package, ", ".join(sorted(set(found.version))), len(found)))
    caption = "Versions that the records were measured with."
    return caption, ["package", "version", "records"], rows


def stamps(book):
    script = Path(book.env.srcdir) / "notebooks/stamps.py"
    stamp_of = runpy.run_path(str(script))["stamp"]
    rows = []
    for name, stamp in json.loads(script.with_suffix(".json").read_text()).items():
        now = stamp_of(script.with_name(name), REPOSITORY)
        hashes = [
            CODE.format(stamp[part][:8]) + ("" if stamp[part] == now[part] else " (changed since)")
            for part in ("sources", "modules")
        ]
        page = book.link(name, f"notebooks/{Path(name).stem}")
        rows.append(({"id": f"stamp-{name}"}, page, stamp["cells"], *hashes))
    caption = (
        "What each stored notebook was executed with: hashes of its cells and of what it imports."
    )
    return caption, ["notebook", "cells", "sources", "modules"], rows


def licences(book):
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    locked = sorted(set(re.findall(r"(?m)^([A-Za-z0-9][\w.-]*)==([^\s;]+)", lock)))
    rows = []
    for name, version in locked:
        try:
            package = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        line = (package.get("License") or "").strip()
        classes = [c for c in package.get_all("Classifier") or () if c.startswith("License ::")]
        licence = package.get("License-Expression") or (
            line if len(line) < 80 and "\n" not in line else ""
        )
        licence = licence or ", ".join(c.split(" :: ")[-1] for c in classes)
        rows.append(({}, name, version, licence or "not named in its metadata"))
    absent = f" {len(locked) - len(rows)} that are for other systems are left out."
    caption = f"{len(rows)} packages and their licences, as they name them.{absent}"
    return caption, ["package", "version", "licence"], rows


def explorer(book):
    """`explore.js` counts these networks anew for other sizes, classes and conventions."""
    columns = "network|parameters, M|multiply-adds, B|parameters in the decoder, %|multiply-adds"
    rows = []
    for row in book.records["complexity"]["metrics"]["rows"]:
        model, params, macs = row["model"], row["params"], row["macs"]
        decoder = row["parts"]["decoder"]["params"]
        data = {key: row[key] for key in ("classes", "size", "params", "macs")}
        attributes = {"data-model": model, "data-counts": json.dumps(data | {"decoder": decoder})}
        billions = f"{(macs['conv'] + macs['pool']) / 1e9:.2f}"
        share, bar = f"{100 * decoder / params:.0f}", Markup('<span class="bar"></span>')
        rows.append((attributes, model, f"{params / 1e6:.2f}", billions, share, bar))
    height, width = row["size"]
    caption = (
        f"Parameters and multiply-adds at {width}x{height} pixels with {row['classes']} classes; "
        "convolutions and pools are counted."
    )
    return caption, columns.split("|"), rows


def recipe_defaults(book):
    defaults = [f for kind in (Recipe, Stage) for f in fields(kind) if f.default is not MISSING]
    rows = [({}, CODE.format(f.name), figure(f.default)) for f in defaults if f.name != "note"]
    return "What holds unless a recipe says otherwise.", ["setting", "value"], rows


def recipes(book):
    rows = []
    for recipe in RECIPES.values():
        stages = [
            f"{s.data} {s.epochs} epochs: {s.encoder_lr:g}, {s.decoder_lr:g}{changed(s)}"
            for s in recipe.stages
        ]
        settings = changed(recipe).removeprefix(", ")
        rows.append(({}, CODE.format(recipe.name), recipe.model, "; ".join(stages), settings))
    columns = ["recipe", "network", "stages: encoder's and decoder's rate", "other settings"]
    return "All recipes, and what they say.", columns, rows


def changed(settings: Recipe | Stage) -> str:
    """The settings that are not the default, without those that have a column of their own."""
    columns = ("name", "model", "stages", "note", "data", "epochs", "encoder_lr", "decoder_lr")
    values = [(f, getattr(settings, f.name)) for f in fields(settings) if f.name not in columns]
    return "".join(f", {f.name} {figure(value)}" for f, value in values if value != f.default)


def figure(value) -> str:
    """A value of a setting or a record as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)) and value:
        return ", ".join(map(figure, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value in (None, "", (), []) else str(value)


def reliability(book):
    rows = []
    for name, record in book.records.items():
        if record["kind"] == "reliability":
            counts = {key: value for key, value in record["metrics"].items() if key != "what"}
            flat = [k for k, v in counts.items() if not isinstance(v, (dict, list))]
            lines = [f"{key.replace('_', ' ')}: {figure(counts.pop(key))}" for key in flat]
            more = Markup("<pre>{}</pre>").format(yaml.safe_dump(counts, sort_keys=False))
            figures = BREAK.join(lines) + (folded("in detail", [more]) if counts else "")
            took, command = f"{record['wall_s'] / 60:.1f}", CODE.format(record["command"])
            origin = (command, took, hardware(record), book.record(name))
            rows.append(({}, record["metrics"]["what"], figures, *origin))
    columns = ["what", "figures", "command", "minutes", "hardware", "record"]
    return "What was tried, and what was counted.", columns, rows

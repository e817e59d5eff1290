"""Pages that derive what they say from records, claims and recipes, and what a published book needs: an address, buttons, a 404
page, pictures that are described. Nothing here holds a result: a record that comes later changes the page by itself."""

from collections import defaultdict
from html import escape
from importlib import metadata
import json
import logging as std_logging
import os
from pathlib import Path
import re
import runpy
from statistics import median

from bookparts import CLAIMS_PAGE, TOPICS, Table, hardware, judged, kept
from docutils import nodes
from docutils.parsers.rst import directives
from PIL import Image
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
REPOSITORY = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?")
MARKS = {
    "reproduced": "✓",
    "partly": "≈",
    "not reproduced": "✗",
    "supported on substitute data": "+",
    "contradicted on substitute data": "−",
    "undecided on substitute data": "?",
    "not tested": "·",
}
QUESTIONS = {  # topic: what a reader asks, and the pages that tell, those of them that the book has
    "size": ("Do the counts of parameters and multiply-adds hold?", ("notebooks/02_complexity",)),
    "scores": ("Does the accuracy on the paper's data sets hold?", ("book/rerun",)),
    "decoders compared": (
        "Does the light decoder keep the heavy one's accuracy, and do its parts matter as it is said?",
        ("notebooks/05_training",),
    ),
    "speed": ("Does the speed hold?", ("notebooks/09_runtime",)),
    "blocks": (
        "Do the explanations hold: pooling gives context, residual units add next to nothing?",
        ("notebooks/06_ablation_heads", "notebooks/07_receptive_fields", "notebooks/08_pictures"),
    ),
    "data sets": ("Are the data sets as described?", ("notebooks/04_data",)),
}
RERUN = {
    "make book": "executes every notebook, renders the book",
    "make test": "unit tests; every notebook against its stored outputs",
}
NOT_MEASURED = "not measured yet"
# What a setting changes: (what, recipe before, recipe after).
EFFECTS = (
    (
        "classes weighted by the inverse root of their frequency, not alike",
        "camvid-tune-plain",
        "camvid-tune-balance",
    ),
    (
        "classes weighted by their inverse frequency, not its root",
        "camvid-tune-balance",
        "camvid-tune-strong-balance",
    ),
    ("rates of both parts doubled", "camvid-tune-balance", "camvid-tune-rates"),
    ("AdamW with rates and decay of its own, not SGD", "camvid-tune-balance", "camvid-tune-adamw"),
    ("batches half as large", "camvid-tune-balance", "camvid-tune-batch"),
    ("scales from 0.5 to 1.5, not from 0.75 to 2", "camvid-tune-batch", "camvid-tune-scale"),
    ("larger crops", "camvid-tune-balance", "camvid-tune-crop"),
    ("EfficientNet-Lite2, not Lite0", "camvid-tune-balance", "camvid-tune-lite2"),
    (
        "residual units in the light-weight decoder",
        "camvid-lw-efficientnet_lite0",
        "camvid-lw-rcu-efficientnet_lite0",
    ),
    (
        "no CRP in the light-weight decoder",
        "camvid-lw-efficientnet_lite0",
        "camvid-lw-nocrp-efficientnet_lite0",
    ),
    (
        "no CRP, where context decides",
        "embedded-lw-efficientnet_lite0",
        "embedded-lw-nocrp-efficientnet_lite0",
    ),
    (
        "only the two coarsest levels, where context decides",
        "embedded-lw-efficientnet_lite0",
        "embedded-lw-top2-efficientnet_lite0",
    ),
    (
        "no residual units in the original decoder",
        "embedded-original-efficientnet_lite0",
        "embedded-norcu-efficientnet_lite0",
    ),
)
EVALUATIONS = (
    ("scored at one scale, and mirrored", "eval-camvid-camvid-val", "eval-camvid-camvid-val-flip"),
    (
        "scored at five scales and mirrored, as `msc` in the paper",
        "eval-camvid-camvid-val",
        "eval-camvid-camvid-val-scales-0.5-0.75-1-1.25-1.5-flip",
    ),
)


def by_topic(source: str) -> dict[str, list]:
    """{topic: verdicts of the paper's own claims}."""
    own = [v for v in judged(source) if v.claim.test]
    return {topic: [v for v in own if TOPICS[v.claim.kind] == topic] for topic in QUESTIONS}


class Drawn(Table):
    """A numbered figure whose picture is HTML. Its content is the caption."""

    has_content = True

    def figure(self, html: str) -> list[nodes.Node]:
        words, messages = self.state.inline_text(" ".join(self.content), self.lineno)
        figure = nodes.figure("", nodes.raw("", html, format="html"), nodes.caption("", "", *words))
        figure["classes"].append("drawn")
        self.set_source_info(figure)
        self.add_name(figure)
        return [figure, *messages]


class Verdict(Drawn):
    """The one picture: a square for each claim, coloured and marked by its verdict, in rows by what it is about."""

    def run(self) -> list[nodes.Node]:
        from rflw_study.claims import VERDICTS

        uri = self.env.app.builder.get_relative_uri(self.env.docname, CLAIMS_PAGE)
        lines = ['<div class="verdicts">']
        for topic, found in self.checked(by_topic).items():
            squares = [
                f'<a class="square" data-verdict="{v.verdict}" href="{uri}#claim-{escape(v.claim.id)}" '
                f'aria-label="{escape(v.claim.where)}, {escape(v.claim.id)}: {v.verdict}" '
                f'title="{escape(v.claim.where)}: {escape(v.claim.quote)} ({v.verdict})">{MARKS[v.verdict]}</a>'
                for v in sorted(found, key=lambda v: VERDICTS.index(v.verdict))
            ]
            lines.append(
                f'<div class="about"><span class="word">{topic}</span><span class="squares">{"".join(squares)}</span></div>'
            )
        seen = {v.verdict for v in judged(str(self.env.srcdir)) if v.claim.test}
        key = "".join(
            f'<span><i class="square" data-verdict="{verdict}" aria-hidden="true">{MARKS[verdict]}</i> {verdict}</span>'
            for verdict in VERDICTS
            if verdict in seen
        )
        return self.figure("".join([*lines, f'</div><div class="key">{key}</div>']))


class Answers(Table):
    """Each question that a reader brings, with what became of the claims about it."""

    def run(self) -> list[nodes.Node]:
        from rflw_study.claims import VERDICTS

        rows = []
        for topic, found in self.checked(by_topic).items():
            question, pages = QUESTIONS[topic]
            counts = {verdict: sum(v.verdict == verdict for v in found) for verdict in VERDICTS}
            told = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
            links = "<br>".join(filter(None, map(self.titled, pages))) or self.titled(CLAIMS_PAGE)
            rows.append(
                (
                    f"answer-{topic.replace(' ', '-')}",
                    {},
                    [question, f"of {len(found)} claims: {told}", links],
                )
            )
        return self.table(
            "answers",
            "What was asked, and what became of the claims about it.",
            ["question", "answer", "where"],
            rows,
        )


class Compute(Table):
    """What the records took: by experiment, and in all by hardware."""

    def run(self) -> list[nodes.Node]:
        groups, machines = defaultdict(list), defaultdict(list)
        for record in self.checked(kept).values():
            name = record["config"]["name"] if record["kind"] == "train" else record["kind"]
            groups[record["kind"] != "train", name].append(record)
            machines[hardware(record)].append(record)
        rows = []
        for (_, name), found in sorted(groups.items()):
            minutes = [record["wall_s"] / 60 for record in found]
            failed = sum(record["status"] != "done" for record in found)
            memory = [
                record["peak_memory_mb"] / 1024 for record in found if record.get("peak_memory_mb")
            ]
            rows.append(
                (
                    f"compute-{name}",
                    {},
                    [
                        escape(name),
                        str(len(found)),
                        str(failed),
                        f"{median(minutes):.1f}",
                        f"{sum(minutes) / 60:.2f}",
                        f"{max(memory):.1f}" if memory else "",
                        "<br>".join(sorted({hardware(r) for r in found})),
                    ],
                )
            )
        first = self.table(
            "compute",
            "Every experiment: its runs, and what they took.",
            [
                "experiment",
                "runs",
                "failed",
                "minutes a run, median",
                "hours in all",
                "memory, GiB at most",
                "hardware",
            ],
            rows,
        )
        rows = [
            (
                f"machine-{i}",
                {},
                [escape(name), str(len(found)), f"{sum(r['wall_s'] for r in found) / 3600:.1f}"],
            )
            for i, (name, found) in enumerate(sorted(machines.items()))
        ]
        everything = [record for found in machines.values() for record in found]
        rows.append(
            (
                "machine-all",
                {},
                ["all", str(len(everything)), f"{sum(r['wall_s'] for r in everything) / 3600:.1f}"],
            )
        )
        return [
            *self.table(
                "machines",
                "All records by the hardware that they ran on.",
                ["hardware", "records", "hours"],
                rows,
            ),
            *first,
        ]


class RerunTimes(Table):
    """How long it takes to run this book again: measured, or summed over the records, or not measured yet."""

    def run(self) -> list[nodes.Node]:
        found = self.checked(kept)
        record = found.get("bench-rerun")
        measured = (
            {row["what"]: row["minutes"] for row in record["metrics"]["rows"]} if record else {}
        )
        rows = [
            (
                f"time-{command.replace(' ', '-')}",
                {},
                [
                    f"<code>{escape(command)}</code>",
                    does,
                    f"{measured[command]:.1f} minutes" if command in measured else NOT_MEASURED,
                    hardware(record) if command in measured else "",
                    self.link("record", "book/records#record-bench-rerun")
                    if command in measured
                    else "",
                ],
            )
            for command, does in RERUN.items()
        ]
        runs = [
            record
            for record in found.values()
            if record["kind"] == "train" and record["status"] == "done"
        ]
        for tier, mine in (
            ("cpu", [r for r in runs if "gpu" not in r["hardware"]]),
            ("gpu", [r for r in runs if "gpu" in r["hardware"]]),
        ):
            does = (
                f"the {len(mine)} trainings on record, one after another"
                if mine
                else "the trainings that a processor is too slow for"
            )
            took = f"{sum(r['wall_s'] for r in mine) / 3600:.1f} hours" if mine else NOT_MEASURED
            rows.append(
                (
                    f"time-campaign-{tier}",
                    {},
                    [
                        f"<code>rflw campaign run --tier {tier}</code>",
                        does,
                        took,
                        "<br>".join(sorted({hardware(r) for r in mine})),
                        self.link("records", "book/records") if mine else "",
                    ],
                )
            )
        return self.table(
            "times",
            "What it takes to run everything again.",
            ["command", "what it does", "takes", "hardware", "from"],
            rows,
        )


class Effects(Table):
    """What the settings that the paper leaves open change, where two runs on record differ in nothing but what a row names."""

    def run(self) -> list[nodes.Node]:
        from rflw_study.claims import scores
        from rflw_study.statistics import paired_difference

        found, rows = self.checked(kept), []

        def row(what, low, value, n, names, data):
            spread = f" [{low[0]:+.1f}, {low[1]:+.1f}]" if n > 1 else ""
            records = [self.link(name, f"book/records#record-{name}") for name in names]
            rows.append(
                (
                    f"effect-{len(rows)}",
                    {},
                    [
                        escape(what),
                        f"{value:+.1f}{spread} points",
                        str(n),
                        data,
                        f"<details><summary>{len(records)} records</summary>{'<br>'.join(records)}</details>",
                    ],
                )
            )

        for what, before, after in EFFECTS:
            first, second = scores(found.values(), before), scores(found.values(), after)
            change = paired_difference(
                {s: v for s, (v, _) in first.items()}, {s: v for s, (v, _) in second.items()}
            )
            if change:
                names = [
                    name
                    for seed in sorted(first.keys() & second.keys())
                    for _, name in (first[seed], second[seed])
                ]
                data = (
                    "CamVid, held-out training frames"
                    if "tune" in before
                    else "CamVid"
                    if "camvid" in before
                    else "the embedded set"
                )
                row(what, (change.low, change.high), change.mean, change.n, names, data)
        for what, before, after in EVALUATIONS:
            if before in found and after in found:
                row(
                    what.replace("`", ""),
                    None,
                    100 * (found[after]["metrics"]["miou"] - found[before]["metrics"]["miou"]),
                    1,
                    (before, after),
                    "CamVid",
                )
        return self.table(
            "effects",
            "What one setting changes in mIoU, with the 95 % interval over seeds where there are several.",
            ["setting", "change in mIoU", "seeds", "data", "from"],
            rows,
        )


class Reliability(Table):
    """All records of kind "reliability": their figures in one table, then what each counted in detail, whatever that is."""

    def run(self) -> list[nodes.Node]:
        found = {
            name: record
            for name, record in self.checked(kept).items()
            if record["kind"] == "reliability"
        }
        rows, more = [], []
        for name, record in found.items():
            figures = record["metrics"]
            told = [
                f"{words(key)}: {figure(value)}"
                for key, value in figures.items()
                if key != "what" and not detailed(value) and value != []
            ]
            rows.append(
                (
                    f"reliable-{name}",
                    {},
                    [
                        escape(figures["what"]),
                        "<br>".join(map(escape, told)),
                        f"<code>{escape(record['command'])}</code>",
                        f"{record['wall_s'] / 60:.1f}",
                        escape(hardware(record)),
                        self.link(name, f"book/records#record-{name}"),
                    ],
                )
            )
            for key, value in figures.items():
                if detailed(value):
                    more += self.details(f"{figures['what']}: {words(key)}", f"{name}-{key}", value)
        if not rows:
            return []
        columns = ["what", "figures", "command", "minutes", "hardware", "record"]
        return [
            *self.table("reliability", "What was tried, and what was counted.", columns, rows),
            *more,
        ]

    def details(self, caption: str, key: str, value) -> list[nodes.Node]:
        """A table of a dict of dicts or a list of dicts, folded."""
        named = (
            list(value.items())
            if isinstance(value, dict)
            else [(str(i), row) for i, row in enumerate(value, 1)]
        )
        columns = list(dict.fromkeys(column for _, row in named for column in row))
        rows = [
            (
                f"{key}-{i}",
                {},
                [escape(name), *(escape(figure(row.get(column))) for column in columns)],
            )
            for i, (name, row) in enumerate(named)
        ]
        table = self.table(key, caption, ["", *map(words, columns)], rows)
        return [
            nodes.raw(
                "",
                f"<details><summary>{escape(caption)} ({len(rows)} rows)</summary>",
                format="html",
            ),
            *table,
            nodes.raw("", "</details>", format="html"),
        ]


def detailed(value) -> bool:
    """Whether a figure is a table: a dict or a list of dicts."""
    inner = (
        list(value.values())
        if isinstance(value, dict)
        else value
        if isinstance(value, list)
        else []
    )
    return bool(inner) and all(isinstance(row, dict) for row in inner)


def words(key: str) -> str:
    """A record's key as a reader has it: "peak_mb" is "peak, MB"."""
    for suffix, unit in (("_mb", "MB"), ("_s", "s"), ("_percent", "%")):
        if key.endswith(suffix):
            return f"{key.removesuffix(suffix).replace('_', ' ')}, {unit}"
    return key.replace("_", " ")


def figure(value) -> str:
    """A figure of a record in words."""
    if value is None or isinstance(value, bool):
        return "" if value is None else "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{words(key)} {figure(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(figure, value))
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


class Licences(Table):
    """Every package of the lock that is installed where the book is built, with the licence that its own metadata names."""

    def run(self) -> list[nodes.Node]:
        from rflw.records import REPOSITORY

        rows, absent = [], 0
        for name, version in locked(REPOSITORY / "requirements.lock"):
            said = licence(name)
            if said is None:
                absent += 1
                continue
            rows.append(
                (
                    f"licence-{name}",
                    {},
                    [escape(name), escape(version), escape(said or "not named in its metadata")],
                )
            )
        note = f" {absent} that are for other systems are left out." if absent else ""
        table = self.table(
            "licences",
            f"{len(rows)} packages and their licences, as they name them.{note}",
            ["package", "version", "licence"],
            rows,
        )
        return [
            nodes.raw("", f"<details><summary>{len(rows)} packages</summary>", format="html"),
            *table,
            nodes.raw("", "</details>", format="html"),
        ]


def locked(lock: Path) -> list[tuple[str, str]]:
    """(name, version) of each package of a lock, by name."""
    return sorted(
        set(re.findall(r"(?m)^([A-Za-z0-9][\w.-]*)==([^\s;]+)", lock.read_text(encoding="utf-8")))
    )


def licence(name: str) -> str | None:
    """What an installed package names: its licence expression, else its licence if that is a line, else its classifiers; "" for nothing,
    None for a package that is not installed."""
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    line = (said.get("License") or "").strip()
    classes = [
        text.split(" :: ")[-1]
        for text in said.get_all("Classifier") or ()
        if text.startswith("License ::")
    ]
    return (
        said.get("License-Expression")
        or (line if line and len(line) < 80 and "\n" not in line else "")
        or ", ".join(classes)
    )


class Environment(Table):
    """Versions and hardware of all records, and what the stored notebooks were executed with."""

    def run(self) -> list[nodes.Node]:
        from rflw import records

        versions, names = defaultdict(lambda: defaultdict(list)), []
        for record in self.checked(kept).values():
            for package, version in record["versions"].items():
                versions[package][version].append(record["name"])
        rows = [
            (
                f"version-{package}",
                {},
                [package, ", ".join(sorted(found)), str(sum(map(len, found.values())))],
            )
            for package, found in sorted(versions.items())
        ]
        first = self.table(
            "versions",
            "Versions that the records were measured with.",
            ["package", "version", "records"],
            rows,
        )
        stamps = Path(self.env.srcdir) / "notebooks/stamps.json"
        if not stamps.exists():
            return first
        self.env.note_dependency(str(stamps))
        stamp_now = runpy.run_path(str(stamps.with_suffix(".py")))["stamp"]
        for name, stamp in sorted(json.loads(stamps.read_text(encoding="utf-8")).items()):
            if not stamps.with_name(name).exists():
                raise self.error(f"stamps.json: there is no notebook {name}: make notebooks")
            now = stamp_now(stamps.with_name(name), records.REPOSITORY)
            names.append(
                (
                    f"stamp-{name}",
                    {},
                    [
                        self.link(name, f"notebooks/{name.removesuffix('.ipynb')}"),
                        str(stamp["cells"]),
                        *(
                            f"<code>{stamp[part][:8]}</code>{'' if stamp[part] == now[part] else ' (changed since)'}"
                            for part in ("sources", "package", "records")
                        ),
                    ],
                )
            )
        return [
            *first,
            *self.table(
                "stamps",
                "What each stored notebook was executed with: hashes of its cells, of the package and of "
                "all records.",
                ["notebook", "cells", "sources", "package", "records"],
                names,
            ),
        ]


class Explorer(Table):
    """A table of all counted networks, which `explore.js` counts anew for other sizes, classes and conventions."""

    def run(self) -> list[nodes.Node]:
        record = self.checked(kept)["complexity"]
        counted = [
            {key: row[key] for key in ("model", "classes", "size", "params", "macs")}
            | {"decoder": row["parts"]["decoder"]["params"]}
            for row in record["metrics"]["rows"]
        ]
        rows = [
            (
                f"count-{row['model']}",
                {"model": row["model"]},
                [
                    escape(row["model"]),
                    f"{row['params'] / 1e6:.2f}",
                    f"{(row['macs']['conv'] + row['macs']['pool']) / 1e9:.2f}",
                    f"{100 * row['decoder'] / row['params']:.0f}",
                    '<span class="bar"></span>',
                ],
            )
            for row in counted
        ]
        data = json.dumps(counted).replace("</", "<\\/")
        height, width = counted[0]["size"]
        return [
            *self.table(
                "explorer",
                f"Parameters and multiply-adds at {width}x{height} pixels with {counted[0]['classes']} classes; "
                "convolutions and pools are counted.",
                [
                    "network",
                    "parameters, M",
                    "multiply-adds, B",
                    "parameters in the decoder, %",
                    "multiply-adds",
                ],
                rows,
            ),
            nodes.raw(
                "",
                f'<script type="application/json" id="explorer-data">{data}</script>',
                format="html",
            ),
        ]


class Slider(Drawn):
    """Two pictures of one size on top of each other; a slider moves the edge between them."""

    option_spec = Drawn.option_spec | {
        "before": directives.unchanged_required,
        "after": directives.unchanged_required,
        "before-alt": directives.unchanged_required,
        "after-alt": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        up = "../" * self.env.docname.count("/")
        for word in ("before", "after"):
            if not (Path(self.env.srcdir) / "data" / self.options[word]).exists():
                raise self.error(f"slider: no picture {self.options[word]} in data")
            if not self.options.get(f"{word}-alt"):
                raise self.error(
                    f"slider: {self.options[word]} without a description (:{word}-alt:)"
                )
        pictures = [
            f'<img class="{word}" src="{up}{escape(self.options[word])}" alt="{escape(self.options[f"{word}-alt"])}">'
            for word in ("before", "after")
        ]
        return self.figure(
            f'<div class="slider">{"".join(pictures)}<input type="range" min="0" max="100" value="50" '
            'aria-label="how much of the photo is covered by the prediction, percent"></div>'
        )


# ---------------------------------------------------------------- the book as a site


def described(app, doctree) -> None:
    """A picture without a description is an error of the build."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            LOGGER.error(
                "picture without alternative text: %s", image.get("uri", ""), location=image
            )


def light_signatures(app, page, template, context, doctree) -> None:
    """Signatures without Sphinx's span around every word, which only says where not to break a line, and which book.css undoes: they are a
    fifth of the page on the programming interface."""
    if "body" in context:
        context["body"] = re.sub(
            r"(?s)<dt class=\"sig .*?</dt>",
            lambda dt: re.sub(r'<span class="pre">([^<]*)</span>', r"\1", dt[0]),
            context["body"],
        )


def plain_bibliography(app, page, template, context, doctree) -> None:
    """Docutils calls the bibliography a list and its entries none of its items; screen readers want both or neither."""
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )


def address(app, config) -> None:
    """With RFLW_REPOSITORY=https://github.com/OWNER/NAME: buttons to edit, report and launch, a sitemap and social cards for the
    book at OWNER.github.io/NAME (or RFLW_URL). Without it the book names no other host."""
    repository = os.environ.get("RFLW_REPOSITORY", "")
    not_found(config, "/")
    if not repository:
        return
    found = REPOSITORY.fullmatch(repository)
    if not found:
        from sphinx.errors import ConfigError

        raise ConfigError(
            f"RFLW_REPOSITORY is {repository!r}: expected https://github.com/OWNER/NAME"
        )
    owner, name = found.groups()
    config.html_theme_options |= {
        "repository_url": f"https://github.com/{owner}/{name}",
        "repository_branch": "main",
        "use_repository_button": True,
        "use_edit_page_button": True,
        "use_issues_button": True,
        "use_source_button": True,
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
        },
    }
    config.html_baseurl = os.environ.get("RFLW_URL") or f"https://{owner.lower()}.github.io/{name}/"
    not_found(config, "/" + config.html_baseurl.split("/", 3)[3])
    config.sitemap_url_scheme = "{link}"
    config.sitemap_excludes = ["404.html", "search.html"]
    config.ogp_site_url = config.html_baseurl
    config.ogp_social_cards = {"image_mini": "book/_static/icon.png", "line_color": "#0b63a5"}
    config.ogp_site_name = str(config.html_title or config.project)


def not_found(config, prefix: str) -> None:
    """The 404 page of a book under this path of its host."""
    config.notfound_urls_prefix = prefix
    config.notfound_context = {
        "title": "Page not found",
        "body": (
            "<h1>Page not found</h1><p>There is no such page in this book, or not any more. "
            f'<a href="{prefix}index.html">Its first page</a> and the contents lead to all others; '
            f'<a href="{prefix}search.html">a search</a> looks through them.</p>'
        ),
    }


def describe_plainly() -> None:
    """Descriptions for search engines and cards begin with a page's first words, without its citations."""
    from sphinxext import opengraph

    words = opengraph.get_description
    opengraph.get_description = lambda *args, **kwargs: re.sub(
        r"\[[^\]]*(?:\]|$)", "", words(*args, **kwargs)
    )


def lighten(app, error) -> None:
    """The theme's script draws icons that its style sheet has as a font already; with the maps for debuggers it is the heaviest
    part of every page. Next come the style sheet's rules for icons that no page has, and pictures that are packed loosely."""
    if error or app.builder.name != "html":
        return
    static = Path(app.outdir) / "_static"
    for path in [*static.rglob("*.map"), *static.rglob("vendor/**/*.ttf")]:
        path.unlink()
    icons = static / "scripts/fontawesome.js"
    if icons.exists():
        icons.write_text("// The style sheet draws the icons.\n")
    for path in (Path(app.outdir) / "_images").glob("*.png"):
        with Image.open(path) as picture:
            plain = (
                picture.convert("RGB")
                if picture.getextrema()[-1] == (255, 255) and picture.mode == "RGBA"
                else picture.copy()
            )
        plain.save(path, optimize=True)  # the same picture; an alpha that hides nothing is left out
    style = static / "styles/pydata-sphinx-theme.css"
    if style.exists():  # of two thousand icons, pages have a dozen
        used = {
            name
            for kind in ("html", "js")
            for path in Path(app.outdir).rglob(f"*.{kind}")
            for name in re.findall(r"fa-[\w-]+", path.read_text(encoding="utf-8"))
        }
        style.write_text(
            re.sub(
                r'(?:\.fa-[\w-]+:before,?)+\{content:"[^"]*"\}',
                lambda rule: rule[0] if used & {*re.findall(r"fa-[\w-]+", rule[0])} else "",
                style.read_text(encoding="utf-8"),
            ),
            encoding="utf-8",
        )


def setup(app) -> dict:
    for name, directive in (
        ("verdict", Verdict),
        ("answers", Answers),
        ("compute", Compute),
        ("rerun-times", RerunTimes),
        ("effects", Effects),
        ("environment", Environment),
        ("reliability", Reliability),
        ("licences", Licences),
        ("explorer", Explorer),
        ("slider", Slider),
    ):
        app.add_directive(name, directive)
    if os.environ.get("RFLW_REPOSITORY"):
        app.setup_extension("sphinx_sitemap")
        app.setup_extension("sphinxext.opengraph")
        describe_plainly()
        std_logging.getLogger("matplotlib.font_manager").setLevel(
            std_logging.ERROR
        )  # it misses a weight of the cards' font
    app.connect("doctree-read", described)
    app.connect("config-inited", address, priority=100)
    app.connect("html-page-context", plain_bibliography)
    app.connect("html-page-context", light_signatures)
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""What this book needs from Sphinx beyond Jupyter Book: tables from code cells numbered as tables, formulas as MathML
(which browsers draw by themselves: no script from another host), docstrings that are plain prose, the recipes, the ledger of
claims, the list of records, and numbers in prose that tell where they come from."""

from dataclasses import MISSING, fields
from functools import cache
from html import escape
import json
import os
from pathlib import Path
import re

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from myst_nb.ext.glue.roles import PasteTextRole
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.math import get_node_equation_number

LOGGER = logging.getLogger(__name__)


class captioned_table(nodes.figure):
    """A captioned output of a code cell that is a table. (Docutils names nodes in lower case.)"""


class NumberTables(SphinxTransform):
    """A figure whose name begins with `tab-` becomes a captioned table; the stylesheet puts its caption on top."""

    default_priority = 10

    def apply(self, **kwargs) -> None:
        for figure in list(self.document.findall(nodes.figure)):
            if any(name.startswith("tab-") for name in figure["names"]):
                captions = [child for child in figure if isinstance(child, nodes.caption)]
                others = [child for child in figure if child not in captions]
                table = captioned_table("", *others, *captions, **figure.attributes)
                table["classes"].append("captioned-table")
                table.source, table.line = figure.source, figure.line
                figure.replace_self(table)
                self.document.ids |= dict.fromkeys(table["ids"], table)


def caption_of(node: nodes.Node) -> str:
    return next((child.astext() for child in node if isinstance(child, nodes.caption)), "")


def visit_math(self, node: nodes.Element) -> None:
    """A formula in a line or, with its number if it has one, in a block."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        LOGGER.warning("formula %r: %s", node.astext(), error, location=node)
        formula = self.encode(node.astext())
    tag = "div" if block else "span"
    self.body.append(self.starttag(node, tag, "", CLASS="math notranslate nohighlight"))
    if block and node.get("number"):
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(f"{formula}</{tag}>")
    raise nodes.SkipNode


def plain_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Prose with `code` in it -> reStructuredText: code spans and indented blocks literal, doctests as they are, a new
    paragraph for each argument and for what is raised, and no other character special."""
    text = re.sub(r"\n(?=\w+: |Raises )", "\n\n", "\n".join(lines).strip("\n"))
    blocks = re.split(r"\n\s*\n", text) if text else []
    for i, block in enumerate(blocks):
        if block.startswith(" "):
            blocks[i] = "::\n\n" + re.sub("(?m)^", "   ", block)
        elif not block.startswith(">>>"):
            parts = re.split("`+([^`]+)`+", block)
            parts[::2] = (re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2])
            parts[1::2] = (f"``{part.strip()}``" for part in parts[1::2])
            blocks[i] = " ".join("".join(parts).split())
    lines[:] = [*"\n\n".join(blocks).splitlines(), ""]


class Recipes(SphinxDirective):
    """Two tables: the settings that hold unless a recipe says otherwise, and all recipes with what they say."""

    def run(self) -> list[nodes.Node]:
        from rflw.config import Recipe, Stage
        from rflw.recipes import RECIPES

        defaults = [
            (f.name, f.default)
            for kind in (Recipe, Stage)
            for f in fields(kind)
            if f.default is not MISSING and f.name != "note"
        ]
        lines = [
            "```{table} What holds unless a recipe says otherwise.",
            ":name: tab-recipes-defaults",
            "",
            "| setting | value |",
            "| --- | --- |",
            *(f"| `{name}` | {shown(value)} |" for name, value in defaults),
            "```",
            "",
            "```{table} All recipes, and what they say.",
            ":name: tab-recipes",
            "",
            "| recipe | network | stages: encoder's and decoder's rate | other settings |",
            "| --- | --- | --- | --- |",
        ]
        for recipe in RECIPES.values():
            stages = "; ".join(
                f"{stage.data} {stage.epochs} epochs: {stage.encoder_lr:g}, {stage.decoder_lr:g}{told(stage)}"
                for stage in recipe.stages
            )
            lines.append(
                f"| `{recipe.name}` | {recipe.model} | {stages} | {told(recipe).removeprefix(', ')} |"
            )
        lines.append("```")
        container = nodes.Element()
        self.state.nested_parse(StringList(lines, source="recipes"), self.content_offset, container)
        return container.children


def told(settings) -> str:
    """What a recipe or stage says that is not the default, beyond what has a column of its own."""
    own = ("name", "model", "stages", "note", "data", "epochs", "encoder_lr", "decoder_lr")
    return "".join(
        f", {f.name} {shown(getattr(settings, f.name))}"
        for f in fields(settings)
        if f.name not in own and getattr(settings, f.name) != f.default
    )


def shown(value) -> str:
    """A setting in words."""
    if value is None or value in ((), ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(f"{v}" for v in value) if isinstance(value, (tuple, list)) else str(value)


# ---------------------------------------------------------------- claims, records, and numbers with their origin

CLAIMS_PAGE, RECORDS_PAGE, ENVIRONMENT_PAGE = "book/claims", "book/records", "book/environment"
CHAPTERS = {  # where a kind of test is told, if the book has that page
    "count": "notebooks/02_complexity",
    "check": "notebooks/04_data",
    "score": "notebooks/05_training",
    "pairs": "notebooks/05_training",
    "probe": "notebooks/06_ablation_heads",
    "saturation": "notebooks/06_ablation_heads",
    "field": "notebooks/07_receptive_fields",
    "picture": "notebooks/07_receptive_fields",
    "time": "notebooks/09_runtime",
}
TOPICS = {
    "count": "size",
    "time": "speed",
    "score": "scores",
    "pairs": "decoders compared",
    "probe": "blocks",
    "saturation": "blocks",
    "field": "blocks",
    "picture": "blocks",
    "check": "data sets",
}


@cache
def judged(source: str) -> list:
    """The verdicts by the claims and records of a book's source folder."""
    from rflw_study import claims

    return claims.verdicts(Path(source) / "data/results", Path(source) / "data/paper/claims.yaml")


@cache
def kept(source: str) -> dict[str, dict]:
    """The records of a book's source folder by name."""
    from rflw import records

    return {record["name"]: record for record in records.read_all(Path(source) / "data/results")}


@cache
def title_of(source: str, page: str) -> str:
    """A page's first heading, read from its source: other pages know it before Sphinx has read this one. Empty if there is none."""
    path = Path(source) / f"{page}.ipynb"
    if path.exists():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
        )
    else:
        path = path.with_suffix(".md")
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def hardware(record: dict) -> str:
    """A record's machine in words."""
    found = record["hardware"]
    return ", ".join(
        filter(
            None,
            (found.get("gpu"), found["cpu"], f"{found['cores']} core{'s' * (found['cores'] != 1)}"),
        )
    )


def commit(record: dict) -> str:
    return f"{(record['commit'] or 'none')[:8]}{', with changes' if record['dirty'] else ''}"


def origin_of(record: dict) -> list[tuple[str, str, str]]:
    """What a reader must know of a number from a record: (word, text, page#anchor or nothing)."""
    return [
        ("record", record["name"], f"{RECORDS_PAGE}#record-{record['name']}"),
        ("command", record["command"], ""),
        ("seed", str(record["seed"]), ""),
        ("commit", commit(record), ""),
        ("hardware", hardware(record), ""),
    ]


def origin_of_all(found: list[dict], listed: str) -> list[tuple[str, str, str]]:
    """The same of a number from several records, shortened; `listed` is the page#anchor that has them all."""

    def few(values) -> str:
        values = list(dict.fromkeys(values))
        return "; ".join(values[:2]) + f" and {len(values) - 2} more" * (len(values) > 2)

    if len(found) == 1:
        return origin_of(found[0])
    return [
        ("records", str(len(found)), listed),
        ("command", few(record["command"] for record in found), ""),
        ("seed", ", ".join(sorted({str(record["seed"]) for record in found})), ""),
        ("commit", few(map(commit, found)), ""),
        ("hardware", few(map(hardware, found)), ""),
    ]


class num(nodes.inline):
    """A number that tells its origin when it is hovered or clicked. (Docutils names nodes in lower case.)"""


def visit_num(self, node: num) -> None:
    """A button, with the origin as a popover, which browsers show by themselves; `ledger.js` puts it beside the number."""
    node["key"] = f"num-{self.builder.env.new_serialno('num')}"
    self.body.append(f'<button type="button" class="num" popovertarget="{node["key"]}">')


def depart_num(self, node: num) -> None:
    lines = []
    for word, text, target in node["origin"]:
        text = escape(text)
        if target:
            page, more = re.fullmatch(r"([^?#]*)(.*)", target).groups()
            uri = self.builder.get_relative_uri(self.builder.current_docname, page)
            text = f'<a href="{escape(uri + more)}">{text}</a>'
        lines.append(f"<span><b>{escape(word)}</b> {text}</span>")
    self.body.append(
        f'</button><span popover class="origin" id="{node["key"]}">{"".join(lines)}</span>'
    )


def written(value, spec: str) -> str:
    """A value as prose has it: with a minus sign, and a space before percent. Raises ValueError for a fraction without a format."""
    if isinstance(value, float) and not spec:
        raise ValueError("a fraction needs a format, such as .1f or .1%")
    text = format(value, spec).replace("%", "\u00a0%")
    return text if isinstance(value, str) else text.replace("-", "−")


class Num(SphinxRole):
    """{num}`record:path:format`, {num}`claim:ours:format` (or low, high, seeds, paper, verdict, says), {num}`claim@start:ours:format` for
    the one of its answers that begins so, {num}`claims:verdict` for how many."""

    def run(self):
        name, _, rest = self.text.partition(":")
        path, _, spec = rest.partition(":")
        try:
            value, origin = self.find(str(self.env.srcdir), name, path)
            text = written(value, spec)
        except (ValueError, KeyError) as e:  # InputError is a ValueError
            LOGGER.error("{num}`%s`: %s", self.text, e.args[0], location=self.get_location())
            return [nodes.problematic(self.text, self.text)], []
        return [num("", text, origin=origin)], []

    def find(self, source: str, name: str, path: str):
        from rflw import records

        verdicts = {verdict.claim.id: verdict for verdict in judged(source)}
        if name == "claims":
            return self.counted(source, list(verdicts.values()), path)
        if name in kept(source):
            return records.at(kept(source)[name], path), origin_of(kept(source)[name])
        name, _, start = name.partition("@")
        if name not in verdicts:
            raise KeyError(f"neither a record nor a claim: {name}")
        verdict = verdicts[name]
        claim, ours, names = verdict.claim, verdict.ours, verdict.records
        answer = next(
            (
                a
                for a in verdict.answers
                if (a.what.startswith(start) if start else a.value is ours)
            ),
            None,
        )
        if start and not answer:
            raise KeyError(
                f"claim {name} has no answer that begins with {start}; it has: {verdict.says}"
            )
        if path in ("ours", "low", "high", "seeds"):
            if answer is None:
                raise ValueError(f"nothing of ours yet: {verdict.says}")
            ours, names = answer.value, answer.records
            if path in ("low", "high") and ours.low != ours.low:
                raise ValueError(f"one value has no interval: {answer.what}")
        value = records.at(
            {
                "ours": ours and ours.mean,
                "low": ours and ours.low,
                "high": ours and ours.high,
                "seeds": ours and ours.n,
                "paper": claim.value,
                "verdict": verdict.verdict,
                "says": verdict.says,
            },
            path,
        )
        if value is None:
            raise ValueError(f"the paper gives no number: {claim.where}")
        origin = [("claim", f"{claim.where}: {claim.quote}", f"{CLAIMS_PAGE}#claim-{claim.id}")]
        if path != "paper" and names:
            origin += origin_of_all(
                [kept(source)[name] for name in names], f"{CLAIMS_PAGE}#claim-{claim.id}"
            )
        return value, origin

    def counted(self, source: str, verdicts: list, path: str):
        """How many claims have a verdict (or are quoted, or own), and what that follows from."""
        from rflw import records
        from rflw_study.claims import tally

        counts = tally(verdicts)
        counts["own"] = sum(counts.values()) - counts["quoted"]
        value = records.at(counts, path)
        query = {"quoted": "source=quoted", "own": "source=own"}.get(
            path, f"verdict={path.replace(' ', '+')}&source=own"
        )
        origin = [
            (
                "counted in",
                f"the ledger of {len(verdicts)} claims",
                f"{CLAIMS_PAGE}?{query}#ledger",
            ),
            ("command", "rflw claims", ""),
        ]
        which = [v for v in verdicts if v.claim.test and path in (v.verdict, "own")]
        names = dict.fromkeys(name for v in which for name in v.records if v.ours)
        if not names:
            return value, [*origin, ("commit", "none: no record answers them", "")]
        behind = origin_of_all([kept(source)[name] for name in names], RECORDS_PAGE)
        return value, origin + [part for part in behind if part[0] != "command"]


class GlueText(PasteTextRole):
    """{glue:text} with its origin: the cell that computed the number, and the records that the cell names."""

    def run(self):
        found, messages = super().run()
        if messages or len(found) != 1:
            return found, messages
        env = self.document.settings.env
        page, _, key = self.text.rpartition("::")
        path = Path(env.doc2path(env.docname))
        path = path.parent / page if page else path
        where = Path(env.srcdir) / "notebooks/stamps.json"
        target = Path(os.path.relpath(path, env.srcdir)).with_suffix("").as_posix() if page else ""
        origin = [("computed in", path.name, target), ("command", "make book", ""), *built()]
        if where.exists() and (
            stamp := json.loads(where.read_text(encoding="utf-8")).get(path.name)
        ):
            origin.append(
                (
                    "stored with",
                    ", ".join(f"{part} {stamp[part][:8]}" for part in ("package", "records")),
                    f"{ENVIRONMENT_PAGE}#stamp-{path.name}",
                )
            )
        for count, source in enumerate(code_of(path), start=1):
            if re.search(rf"glue\(f?[\"']{re.escape(key.partition(':')[0])}[\"']", source):
                origin[0] = ("computed in", f"cell {count} of {path.name}", target)
                named = [
                    record
                    for name, record in kept(str(env.srcdir)).items()
                    if f'"{name}"' in source
                ]
                if len(named) == 1:
                    origin = [
                        part for part in origin if part[0] not in ("seed", "commit", "hardware")
                    ] + origin_of(named[0])
                else:
                    origin += [origin_of(record)[0] for record in named]
        return [num("", "", *found, origin=origin)], messages


@cache
def built() -> list[tuple[str, str, str]]:
    """Where this book was built: what its notebooks compute without a record, `make test` has computed anew and compared there."""
    from rflw import records

    here = records.provenance()
    return [
        ("seed", "in the cell, if any", ""),
        ("commit", f"{commit(here)}, from which the book was built", ""),
        ("hardware", f"{hardware(here)}, which built it", ""),
    ]


@cache
def code_of(path: Path) -> list[str]:
    """The code cells of a notebook."""
    return [
        "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]


class Table(SphinxDirective):
    """A table as HTML that a reader can sort and filter where scripts run (`ledger.js`), and read where they do not. On a phone
    each row becomes a card, whose lines begin with the column's name."""

    def checked(self, read):
        """What `read` finds in the book's source; a claim or a record that is wrong becomes an error of the build."""
        try:
            return read(str(self.env.srcdir))
        except ValueError as e:  # InputError
            raise self.error(str(e)) from e

    option_spec = {"name": directives.unchanged_required}

    def link(self, text: str, target: str) -> str:
        """To a page#anchor of this book, or to a file beside it; text alone where there is no such page."""
        page, _, anchor = target.partition("#")
        if page.startswith("/"):  # of html_extra_path
            return f'<a href="{"../" * self.env.docname.count("/")}{escape(page[1:])}">{escape(text)}</a>'
        if page not in self.env.found_docs:
            return escape(text)
        uri = self.env.app.builder.get_relative_uri(self.env.docname, page)
        return f'<a href="{escape(uri)}{"#" * bool(anchor)}{escape(anchor)}">{escape(text)}</a>'

    def titled(self, page: str) -> str:
        """A link to a page that bears its title; nothing where there is no such page."""
        return (
            self.link(title_of(str(self.env.srcdir), page), page)
            if page in self.env.found_docs
            else ""
        )

    def table(
        self, name: str, caption: str, columns: list[str], rows: list[tuple[str, dict, list[str]]]
    ) -> list[nodes.Node]:
        """rows: (id, data attributes, cells as HTML). Numbered; prose refers to it as `tab-NAME`, or by the option `:name:`."""
        lines = [
            f'<table class="ledger table" id="{name}" aria-label="{escape(caption)}"><thead><tr>',
            *(f'<th scope="col">{escape(column)}</th>' for column in columns),
            "</tr></thead><tbody>",
        ]
        for key, data, cells in rows:
            attributes = "".join(f' data-{word}="{escape(value)}"' for word, value in data.items())
            lines += [
                f'<tr id="{escape(key)}"{attributes}>',
                *(
                    f'<td data-label="{escape(column)}">{cell}</td>'
                    for column, cell in zip(columns, cells)
                ),
                "</tr>",
            ]
        table = captioned_table(
            "",
            nodes.caption("", caption),
            nodes.raw("", "\n".join([*lines, "</tbody></table>"]), format="html"),
            classes=["captioned-table", "whole"],
        )
        table["names"].append(nodes.fully_normalize_name(self.options.get("name", f"tab-{name}")))
        self.set_source_info(table)
        self.state.document.note_explicit_target(table, table)
        return [table]


class Claims(Table):
    """The ledger: a row a claim, with its quote, tolerance, test and evidence."""

    def run(self) -> list[nodes.Node]:
        from rflw_study.claims import UNITS, shown

        rows = []
        for v in self.checked(judged):
            c, ours = v.claim, shown(v.ours, v.claim) if v.ours else "none"
            records = [self.link(name, f"{RECORDS_PAGE}#record-{name}") for name in v.records]
            if len(records) > 3:  # many seeds
                records = [
                    f"<details><summary>{len(records)} records</summary>{'<br>'.join(records)}</details>"
                ]
            chapter = self.titled(CHAPTERS[c.kind]) if c.test else ""
            evidence = [
                escape(v.says) if v.says != ours else "",
                *records,
                chapter and f"Chapter: {chapter}",
            ]
            why = [
                f"Tolerance {c.tolerance:.3g} {UNITS.get(c.unit, c.unit)}: {c.reason}"
                if c.test
                else "",
                c.note,
            ]
            how = f"<details><summary>tolerance and test</summary>{'<br>'.join(map(escape, filter(None, why)))}</details>"
            rows.append(
                (
                    f"claim-{c.id}",
                    {
                        "verdict": v.verdict,
                        "source": "own" if c.test else "quoted",
                        "where": c.where,
                    },
                    [
                        f'<a class="where" href="#claim-{escape(c.id)}">{escape(c.where)}</a> <q>{escape(c.quote)}</q>{how if any(why) else ""}',
                        escape(c.stated),
                        escape(ours),
                        escape(v.level),
                        f'<span class="verdict">{escape(v.verdict)}</span>',
                        "".join(f"<div>{part}</div>" for part in evidence if part),
                    ],
                )
            )
        return self.table(
            "ledger",
            "Every claim, what the paper says, what was found.",
            ["claim", "paper", "ours", "how it can be tested", "verdict", "evidence"],
            rows,
        )


class ClaimCounts(Table):
    """How many of the paper's own claims have which verdict, by what they are about."""

    def run(self) -> list[nodes.Node]:
        from rflw_study.claims import VERDICTS

        own = [v for v in self.checked(judged) if v.claim.test]
        topics = {
            topic: [v.verdict for v in own if TOPICS[v.claim.kind] == topic]
            for topic in dict.fromkeys(TOPICS.values())
        }
        topics["all"] = [v.verdict for v in own]
        uri = self.env.app.builder.get_relative_uri(self.env.docname, CLAIMS_PAGE)
        rows = [
            (
                f"verdict-{verdict.replace(' ', '-')}",
                {},
                [
                    f'<a href="{uri}?verdict={verdict.replace(" ", "+")}&amp;source=own#ledger">{verdict}</a>',
                    *(str(found.count(verdict) or "") for found in topics.values()),
                ],
            )
            for verdict in VERDICTS
        ]
        rows.append(("verdict-all", {}, ["all", *(str(len(found)) for found in topics.values())]))
        return self.table(
            "claim-counts",
            "The paper's own claims by verdict and by what they are about.",
            ["verdict", *topics],
            rows,
        )


class Records(Table):
    """All records: command, seed, commit, hardware, time, result, and the file itself."""

    def run(self) -> list[nodes.Node]:
        rows = []
        for name, record in self.checked(kept).items():
            miou = record["metrics"].get("miou")
            rows.append(
                (
                    f"record-{name}",
                    {"kind": record["kind"]},
                    [
                        f"{self.link(name, f'/results/{name}.json')} <div>{escape(record['command'])}</div>",
                        *(
                            escape(text)
                            for text in (
                                record["kind"],
                                str(record["seed"]),
                                commit(record),
                                hardware(record),
                                record["started"][:10],
                                f"{record['wall_s'] / 60:.1f}",
                                record["status"],
                                "" if miou is None else f"{100 * miou:.1f} %",
                            )
                        ),
                    ],
                )
            )
        return self.table(
            "records",
            "Every record; its name leads to the file.",
            [
                "record and command",
                "kind",
                "seed",
                "commit",
                "hardware",
                "date",
                "minutes",
                "status",
                "mIoU",
            ],
            rows,
        )


def setup(app) -> dict:
    app.add_transform(NumberTables)
    app.add_node(num, html=(visit_num, depart_num))
    app.add_role("num", Num())
    app.add_role_to_domain("glue", "text", GlueText(), override=True)
    app.add_directive("claims", Claims)
    app.add_directive("claim-counts", ClaimCounts)
    app.add_directive("records", Records)
    app.add_enumerable_node(
        captioned_table,
        "table",
        caption_of,
        html=(
            lambda self, node: self.visit_figure(node),
            lambda self, node: self.depart_figure(node),
        ),
    )
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.add_directive("recipes", Recipes)
    app.connect("autodoc-process-docstring", plain_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Numbers in prose that show their origin, formulas as MathML, tables of code cells with numbers."""

from functools import cache
from html import escape
import json
import math
import os
from pathlib import Path
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from myst_nb.ext.glue.roles import PasteTextRole
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole
from sphinx.util.math import get_node_equation_number

from rflw import records
from rflw_study import claims

LOGGER = logging.getLogger(__name__)
CLAIMS, RECORDS, ENVIRONMENT = "book/claims", "book/records", "book/environment"
Origin = list[tuple[str, str, str]]  # (word, text, page#anchor or "")


@cache
def judged(source: str) -> list[claims.Verdict]:
    """The verdicts by the claims and records in a book's source folder."""
    return claims.verdicts(Path(source) / "data/results", Path(source) / "data/paper/claims.yaml")


@cache
def kept(source: str) -> dict[str, dict]:
    """The records in a book's source folder by name."""
    return {record["name"]: record for record in records.read_all(Path(source) / "data/results")}


def hardware(record: dict) -> str:
    """A record's machine: "NVIDIA L4, Xeon, 4 cores"."""
    machine = record["hardware"]
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    return ", ".join(filter(None, (machine.get("gpu"), machine["cpu"], cores)))


def commit(record: dict) -> str:
    return f"{(record['commit'] or 'none')[:8]}{', with changes' if record['dirty'] else ''}"


def few(values) -> str:
    """The first two different values, and how many more there are."""
    values = list(dict.fromkeys(values))
    return "; ".join(values[:2]) + (f" and {len(values) - 2} more" if len(values) > 2 else "")


def origin_of(sources: list[dict], listing: str) -> Origin:
    """The origin of a number from records; `listing` is the page#anchor that lists several."""
    name = sources[0]["name"]
    return [
        ("record", name, f"{RECORDS}#record-{name}")
        if len(sources) == 1
        else ("records", str(len(sources)), listing),
        ("command", few(record["command"] for record in sources), ""),
        ("seed", ", ".join(sorted({str(record["seed"]) for record in sources})), ""),
        ("commit", few(map(commit, sources)), ""),
        ("hardware", few(map(hardware, sources)), ""),
    ]


class num(nodes.inline):
    """A number with its origin. (Docutils names nodes in lower case.)"""


def visit_num(self, node: num) -> None:
    """A button that opens the origin as a popover; `ledger.js` places it beside the number."""
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
    origin = f'<span popover class="origin" id="{node["key"]}">{"".join(lines)}</span>'
    self.body.append(f"</button>{origin}")


class Num(SphinxRole):
    """A number of a record, of a claim, or a count of claims.

    {num}`RECORD:path:format`; {num}`CLAIM:ours:format` (or low, high, seeds, paper, verdict, says);
    {num}`CLAIM@start:ours:format` for the answer that begins with `start`; {num}`claims:VERDICT`.
    """

    def run(self):
        name, _, rest = self.text.partition(":")
        path, _, spec = rest.partition(":")
        source = str(self.env.srcdir)
        try:
            if name == "claims":
                value, origin = count(source, path)
            elif name in kept(source):
                record = kept(source)[name]
                value, origin = records.at(record, path), origin_of([record], RECORDS)
            else:
                value, origin = of_claim(source, name, path)
            text = as_prose(value, spec)
        except (ValueError, KeyError) as e:  # InputError is a ValueError
            LOGGER.error("{num}`%s`: %s", self.text, e.args[0], location=self.get_location())
            return [nodes.problematic(self.text, self.text)], []
        return [num("", text, origin=origin)], []


def as_prose(value, spec: str) -> str:
    """A value with a minus sign, and a space before percent; a fraction needs a format."""
    if isinstance(value, float) and not spec:
        raise ValueError("a fraction needs a format, such as .1f or .1%")
    text = format(value, spec).replace("%", "\u00a0%")
    return text if isinstance(value, str) else text.replace("-", "−")


def of_claim(source: str, name: str, path: str) -> tuple[object, Origin]:
    """A number of a claim or of one of its answers, with its origin."""
    name, _, start = name.partition("@")
    verdict = next((v for v in judged(source) if v.claim.id == name), None)
    if verdict is None:
        raise KeyError(f"neither a record nor a claim: {name}")
    claim, ours = verdict.claim, path in ("ours", "low", "high", "seeds")
    fits = [
        answer
        for answer in verdict.answers
        if (answer.what.startswith(start) if start else answer.value is verdict.ours)
    ]
    if start and not fits:
        raise KeyError(f"claim {name} has no answer that begins with {start}: {verdict.says}")
    if ours and not fits:
        raise ValueError(f"nothing of ours yet: {verdict.says}")
    values = {"paper": claim.value, "verdict": verdict.verdict, "says": verdict.says}
    if ours:
        interval = fits[0].value
        values = {"ours": interval.mean, "low": interval.low, "high": interval.high}
        values["seeds"] = interval.n
    value = records.at(values, path)
    if value is None:
        raise ValueError(f"the paper gives no number: {claim.where}")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"one value has no interval: {fits[0].what}")
    page = f"{CLAIMS}#claim-{claim.id}"
    names = fits[0].records if ours else verdict.records if path != "paper" else ()
    behind = origin_of([kept(source)[name] for name in names], page) if names else []
    return value, [("claim", f"{claim.where}: {claim.quote}", page), *behind]


def count(source: str, path: str) -> tuple[int, Origin]:
    """A number of `claims.tally`, with the records behind."""
    verdicts = judged(source)
    value = records.at(claims.tally(verdicts), path)
    of_verdict = f"verdict={path.replace(' ', '+')}&source=own"
    sorts = {"quoted": "quoted", "repeats": "repeated", "distinct": "own", "decided": "own"}
    query = f"source={sorts[path]}" if path in sorts else "" if path == "own" else of_verdict
    listing = ("counted in", f"the ledger of {len(verdicts)} claims", f"{CLAIMS}?{query}#ledger")
    origin = [listing, ("command", "rflw claims", "")]
    decided = [v for v in verdicts if v.claim.decides and v.ours]
    counted = [v for v in decided if path in (v.verdict, "own", "distinct", "decided")]
    names = dict.fromkeys(name for v in counted for name in v.records)
    if not names:
        return value, [*origin, ("commit", "none: no record answers them", "")]
    behind = origin_of([kept(source)[name] for name in names], RECORDS)
    return value, origin + [part for part in behind if part[0] != "command"]


class GlueText(PasteTextRole):
    """{glue:text} with the cell that computed the number and the records that the cell names."""

    def run(self):
        content, messages = super().run()
        if messages or len(content) != 1:
            return content, messages
        env = self.document.settings.env
        page, _, key = self.text.rpartition("::")
        path = Path(env.doc2path(env.docname))
        path = path.parent / page if page else path
        target = Path(os.path.relpath(path, env.srcdir)).with_suffix("").as_posix() if page else ""
        origin = computed(str(env.srcdir), path, key.partition(":")[0], target)
        return [num("", "", *content, origin=origin)], messages


def computed(source: str, path: Path, key: str, target: str) -> Origin:
    """The origin of a number that a notebook glues under a key."""
    glue = re.compile(rf"glue\(f?[\"']{re.escape(key)}[\"']")
    cells = list(enumerate(code_of(path), start=1))
    number, code = next(((i, code) for i, code in cells if glue.search(code)), (None, ""))
    where = f"cell {number} of {path.name}" if number else path.name
    origin = [("computed in", where, target), ("command", "make book", "")]
    named = [record for name, record in kept(source).items() if f'"{name}"' in code]
    if len(named) != 1:
        here = records.provenance()  # `make test` computes such a number anew, and compares it
        origin += [
            ("seed", "in the cell, if any", ""),
            ("commit", f"{commit(here)}, from which the book was built", ""),
            ("hardware", f"{hardware(here)}, which built it", ""),
        ]
    stamps = Path(source) / "notebooks/stamps.json"
    stamp = json.loads(stamps.read_text())[path.name] if stamps.exists() else None
    if stamp:
        text = f"modules {stamp['modules'][:8]}"
        origin.append(("stored with", text, ENVIRONMENT))
    if len(named) == 1:
        return origin + origin_of(named, RECORDS)
    return origin + [origin_of([record], RECORDS)[0] for record in named]


@cache
def code_of(path: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


class captioned_table(nodes.figure):
    """A table with a caption and a number. (Docutils names nodes in lower case.)"""


class NumberTables(SphinxTransform):
    """An output of a code cell whose name begins with `tab-` is numbered as a table."""

    default_priority = 10

    def apply(self, **kwargs) -> None:
        for figure in list(self.document.findall(nodes.figure)):
            if any(name.startswith("tab-") for name in figure["names"]):
                table = captioned_table("", *figure.children, **figure.attributes)
                table["classes"].append("captioned-table")
                table.source, table.line = figure.source, figure.line
                figure.replace_self(table)
                self.document.ids |= dict.fromkeys(table["ids"], table)


def caption_of(node: nodes.Node) -> str:
    return next((child.astext() for child in node if isinstance(child, nodes.caption)), "")


def visit_math(self, node: nodes.Element) -> None:
    """A formula as MathML by docutils: the theme's MathJax would be loaded from another host."""
    block = isinstance(node, nodes.math_block)
    tag = "div" if block else "span"
    self.body.append(self.starttag(node, tag, "", CLASS="math notranslate nohighlight"))
    if block and node.get("number"):
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append(f"{tex2mathml(node.astext(), as_block=block)}</{tag}>")
    raise nodes.SkipNode


def setup(app) -> dict:
    app.add_transform(NumberTables)
    figure = (
        lambda self, node: self.visit_figure(node),
        lambda self, node: self.depart_figure(node),
    )
    app.add_enumerable_node(captioned_table, "table", caption_of, html=figure)
    app.add_node(num, html=(visit_num, depart_num))
    app.add_role("num", Num())
    app.add_role_to_domain("glue", "text", GlueText(), override=True)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""What this book needs from Sphinx beyond Jupyter Book: tables from code cells numbered as tables, formulas as MathML
(which browsers draw by themselves: no script from another host), docstrings that are plain prose, and the recipes."""
from dataclasses import MISSING, fields
import re

from docutils import nodes
from docutils.statemachine import StringList
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
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
        from rflw.config import RECIPES, Recipe, Stage
        defaults = [(f.name, f.default) for kind in (Recipe, Stage) for f in fields(kind) if f.default is not MISSING and f.name != "note"]
        lines = ["| setting | unless a recipe says otherwise |", "| --- | --- |",
                 *(f"| `{name}` | {shown(value)} |" for name, value in defaults), "",
                 "| recipe | network | stages: encoder's and decoder's rate | other settings |", "| --- | --- | --- | --- |"]
        for recipe in RECIPES.values():
            stages = "; ".join(f"{stage.data} {stage.epochs} epochs: {stage.encoder_lr:g}, {stage.decoder_lr:g}{told(stage)}"
                               for stage in recipe.stages)
            lines.append(f"| `{recipe.name}` | {recipe.model} | {stages} | {told(recipe).removeprefix(', ')} |")
        container = nodes.Element()
        self.state.nested_parse(StringList(lines, source="recipes"), self.content_offset, container)
        return container.children


def told(settings) -> str:
    """What a recipe or stage says that is not the default, beyond what has a column of its own."""
    own = ("name", "model", "stages", "note", "data", "epochs", "encoder_lr", "decoder_lr")
    return "".join(f", {f.name} {shown(getattr(settings, f.name))}" for f in fields(settings)
                   if f.name not in own and getattr(settings, f.name) != f.default)


def shown(value) -> str:
    """A setting in words."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(f"{v}" for v in value) if isinstance(value, (tuple, list)) else str(value)


def setup(app) -> dict:
    app.add_transform(NumberTables)
    app.add_enumerable_node(captioned_table, "table", caption_of, html=(
        lambda self, node: self.visit_figure(node), lambda self, node: self.depart_figure(node)))
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.add_directive("recipes", Recipes)
    app.connect("autodoc-process-docstring", plain_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

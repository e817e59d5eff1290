"""The directive {derived}`NAME`: shows what the function NAME of `book_tables` makes of the records.

Such a function returns HTML, or a caption, columns and rows; a row is a dict of the attributes of
`<tr>`, then its cells. A new record changes the page by itself.
"""

from pathlib import Path
import re

import book_tables
from docutils import nodes
from docutils.parsers.rst import directives
from jinja2 import Environment
from markupsafe import Markup
from origins import RECORDS, captioned_table, judged, kept
from sphinx.util.docutils import SphinxDirective

# `ledger.js` lets a reader sort such a table; on a phone `book.css` makes a card of each row.
TABLE = Environment(autoescape=True).from_string("""\
<table class="ledger table" id="{{ name }}" aria-label="{{ caption }}"><thead><tr>
{%- for column in columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead><tbody>
{%- for row in rows %}
<tr{{ row[0] | xmlattr }}>
{%- for cell in row[1:] %}<td data-label="{{ columns[loop.index0] }}">{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}</tbody></table>""")


class Derived(SphinxDirective):
    """A table with a number, named `tab-NAME`, or a picture whose caption is the content."""

    required_arguments, has_content = 1, True
    option_spec = {"name": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        name, source = self.arguments[0], str(self.env.srcdir)
        try:
            self.records, self.verdicts = kept(source), judged(source)
            derived = getattr(book_tables, name.replace("-", "_"))(self)
        except ValueError as e:  # InputError
            raise self.error(str(e)) from e
        if isinstance(derived, Markup):
            words, _ = self.state.inline_text(" ".join(self.content), self.lineno)
            node = nodes.figure("", nodes.raw("", derived, format="html"), classes=["drawn"])
            node += nodes.caption("", "", *words)
        else:
            caption, columns, rows = derived
            html = TABLE.render(name=name, caption=caption, columns=columns, rows=rows)
            node = captioned_table(
                "", nodes.caption("", caption), nodes.raw("", html, format="html")
            )
            node["classes"] += ["captioned-table", "whole"]
        node["names"].append(self.options.get("name", f"tab-{name}"))
        self.set_source_info(node)
        self.state.document.note_explicit_target(node, node)
        return [node]

    def link(self, text: str, page: str, anchor: str = "") -> Markup | str:
        """A link to a page of this book; the text alone where there is no such page."""
        if page not in self.env.found_docs:
            return text
        uri = self.env.app.builder.get_relative_uri(self.env.docname, page)
        return Markup('<a href="{}">{}</a>').format(uri + anchor, text)

    def record(self, name: str) -> Markup | str:
        return self.link(name, RECORDS, f"#record-{name}")

    def titled(self, page: str) -> Markup | str:
        """A link to a page by its first heading; nothing where there is no such page."""
        if page not in self.env.found_docs:
            return ""
        text = Path(self.env.doc2path(page)).read_text(encoding="utf-8")
        heading = re.search(r'^(?: *")?# +(.+?)(?:\\n",|",?)?$', text, re.MULTILINE)
        return self.link(heading[1], page)


def setup(app) -> dict:
    app.add_directive("derived", Derived)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

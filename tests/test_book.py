"""What pages show of claims and records, and that a wrong number stops the build: small books."""

import ast
from html import unescape
import importlib
from importlib import metadata
import io
import json
from pathlib import Path
import re
import shutil

from PIL import Image
import pytest

import rflw
from rflw import records
from rflw.recipes import RECIPES
from rflw_study import claims, paper

pytest.importorskip("myst_nb")
ROOT = Path(__file__).resolve().parents[1]
EXTENSIONS = ROOT / "book/_ext"
RUN = "camvid-lw-efficientnet_lite0-s0"
SETTINGS = {
    "extensions": [
        "myst_nb",
        "sphinx.ext.autodoc",
        "sphinx.ext.napoleon",
        "origins",
        "derived",
        "publishing",
    ],
    "autodoc_default_options": {"members": True},
    "default_role": "code",
    "suppress_warnings": ["myst.domains", "ref.python"],
    "nitpick_ignore_regex": [("py:.*", ".*")],
    "nb_execution_mode": "off",
    "html_math_renderer": "mathml",
    "myst_enable_extensions": ["dollarmath"],
    "nitpicky": True,
    "numfig": True,
}
PAGES = {"claims": "```{derived} ledger\n```", "records": "```{derived} records\n```"}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book of the ledger, the records and one page, with two of our records."""
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    return Book(tmp_path)


class Book:
    def __init__(self, folder: Path):
        self.folder, self.source = folder, folder / "source"
        self.results = self.source / "data/results"
        self.claims = self.source / "data/paper/claims.yaml"
        shutil.copytree(paper.FOLDER, self.claims.parent)
        for path in ("data/results", "book", "notebooks"):
            (self.source / path).mkdir(parents=True)
        for name in ("topics.yaml", "effects.csv"):
            shutil.copy(ROOT / "book" / name, self.source / "book")
        Image.new("RGB", (8, 8)).save(self.source / "data/x.png")
        self.add("complexity", RUN)

    def add(self, *names: str) -> None:
        for name in names:
            shutil.copy(records.FOLDER / f"{name}.json", self.results)

    def file(self, name: str, **changes) -> None:
        """Write a record that is like the counts but for some fields."""
        records.write(records.read("complexity") | {"name": name} | changes, self.results)

    def build(self, text: str = "", cells=()) -> tuple[str, str]:
        """Build with a page or a notebook -> its HTML and the warnings; other pages: `html`."""
        from sphinx.application import Sphinx
        from sphinx.util.docutils import docutils_namespace

        index = "# A book\n\n```{toctree}\nbook/claims\nbook/records\nbook/page\n```\n"
        (self.source / "index.md").write_text(index)
        for page, body in (PAGES | {"page": text}).items():
            (self.source / f"book/{page}.md").write_text(f"# {page}\n\n{body}\n")
        if cells:
            (self.source / "book/page.md").unlink()
            language = {"language_info": {"name": "python", "pygments_lexer": "python"}}
            notebook = {"metadata": language, "nbformat": 4, "nbformat_minor": 5, "cells": cells}
            (self.source / "book/page.ipynb").write_text(json.dumps(notebook))
        warnings, out = io.StringIO(), self.folder / "html"
        folders = (self.source, None, out, self.folder / "trees")
        with docutils_namespace():
            Sphinx(*folders, "html", SETTINGS, None, warnings, freshenv=True).build()
        return self.html("page"), warnings.getvalue()

    def html(self, page: str) -> str:
        return (self.folder / f"html/book/{page}.html").read_text()


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def origins_of(page: str) -> list[tuple[str, str]]:
    """Each number of a page with its origin."""
    button = r'popovertarget="([^"]+)">(.*?)</button>'
    return [
        (text_of(shown), text_of(re.search(rf'id="{key}">(.*?)</span></span>', page)[1]))
        for key, shown in re.findall(button, page)
    ]


def table_of(page: str, name: str) -> list[list[str]]:
    table = re.search(rf'<table[^>]* id="{name}".*?</table>', page, re.DOTALL)[0]
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)[1:]
    return [[text_of(cell) for cell in re.findall(r"(?s)<td.*?>(.*?)</td>", row)] for row in rows]


def test_numbers_show_their_origin(book):
    run, cell = records.read(RUN), "table2-refinenet-lw-101-params"
    row = "complexity:metrics.rows[model=refinenet-lw-resnet50,classes=21].params:,"
    numbers = (
        f"{RUN}:metrics.miou:.1%", row, f"{cell}:ours:.2f", f"{cell}:paper:.0f",
        f"{cell}:verdict", "claims:partly", "claims:not tested",
    )  # fmt: skip
    page, warnings = book.build(" ".join(f"{{num}}`{number}`" for number in numbers))
    assert not warnings
    texts, (first, _, ours, printed, _, counted, untested) = zip(*origins_of(page), strict=True)
    miou = f"{100 * run['metrics']['miou']:.1f}\u00a0%".replace("\u00a0", " ")
    assert texts[:5] == (miou, "27,357,525", "46.35", "46", "reproduced")
    judged = claims.verdicts(book.results, book.claims)
    assert int(texts[5]) == sum(v.verdict == "partly" for v in judged if v.claim.decides)
    cores = f"{run['hardware']['cores']} core{'s' * (run['hardware']['cores'] != 1)}"
    assert first == (
        f"record {RUN} command {run['command']} seed 0 commit {run['commit'][:8]} "
        f"hardware {run['hardware']['cpu']}, {cores}"
    )
    assert "Table 2: RefineNet-LW-101 (ours): Params,M 46" in printed and "record" not in printed
    assert "record complexity command rflw complexity --all" in ours
    assert re.match(r"counted in the ledger of \d+ claims command rflw claims record", counted)
    assert untested.endswith("commit none: no record answers them")
    assert 'href="claims.html?verdict=partly&amp;source=own#ledger"' in page
    for anchor, target in ((f"record-{RUN}", "records"), (f"claim-{cell}", "claims")):
        assert f'href="{target}.html#{anchor}"' in page
        assert f'id="{anchor}"' in book.html(target)


def test_a_number_from_several_records_names_just_those(book):
    def gap(data, seed):
        name = f"saturation-{data}-lw-rcu-efficientnet_lite0-s{seed}"
        book.add(name)
        metrics = records.read(name)["metrics"]
        return 100 * (metrics["groups"]["all RCU"]["miou_without"] - metrics["miou"])

    drawn, camvid = (gap("embedded", 0) + gap("embedded", 1)) / 2, gap("camvid", 0)
    page, warnings = book.build(
        "{num}`rcu-saturated@embedded:ours:+.3f` {num}`rcu-saturated@embedded:seeds` "
        "{num}`rcu-saturated@camvid:ours:+.3f`"
    )
    assert not warnings
    texts, (several, _, alone) = zip(*origins_of(page), strict=True)
    assert texts == (f"{drawn:+.3f}".replace("-", "−"), "2", f"{camvid:+.3f}".replace("-", "−"))
    assert " records 2 command rflw saturation" in several
    assert " record saturation-camvid-lw-rcu-" in alone


def test_a_number_that_is_not_there_is_an_error(book):
    book.add("saturation-camvid-lw-rcu-efficientnet_lite0-s0")
    wrong = {
        "no-such-run:metrics.miou:.1%": "neither a record nor a claim: no-such-run",
        f"{RUN}:metrics.mious:.1%": "mious",
        f"{RUN}:metrics.miou": "needs a format",
        f"{RUN}:metrics.miou:.1q": "format code 'q'",
        "table3-refinenet-lw-50-val-miou:ours:.1f": "nothing of ours yet",
        "complexity:metrics.rows[model=none].params": "fits 0 rows",
        "rcu-saturated@nothing:ours:.1f": "no answer that begins with nothing",
        "rcu-saturated@camvid:low:.1f": "one value has no interval",
        "field-contours:paper:.1f": "the paper gives no number",
    }
    _, warnings = book.build("\n\n".join(f"It has {{num}}`{number}`." for number in wrong))
    lines = [line for line in warnings.splitlines() if "ERROR" in line and "page.md" in line]
    for line, (number, message) in zip(lines, wrong.items(), strict=True):
        assert f"`{number}`" in line and message in line.lower()


def test_glued_numbers_name_their_cell_and_record(book):
    output = {
        "output_type": "display_data",
        "data": {"text/plain": "73.25"},
        "metadata": {"scrapbook": {"name": "score", "mime_prefix": ""}},
    }
    code = {"cell_type": "code", "execution_count": 1, "outputs": [], "metadata": {}}
    source = f'run = records.read("{RUN}")\nglue("score", run, display=False)'
    prose = {"cell_type": "markdown", "metadata": {}}
    cells = [
        prose | {"source": "# page\n"},
        code | {"source": "import this"},
        code | {"source": source, "outputs": [output]},
        prose | {"source": "It has {glue:text}`score:.1f`."},
    ]
    (book.source / "notebooks/stamps.json").write_text('{"page.ipynb": {"modules": "0123456789"}}')
    page, warnings = book.build(cells=[cell | {"id": str(i)} for i, cell in enumerate(cells)])
    assert not warnings
    [(text, origin)] = origins_of(page)
    assert text == "73.2"
    assert origin.startswith("computed in cell 2 of page.ipynb command make book stored with")
    assert f"modules 01234567 record {RUN} command rflw train" in origin


def test_the_ledger_has_all_claims_and_leads_to_records(book):
    page, warnings = book.build("```{derived} claim-counts\n```\n\n```{derived} squares\n```")
    assert not warnings
    judged, ledger = claims.verdicts(book.results, book.claims), book.html("claims")
    own = [v for v in judged if v.claim.test and not v.claim.repeats]
    ids = re.findall(r'<tr id="claim-([^"]+)"', ledger)
    assert sorted(ids) == sorted(v.claim.id for v in judged)
    aims = [judged[[v.claim.id for v in judged].index(id)].claim.aim for id in ids]
    assert list(dict.fromkeys(aims)) == ["i", "ii", "iii", "iv", "why", "data", ""]
    assert aims == sorted(aims, key=list(dict.fromkeys(aims)).index)  # claims under their aims
    assert [ids[aims.index(aim)] for aim in ("i", "iv")] == ["aim-i", "aim-iv"]  # which head them
    aim = re.search(r'<tr id="claim-aim-i".*?</tr>', ledger)[0]
    assert (
        "Measured by others, not by us: the authors" in aim
        and "Margin for camvid: 1 points (" in aim
    )
    assert 'data-source="repeated"' in re.search(r'<tr id="claim-voc-test-fastest".*?>', ledger)[0]
    row = re.search(r'<tr id="claim-table1-refinenet-101-lw-flops".*?</tr>', ledger)[0]
    assert 'data-verdict="reproduced"' in row and 'href="records.html#record-complexity"' in row
    assert "51.94 B" in row and "Tolerance 1.04 B" in row and 'data-level="computed"' in row
    assert "RefineNet-101-LW: FLOPs,B 52" in text_of(row)
    assert 'data-source="quoted"' in re.search(r'<tr id="claim-fps-icnet".*?>', ledger)[0]
    *verdicts, total = table_of(page, "claim-counts")
    assert int(total[-1]) == len(own) == sum(int(row[-1] or 0) for row in verdicts)
    square = r'<a class="square" data-verdict="([^"]+)"[^>]* href="claims.html#claim-([^"]+)"'
    assert sorted(re.findall(square, page.replace("&#39;", "'"))) == sorted(
        (v.verdict, v.claim.id) for v in own
    )
    assert 'href="../results/complexity.json"' in book.html("records")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: (b.results / f"{RUN}.json").write_text("{}"), f"{RUN}.json"),
        (lambda b: edit(b.results / f"{RUN}.json", '"seed": 0', '"seed": 1'), "hash"),
        (lambda b: b.file("x", kind="seance"), "record x"),
        (lambda b: edit(b.claims, ", test: {check: voc, splits: [train]}", ""), "voc-train"),
    ],
)
def test_what_is_wrong_stops_the_build_and_is_named(book, spoil, message):
    spoil(book)
    _, warnings = book.build()
    assert message in warnings and "error" in warnings.lower()


def test_pictures_are_described_and_references_lead_somewhere(book):
    good = "```{figure} ../data/x.png\n:alt: A square.\n```\n\n$$x_1$$ (eq-x)\n\nSee {eq}`eq-x`."
    page, warnings = book.build(good)
    assert not warnings and "<msub>" in page and '<span class="eqno">(1)</span>' in page
    bad = "```{figure} ../data/x.png\n```\n\n![](../data/x.png)\n\n[it](no.md#x), {ref}`fig-no`"
    _, warnings = book.build(f"{bad} {{numref}}`tab-nowhere`")
    assert warnings.count("picture without alternative text") == 2
    assert all(name in warnings for name in ("no.md", "fig-no", "tab-nowhere", "page.md"))


def test_tables_follow_the_records_and_are_numbered(book):
    counts = {"what": "odd <new>", "score": 0.87654, "rows": [{"file": "a.py"}]}
    book.file("reliability-odd", kind="reliability", metrics=counts, command="odd", wall_s=90)
    book.file(
        "bench-rerun", kind="bench", metrics={"rows": [{"what": "make book", "minutes": 2.34}]}
    )
    book.add(RUN.replace("lw-", "lw-rcu-"))
    names = "machines compute effects times explorer licences recipe-defaults recipes versions"
    names = [*names.split(), "reliability", "aims", "itself"]
    text = "\n\n".join(f"```{{derived}} {name}\n```" for name in names)
    page, warnings = book.build(f"{{numref}}`tab-machines` {{numref}}`tab-effects`\n\n{text}")
    assert not warnings
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    numbers = [int(re.match(r"Table (\d+) ", text_of(caption))[1]) for caption in captions]
    first = numbers[0]
    assert numbers == list(range(first, first + len(names)))
    assert f"Table {first} Table {first + 2} " in text_of(page)
    tables = {name: table_of(page, name) for name in names}

    kept = records.read_all(book.results)
    hours = sum(record["wall_s"] for record in kept) / 3600
    assert tables["machines"][-1] == ["all", str(len(kept)), f"{hours:.1f}"]
    run = records.read(RUN)
    [row] = [row for row in tables["compute"] if row[0] == run["config"]["name"]]
    assert row[1:4] == ["1", "0", f"{run['wall_s'] / 60:.1f}"]
    other = records.read(RUN.replace("lw-", "lw-rcu-"))
    change = 100 * (other["metrics"]["miou"] - run["metrics"]["miou"])
    [row] = tables["effects"]
    assert row[:3] == ["residual units in the light-weight decoder", f"{change:+.1f} points", "1"]
    assert [row[2] for row in tables["times"][:2]] == ["2.3 minutes", "not measured yet"]
    [row] = [row for row in tables["explorer"] if row[0] == "refinenet-lw-resnet50"]
    assert row[1] == "27.36"
    assert ["timm", metadata.version("timm"), "Apache-2.0"] in tables["licences"]
    assert ["batch", "8", "images in a step"] in tables["recipe-defaults"]
    listed = ["own", *(name for name in RECIPES if "-grid-" not in name)]
    assert [row[0] for row in tables["recipes"]] == listed
    assert tables["versions"][0][0] == "fvcore"
    [row] = tables["reliability"]
    assert row[:3] == ["odd <new>", "score: 87.7%", "odd"]
    assert [row[0][:3] for row in tables["aims"]] == ["i. ", "ii.", "iii", "iv."]
    assert tables["aims"][1][2:4] == ["reproduced", "53.6 %"]
    assert tables["itself"][0] == [
        "RefineNet-50: 54.18±0.46 ms at 625x468",
        "20 FPS at 512x512",
        "20.6 FPS, if time grows with the area",
    ]
    # 2 x 263 B / 0.8962 / 60.25 ms
    assert tables["itself"][5][2].startswith("9.7 TFLOP/s")


def test_an_address_brings_buttons_and_a_wrong_one_is_named(monkeypatch):
    from sphinx.errors import ConfigError

    monkeypatch.syspath_prepend(str(EXTENSIONS))
    publishing = importlib.import_module("publishing")

    class Config:
        html_theme_options, html_title, html_baseurl, notfound_urls_prefix = {}, "A book", "", None

    monkeypatch.delenv("RFLW_REPOSITORY", raising=False)
    monkeypatch.delenv("RFLW_URL", raising=False)
    publishing.address(None, Config)
    assert not Config.html_theme_options and Config.notfound_urls_prefix == "/"
    monkeypatch.setenv("RFLW_REPOSITORY", "https://github.com/Somebody/study.git")
    publishing.address(None, Config)
    assert Config.html_theme_options["repository_url"] == "https://github.com/Somebody/study"
    assert Config.html_theme_options["launch_buttons"]
    assert Config.html_baseurl == "https://somebody.github.io/study/"
    assert Config.notfound_urls_prefix == "/study/"
    monkeypatch.setenv("RFLW_REPOSITORY", "somewhere")
    with pytest.raises(ConfigError, match="somewhere.*expected https://github.com"):
        publishing.address(None, Config)


def test_the_page_on_the_interface_has_all_public_names_and_modules(book):
    publishing = importlib.import_module("publishing")
    text = [(ROOT / "book/api.md").read_text(encoding="utf-8")]
    publishing.add_modules(None, "book/api", text)
    for module in ("rflw.metrics", "rflw.nn.blocks", "rflw_study.claims"):
        assert f"### {module}\n" in text[0] and f".. automodule:: {module}\n" in text[0]
    assert "rflw.cli" not in text[0] and "__init__" not in text[0]
    errors = "```{eval-rst}\n.. automodule:: rflw.errors\n```\n"
    page, warnings = book.build(text[0].partition("## Modules")[0] + errors)
    assert not warnings
    documented = set(re.findall(r'id="rflw\.(\w+)"', page))
    assert documented == {name for name in rflw.__all__ if callable(getattr(rflw, name))}


@pytest.mark.parametrize("package", ["rflw", "rflw_study"])
def test_docstrings_can_be_rendered(package):
    """As napoleon reads them they are valid reStructuredText, else the book is not built."""
    from docutils.core import publish_doctree
    from sphinx.ext.napoleon import Config, GoogleDocstring

    wrong = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "name", "module")
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if documented and not name.startswith("_") and (text := ast.get_docstring(node)):
                text, errors = (
                    str(GoogleDocstring(text, Config(napoleon_use_ivar=True))),
                    io.StringIO(),
                )
                publish_doctree(text, settings_overrides={"warning_stream": errors})
                if errors.getvalue():
                    wrong[f"{path.name}: {name}"] = errors.getvalue()
    assert not wrong, "\n".join(f"{name}: {error}" for name, error in wrong.items())

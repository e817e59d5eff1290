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
from types import SimpleNamespace

from PIL import Image
import pytest

import rflw
from rflw import InputError, records
from rflw.recipes import RECIPES
from rflw_study import claims, paper

pytest.importorskip("myst_nb")
ROOT = Path(__file__).resolve().parents[1]
API = (ROOT / "book/api.md").read_text(encoding="utf-8")
RUN, CELL = "camvid-lw-efficientnet_lite0-s0", "table2-refinenet-lw-101-params"
SETTINGS = {
    "extensions": "myst_nb sphinx.ext.autodoc sphinx.ext.napoleon origins derived publishing".split(),
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
TABLES = "machines compute effects times explorer licences recipe-defaults recipes versions"
TABLES = [*TABLES.split(), "reliability", "aims", "itself", "claim-counts"]


class Book:
    """A book of the ledger, the records and what a test adds, with two of our records."""

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

    def build(self, cells=(), **pages: str) -> str:
        """Build with these pages, and a notebook of these cells -> the warnings."""
        from sphinx.application import Sphinx
        from sphinx.util.docutils import docutils_namespace

        for page in ("claims", "records"):
            pages.setdefault(page, f"```{{derived}} {page.replace('claims', 'ledger')}\n```")
        listed = "\n".join(f"book/{page}" for page in (*pages, *(["notebook"] if cells else ())))
        (self.source / "index.md").write_text(f"# A book\n\n```{{toctree}}\n{listed}\n```\n")
        for page, body in pages.items():
            (self.source / f"book/{page}.md").write_text(f"# {page}\n\n{body}\n")
        if cells:
            language = {"language_info": {"name": "python", "pygments_lexer": "python"}}
            notebook = {"metadata": language, "nbformat": 4, "nbformat_minor": 5, "cells": cells}
            (self.source / "book/notebook.ipynb").write_text(json.dumps(notebook))
        warnings, out = io.StringIO(), self.folder / "html"
        folders = (self.source, None, out, self.folder / "trees")
        with docutils_namespace():
            Sphinx(*folders, "html", SETTINGS, None, warnings, freshenv=True).build()
        return warnings.getvalue()

    def html(self, page: str) -> str:
        return (self.folder / f"html/book/{page}.html").read_text()

    def verdicts(self) -> dict:
        return {v.claim.id: v for v in claims.verdicts(self.results, self.claims)}


@pytest.fixture(autouse=True, scope="module")
def extensions():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "book/_ext"))
        yield


def saturation(data: str, seed: int) -> str:
    return f"saturation-{data}-lw-rcu-efficientnet_lite0-s{seed}"


NUMBERS = f"""\
{RUN}:metrics.miou:.1%
complexity:metrics.rows[model=refinenet-lw-resnet50,classes=21].params:,
{CELL}:ours:.2f
{CELL}:paper:.0f
{CELL}:verdict
claims:partly
claims:not tested
rcu-saturated@embedded:ours:+.3f
rcu-saturated@embedded:seeds
rcu-saturated@camvid:ours:+.3f
""".splitlines()


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """All that is right, built once."""
    book = Book(tmp_path_factory.mktemp("book"))
    book.add(*(saturation("embedded", seed) for seed in (0, 1)), saturation("camvid", 0))
    book.add(RUN.replace("lw-", "lw-rcu-"))
    counts = {"what": "odd <new>", "score": 0.87654, "rows": [{"file": "a.py"}]}
    book.file("reliability-odd", kind="reliability", metrics=counts, command="odd", wall_s=90)
    minutes = {"rows": [{"what": "make book", "minutes": 2.34}]}
    book.file("bench-rerun", kind="bench", metrics=minutes)
    derived = "\n\n".join(f"```{{derived}} {name}\n```" for name in [*TABLES, "squares"])
    picture = "```{figure} ../data/x.png\n:alt: A square.\n```\n\n$$x_1$$ (eq-x)\n\nSee {eq}`eq-x`."
    output = {"output_type": "display_data", "data": {"text/plain": "73.25"}}
    output["metadata"] = {"scrapbook": {"name": "score", "mime_prefix": ""}}
    code = {"cell_type": "code", "execution_count": 1, "outputs": [], "metadata": {}}
    glue = f'run = records.read("{RUN}")\nglue("score", run, display=False)'
    prose = {"cell_type": "markdown", "metadata": {}}
    cells = [
        prose | {"source": "# page\n"},
        code | {"source": "import this"},
        code | {"source": glue, "outputs": [output]},
        prose | {"source": "It has {glue:text}`score:.1f`."},
    ]
    stamps = book.source / "notebooks/stamps.json"
    stamps.write_text('{"notebook.ipynb": {"modules": "0123456789"}}')
    warnings = book.build(
        cells=[cell | {"id": str(i)} for i, cell in enumerate(cells)],
        numbers=" ".join(f"{{num}}`{number}`" for number in NUMBERS),
        page=f"{{numref}}`tab-machines` {{numref}}`tab-effects`\n\n{picture}\n\n{derived}",
        interface=API.partition("## Modules")[0],
    )
    assert not warnings
    return book


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
    def gap(data, seed):
        metrics = records.read(saturation(data, seed))["metrics"]
        return 100 * (metrics["groups"]["all RCU"]["miou_without"] - metrics["miou"])

    run, page = records.read(RUN), book.html("numbers")
    texts, origins = zip(*origins_of(page), strict=True)
    assert texts[1:5] == ("27,357,525", "46.35", "46", "reproduced")
    partly = [v.verdict for v in book.verdicts().values() if v.claim.decides].count("partly")
    gaps = [(gap("embedded", 0) + gap("embedded", 1)) / 2, gap("camvid", 0)]
    drawn, alone = (f"{each:+.3f}".replace("-", "−") for each in gaps)
    miou = f"{100 * run['metrics']['miou']:.1f} %"
    assert (texts[0], texts[5], *texts[7:]) == (miou, str(partly), drawn, "2", alone)
    cores = f"{run['hardware']['cores']} core{'s' * (run['hardware']['cores'] != 1)}"
    assert origins[0] == (
        f"record {RUN} command {run['command']} seed 0 commit {run['commit'][:8]} "
        f"hardware {run['hardware']['cpu']}, {cores}"
    )
    assert "record complexity command rflw complexity --all" in origins[2]
    printed = origins[3]
    assert "Table 2: RefineNet-LW-101 (ours): Params,M 46" in printed and "record" not in printed
    counted = r"counted in the ledger of \d+ claims command rflw claims record"
    assert re.match(counted, origins[5])
    assert origins[6].endswith("commit none: no record answers them")
    assert " records 2 command rflw saturation" in origins[7]
    assert " record saturation-camvid-lw-rcu-" in origins[9]
    assert 'href="claims.html?verdict=partly&amp;source=own#ledger"' in page
    for anchor, target in ((f"record-{RUN}", "records"), (f"claim-{CELL}", "claims")):
        assert f'href="{target}.html#{anchor}"' in page
        assert f'id="{anchor}"' in book.html(target)
    [(text, origin)] = origins_of(book.html("notebook"))  # a glued one names its cell
    assert text == "73.2"
    assert origin.startswith("computed in cell 2 of notebook.ipynb command make book stored with")
    assert f"modules 01234567 record {RUN} command rflw train" in origin


def test_what_is_not_there_is_an_error(tmp_path):
    book = Book(tmp_path)
    book.add(saturation("camvid", 0))
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
    pictures = "```{figure} ../data/x.png\n```\n\n![](../data/x.png)"
    links = "[it](no.md#x), {ref}`fig-no` {numref}`tab-nowhere`"
    numbers = "\n\n".join(f"It has {{num}}`{number}`." for number in wrong)
    warnings = book.build(page=numbers, links=f"{pictures}\n\n{links}")
    lines = [line for line in warnings.splitlines() if "ERROR" in line and "page.md" in line]
    for line, (number, message) in zip(lines, wrong.items(), strict=True):
        assert f"`{number}`" in line and message in line.lower()
    assert warnings.count("picture without alternative text") == 2
    assert all(name in warnings for name in ("no.md", "fig-no", "tab-nowhere", "links.md"))


def test_a_wrong_record_or_claim_stops_the_build_and_is_named(tmp_path):
    book, origins = Book(tmp_path), importlib.import_module("origins")
    book.file("x", kind="seance")
    warnings = book.build()
    assert "record x" in warnings and "error" in warnings.lower()
    text, test = book.claims.read_text(), ", test: {check: voc, splits: [train]}"
    assert test in text
    book.claims.write_text(text.replace(test, ""))
    with pytest.raises(InputError, match="voc-train"):
        origins.judged(str(book.source))


def test_the_ledger_has_all_claims_and_leads_to_records(book):
    judged, ledger = book.verdicts(), book.html("claims")
    own = [v for v in judged.values() if v.claim.test and not v.claim.repeats]
    rows = dict(re.findall(r'(?s)<tr id="claim-([^"]+)"(.*?)</tr>', ledger))
    assert rows.keys() == judged.keys() and ledger.count('<tr id="claim-') == len(rows)
    ids, aims = [*rows], [judged[id].claim.aim for id in rows]
    order = list(dict.fromkeys(aims))
    assert order == ["i", "ii", "iii", "iv", "why", "data", ""]
    assert aims == sorted(aims, key=order.index)  # claims under their aims
    assert [ids[aims.index(aim)] for aim in ("i", "iv")] == ["aim-i", "aim-iv"]  # which head them
    assert "Measured by others, not by us: the authors" in rows["aim-i"]
    assert "Margin for camvid: 1 points (" in rows["aim-i"]
    assert 'data-source="repeated"' in rows["voc-test-fastest"]
    assert 'data-source="quoted"' in rows["fps-icnet"]
    row = rows["table1-refinenet-101-lw-flops"]
    assert 'data-verdict="reproduced"' in row and 'href="records.html#record-complexity"' in row
    assert "51.94 B" in row and "Tolerance 1.04 B" in row and 'data-level="computed"' in row
    assert "RefineNet-101-LW: FLOPs,B 52" in text_of(row)
    page = book.html("page")
    *verdicts, total = table_of(page, "claim-counts")
    assert int(total[-1]) == len(own) == sum(int(row[-1] or 0) for row in verdicts)
    square = r'<a class="square" data-verdict="([^"]+)"[^>]* href="claims.html#claim-([^"]+)"'
    drawn = re.findall(square, page.replace("&#39;", "'"))
    assert sorted(drawn) == sorted((v.verdict, v.claim.id) for v in own)
    assert 'href="../results/complexity.json"' in book.html("records")


def test_tables_follow_the_records_and_are_numbered(book):
    page = book.html("page")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    numbers = [int(n[1]) for c in captions if (n := re.match(r"Table (\d+) ", text_of(c)))]
    first = numbers[0]
    assert numbers == list(range(first, first + len(TABLES)))
    assert f"Table {first} Table {first + 2} " in text_of(page)
    assert "<msub>" in page and '<span class="eqno">(1)</span>' in page
    tables = {name: table_of(page, name) for name in TABLES}

    kept = records.read_all(book.results)
    hours = sum(record["wall_s"] for record in kept) / 3600
    assert tables["machines"][-1] == ["all", str(len(kept)), f"{hours:.1f}"]
    run, other = records.read(RUN), records.read(RUN.replace("lw-", "lw-rcu-"))
    [row] = [row for row in tables["compute"] if row[0] == run["config"]["name"]]
    assert row[1:4] == ["1", "0", f"{run['wall_s'] / 60:.1f}"]
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
    measured, stated, implied = tables["itself"][0]
    assert (measured, stated) == ("RefineNet-50: 54.18±0.46 ms at 625x468", "20 FPS at 512x512")
    assert implied.startswith("20.6 FPS")
    assert tables["itself"][5][2].startswith("9.7 TFLOP/s")  # 2 x 263 B / 0.8962 / 60.25 ms


def test_the_page_on_the_interface_has_all_public_names_and_modules(book):
    documented = set(re.findall(r'id="rflw\.(\w+)"', book.html("interface")))
    assert documented == {name for name in rflw.__all__ if callable(getattr(rflw, name))}
    text = [API]
    importlib.import_module("publishing").add_modules(None, "book/api", text)
    for module in ("rflw.metrics", "rflw.nn.blocks", "rflw_study.claims"):
        assert f"### {module}\n" in text[0] and f".. automodule:: {module}\n" in text[0]
    assert "rflw.cli" not in text[0] and "__init__" not in text[0]


def test_docstrings_can_be_rendered():
    """As napoleon reads them they are valid reStructuredText, else the book is not built."""
    from docutils.core import publish_doctree
    from sphinx.ext.napoleon import Config, GoogleDocstring

    wrong, settings = {}, Config(napoleon_use_ivar=True)
    for path in [*ROOT.glob("rflw/**/*.py"), *ROOT.glob("rflw_study/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "name", "module")
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if documented and not name.startswith("_") and (text := ast.get_docstring(node)):
                rst, errors = str(GoogleDocstring(text, settings)), io.StringIO()
                publish_doctree(rst, settings_overrides={"warning_stream": errors})
                if errors.getvalue():
                    wrong[f"{path.name}: {name}"] = errors.getvalue()
    assert not wrong


def test_an_address_brings_buttons_and_a_wrong_one_is_named(monkeypatch):
    from sphinx.errors import ConfigError

    publishing = importlib.import_module("publishing")

    def address(repository: str) -> SimpleNamespace:
        monkeypatch.setenv("RFLW_REPOSITORY", repository)
        config = SimpleNamespace(html_theme_options={}, html_title="A book", html_baseurl="")
        publishing.address(None, config)
        return config

    monkeypatch.delenv("RFLW_URL", raising=False)
    alone = address("")
    assert not alone.html_theme_options and alone.notfound_urls_prefix == "/"
    config = address("https://github.com/Somebody/study.git")
    assert config.html_theme_options["repository_url"] == "https://github.com/Somebody/study"
    assert config.html_theme_options["launch_buttons"]
    assert config.html_baseurl == "https://somebody.github.io/study/"
    assert config.notfound_urls_prefix == "/study/"
    with pytest.raises(ConfigError, match="somewhere.*expected https://github.com"):
        address("somewhere")

"""What the book's pages show of claims and records, and that a wrong one stops the build. Small books, built by Sphinx."""

from dataclasses import asdict
from html import unescape
import io
import json
from pathlib import Path
import re
import shutil
import sys

from PIL import Image
import pytest

from rflw import records
from rflw.recipes import RECIPES
from rflw_study import paper

pytest.importorskip("myst_nb")
ROOT = Path(__file__).resolve().parents[1]
RUN = "camvid-lw-efficientnet_lite0-s0"


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Build a book of one page, with a few of our records -> (its HTML, warnings)."""
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    source = tmp_path / "source"
    shutil.copytree(paper.FOLDER, source / "data" / "paper")
    (source / "data" / "results").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(source / "data" / "x.png")
    for name in ("complexity", RUN):
        shutil.copy(records.FOLDER / f"{name}.json", source / "data" / "results")

    class Book:
        results, claims = source / "data" / "results", source / "data" / "paper" / "claims.yaml"

        def build(self, text="", cells=()):
            from sphinx.application import Sphinx
            from sphinx.util.docutils import docutils_namespace

            (source / "book").mkdir(exist_ok=True)
            (source / "index.md").write_text(
                "# A book\n\n```{toctree}\nbook/claims\nbook/records\nbook/page\n```\n"
            )
            for page, body in (
                ("claims", "```{claims}\n```"),
                ("records", "```{records}\n```"),
                ("page", text),
            ):
                (source / "book" / f"{page}.md").write_text(f"# {page}\n\n{body}\n")
            if cells:  # a notebook instead
                (source / "book" / "page.md").unlink()
                notebook = {
                    "metadata": {"language_info": {"name": "python", "pygments_lexer": "python"}},
                    "nbformat": 4,
                    "nbformat_minor": 5,
                    "cells": [
                        {"id": str(i), "metadata": {}} | cell for i, cell in enumerate(cells)
                    ],
                }
                (source / "book" / "page.ipynb").write_text(json.dumps(notebook))
            warnings = io.StringIO()
            settings = {
                "extensions": ["myst_nb", "sphinx.ext.autodoc", "bookparts", "bookpages"],
                "nb_execution_mode": "off",
                "html_math_renderer": "mathml",
                "nitpicky": True,
                "numfig": True,
                "myst_heading_anchors": 3,
                "nitpick_ignore_regex": [("py:.*", ".*")],
            }
            with docutils_namespace():
                app = Sphinx(
                    str(source),
                    None,
                    str(tmp_path / "html"),
                    str(tmp_path / "trees"),
                    "html",
                    settings,
                    None,
                    warnings,
                    freshenv=True,
                )
                app.build()
            pages = {
                page: (tmp_path / "html" / "book" / f"{page}.html").read_text()
                for page in ("claims", "records", "page")
            }
            return pages, warnings.getvalue()

    yield Book()
    for name in ("bookparts", "bookpages"):
        sys.modules.pop(name, None)


def text_of(html):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_a_number_tells_its_origin(book):
    run = records.read(RUN)
    cell = "table2-refinenet-lw-101-params"
    pages, warnings = book.build(
        f"It has {{num}}`{RUN}:metrics.miou:.1%` and {{num}}`{RUN}:metrics.iou.sky:.3f`, LW-101 has "
        f"{{num}}`{cell}:ours:.2f` of {{num}}`{cell}:paper:.0f` million, which is {{num}}`{cell}:verdict`; "
        "{num}`claims:partly` claims are met partly."
    )
    assert not warnings
    page = pages["page"]
    buttons = re.findall(
        r'<button type="button" class="num" popovertarget="([^"]+)">(.*?)</button>', page
    )
    assert [unescape(text) for _, text in buttons] == [
        f"{100 * run['metrics']['miou']:.1f}\u00a0%",
        f"{run['metrics']['iou']['sky']:.3f}",
        "46.35",
        "46",
        "reproduced",
        "3",
    ]
    origins = {
        key: text_of(
            re.search(rf'<span popover class="origin" id="{key}">(.*?)</span></span>', page)[1]
        )
        for key, _ in buttons
    }
    assert len(origins) == 6
    first, *_, paper_s, verdict, counts = origins.values()
    assert first == (
        f"record {RUN} command {run['command']} seed 0 commit {run['commit'][:8]} "
        f"hardware {run['hardware']['cpu']}, {run['hardware']['cores']} core"
        + "s"
        * (run["hardware"]["cores"] != 1)
    )
    assert "Table 2: RefineNet-LW-101 (ours): Params,M 46" in paper_s and "record" not in paper_s
    assert "record complexity command rflw complexity --all" in verdict
    assert re.match(
        r"counted in the ledger of \d+ claims command rflw claims record complexity seed ", counts
    )
    assert re.findall(r"commit (\w+)", counts) == [records.read("complexity")["commit"][:8]]
    assert 'href="claims.html?verdict=partly&amp;source=own#ledger"' in page
    assert f'href="records.html#record-{RUN}"' in page and f'id="record-{RUN}"' in pages["records"]
    assert f'href="claims.html#claim-{cell}"' in page and f'id="claim-{cell}"' in pages["claims"]


def test_a_number_from_several_records_names_just_those(book):
    for seed in (0, 1):
        for recipe in ("embedded-original-efficientnet_lite0", "embedded-lw-efficientnet_lite0"):
            shutil.copy(records.FOLDER / f"{recipe}-s{seed}.json", book.results)
    for recipe in (
        "camvid-short-original-efficientnet_lite0",
        "camvid-short-lw-efficientnet_lite0",
    ):
        shutil.copy(records.FOLDER / f"{recipe}-s0.json", book.results)

    def gap(data, seed):
        light, original = (
            records.read(f"{data}-{form}-efficientnet_lite0-s{seed}")["metrics"]["miou"]
            for form in ("lw", "original")
        )
        return 100 * (light - original)

    pages, warnings = book.build(
        "{num}`performance-intact:ours:+.3f` {num}`performance-intact@embedded:seeds` "
        "{num}`performance-intact@camvid:ours:+.3f` {num}`claims:not tested`"
    )
    assert not warnings
    found = re.findall(r'popovertarget="([^"]+)">(.*?)</button>', pages["page"])
    drawn, camvid = (gap("embedded", 0) + gap("embedded", 1)) / 2, gap("camvid-short", 0)
    assert [text for _, text in found][:3] == [
        f"{drawn:+.3f}".replace("-", "−"),
        "2",
        f"{camvid:+.3f}".replace("-", "−"),
    ]
    several, _, pair, none = (
        text_of(re.search(rf'id="{key}">(.*?)</span></span>', pages["page"])[1]) for key, _ in found
    )
    assert " records 4 command rflw train" in several and " and 2 more seed 0, 1 commit " in several
    assert (
        " records 2 command rflw train camvid-short-original" in pair
        and " and " not in pair.partition("records")[2]
    )
    assert none.endswith("commit none: no record answers them")
    asked = {
        "performance-intact@nothing:ours:.1f": "no answer that begins with nothing",
        "performance-intact@camvid:low:.1f": "one value has no interval",
        "field-contours:paper:.1f": "the paper gives no number",
    }
    _, warnings = book.build("\n\n".join(f"{{num}}`{number}`" for number in asked))
    assert all(says in warnings for says in asked.values()) and warnings.count("ERROR") == len(
        asked
    )


def test_a_number_that_is_not_there_is_an_error(book):
    wrong = {
        "no-such-run:metrics.miou:.1%": "neither a record nor a claim: no-such-run",
        f"{RUN}:metrics.mious:.1%": "mious",
        f"{RUN}:metrics.miou": "needs a format",
        f"{RUN}:metrics.miou:.1q": "format code 'q'",
        "table3-refinenet-lw-50-val-miou:ours:.1f": "nothing of ours yet",
        "complexity:metrics.rows[model=none].params": "fits 0 rows",
    }
    _, warnings = book.build("\n\n".join(f"It has {{num}}`{number}`." for number in wrong))
    lines = [line for line in warnings.splitlines() if "ERROR" in line and "page.md" in line]
    assert len(lines) == len(wrong)
    for line, (number, says) in zip(lines, wrong.items()):
        assert f"`{number}`" in line and says in line.lower()


def test_rows_are_found_by_what_they_say(book):
    pages, warnings = book.build(
        "{num}`complexity:metrics.rows[model=refinenet-lw-resnet50,classes=21].params:,`"
    )
    assert not warnings and ">27,357,525</button>" in pages["page"]


def test_glued_numbers_name_their_cell_and_record(book):
    def code(source, outputs=()):
        return {
            "cell_type": "code",
            "source": source,
            "execution_count": 1,
            "outputs": list(outputs),
        }

    def text(source):
        return {"cell_type": "markdown", "source": source}

    output = {
        "output_type": "display_data",
        "data": {"text/plain": "73.25"},
        "metadata": {"scrapbook": {"name": "score", "mime_prefix": ""}},
    }
    pages, warnings = book.build(
        cells=[
            text("# page\n"),
            code("import this"),
            code(f'run = records.read("{RUN}")\nglue("score", run, display=False)', [output]),
            text("It has {glue:text}`score:.1f`."),
        ]
    )
    assert not warnings
    assert re.search(r'class="num"[^>]*>(<span[^>]*>)?73.2(</span>)?</button>', pages["page"])
    assert (
        f"computed in cell 2 of page.ipynb command make book record {RUN} command rflw train"
        in text_of(pages["page"])
    )


def test_the_ledger_has_all_claims_and_leads_to_records(book):
    from rflw_study import claims

    pages, warnings = book.build("```{claim-counts}\n```")
    judged = claims.verdicts(book.results, book.claims)
    assert not warnings
    assert re.findall(r'<tr id="claim-([^"]+)"', pages["claims"]) == [v.claim.id for v in judged]
    row = re.search(
        r'<tr id="claim-table1-refinenet-101-lw-flops".*?</tr>', pages["claims"], re.DOTALL
    )[0]
    assert (
        'data-verdict="reproduced"' in row
        and 'href="records.html#record-complexity"' in row
        and "51.94 B" in row
    )
    assert "must round to the number" in text_of(row) and "RefineNet-101-LW: FLOPs,B 52" in text_of(
        row
    )
    quoted = re.search(r'<tr id="claim-fps-icnet".*?</tr>', pages["claims"], re.DOTALL)[0]
    assert 'data-source="quoted"' in quoted and "not tested" in quoted
    total = re.search(r'<tr id="verdict-all".*?</tr>', pages["page"], re.DOTALL)[0]
    counts = [int(n) for n in re.findall(r">(\d+)</td>", total)]
    assert sum(counts[:-1]) == counts[-1] == sum(bool(v.claim.test) for v in judged)
    assert 'href="../results/complexity.json"' in pages["records"]


def test_a_new_record_changes_the_page(book):
    recipe = "paper-voc-lw-resnet50"
    record = {field: kind() for field, kind in records.REQUIRED.items()} | {
        "name": f"{recipe}-s0",
        "kind": "train",
        "status": "done",
        "metrics": {"miou": 0.781},
        "config": asdict(RECIPES[recipe]),
        "seed": 0,
        "commit": "abc",
        "command": f"rflw train {recipe}",
        "hardware": {"cpu": "x", "cores": 1},
        "started": "2026-01-01",
        "wall_s": 60,
    }
    records.write(record, book.results)
    pages, warnings = book.build("{num}`table3-refinenet-lw-50-val-miou:ours:.1f`")
    row = re.search(
        r'<tr id="claim-table3-refinenet-lw-50-val-miou".*?</tr>', pages["claims"], re.DOTALL
    )[0]
    assert (
        not warnings
        and 'data-verdict="reproduced"' in row
        and "78.1 %" in row
        and ">78.1</button>" in pages["page"]
    )


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda book: (book.results / f"{RUN}.json").write_text("{}"), f"{RUN}.json: no name"),
        (
            lambda book: edit(book.results / f"{RUN}.json", '"seed": 0', '"seed": 1'),
            f"{RUN}.json: its hash does not fit",
        ),
        (
            lambda book: records.write(records.read(RUN) | {"kind": "seance"}, book.results),
            f"record {RUN}: of an unknown experiment",
        ),
        (
            lambda book: records.write(records.read(RUN) | {"metrics": {}}, book.results),
            f"record {RUN}: malformed",
        ),
        (
            lambda book: edit(book.claims, ", test: {check: voc, splits: [train]}", ""),
            "voc-train: no test",
        ),
    ],
)
def test_what_is_wrong_stops_the_build_and_is_named(book, spoil, says):
    spoil(book)
    _, warnings = book.build()
    assert says in warnings and ("ERROR" in warnings or "error" in warnings)


def test_pictures_are_described_and_references_lead_somewhere(book):
    _, warnings = book.build(
        "```{figure} ../data/x.png\n```\n\n![](../data/x.png)\n\nSee [it](nowhere.md#at-all) and {ref}`fig-nowhere`."
    )
    assert warnings.count("picture without alternative text") == 2 and "page.md" in warnings
    assert "nowhere.md" in warnings and "fig-nowhere" in warnings
    _, warnings = book.build("```{figure} ../data/x.png\n:alt: A square.\n```")
    assert not warnings


def test_pages_follow_the_records(book):
    """The picture, the questions, the compute ledger and the effects are derived from what is on record."""
    text = "```{verdict}\n:name: fig-v\n\nA caption.\n```\n\n" + "\n\n".join(
        f"```{{{name}}}\n```" for name in ("answers", "compute", "effects", "rerun-times")
    )
    pages, warnings = book.build(text)
    from rflw_study import claims

    judged = [v for v in claims.verdicts(book.results, book.claims) if v.claim.test]
    assert not warnings
    squares = re.findall(
        r'<a class="square" data-verdict="([^"]+)" href="claims.html#claim-([^"]+)"', pages["page"]
    )
    assert sorted(squares) == sorted((v.verdict, v.claim.id) for v in judged)
    reproduced = sum(v.verdict == "reproduced" for v in judged if v.claim.kind == "count")
    assert f"{reproduced} reproduced" in text_of(
        re.search(r'<tr id="answer-size".*?</tr>', pages["page"], re.DOTALL)[0]
    )
    hours = sum(records.read(name)["wall_s"] for name in ("complexity", RUN)) / 3600
    assert (
        text_of(re.search(r'<tr id="machine-all".*?</tr>', pages["page"], re.DOTALL)[0])
        == f"all 2 {hours:.1f}"
    )
    assert "effect-0" not in pages["page"] and "not measured yet" in pages["page"]
    other = RUN.replace("lw-", "lw-rcu-")
    shutil.copy(records.FOLDER / f"{other}.json", book.results)
    for read in (sys.modules["bookparts"].kept, sys.modules["bookparts"].judged):
        read.cache_clear()
    pages, _ = book.build(text)
    row = text_of(re.search(r'<tr id="effect-0".*?</tr>', pages["page"], re.DOTALL)[0])
    change = 100 * (records.read(other)["metrics"]["miou"] - records.read(RUN)["metrics"]["miou"])
    assert (
        row.startswith(f"residual units in the light-weight decoder {change:+.1f} points 1 CamVid")
        and other in row
    )


def test_tables_are_numbered_and_bear_titles_of_other_pages(book):
    pages, warnings = book.build(
        "See {numref}`tab-machines` and {numref}`tab-mine`.\n\n```{compute}\n```\n\n"
        "```{answers}\n:name: tab-mine\n```"
    )
    page = pages["page"]
    assert not warnings
    captions = [
        text_of(found) for found in re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    ]
    numbers = [re.match(r"Table (\d+) ", caption)[1] for caption in captions]
    assert len(captions) == 3 and [int(n) - int(numbers[0]) for n in numbers] == [0, 1, 2]
    assert f"See Table {numbers[0]} and Table {numbers[2]} ." in text_of(page)
    assert (
        '<a href="claims.html">claims</a>' in page
    )  # none of the pages that tell is in this book, so the ledger does
    _, warnings = book.build("See {numref}`tab-nowhere`.")
    assert "tab-nowhere" in warnings


def test_what_is_not_measured_is_said_to_be(book):
    text = "```{rerun-times}\n```"
    pages, warnings = book.build(text)
    row = text_of(re.search(r'<tr id="time-make-book".*?</tr>', pages["page"], re.DOTALL)[0])
    assert not warnings and row.endswith("not measured yet")
    rows = [{"what": "make book", "minutes": 2.34}]
    records.write(
        records.read("complexity")
        | {"name": "bench-rerun", "kind": "bench", "metrics": {"rows": rows}},
        book.results,
    )
    for read in (sys.modules["bookparts"].kept, sys.modules["bookparts"].judged):
        read.cache_clear()
    pages, _ = book.build(text)
    rows = {
        name: text_of(re.search(rf'<tr id="time-make-{name}".*?</tr>', pages["page"], re.DOTALL)[0])
        for name in ("book", "test")
    }
    assert (
        "2.3 minutes" in rows["book"]
        and "record-bench-rerun" in pages["page"]
        and rows["test"].endswith("not measured yet")
    )


def test_the_slider_needs_both_pictures_with_words(book):
    options = "\n:name: fig-s\n:before: paper/a.png\n:after: paper/b.png\n:before-alt: A.\n"
    for name in "ab":
        (book.claims.parent / f"{name}.png").write_bytes(b"")
    _, warnings = book.build(f"```{{slider}}{options}\nA caption.\n```")
    assert "paper/b.png without a description" in warnings
    pages, warnings = book.build(f"```{{slider}}{options}:after-alt: B.\n\nA caption.\n```")
    assert (
        not warnings
        and pages["page"].count('src="../paper/') == 2
        and 'type="range"' in pages["page"]
    )
    (book.claims.parent / "a.png").unlink()
    _, warnings = book.build(f"```{{slider}}{options}:after-alt: B.\n\nA caption.\n```")
    assert "no picture paper/a.png" in warnings


def test_explorer_has_what_is_on_record(book):
    pages, warnings = book.build("```{explorer}\n```")
    data = json.loads(re.search(r'id="explorer-data">(.*?)</script>', pages["page"])[1])
    assert not warnings and [row["model"] for row in data] == [
        row["model"] for row in records.read("complexity")["metrics"]["rows"]
    ]
    lw50 = next(row for row in data if row["model"] == "refinenet-lw-resnet50")
    shown = re.search(
        r'data-model="refinenet-lw-resnet50">.*?label="parameters, M">([\d.]+)',
        pages["page"],
        re.DOTALL,
    )[1]
    assert lw50["params"] == 27_357_525 and shown == "27.36"


def test_every_record_of_reliability_is_shown(book):
    """Also one of a kind of attack that nobody has thought of yet."""
    pages, warnings = book.build("```{reliability}\n```")
    assert not warnings and "<table" not in pages["page"]
    base = {field: kind() for field, kind in records.REQUIRED.items()} | {
        "kind": "reliability",
        "status": "done",
        "seed": 0,
        "commit": "abc",
        "dirty": False,
        "hardware": {"cpu": "x", "cores": 2},
        "started": "2026-01-01",
        "wall_s": 90,
    }
    records.write(
        base
        | {
            "name": "reliability-faults",
            "command": "python -m tests.faults",
            "metrics": {
                "what": "faults",
                "kills": 4321,
                "scenarios": {
                    "training": {"kills": 30, "points": {"step": 7}, "held": True},
                    "disk": {"held": False},
                },
            },
        },
        book.results,
    )
    records.write(
        base
        | {
            "name": "reliability-odd",
            "command": "odd",
            "metrics": {
                "what": "something <new>",
                "score": 0.87654,
                "interval": [0.8, 0.9],
                "peak_mb": 12,
                "rows": [{"file": "a.py"}, {"line": 3}],
            },
        },
        book.results,
    )
    for read in (sys.modules["bookparts"].kept, sys.modules["bookparts"].judged):
        read.cache_clear()
    pages, warnings = book.build("```{reliability}\n```")
    assert not warnings
    row = {
        name: text_of(
            re.search(rf'<tr id="reliable-reliability-{name}".*?</tr>', pages["page"], re.DOTALL)[0]
        )
        for name in ("faults", "odd")
    }
    assert row["faults"].startswith("faults kills: 4,321 python -m tests.faults 1.5 x, 2 cores")
    assert row["odd"].startswith(
        "something <new> score: 0.8765 interval: 0.8, 0.9 peak, MB: 12 odd"
    )
    assert (
        text_of(
            re.search(r'<tr id="reliability-faults-scenarios-0".*?</tr>', pages["page"], re.DOTALL)[
                0
            ]
        )
        == "training 30 step 7 yes"
    )
    assert (
        text_of(re.search(r'<tr id="reliability-odd-rows-1".*?</tr>', pages["page"], re.DOTALL)[0])
        == "2 3"
    )
    assert 'href="records.html#record-reliability-odd"' in pages["page"]


def test_licences_of_the_lock_are_listed(book):
    from importlib import metadata

    pages, warnings = book.build("```{licences}\n```")
    rows = dict(
        re.findall(r'<tr id="licence-([^"]+)".*?label="licence">([^<]+)<', pages["page"], re.DOTALL)
    )
    assert (
        not warnings
        and rows["torch"]
        and rows["numpy"]
        and rows["timm"] == metadata.metadata("timm")["License"]
    )
    lock = (ROOT / "requirements.lock").read_text()
    assert {*rows} <= {*re.findall(r"(?m)^([\w.-]+)==", lock)} and len(rows) > 200


def test_an_address_brings_buttons_and_a_wrong_one_is_named(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    import bookpages
    from sphinx.errors import ConfigError

    class Config:
        html_theme_options, html_title, html_baseurl, notfound_urls_prefix = {}, "A book", "", None

    monkeypatch.delenv("RFLW_REPOSITORY", raising=False)
    monkeypatch.delenv("RFLW_URL", raising=False)
    bookpages.address(None, Config)
    assert (
        Config.html_theme_options == {}
        and not Config.html_baseurl
        and Config.notfound_urls_prefix == "/"
    )
    monkeypatch.setenv("RFLW_REPOSITORY", "https://github.com/Somebody/study.git")
    bookpages.address(None, Config)
    assert Config.html_theme_options["repository_url"] == "https://github.com/Somebody/study"
    assert Config.html_theme_options["launch_buttons"]
    assert (
        Config.html_baseurl == "https://somebody.github.io/study/"
        and Config.notfound_urls_prefix == "/study/"
    )
    monkeypatch.setenv("RFLW_REPOSITORY", "somewhere")
    with pytest.raises(ConfigError, match="somewhere.*expected https://github.com"):
        bookpages.address(None, Config)
    sys.modules.pop("bookpages", None)

"""The published numbers: typed again here from the paper's pages, so that the CSV files meet a second reading."""

from pathlib import Path
import re
import shutil
import subprocess
import sys

import pandas
import pytest

from rflw.errors import InputError
from rflw_study import paper

NAN = float("nan")

# Table -> headings, then each row as printed, with NAN for "-". Typed from the page, not from the CSV.
PRINTED = {
    1: (
        ("Parameters,M", "FLOPs,B"),
        {
            "RefineNet-101 [46]": (118, 263),
            "RefineNet-101-LW-WITH-RCU": (54, 76),
            "RefineNet-101-LW": (46, 52),
        },
    ),
    2: (
        ("NYUD mIoU,%", "Person mIoU,%", "Params,M", "Runtime,ms"),
        {
            "FCN16-s RGB-HHA [49]": (34.0, NAN, NAN, NAN),
            "Context [45]": (40.6, NAN, NAN, NAN),
            "DeepLab-v2-CRF [5]": (NAN, 64.9, 44, NAN),
            "RefineNet-50 [46]": (42.5, 65.7, 99, 54.18),
            "RefineNet-101 [46]": (43.6, 67.6, 118, 60.25),
            "RefineNet-152 [46]": (46.5, 68.8, 134, 69.37),
            "RefineNet-LW-50 (ours)": (41.7, 64.9, 27, 19.56),
            "RefineNet-LW-101 (ours)": (43.6, 66.7, 46, 27.16),
            "RefineNet-LW-152 (ours)": (44.4, 67.6, 62, 35.82),
        },
    ),
    3: (
        ("val mIoU,%", "test mIoU,%", "FLOPS,B"),
        {
            "DeepLab-v2-ResNet-101-CRF [5]": (77.7, 79.7, NAN),
            "RefineNet-101 [46]": (NAN, 82.4, 263),
            "RefineNet-152 [46]": (NAN, 83.4, 283),
            "RefineNet-LW-50 (ours)": (78.5, 81.1, 33),
            "RefineNet-LW-101 (ours)": (80.3, 82.0, 52),
            "RefineNet-LW-152 (ours)": (82.1, 82.7, 71),
            "MobileNet-v1-DeepLab-v3 [60]": (75.3, NAN, 14.2),
            "MobileNet-v2-DeepLab-v3 [60]": (75.7, NAN, 5.8),
            "RefineNet-LW-MobileNet-v2 (ours)": (76.2, 79.2, 9.3),
            "RefineNet-LW-NASNet-Mobile (ours)": (77.4, 79.3, 11.4),
        },
    ),
    4: (
        ("mIoU,%", "acc,%"),
        {"Before RCU": (54.63, 95.39), "After RCU": (55.16, 95.42), "After CRP": (57.83, 97.71)},
    ),
    5: (
        ("mIoU,%",),
        {
            "DeepLab-v2-CRF [5]": (45.7,),
            "RefineNet-101 [46]": (47.1,),
            "RefineNet-152 [46]": (47.3,),
            "RefineNet-LW-101 (ours)": (45.1,),
            "RefineNet-LW-152 (ours)": (45.8,),
        },
    ),
}
# Table -> (cells of the paper's own, cells quoted from others), counted on the page.
OWN_AND_QUOTED = {1: (6, 0), 2: (18, 10), 3: (17, 8), 4: (6, 0), 5: (2, 3)}
# Numbers that the text gives in words.
WORDS = {0.5: "half", 1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 50: "half"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the published files that a test may spoil, put in place of the real folder."""
    copy = shutil.copytree(paper.FOLDER, tmp_path / "paper")
    monkeypatch.setattr(paper, "FOLDER", copy)
    return copy


def spoil(path: Path, old: str, new: str) -> int:
    """Replace the one occurrence of `old`, and return the number of its line."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize("n", PRINTED)
def test_frame_is_the_printed_table(n):
    headings, rows = PRINTED[n]
    expected = pandas.DataFrame.from_dict(rows, orient="index", columns=headings).rename_axis(
        "Model"
    )
    pandas.testing.assert_frame_equal(paper.frame(n), expected, check_dtype=False, check_exact=True)


def test_printed_frame_keeps_marks_spreads_and_gaps():
    row = paper.frame(2, printed=True).loc["RefineNet-152 [46]"]
    assert list(row) == ["46.5 (msc)", "68.8 (msc)", "134", "69.37±0.78"]
    assert paper.frame(3, printed=True).loc["RefineNet-152 [46]", "val mIoU,%"] == "-"
    assert paper.frame(3, printed=True).loc["RefineNet-LW-101 (ours)", "test mIoU,%"] == "82.0"


@pytest.mark.parametrize("n", OWN_AND_QUOTED)
def test_own_and_quoted_cells(n):
    cells = paper.table(n)
    own = sum(c.own for c in cells)
    assert (own, len(cells) - own) == OWN_AND_QUOTED[n]


def test_cells_are_the_five_tables_in_order():
    cells = paper.cells()
    assert len(cells) == 70
    assert cells == sum((paper.table(n) for n in PRINTED), ())
    assert [c.table for c in cells] == sorted(c.table for c in cells)


def test_quoted_cells_name_the_reference_of_their_row():
    quoted = [c for c in paper.cells() if not c.own]
    assert all(c.source == "quoted " + c.row.removeprefix(c.model).strip() for c in quoted)
    assert not any(c.row.endswith("(ours)") for c in quoted)


def test_runtimes_are_the_paper_s_own_with_their_spread():
    spread = {c.row: c.uncertainty for c in paper.cells() if c.uncertainty is not None}
    assert spread == {
        "RefineNet-50 [46]": 0.46,
        "RefineNet-101 [46]": 0.53,
        "RefineNet-152 [46]": 0.78,
        "RefineNet-LW-50 (ours)": 0.29,
        "RefineNet-LW-101 (ours)": 0.19,
        "RefineNet-LW-152 (ours)": 0.23,
    }
    runtimes = [c for c in paper.cells() if c.column == "Runtime"]
    assert len(runtimes) == len(spread)
    assert all(c.own for c in runtimes)


def test_multi_scale_cells():
    assert [(c.table, c.model, c.value) for c in paper.cells() if c.msc] == [
        (2, "DeepLab-v2-CRF", 64.9),
        (2, "RefineNet-152", 46.5),
        (2, "RefineNet-152", 68.8),
        (5, "DeepLab-v2-CRF", 45.7),
        (5, "RefineNet-101", 47.1),
        (5, "RefineNet-152", 47.3),
    ]


def test_footnotes_of_table_3_are_notes_not_digits():
    notes = [(c.value, c.note.split("; ")[0]) for c in paper.table(3) if "footnote" in c.note]
    assert notes == [
        (v, f"footnote {i}") for i, v in enumerate((81.1, 82.0, 82.7, 79.2, 79.3), start=1)
    ]


def test_settings_are_those_of_the_captions():
    assert {(c.table, c.column): c.setting for c in paper.cells()} == {
        (1, "Parameters"): "",
        (1, "FLOPs"): "512x512",
        (2, "NYUD mIoU"): "NYUDv2 test",
        (2, "Person mIoU"): "Person-Part test",
        (2, "Params"): "",
        (2, "Runtime"): "625x468",
        (3, "val mIoU"): "PASCAL VOC val",
        (3, "test mIoU"): "PASCAL VOC test",
        (3, "FLOPS"): "512x512",
        (4, "mIoU"): "PASCAL VOC val",
        (4, "acc"): "PASCAL VOC val",
        (5, "mIoU"): "PASCAL Context test",
    }
    assert len({(c.table, c.column, c.setting) for c in paper.cells()}) == 12


def test_a_row_answers_with_and_without_its_mark():
    assert paper.value(2, "RefineNet-LW-50 (ours)", "Runtime") == 19.56
    assert paper.value(2, "RefineNet-LW-50", "Runtime") == 19.56
    assert (
        paper.value(1, "RefineNet-101", "FLOPs")
        == paper.value(1, "RefineNet-101 [46]", "FLOPs")
        == 263
    )
    assert paper.value(4, "After CRP", "acc") == 97.71


def test_decimals_are_those_printed():
    assert paper.cell(1, "RefineNet-101", "FLOPs").decimals == 0
    assert paper.cell(3, "RefineNet-LW-101", "test mIoU").decimals == 1
    assert paper.statement("lr-resnet").decimals == 4
    assert str(paper.cell(4, "Before RCU", "mIoU")) == "54.63"


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ((6, "RefineNet-101", "FLOPs"), "1, 2, 3, 4, 5"),
        ((1, "RefineNet-101-LV", "FLOPs"), "RefineNet-101-LW"),
        ((1, "SegNet", "FLOPs"), "RefineNet-101-LW-WITH-RCU"),
        ((3, "RefineNet-LW-50", "FLOPs"), "FLOPS"),
        ((3, "RefineNet-101", "val mIoU"), "test mIoU"),  # printed as "-"
    ],
)
def test_unknown_names_list_what_is_near(key, named):
    with pytest.raises(InputError) as caught:
        paper.value(*key)
    assert named in str(caught.value).partition("there is:")[2]


def test_far_names_are_left_out_where_some_are_near():
    with pytest.raises(InputError) as caught:
        paper.value(2, "Contexts", "NYUD mIoU")
    assert str(caught.value) == "no row 'Contexts' in table 2; there is: Context [45]"


@pytest.mark.parametrize("call", [paper.table, paper.frame])
def test_unknown_table(call):
    with pytest.raises(InputError, match="no table 0 in the paper; there is: 1, 2, 3, 4, 5"):
        call(0)


@pytest.mark.parametrize(
    ("id", "number", "relation", "unit", "section"),
    [
        ("fps-fastest-lw", 55, "=", "FPS", "Abstract"),
        ("fps-fastest-original", 20, "=", "FPS", "Abstract"),
        ("fps-slowest-lw", 32, "=", "FPS", "Abstract"),
        ("fps-slowest-original", 17, "=", "FPS", "Abstract"),
        ("params-mobilenet-v2", 3.3, "=", "M", "Abstract"),
        ("params-saved", 50, ">", "percent", "1"),
        ("params-reduction", 2, ">", "x", "3.2"),
        ("flops-reduction", 3, ">", "x", "3.2"),
        ("drop-without-rcu-original", 5, ">", "percent", "3.3"),
        ("lr-resnet", 5e-4, "=", "1", "4"),
        ("lr-mobile", 1e-3, "=", "1", "4"),
        ("forward-passes", 100, "=", "passes", "4"),
        ("nyud-lr-factor", 0.5, "=", "x", "4"),
        ("nyud-lr-step-1", 100, "=", "epochs", "4"),
        ("nyud-epochs", 300, "=", "epochs", "4"),
        ("person-train", 1716, "=", "images", "4"),
        ("voc-train", 1464, "=", "images", "4"),
        ("voc-val", 1449, "=", "images", "4"),
        ("voc-lr-step-coco", 20, "=", "epochs", "4"),
        ("context-classes", 60, "=", "classes", "7"),
        ("cityscapes-test-lw-101", 72.1, "=", "percent", "7"),
        ("cityscapes-test-refinenet", 73.6, "=", "percent", "7"),
    ],
)
def test_statements(id, number, relation, unit, section):
    s = paper.statement(id)
    assert (s.value, s.relation, s.unit, s.section) == (number, relation, unit, section)


def test_every_statement_s_quote_holds_its_number():
    assert len(paper.statements()) == 83
    for s in paper.statements():
        words = re.sub(r"\[[\d, ]+\]", "", s.quote)  # without references
        digits = map(float, re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?:e-\d+)?", words))
        assert s.value in digits or WORDS.get(s.value, "\0") in s.quote, s.id
        assert (s.relation == ">") == ("more than" in s.quote), s.id


def test_splits_of_the_text_add_up():
    def images(name):
        return paper.statement(name).value

    assert images("nyud-train") + images("nyud-test") == images("nyud-images")
    assert sum(map(images, ("voc-train", "voc-val", "voc-test"))) == images("voc-images")
    assert sum(map(images, ("cityscapes-train", "cityscapes-val", "cityscapes-test"))) == images(
        "cityscapes-images"
    )


@pytest.mark.parametrize(
    ("id", "cell"),
    [
        ("voc-test-fastest", (3, "RefineNet-LW-50", "test mIoU")),
        ("voc-test-slowest", (3, "RefineNet-LW-152", "test mIoU")),
        ("voc-test-mobilenet-v2", (3, "RefineNet-LW-MobileNet-v2", "test mIoU")),
        ("flops-mobilenet-v2", (3, "RefineNet-LW-MobileNet-v2", "FLOPS")),
        ("nyud-fastest", (2, "RefineNet-LW-50", "NYUD mIoU")),
        ("person-fastest", (2, "RefineNet-LW-50", "Person mIoU")),
        ("nyud-best", (2, "RefineNet-LW-152", "NYUD mIoU")),
        ("person-best", (2, "RefineNet-LW-152", "Person mIoU")),
    ],
)
def test_text_and_tables_agree(id, cell):
    assert paper.statement(id).value == paper.value(*cell)


def test_unknown_statement_lists_what_is_near():
    with pytest.raises(InputError, match="no statement 'fps-fastest'.*fps-fastest-lw"):
        paper.statement("fps-fastest")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("RCU,FLOPs,512x512,76,,B,,own", "RCU,FLOPs,512x512,76,,B,own", "expected 9 fields"),
        ("RCU,FLOPs,512x512,76,,B,,own", "RCU,FLOPs,512x512,76,,B,,own,", "expected 9 fields"),
        ("512x512,76,,B", "512x512,many,,B", "'many' is no number"),
        ("512x512,76,,B", "512x512,nan,,B", "'nan' is no number"),
        ("512x512,76,,B", "512x512,76,few,B", "'few' is no number"),
        ("512x512,76,,B", "512x512,76,,", "unit is empty"),
        ("RCU,FLOPs,512x512,76,,B,,own", "RCU,FLOPs,512x512,76,,B,,46", "source '46'"),
        ("RCU,FLOPs,512x512", "RCU,Parameters,512x512", "a second value"),
        ("1,RefineNet-101-LW-WITH-RCU,FLOPs", "2,RefineNet-101-LW-WITH-RCU,FLOPs", "table '2'"),
    ],
)
def test_a_malformed_line_is_named(folder, old, new, says):
    line = spoil(folder / "table1.csv", old, new)
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        paper.table(1)
    assert f"{folder / 'table1.csv'}, line {line}:" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("lr-mobile,4,setting", "lr-resnet,4,setting", "a second statement 'lr-resnet'"),
        ("lr-mobile,4,setting,=", "lr-mobile,4,guess,=", "kind 'guess'"),
        ("lr-mobile,4,setting,=", "lr-mobile,4,setting,<", "relation '<'"),
        ("lr-mobile,4,setting,=,1e-3", "lr-mobile,4,setting,=,small", "'small' is no number"),
    ],
)
def test_a_malformed_statement_is_named(folder, old, new, says):
    line = spoil(folder / "text.csv", old, new)
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        paper.statements()
    assert f"{folder / 'text.csv'}, line {line}:" in str(caught.value)


def test_a_missing_column_is_named(folder):
    spoil(folder / "table1.csv", "uncertainty,unit", "unit")
    with pytest.raises(InputError, match="table1.csv, line 1: .*uncertainty"):
        paper.table(1)


def test_an_open_quote_is_named(folder):
    spoil(folder / "table1.csv", "1,RefineNet-101-LW,FLOPs", '1,"RefineNet-101-LW,FLOPs')
    with pytest.raises(InputError, match="table1.csv, line 7: unexpected end of data"):
        paper.table(1)


def test_a_missing_file_is_named(folder):
    (folder / "table5.csv").unlink()
    with pytest.raises(InputError, match="table5.csv"):
        paper.cells()


def test_import_needs_the_standard_library_only():
    """`rflw` itself is replaced by a bare package, for it may import more."""
    code = (
        "import sys, types; sys.modules['rflw'] = bare = types.ModuleType('rflw'); bare.__path__ = [sys.argv[1]]\n"
        "import rflw_study.paper; rflw_study.paper.cells(); print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(Path(paper.__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"

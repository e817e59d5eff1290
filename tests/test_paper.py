"""The published numbers: typed again here from the paper's pages, as a second reading."""

import re
import shutil

import pytest

from rflw.errors import InputError
from rflw_study import paper

NAN = None

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
SETTINGS = {
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
# Numbers that the text gives in words.
WORDS = {0.5: "half", 1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 50: "half"}


@pytest.mark.parametrize("n", PRINTED)
def test_tables_are_the_printed_ones(n):
    headings, rows = PRINTED[n]
    expected = {(row, h): x for row, xs in rows.items() for h, x in zip(headings, xs) if x != NAN}
    assert {(c.row, c.heading): c.value for c in paper.table(n)} == expected
    own = sum(c.own for c in paper.table(n))
    assert (own, len(paper.table(n)) - own) == OWN_AND_QUOTED[n]
    assert {c.table for c in paper.table(n)} == {n}


def test_cells_have_the_settings_of_their_captions_and_the_references_of_their_rows():
    cells = paper.cells()
    assert len(cells) == 70 and cells == sum((paper.table(n) for n in PRINTED), ())
    assert {(c.table, c.column): c.setting for c in cells} == SETTINGS
    assert len({c.id for c in cells}) == 70 and cells[0].id == "table1-refinenet-101-parameters"
    quoted = [c for c in cells if not c.own]
    assert all(c.source == "quoted " + c.row.removeprefix(c.model).strip() for c in quoted)
    assert not any(c.row.endswith("(ours)") for c in quoted)


def test_multi_scale_cells_and_footnotes():
    multi = {(2, "DeepLab-v2-CRF", 64.9), (2, "RefineNet-152", 46.5), (2, "RefineNet-152", 68.8)}
    multi |= {(5, "DeepLab-v2-CRF", 45.7), (5, "RefineNet-101", 47.1), (5, "RefineNet-152", 47.3)}
    assert {(c.table, c.model, c.value) for c in paper.cells() if c.msc} == multi
    assert str(paper.cell(2, "RefineNet-152", "NYUD mIoU")) == "46.5 (msc)"
    notes = [(c.value, c.note.split("; ")[0]) for c in paper.table(3) if "footnote" in c.note]
    values = (81.1, 82.0, 82.7, 79.2, 79.3)  # without the digit of the footnote
    assert notes == [(value, f"footnote {i}") for i, value in enumerate(values, start=1)]


def test_spreads_and_decimals_are_those_printed():
    runtimes = [str(c) for c in paper.table(2) if c.column == "Runtime" and c.own]
    spreads = "54.18±0.46 60.25±0.53 69.37±0.78 19.56±0.29 27.16±0.19 35.82±0.23"
    assert runtimes == spreads.split()
    assert str(paper.cell(1, "RefineNet-101", "FLOPs")) == "263"
    assert str(paper.cell(3, "RefineNet-LW-101", "test mIoU")) == "82.0"
    assert paper.statement("lr-resnet").decimals == 4  # 5e-4


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ((6, "RefineNet-101", "FLOPs"), "1, 2, 3, 4, 5"),
        ((1, "SegNet", "FLOPs"), "RefineNet-101-LW-WITH-RCU"),
        ((2, "Contexts", "NYUD mIoU"), "Context [45]"),
        ((3, "RefineNet-LW-50", "FLOPs"), "FLOPS"),
        ((3, "RefineNet-101", "val mIoU"), "test mIoU"),  # printed as "-"
    ],
)
def test_unknown_names_list_what_is_near(key, named):
    with pytest.raises(InputError) as caught:
        paper.value(*key)
    assert named in str(caught.value).partition("choose from: ")[2]
    with pytest.raises(InputError, match="no statement 'fps-fastest'.*fps-fastest-lw"):
        paper.statement("fps-fastest")


def test_every_statement_s_quote_holds_its_number():
    assert len(paper.statements()) == 83
    for s in paper.statements():
        words = re.sub(r"\[[\d, ]+\]", "", s.quote)  # without references
        digits = map(float, re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?:e-\d+)?", words))
        assert s.value in digits or WORDS.get(s.value, "\0") in s.quote, s.id
        assert (s.relation == ">") == ("more than" in s.quote), s.id


def test_splits_of_the_text_add_up():
    def images(*names):
        return sum(paper.statement(name).value for name in names)

    assert images("nyud-train", "nyud-test") == images("nyud-images")
    for data in ("voc", "cityscapes"):
        parts = images(f"{data}-train", f"{data}-val", f"{data}-test")
        assert parts == images(f"{data}-images")


def test_text_and_tables_agree():
    for table, names, columns in (
        (3, ("fastest", "slowest", "mobilenet-v2"), {"voc-test": "test mIoU"}),
        (2, ("fastest", "best"), {"nyud": "NYUD mIoU", "person": "Person mIoU"}),
    ):
        rows = dict.fromkeys(("slowest", "best"), "LW-152") | {"fastest": "LW-50"}
        for name in names:
            row = f"RefineNet-{rows.get(name, 'LW-MobileNet-v2')}"
            for data, column in columns.items():
                assert paper.statement(f"{data}-{name}").value == paper.value(table, row, column)


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("table1", "RCU,FLOPs,512x512,76,,B,,own", "RCU,FLOPs,512x512,76,,B,own", "line 5: source"),
        ("table1", "512x512,76,,B", "512x512,many,,B", "line 5: value"),
        ("table1", "RCU,FLOPs,512x512", "RCU,Parameters,512x512", "line 5: a second"),
        ("table1", "1,RefineNet-101-LW,FLOPs", '1,"RefineNet-101-LW,FLOPs', "cannot be read .*EOF"),
        ("text", "lr-mobile,4,setting,=", "lr-mobile,4,guess,=", "kind: "),
    ],
)
def test_a_fault_in_a_file_is_named(tmp_path, monkeypatch, name, old, new, says):
    folder = shutil.copytree(paper.FOLDER, tmp_path / "paper")
    monkeypatch.setattr(paper, "FOLDER", folder)
    path = folder / f"{name}.csv"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=f"^{path}.*({says})") as caught:
        paper.statements() if name == "text" else paper.table(1)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_table_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no table 0 in the paper; choose from: 1, 2, 3, 4, 5"):
        paper.table(0)
    monkeypatch.setattr(paper, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="table1.csv: no such file"):
        paper.cells()


def test_official_lists_are_counted(tmp_path):
    """By hand: three, two and one images; the list that SBD extends has all three, one of val, two new."""
    lists = {"train": "a b c", "val": "d e", "test": "f", "train_aug": "a b c e g h"}
    for name, ids in lists.items():
        (tmp_path / f"{name}.txt").write_text(ids.replace(" ", "\n") + "\n")
    counted = paper.count_lists(tmp_path)
    images = {split: part["images"] for split, part in counted["splits"].items()}
    assert images == {"train": 3, "val": 2, "test": 1} and counted["images"] == 6
    assert counted["augmented"] == {"images": 6, "shared": {"train": 3, "val": 1, "test": 0}}
    (tmp_path / "val.txt").write_text("d\ne\nd\n")
    with pytest.raises(InputError, match="val.txt: 1 ids stand there twice"):
        paper.count_lists(tmp_path)
    (tmp_path / "val.txt").unlink()
    with pytest.raises(InputError, match="val.txt"):
        paper.count_lists(tmp_path)

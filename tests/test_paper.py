"""The published numbers: typed again here from the paper's pages, as a second reading."""

import re
import shutil

import pytest

from rflw.errors import InputError
from rflw_study import paper

# Each table's number and headings with the setting of the caption, then its rows as printed. Typed
# from the page, not from the CSV.
PRINTED = """
1 | Parameters,M | FLOPs,B 512x512
RefineNet-101 [46] | 118 | 263
RefineNet-101-LW-WITH-RCU | 54 | 76
RefineNet-101-LW | 46 | 52

2 | NYUD mIoU,% NYUDv2 test | Person mIoU,% Person-Part test | Params,M | Runtime,ms 625x468
FCN16-s RGB-HHA [49] | 34.0 | - | - | -
Context [45] | 40.6 | - | - | -
DeepLab-v2-CRF [5] | - | 64.9 (msc) | 44 | -
RefineNet-50 [46] | 42.5 | 65.7 | 99 | 54.18±0.46
RefineNet-101 [46] | 43.6 | 67.6 | 118 | 60.25±0.53
RefineNet-152 [46] | 46.5 (msc) | 68.8 (msc) | 134 | 69.37±0.78
RefineNet-LW-50 (ours) | 41.7 | 64.9 | 27 | 19.56±0.29
RefineNet-LW-101 (ours) | 43.6 | 66.7 | 46 | 27.16±0.19
RefineNet-LW-152 (ours) | 44.4 | 67.6 | 62 | 35.82±0.23

3 | val mIoU,% PASCAL VOC val | test mIoU,% PASCAL VOC test | FLOPS,B 512x512
DeepLab-v2-ResNet-101-CRF [5] | 77.7 | 79.7 | -
RefineNet-101 [46] | - | 82.4 | 263
RefineNet-152 [46] | - | 83.4 | 283
RefineNet-LW-50 (ours) | 78.5 | 81.1 | 33
RefineNet-LW-101 (ours) | 80.3 | 82.0 | 52
RefineNet-LW-152 (ours) | 82.1 | 82.7 | 71
MobileNet-v1-DeepLab-v3 [60] | 75.3 | - | 14.2
MobileNet-v2-DeepLab-v3 [60] | 75.7 | - | 5.8
RefineNet-LW-MobileNet-v2 (ours) | 76.2 | 79.2 | 9.3
RefineNet-LW-NASNet-Mobile (ours) | 77.4 | 79.3 | 11.4

4 | mIoU,% PASCAL VOC val | acc,% PASCAL VOC val
Before RCU | 54.63 | 95.39
After RCU | 55.16 | 95.42
After CRP | 57.83 | 97.71

5 | mIoU,% PASCAL Context test
DeepLab-v2-CRF [5] | 45.7 (msc)
RefineNet-101 [46] | 47.1 (msc)
RefineNet-152 [46] | 47.3 (msc)
RefineNet-LW-101 (ours) | 45.1
RefineNet-LW-152 (ours) | 45.8
"""
# Table -> (cells of the paper's own, cells quoted from others), counted on the page.
OWN_AND_QUOTED = {1: (6, 0), 2: (18, 10), 3: (17, 8), 4: (6, 0), 5: (2, 3)}
# Numbers that the text gives in words.
WORDS = {0.5: "half", 1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 50: "half"}


def test_tables_are_the_printed_ones():
    for n, block in enumerate(PRINTED.strip().split("\n\n"), start=1):
        lines = [line.split(" | ") for line in block.splitlines()]
        (number, *headings), cells = lines[0], paper.table(n)
        expected = {
            (row[0], h): x for row in lines[1:] for h, x in zip(headings, row[1:]) if x != "-"
        }
        found = {(c.row, f"{c.heading} {c.setting}".strip()): str(c) for c in cells}
        assert int(number) == n and found == expected
        own = sum(c.own for c in cells)
        assert (own, len(cells) - own) == OWN_AND_QUOTED[n]


def test_cells_have_names_and_the_references_of_their_rows():
    cells = paper.cells()
    assert len(cells) == 70 and cells == sum(map(paper.table, OWN_AND_QUOTED), ())
    assert len({c.id for c in cells}) == 70 and cells[0].id == "table1-refinenet-101-parameters"
    for c in cells:
        assert c.own or c.source == "quoted " + c.row.removeprefix(c.model).strip()


def test_every_statement_s_quote_holds_its_number():
    assert len(paper.statements()) == 83 and paper.statement("lr-resnet").decimals == 4  # 5e-4
    for s in paper.statements():
        words = re.sub(r"\[[\d, ]+\]", "", s.quote)  # without references
        digits = map(float, re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?:e-\d+)?", words))
        assert s.value in digits or WORDS.get(s.value, "\0") in s.quote, s.id
        assert (s.relation == ">") == ("more than" in s.quote), s.id


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ((0, "RefineNet-101", "FLOPs"), "1, 2, 3, 4, 5"),
        ((1, "SegNet", "FLOPs"), "RefineNet-101-LW-WITH-RCU"),
        ((2, "Contexts", "NYUD mIoU"), "Context [45]"),
        ((3, "RefineNet-101", "val mIoU"), "test mIoU"),  # printed as "-"
    ],
)
def test_unknown_names_list_what_is_near(key, named):
    with pytest.raises(InputError) as caught:
        paper.value(*key)
    assert named in str(caught.value).partition("choose from: ")[2]


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


def test_official_lists_are_counted(tmp_path):
    """By hand: three, two and one images; the list that SBD extends has all three, one of val."""
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

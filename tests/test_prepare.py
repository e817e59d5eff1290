"""Raw files in their true formats -> the prepared folder. Masks are written out or computed."""

import hashlib
import json
from pathlib import Path
import shutil
import sys
from unittest.mock import Mock

import h5py
import numpy as np
from PIL import Image
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix
from torchvision import datasets

from rflw import InputError
from rflw.data.check import check
from rflw.data.labels import LABELS, VOC_CLASSES
from rflw.data.readers import open_dataset
from rflw_study import prepare as module
from rflw_study.prepare import COCO_NAMES, CONTEXT_IDS, prepare

MASK = np.array([[0, 1, 1, 20], [0, 15, 15, 255], [7, 7, 0, 255]], np.uint8)  # 4 wide, 3 high
H, W = MASK.shape
pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")  # pycocotools


def put(path: Path, content) -> None:
    """Write text, a MATLAB file of a dict, or a picture of an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        savemat(path, content, do_compression=True)
    elif isinstance(content, np.ndarray):
        Image.fromarray(content.astype(np.uint8)).save(path)
    else:
        path.write_bytes(content.encode("latin-1"))


def photo(path: Path, size=(H, W)) -> None:
    put(path, np.full((*size, 3), (sum(path.stem.encode()) % 200, 100, 50)))


def structs(rows: list[dict]) -> np.ndarray:
    """A MATLAB struct array."""
    out = np.empty(len(rows), [(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        out[i] = tuple(row.values())
    return out


def voc(raw: Path, train=("2007_000001", "2007_000002"), val=("2008_000003",), year=2012) -> Path:
    folder = raw / f"VOCdevkit/VOC{year}"
    lists = folder / "ImageSets" / ("Segmentation" if year == 2012 else "Main")
    for split, ids in (("train", train), ("val", val)):
        put(lists / f"{split}.txt", "\n".join(ids) + "\n")
        for key in ids:
            photo(folder / f"JPEGImages/{key}.jpg")
            if year == 2012:
                mask = Image.fromarray(MASK)
                mask.putpalette(LABELS["voc"].palette())
                (folder / "SegmentationClass").mkdir(exist_ok=True)
                mask.save(folder / f"SegmentationClass/{key}.png")
    return folder


def sbd(raw: Path) -> None:
    """2008_000003 is a validation image of VOC, 2007_000002 one of its training images."""
    voc(raw)
    folder = raw / "benchmark_RELEASE/dataset"
    boundaries = np.empty((20, 1), object)  # a cell of sparse matrices
    boundaries[:, 0] = [csc_matrix((H, W)) for _ in range(20)]
    parts = {"train": ("2008_000010", "2008_000003"), "val": ("2007_000002", "2008_000011")}
    for split, keys in parts.items():
        put(folder / f"{split}.txt", "\n".join(keys))
        for key in keys:
            photo(folder / f"img/{key}.jpg")
            content = {"Segmentation": np.full((H, W), 4, np.uint8), "Boundaries": boundaries}
            put(folder / f"cls/{key}.mat", {"GTcls": content})


def part(name: str, row: int, start: int, stop: int) -> dict:
    mask = np.zeros((H, W), np.uint8)
    mask[row, start:stop] = 1
    return {"part_name": name, "mask": mask}


def person(raw: Path) -> None:
    voc(raw, ("2008_000001", "2008_000002", "2008_000004"), year=2010)

    def thing(kind, *parts):
        parts = structs(parts) if parts else np.zeros((0, 0))
        return {"class": kind, "class_ind": 1, "mask": np.ones((H, W), np.uint8), "parts": parts}

    upper = (part("head", 0, 0, 4), part("hair", 0, 0, 1), part("neck", 1, 0, 1))
    lower = (part("rhand", 1, 2, 3), part("luarm", 1, 3, 4), part("ruleg", 2, 0, 1))
    for key, things in {
        "2008_000001": [
            thing("person", *upper, part("torso", 1, 1, 2)),
            thing("dog", part("head", 2, 0, 4)),
            thing("person", *lower, part("lfoot", 2, 1, 2)),
        ],
        "2008_000002": [thing("dog", part("head", 0, 0, 4))],
        "2008_000003": [thing("person", part("nose", 2, 3, 4))],  # structs of one entry
        "2008_000004": [thing("person"), thing("car")],
    }.items():
        annotation = {"imname": key, "objects": structs(things)}
        put(raw / f"Annotations_Part/{key}.mat", {"anno": annotation})


CONTEXT_LABELS = np.array([[284, 284, 187, 0], [360, 1, 459, 308], [427, 458, 2, 3]], np.uint16)


def context(raw: Path) -> None:
    voc(raw, ("2008_000002",), year=2010)
    for key in ("2008_000002", "2008_000003"):
        put(raw / f"trainval/{key}.mat", {"LabelMap": CONTEXT_LABELS})


def context_json(raw: Path) -> None:
    voc(raw, ("2008_000002",), year=2010)
    entries = ((1, "2008_000002", "train"), (2, "2008_000003", "val"), (3, "2008_000009", "test"))
    images = [
        {"image_id": i, "file_name": f"{key}.jpg", "phase": phase, "height": H, "width": W}
        for i, key, phase in entries
    ]
    everything = {"size": [H, W], "counts": [0, 12]}
    column = {"size": [H, W], "counts": [0, 3, 9]}  # the first
    regions = [
        {"image_id": i, "category_id": category, "segmentation": shape}
        for i, category, shape in ((1, 360, everything), (1, 284, column), (2, 1, everything))
    ]
    content = {"images": images, "annos_segmentation": regions}
    put(raw / "trainval_merged.json", json.dumps(content))


SIZE = (40, 60)
COCO_IDS = {"person": 1, "airplane": 5, "truck": 8, "couch": 63, "laptop": 73}


def box(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def coco(raw: Path, shapes=None) -> None:
    """Columns of couches have 20, 25 and just over 25 columns of 40 pixels."""
    from pycocotools import mask

    small = np.zeros(SIZE, np.uint8, "F")
    small[15:, 10:14] = 1
    small = mask.encode(small)
    small["counts"] = small["counts"].decode()  # the compact form of run lengths
    shapes = shapes or (  # (image, category, region, whether a crowd, area)
        ("many", 1, small, 0, 100),  # over what is larger and comes later
        ("many", 5, box(0, 0, 60, 20), 0, 1200),
        ("many", 1, {"size": SIZE, "counts": [2000, 400]}, 1, 400),
        ("many", 1, [[3, 3, 9, 9]], 0, 0),  # two corners have no area
        ("few", 63, {"size": SIZE, "counts": [0, 800, 1600]}, 0, 800),
        ("few", 73, box(0, 0, 60, 40), 0, 2400),
        ("exact", 63, {"size": SIZE, "counts": [0, 1000, 1400]}, 0, 1000),
        ("over", 63, {"size": SIZE, "counts": [0, 1001, 1399]}, 0, 1001),
        ("trucks", 8, box(0, 0, 60, 40), 0, 2400),
    )
    names = dict.fromkeys(COCO_NAMES.get(name, name) for name in VOC_CLASSES[1:])
    numbers = {name: 100 + i for i, name in enumerate(names)} | COCO_IDS
    keys = ("many", "few", "exact", "trucks", "over")
    columns = ("image_id", "category_id", "segmentation", "iscrowd", "area")
    content = {
        "categories": [{"id": i, "name": name} for name, i in numbers.items()],
        "images": [
            {"id": i, "file_name": f"{key}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for i, key in enumerate(keys)
        ],
        "annotations": [dict(zip(columns, (keys.index(key), *more))) for key, *more in shapes],
    }
    for key in keys:
        photo(raw / f"train2017/{key}.jpg", SIZE)
    put(raw / "annotations/instances_train2017.json", json.dumps(content))


ROADS = np.array([[7, 8, 0, 33], [26, 1, 3, 24], [29, 30, 10, 255]], np.uint8)


def cityscapes(raw: Path) -> None:
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "lindau")):
        key = f"{city}_000000_000019"
        photo(raw / f"leftImg8bit/{split}/{city}/{key}_leftImg8bit.png")
        for kind in ("labelIds", "instanceIds"):
            put(raw / f"gtFine/{split}/{city}/{key}_gtFine_{kind}.png", ROADS)


def nyu(raw: Path) -> np.ndarray:
    """Three frames in MATLAB 7.3's order of axes.

    Labels are 1 + column // 10; raw class i has class i % 40 + 1 of the 40.
    """
    y, x = np.mgrid[:480, :640]
    images = np.stack([np.stack([(x + c * 40 + i) % 200 for c in range(3)], -1) for i in range(3)])
    labels = (1 + x // 10).astype(np.uint16)
    raw.mkdir()
    with h5py.File(raw / FRAMES, "w", userblock_size=512) as file:
        file["images"] = images.astype(np.uint8).transpose(0, 3, 2, 1)
        file["labels"] = np.stack([labels.T] * 3)
    put(raw / "splits.mat", {"trainNdxs": [[3], [1]], "testNdxs": [[2]]})
    put(raw / "classMapping40.mat", {"mapClass": np.arange(1, 895)[None] % 40 + 1})
    return images.astype(np.uint8)


FRAMES = "nyu_depth_v2_labeled.mat"
MAKERS = (voc, sbd, person, context, coco, cityscapes, nyu)
MAKERS = {maker.__name__: maker for maker in MAKERS}


def read(out: Path, name: str, key: str) -> np.ndarray:
    image = Image.open(out / f"{name}/masks/{key}.png")
    assert image.mode == "P" and image.getpalette()[:6] == LABELS[name].palette()[:6]
    return np.array(image)


def ids(out: Path, name: str, split: str) -> list[str]:
    return (out / f"{name}/splits/{split}.txt").read_text().split()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fails(words: str, name: str, raw: Path, out: Path) -> None:
    """It must fail in one line with these words, and leave nothing in `out`."""
    with pytest.raises(InputError, match=words) as caught:
        prepare(name, raw, out)
    assert "\n" not in str(caught.value)
    assert not out.exists() or not [*out.iterdir()]


@pytest.fixture
def raw(tmp_path) -> Path:
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


# What is written


def test_layout_sums_and_manifest(raw, out, monkeypatch):
    folder = voc(raw)
    before = contents(raw)
    manifest = prepare("voc", raw, out)
    assert contents(raw) == before
    parts = {"images", "masks", "splits", "SHA256SUMS", "manifest.json"}
    assert {path.name for path in (out / "voc").iterdir()} == parts
    lines = (out / "voc/SHA256SUMS").read_text().splitlines(keepends=True)
    assert len(lines) == 6
    for line in lines:
        digest, path = line.split()
        assert hashlib.sha256((out / "voc" / path).read_bytes()).hexdigest() == digest
    halves = {"train": "".join(lines[:4]), "val": "".join(lines[4:])}
    size = sum(path.stat().st_size for path in (folder / "JPEGImages").iterdir())
    assert manifest == json.loads((out / "voc/manifest.json").read_text())
    assert manifest == {
        "name": "voc",
        "classes": 21,
        "splits": {"train": 2, "val": 1},
        "sha256": {key: hashlib.sha256(half.encode()).hexdigest() for key, half in halves.items()},
        "raw": [{"file": "VOCdevkit/VOC2012/JPEGImages", "bytes": size}],
        "statements": ["void: the rim that VOC 2012 draws around objects"],
        "unexpected": {
            "train": {"official": 1464, "found": 2},
            "val": {"official": 1449, "found": 1},
        },
    }
    # images are copied where they cannot be linked
    photo = "voc/images/2007_000001.jpg"
    assert (out / photo).samefile(folder / "JPEGImages/2007_000001.jpg")
    monkeypatch.setattr("os.link", Mock(side_effect=OSError("Invalid cross-device link")))
    prepare("voc", raw, out / "copied")
    assert not (out / "copied" / photo).samefile(out / photo)
    assert (out / "copied" / photo).read_bytes() == (out / photo).read_bytes()


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_prepared_passes_the_check(raw, out, name, monkeypatch):
    MAKERS[name](raw)
    manifest = prepare(name, raw, out)
    monkeypatch.setattr("rflw.data.check.OFFICIAL", {name: manifest["splits"]})
    result = check(name, out)
    assert result["clean"] == (not result["shared"])  # frames of NYU's are alike here
    assert not result["changed"]
    for split, counts in result["splits"].items():
        assert counts["images"] == manifest["splits"][split] and not counts["faults"]
        dataset = open_dataset(name, split, out)
        masks = np.concatenate([dataset[i][1].ravel() for i in range(len(dataset))])
        classes = range(manifest["classes"])
        assert [*counts["pixels"].values()] == [np.sum(masks == label) for label in classes]


# Data sets


def test_voc_is_what_torchvision_reads(raw, out):
    voc(raw)
    official = prepare("voc", raw, out)
    assert np.array_equal(read(out, "voc", "2008_000003"), MASK)
    for split in ("train", "val"):
        ours = open_dataset("voc", split, out)
        theirs = datasets.VOCSegmentation(raw, image_set=split)
        assert len(ours) == len(theirs) > 0
        for (image, mask), (picture, target) in zip(ours, theirs):
            assert np.array_equal(image, picture) and np.array_equal(mask, np.array(target))
    kaggle = raw.parent / "kaggle"  # which has other folders
    (kaggle / "VOC2012_test/VOC2012_test/JPEGImages").mkdir(parents=True)
    (kaggle / "VOC2012_train_val").mkdir()
    (raw / "VOCdevkit/VOC2012").rename(kaggle / "VOC2012_train_val/VOC2012_train_val")
    assert prepare("voc", kaggle, out / "kaggle")["sha256"] == official["sha256"]


def test_sbd_has_no_validation_image_of_voc_and_prefers_its_masks(raw, out):
    sbd(raw)
    manifest = prepare("sbd", raw, out)
    train = ["2007_000001", "2007_000002", "2008_000010", "2008_000011"]
    assert ids(out, "sbd", "train") == train and ids(out, "sbd", "val") == ["2008_000003"]
    assert manifest["unexpected"]["train"] == {"official": 10582, "found": 4}
    for key in ("2007_000002", "2008_000003"):  # in both
        assert np.array_equal(read(out, "sbd", key), MASK)
    theirs = datasets.SBDataset(raw / "benchmark_RELEASE/dataset", mode="segmentation")
    assert np.array_equal(read(out, "sbd", "2008_000010"), theirs[0][1])


def test_sbd_as_png_files(raw, out):
    folder = voc(raw)
    for key in ("2007_000001", "2008_000003", "2008_000010"):
        put(folder / f"SegmentationClassAug/{key}.png", np.full((H, W), 7))
    photo(folder / "JPEGImages/2008_000010.jpg")
    prepare("sbd", raw, out)
    assert ids(out, "sbd", "train") == ["2007_000001", "2007_000002", "2008_000010"]
    assert ids(out, "sbd", "val") == ["2008_000003"]
    assert (read(out, "sbd", "2008_000010") == 7).all()
    assert np.array_equal(read(out, "sbd", "2007_000001"), MASK)  # VOC's own


def test_parts_of_a_person_are_merged(raw, out):
    person(raw)
    manifest = prepare("person", raw, out)
    expected = [[1, 1, 1, 1], [1, 2, 4, 3], [5, 6, 0, 0]]
    assert read(out, "person", "2008_000001").tolist() == expected
    assert np.array_equal(read(out, "person", "2008_000003"), part("nose", 2, 3, 4)["mask"])
    assert "lower arms: llarm, rlarm, lhand, rhand" in manifest["statements"]
    # images without a part of a person are left out
    assert ids(out, "person", "train") == ["2008_000001"]
    kept = {"2008_000001", "2008_000003"}
    assert {path.stem for path in (out / "person/images").iterdir()} == kept
    parts = ", ".join(module.PERSON_PARTS.values()).split(", ")
    assert len(parts) == len({*parts}) == 24
    assert tuple(module.PERSON_PARTS) == LABELS["person"].classes[1:]


def test_two_forms_of_context(raw, out):
    for make in (context_json, context):  # the later one has precedence
        make(raw)
        manifest = prepare("context", raw, out / make.__name__)
        assert manifest["splits"] == {"train": 1, "val": 1} and manifest["classes"] == 60
    person, sky, plant, tv, wood, plane, grass = map(
        LABELS["context"].classes.index,
        ("person", "sky", "potted plant", "tv monitor", "wood", "aeroplane", "grass"),
    )
    mats = [[person, person, grass, 0], [sky, 0, 0, plant], [tv, wood, plane, 0]]
    assert read(out / "context", "context", "2008_000002").tolist() == mats
    regions = read(out / "context_json", "context", "2008_000002").tolist()
    assert regions == 3 * [[person, sky, sky, sky]]
    assert (read(out / "context_json", "context", "2008_000003") == 0).all()
    files = [entry["file"] for entry in manifest["raw"]]
    assert files == ["VOCdevkit/VOC2010/JPEGImages", "trainval"]


def test_numbers_of_contexts_classes():
    # as users of the Detail API pass them on
    published = """2 259 260 415 324 9 258 144 18 19 22 23 397 25 284 158 159 416 33 162 420 454
        295 296 427 44 45 46 308 59 440 445 31 232 65 354 424 68 326 72 458 34 207 80 355 85 347
        220 349 360 98 187 104 105 366 189 368 113 115"""
    assert sorted(CONTEXT_IDS) == sorted(map(int, published.split()))
    numbered = dict(zip(CONTEXT_IDS, LABELS["context"].classes[1:], strict=True))
    names = [numbered[number].replace(" ", "") for number in sorted(numbered)]
    assert names == sorted(names)  # the 459 labels are in the order of the alphabet


# What photos show where the authors' example masks, which use VOC's palette, have its colour of an
# index: ducks on grass, motorcyclists, a bus, dogs, sheep; wrestlers; a kitchen, bedrooms, and more.
SHOWN = {
    "context": "3 bird, 6 bus, 11 table, 12 dog, 14 motorbike, 15 person, 25 building, 28 cloth, "
    "33 floor, 36 grass, 37 ground, 46 road, 50 sky, 54 tree, 56 wall, 57 water",
    "voc": "2 bicycle, 5 bottle, 12 dog, 17 sheep",
    "person": "1 head, 2 torso, 3 upper arms, 4 lower arms, 5 upper legs, 6 lower legs",
    "nyu": "0 wall, 1 floor, 2 cabinet, 3 bed, 4 chair, 5 sofa, 8 window, 10 picture, 11 counter, "
    "12 blinds, 15 curtain, 17 pillow",
}


@pytest.mark.parametrize("name", SHOWN)
def test_classes_are_in_the_order_of_the_authors_masks(name):
    for shown in SHOWN[name].split(", "):
        index, label = shown.split(" ", 1)
        assert LABELS[name].classes[int(index)] == label


def test_coco(raw, out, monkeypatch):
    coco(raw)
    manifest = prepare("coco", raw, out)
    # "few" has 800 pixels of a couch, "exact" 1,000, "trucks" none of the 20 classes
    assert ids(out, "coco", "train") == ["many", "over"]
    assert manifest["splits"] == {"train": 2} and manifest["unexpected"] == {}
    assert "(airplane -> aeroplane, motorcycle -> motorbike" in manifest["statements"][0]
    expected = np.zeros(SIZE)
    expected[:, 50:] = 255
    expected[:20] = 1  # the aeroplane covers a part of the crowd
    expected[15:, 10:14] = 15
    assert np.array_equal(read(out, "coco", "many"), expected)
    columns = np.arange(40 * 60).reshape(60, 40).T
    assert np.array_equal(read(out, "coco", "over"), 18 * (columns < 1001))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    fails(r'pip install "rflw\[data\]"', "coco", raw, out / "again")


def test_cityscapes_is_what_torchvision_reads(raw, out):
    cityscapes(raw)
    prepare("cityscapes", raw, out)
    assert ids(out, "cityscapes", "train") == ["aachen_000000_000019", "ulm_000000_000019"]
    table = np.full(256, 255)
    for label in datasets.Cityscapes.classes:
        if label.id >= 0:
            table[label.id] = label.train_id
    image, target = datasets.Cityscapes(raw, "val", target_type="semantic")[0]
    ours = open_dataset("cityscapes", "val", out)[0]
    assert np.array_equal(ours[0], image) and np.array_equal(ours[1], table[np.array(target)])


def test_nyu_frames_classes_and_splits(raw, out):
    images = nyu(raw)
    manifest = prepare("nyu", raw, out)
    assert ids(out, "nyu", "train") == ["000001", "000003"]
    assert ids(out, "nyu", "val") == ["000002"]
    assert np.array_equal(open_dataset("nyu", "train", out)[1][0], images[2][6:474, 7:632])
    expected = (1 + np.arange(7, 632) // 10) % 40  # class i % 40 + 1 of the 40 has index i % 40
    assert np.array_equal(read(out, "nyu", "000002"), np.tile(expected, (468, 1)))
    assert "rows 6 to 473 and columns 7 to 631" in manifest["statements"][0]


# Raw files


def pack(raw: Path, part: str, archive: str) -> None:
    """Move a folder of `raw` into an archive."""
    form = {"zip": "zip", "tar": "tar"}.get(archive.rpartition(".")[2], "gztar")
    shutil.move(shutil.make_archive(raw.parent / "made", form, raw, part), raw / archive)
    shutil.rmtree(raw / part)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sbd", "VOCdevkit VOCtrainval_11-May-2012.tar benchmark_RELEASE benchmark.tgz"),
        ("coco", "annotations annotations_trainval2017.zip train2017 train2017.zip"),
    ],
)
def test_archives_give_what_folders_give(raw, out, name, parts):
    MAKERS[name](raw)
    plain, parts = prepare(name, raw, out / "plain"), parts.split()
    for part, archive in zip(parts[::2], parts[1::2]):
        pack(raw, part, archive)
    packed = prepare(name, raw, out / "packed")
    assert packed["sha256"] == plain["sha256"]
    sizes = {path.name: path.stat().st_size for path in raw.iterdir() if path.is_file()}
    used = {entry["file"]: entry["bytes"] for entry in packed["raw"]}
    assert sizes.items() <= used.items()
    assert [path.name for path in (out / "packed").iterdir()] == [name]  # nothing unpacked stays


def test_two_archives_of_one_name(raw, out):
    person(raw)
    context(raw)
    pack(raw, "Annotations_Part", "trainval.tar.gz")
    (raw / "parts").mkdir()
    (raw / "trainval.tar.gz").rename(raw / "parts/trainval.tar.gz")
    pack(raw, "trainval", "trainval.tar.gz")
    voc(raw, ("2008_000001",), year=2010)
    files = [entry["file"] for entry in prepare("person", raw, out)["raw"]]
    assert files == ["VOCdevkit/VOC2010/JPEGImages", "parts/trainval.tar.gz"]


def test_where_raw_files_may_lie(raw, out, tmp_path):
    voc(raw / "a/b")
    for i, part in enumerate(("", "a", "a/b/VOCdevkit", "a/b/VOCdevkit/VOC2012")):
        assert prepare("voc", raw / part, out / str(i))["splits"] == {"train": 2, "val": 1}
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/VOCdevkit").symlink_to(raw / "a/b/VOCdevkit")
    assert prepare("voc", tmp_path / "linked", tmp_path / "linked")["splits"]["train"] == 2


# Repeated runs


def test_two_processes_and_a_repeated_run_give_what_one_gives(raw, out):
    voc(raw, [f"2007_{i:06}" for i in range(6)])
    photo(out / "two/.voc.partial/images/half.jpg")  # of a run that was killed
    assert prepare("voc", raw, out / "two", workers=2) == prepare("voc", raw, out / "one")
    assert contents(out / "two") == contents(out / "one")
    put(raw / "VOCdevkit/VOC2012/SegmentationClass/2007_000004.png", MASK + np.uint8(3))
    with pytest.raises(InputError, match="2007_000004.png: label 23 at row 0, column 3"):
        prepare("voc", raw, out / "bad", workers=2)


def test_finished_folders_and_those_of_others_are_left_alone(raw, out):
    voc(raw)
    manifest = prepare("voc", raw, out)
    before = contents(out)
    assert prepare("voc", raw / "no longer there", out) == manifest and contents(out) == before
    for text, message in (("{", "cannot be read"), ("[]", "not a manifest")):
        (out / "voc/manifest.json").write_text(text)
        with pytest.raises(InputError, match=f"manifest.json: {message}"):
            prepare("voc", raw, out)
    (out / "voc/manifest.json").unlink()
    others = contents(out)
    with pytest.raises(InputError, match="out/voc: not from rflw data prepare; choose another"):
        prepare("voc", raw, out)
    assert contents(out) == others


# Bad input

VOC, VAL = "VOCdevkit/VOC2012", "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
JPEG, PNG = f"{VOC}/JPEGImages/2007_000002.jpg", f"{VOC}/SegmentationClass/2007_000002.png"
SBD, CLASSES = "benchmark_RELEASE", "benchmark_RELEASE/dataset/cls/2008_000010.mat"
PARTS = "Annotations_Part/2008_000003.mat"
COCO = "annotations/instances_train2017.json"
CITY = "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
TAIL = {"class": "person", "mask": np.ones((H, W)), "parts": part("tail", 0, 0, 1)}
CUT = object()  # only its first bytes are left
REGION = ("many", 1, {"size": SIZE, "counts": [0, 5000]}, 0, 1)


@pytest.mark.parametrize(
    ("name", "path", "content", "message"),
    [
        ("voc", VAL, None, "val.txt: no such file"),
        ("voc", VAL, "2007_000001", "voc: id 2007_000001 twice"),
        ("voc", VAL, "", "voc: no images for val"),
        ("voc", JPEG, "hello", "2007_000002.jpg: .*image"),
        ("voc", PNG, MASK[:2], "voc 2007_000002: mask of 4x2, its image is 4x3"),
        ("sbd", CLASSES, CUT, "2008_000010.mat: cannot be read"),
        ("sbd", CLASSES, {"x": 1}, r"000010.mat: cannot be read \('GTcls'\)"),
        ("sbd", SBD, None, "no dataset/cls nor benchmark.tgz; it is on http"),
        ("person", PARTS, {"anno": {"objects": TAIL}}, "000003.mat: .*'tail'"),
        (
            "context",
            "trainval",
            None,
            "no trainval_merged.json; .* folder trainval",
        ),
        ("coco", COCO, '{"images": [1', "instances_train2017.json: cannot be read"),
        ("cityscapes", CITY, ROADS + np.uint8(1), "Ids.png: label 34 at row 0, column 3 is out"),
        ("nyu", FRAMES, CUT, f"{FRAMES}: cannot be read"),
        ("nyu", "splits.mat", {"trainNdxs": [[4]], "testNdxs": [[2]]}, "is not within 1..3"),
        ("nyu", "classMapping40.mat", {"mapClass": [[41]]}, "is not 894 numbers in 1..40"),
    ],
)
def test_bad_raw_files_are_named(raw, out, name, path, content, message):
    MAKERS[name](raw)
    if content is None:
        shutil.move(raw / path, raw.parent)
    elif content is CUT:
        (raw / path).write_bytes((raw / path).read_bytes()[:150])
    else:
        put(raw / path, content)
    fails(message, name, raw, out)
    if path == SBD:
        (raw / "benchmark.tgz").write_bytes(b"\x1f\x8b cut")
        fails("benchmark.tgz: cannot be read", name, raw, out)


def test_bad_regions_labels_and_frames_are_named(raw, out):
    nyu(raw)
    coco(raw, shapes=[REGION])
    fails("2017.json, image many: cannot", "coco", raw, out)
    with h5py.File(raw / FRAMES, "r+") as file:
        file["labels"][1, 30, 20] = 895
    fails(f"{FRAMES}, image 2: label 895 at row 20, column 30 is out of range", "nyu", raw, out)
    with h5py.File(raw / FRAMES, "w") as file:
        file["images"] = np.zeros((1, 3, 8, 6), np.uint8)
    fails(f"{FRAMES}: not 640x480 images", "nyu", raw, out)


def test_bad_arguments_and_a_target_that_cannot_be_written(raw, out):
    with pytest.raises(InputError, match="unknown data set of the paper 'camvid'; choose from: v"):
        prepare("camvid", raw, out)
    fails("raw: no such folder of raw files", "voc", raw, out)
    voc(raw)
    out.write_text("a file")
    with pytest.raises(InputError, match="voc: cannot be written"):
        prepare("voc", raw, out)

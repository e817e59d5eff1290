"""Raw files in their true formats -> the prepared folder. Masks are written out or computed."""

import hashlib
import json
from pathlib import Path
import shutil
import sys
import tarfile
import zipfile

import h5py
import numpy as np
from PIL import Image
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix
from torchvision import datasets

from rflw import InputError
from rflw.data.check import check
from rflw.data.labels import LABELS, VOC_CLASSES, voc_colours
from rflw.data.readers import open_dataset
from rflw_study import prepare as module
from rflw_study.prepare import COCO_NAMES, CONTEXT_IDS, COUNTS, prepare

MASK = np.array([[0, 1, 1, 20], [0, 15, 15, 255], [7, 7, 0, 255]], np.uint8)  # 4 wide, 3 high
H, W = MASK.shape
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools and NumPy 2


def png(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8))
    if palette:
        image.putpalette(LABELS["voc"].palette())
    image.save(path)


def photo(path: Path, size=(W, H)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (sum(path.stem.encode()) % 200, 100, 50)).save(path)


def listed(path: Path, ids) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key}\n" for key in ids))


def mat(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content, do_compression=True)


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
        listed(lists / f"{split}.txt", ids)
        for key in ids:
            photo(folder / f"JPEGImages/{key}.jpg")
            if year == 2012:
                png(folder / f"SegmentationClass/{key}.png", MASK, palette=True)
    return folder


def sbd(raw: Path) -> None:
    """2008_000003 is a validation image of VOC, 2007_000002 one of its training images."""
    voc(raw)
    folder = raw / "benchmark_RELEASE/dataset"
    boundaries = np.empty((20, 1), object)  # a cell of sparse matrices
    boundaries[:, 0] = [csc_matrix((H, W)) for _ in range(20)]
    for split, keys in (
        ("train", ("2008_000010", "2008_000003")),
        ("val", ("2007_000002", "2008_000011")),
    ):
        listed(folder / f"{split}.txt", keys)
        for key in keys:
            photo(folder / f"img/{key}.jpg")
            labels = np.full((H, W), 4, np.uint8)
            content = {"Segmentation": labels, "Boundaries": boundaries, "CategoriesPresent": 4}
            mat(folder / f"cls/{key}.mat", {"GTcls": content})


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
        mat(raw / f"Annotations_Part/{key}.mat", {"anno": annotation})


CONTEXT_LABELS = np.array([[284, 284, 187, 0], [360, 1, 459, 308], [427, 458, 2, 3]], np.uint16)


def context(raw: Path) -> None:
    voc(raw, ("2008_000002",), year=2010)
    for key in ("2008_000002", "2008_000003"):
        mat(raw / f"trainval/{key}.mat", {"LabelMap": CONTEXT_LABELS})


def run_lengths(mask: np.ndarray) -> dict:
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def context_json(raw: Path) -> None:
    voc(raw, ("2008_000002",), year=2010)
    entries = ((1, "2008_000002", "train"), (2, "2008_000003", "val"), (3, "2008_000009", "test"))
    images = [
        {"image_id": i, "file_name": f"{key}.jpg", "phase": phase, "height": H, "width": W}
        for i, key, phase in entries
    ]
    everything = run_lengths(np.ones((H, W)))
    first_column = {"size": [H, W], "counts": [0, 3, 9]}
    regions = [
        {"image_id": i, "category_id": category, "segmentation": shape}
        for i, category, shape in ((1, 360, everything), (1, 284, first_column), (2, 1, everything))
    ]
    content = {"images": images, "annos_segmentation": regions}
    (raw / "trainval_merged.json").write_text(json.dumps(content))


SIZE = (40, 60)
COCO_IDS = {"person": 1, "airplane": 5, "truck": 8, "couch": 63, "laptop": 73}


def box(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def coco(raw: Path, shapes=None) -> None:
    """Columns of couches have 20, 25 and just over 25 columns of 40 pixels."""
    small = np.zeros(SIZE)
    small[30:, 10:14] = 1
    shapes = shapes or (
        ("many", 5, box(0, 0, 60, 20), 0),
        ("many", 1, run_lengths(small), 0),
        ("many", 1, {"size": SIZE, "counts": [2000, 400]}, 1),
        ("many", 1, [[3, 3, 9, 9]], 0),  # two corners have no area
        ("few", 63, {"size": SIZE, "counts": [0, 800, 1600]}, 0),
        ("few", 73, box(0, 0, 60, 40), 0),
        ("exact", 63, {"size": SIZE, "counts": [0, 1000, 1400]}, 0),
        ("over", 63, {"size": SIZE, "counts": [0, 1001, 1399]}, 0),
        ("trucks", 8, box(0, 0, 60, 40), 0),
    )
    names = dict.fromkeys(COCO_NAMES.get(name, name) for name in VOC_CLASSES[1:])
    numbers = {name: 100 + i for i, name in enumerate(names)} | COCO_IDS
    keys = ("many", "few", "exact", "trucks", "over")
    content = {
        "categories": [{"id": i, "name": name} for name, i in numbers.items()],
        "images": [
            {"id": i, "file_name": f"{key}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for i, key in enumerate(keys)
        ],
        "annotations": [],
    }
    names = ("image_id", "category_id", "segmentation", "iscrowd", "area")
    for n, (key, *rest) in enumerate(shapes):
        content["annotations"].append(dict(zip(names, (keys.index(key), *rest, 1200 - n))))
    for key in keys:
        photo(raw / f"train2017/{key}.jpg", SIZE[::-1])
    (raw / "annotations").mkdir(exist_ok=True)
    (raw / "annotations/instances_train2017.json").write_text(json.dumps(content))


ROADS = np.array([[7, 8, 0, 33], [26, 1, 3, 24], [29, 30, 10, 255]], np.uint8)


def cityscapes(raw: Path) -> None:
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "lindau")):
        key = f"{city}_000000_000019"
        photo(raw / f"leftImg8bit/{split}/{city}/{key}_leftImg8bit.png")
        for kind in ("labelIds", "instanceIds"):
            png(raw / f"gtFine/{split}/{city}/{key}_gtFine_{kind}.png", ROADS)


def nyu(raw: Path) -> np.ndarray:
    """Three frames in MATLAB 7.3's order of axes.

    Labels are 1 + column // 10; raw class i has class i % 40 + 1 of the 40.
    """
    y, x = np.mgrid[:480, :640]
    images = np.stack([np.stack([(x + c * 40 + i) % 200 for c in range(3)], -1) for i in range(3)])
    labels = (1 + x // 10).astype(np.uint16)
    raw.mkdir(parents=True, exist_ok=True)
    with h5py.File(raw / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = images.astype(np.uint8).transpose(0, 3, 2, 1)
        file["labels"] = np.stack([labels.T] * 3)
    mat(raw / "splits.mat", {"trainNdxs": [[3], [1]], "testNdxs": [[2]]})
    mat(raw / "classMapping40.mat", {"mapClass": np.arange(1, 895)[None] % 40 + 1})
    return images.astype(np.uint8)


MAKERS = {
    "voc": voc,
    "sbd": sbd,
    "person": person,
    "context": context,
    "coco": coco,
    "cityscapes": cityscapes,
    "nyu": nyu,
}


def read(out: Path, name: str, key: str) -> np.ndarray:
    image = Image.open(out / f"{name}/masks/{key}.png")
    assert image.mode == "P" and image.getpalette()[:6] == LABELS[name].palette()[:6]
    return np.array(image)


def words(out: Path, name: str, key: str) -> list[list[str]]:
    return [[LABELS[name].classes[label] for label in row] for row in read(out, name, key)]


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


def test_layout_sums_and_manifest(raw, out):
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
    images = folder / "JPEGImages"
    size = sum(path.stat().st_size for path in images.iterdir())
    assert manifest == json.loads((out / "voc/manifest.json").read_text())
    assert manifest == {
        "name": "voc",
        "classes": 21,
        "splits": {"train": 2, "val": 1},
        "sha256": {
            split: hashlib.sha256("".join(part).encode()).hexdigest()
            for split, part in (("train", lines[:4]), ("val", lines[4:]))
        },
        "raw": [{"file": "VOCdevkit/VOC2012/JPEGImages", "bytes": size}],
        "statements": ["void: the rim that VOC 2012 draws around objects"],
        "unexpected": {
            "train": {"official": 1464, "found": 2},
            "val": {"official": 1449, "found": 1},
        },
    }


def test_images_are_copied_where_they_cannot_be_linked(raw, out, monkeypatch):
    source = voc(raw) / "JPEGImages/2007_000001.jpg"
    prepare("voc", raw, out / "linked")
    assert (out / "linked/voc/images/2007_000001.jpg").samefile(source)

    def refuse(*_):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    prepare("voc", raw, out / "copied")
    assert contents(out / "copied") == contents(out / "linked")
    assert not (out / "copied/voc/images/2007_000001.jpg").samefile(source)


def test_every_set_has_a_plan_and_official_counts():
    assert MAKERS.keys() == module.PLANS.keys() == COUNTS.keys()
    assert COUNTS.keys() == LABELS.keys() - {"camvid", "embedded"}


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
        masks = [dataset[i][1] for i in range(len(dataset))]
        assert [*counts["pixels"].values()] == [
            sum(int((mask == label).sum()) for mask in masks)
            for label in range(manifest["classes"])
        ]


# Data sets


def test_voc_is_what_torchvision_reads(raw, out):
    voc(raw)
    prepare("voc", raw, out)
    assert np.array_equal(read(out, "voc", "2008_000003"), MASK)
    for split in ("train", "val"):
        ours = open_dataset("voc", split, out)
        theirs = datasets.VOCSegmentation(raw, image_set=split)
        assert len(ours) == len(theirs) > 0
        for (image, mask), (picture, target) in zip(ours, theirs):
            assert np.array_equal(image, picture) and np.array_equal(mask, np.array(target))


def test_voc_in_the_folders_of_the_copy_on_kaggle(raw, out):
    voc(raw)
    official = prepare("voc", raw, out / "official")
    kaggle = raw.parent / "kaggle"
    (kaggle / "VOC2012_test/VOC2012_test/JPEGImages").mkdir(parents=True)
    (kaggle / "VOC2012_train_val").mkdir()
    (raw / "VOCdevkit/VOC2012").rename(kaggle / "VOC2012_train_val/VOC2012_train_val")
    assert prepare("voc", kaggle, out)["sha256"] == official["sha256"]


def test_sbd_as_png_files(raw, out):
    folder = voc(raw)
    for key in ("2007_000001", "2007_000002", "2008_000003", "2008_000010"):
        png(folder / f"SegmentationClassAug/{key}.png", np.full((H, W), 7))
        photo(folder / f"JPEGImages/{key}.jpg")
    prepare("sbd", raw, out)
    assert ids(out, "sbd", "train") == ["2007_000001", "2007_000002", "2008_000010"]
    assert ids(out, "sbd", "val") == ["2008_000003"]
    assert (read(out, "sbd", "2008_000010") == 7).all()
    assert np.array_equal(read(out, "sbd", "2007_000001"), MASK)  # VOC's own


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


def test_parts_of_a_person_are_merged(raw, out):
    person(raw)
    manifest = prepare("person", raw, out)
    expected = [[1, 1, 1, 1], [1, 2, 4, 3], [5, 6, 0, 0]]
    assert read(out, "person", "2008_000001").tolist() == expected
    assert np.array_equal(read(out, "person", "2008_000003"), part("nose", 2, 3, 4)["mask"])
    assert "lower arms: llarm, rlarm, lhand, rhand" in manifest["statements"]
    # images without a part of a person are left out
    assert ids(out, "person", "train") == ["2008_000001"]
    assert {path.stem for path in (out / "person/images").iterdir()} == {
        "2008_000001",
        "2008_000003",
    }
    parts = ", ".join(module.PERSON_PARTS.values()).split(", ")
    assert len(parts) == len(set(parts)) == 24
    assert tuple(module.PERSON_PARTS) == LABELS["person"].classes[1:]


def test_two_forms_of_context(raw, out):
    for make in (context_json, context):  # the later one has precedence
        make(raw)
        manifest = prepare("context", raw, out / make.__name__)
        assert manifest["splits"] == {"train": 1, "val": 1} and manifest["classes"] == 60
    assert words(out / "context", "context", "2008_000002") == [
        ["person", "person", "grass", "background"],
        ["sky", "background", "background", "potted plant"],
        ["tv monitor", "wood", "aeroplane", "background"],
    ]
    sky = ["person", "sky", "sky", "sky"]
    assert words(out / "context_json", "context", "2008_000002") == [sky] * 3
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


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        # ducks on grass before pebbles and water; motorcyclists; a bus; a dog on the floor
        (
            "context",
            "bird 128 128 0, grass 0 0 192, ground 128 0 192, water 192 64 64, sky 0 192 64, "
            "motorbike 64 128 128, person 192 128 128, bus 0 128 128, road 64 128 192, "
            "tree 0 192 192, building 192 64 0, dog 64 0 128, floor 128 0 64, wall 64 64 64, "
            "table 192 128 0, cloth 64 64 128",
        ),
        # a dog on leaves; a bicycle before a tree; a dog and two sheep; a child with a bottle
        ("voc", "dog 64 0 128, bicycle 0 128 0, sheep 128 64 0, bottle 128 0 128"),
        # wrestlers; a man in a jacket; men at a motorbike; a panel
        (
            "person",
            "head 128 0 0, torso 0 128 0, upper arms 128 128 0, lower arms 0 0 128, "
            "upper legs 128 0 128, lower legs 0 128 128",
        ),
        # a kitchen with a blind; two bedrooms; a living room; a room with curtains and a picture
        (
            "nyu",
            "wall 0 0 0, floor 128 0 0, cabinet 0 128 0, bed 128 128 0, chair 0 0 128, "
            "sofa 128 0 128, window 64 0 0, picture 64 128 0, counter 192 128 0, "
            "blinds 64 0 128, curtain 192 128 128, pillow 128 64 0",
        ),
    ],
)
def test_colours_of_the_authors_masks_mean_what_their_photos_show(name, classes):
    """The authors' example masks use VOC's palette: what they show was looked at, by colour."""
    colours = voc_colours(len(LABELS[name].classes))
    for row in classes.split(", "):
        label, *colour = row.rsplit(" ", 3)
        assert LABELS[name].classes[colours.index(tuple(map(int, colour)))] == label


def test_coco(raw, out):
    coco(raw)
    manifest = prepare("coco", raw, out)
    # "few" has 800 pixels of a couch, "exact" 1,000, "trucks" none of the 20 classes
    assert ids(out, "coco", "train") == ["many", "over"]
    assert manifest["splits"] == {"train": 2} and manifest["unexpected"] == {}
    assert "(airplane -> aeroplane, motorcycle -> motorbike" in manifest["statements"][0]
    expected = np.zeros(SIZE)
    expected[:, 50:] = 255
    expected[:20] = 1  # the aeroplane covers a part of the crowd
    expected[30:, 10:14] = 15
    assert np.array_equal(read(out, "coco", "many"), expected)
    columns = np.arange(40 * 60).reshape(60, 40).T
    assert np.array_equal(read(out, "coco", "over"), 18 * (columns < 1001))


def test_smaller_things_of_coco_lie_above_larger_ones(raw, out):
    small, large = ("many", 1, box(10, 10, 10, 10), 0), ("many", 63, box(0, 0, 60, 40), 0)
    coco(raw, shapes=(small, large))
    path = raw / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace('"area": 1200', '"area": 100'))
    prepare("coco", raw, out)
    expected = np.full(SIZE, 18)
    expected[10:20, 10:20] = 15
    assert np.array_equal(read(out, "coco", "many"), expected)


def test_without_pycocotools_the_extra_is_named(raw, out, monkeypatch):
    coco(raw)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    fails(r'pip install "rflw\[data\]"', "coco", raw, out)


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
    """Move a file or folder of `raw` into an archive."""
    if archive.endswith(".zip"):
        with zipfile.ZipFile(raw / archive, "w") as members:
            for path in sorted((raw / part).rglob("*")):
                members.write(path, path.relative_to(raw))
    else:
        with tarfile.open(raw / archive, "w" if archive.endswith(".tar") else "w:gz") as members:
            members.add(raw / part, part)
    shutil.rmtree(raw / part)


ARCHIVES = {
    "sbd": [
        ("VOCdevkit", "VOCtrainval_11-May-2012.tar"),
        ("benchmark_RELEASE", "benchmark.tgz"),
    ],
    "cityscapes": [
        ("gtFine", "gtFine_trainvaltest.zip"),
        ("leftImg8bit", "leftImg8bit_trainvaltest.zip"),
    ],
    "coco": [("annotations", "annotations_trainval2017.zip"), ("train2017", "train2017.zip")],
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_give_what_folders_give(raw, out, name):
    MAKERS[name](raw)
    plain = prepare(name, raw, out / "plain")
    for part, archive in ARCHIVES[name]:
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


def test_a_run_that_was_killed_can_be_repeated(raw, out):
    voc(raw)
    prepare("voc", raw, out / "whole")
    photo(out / "broken/.voc.partial/images/half.jpg")
    prepare("voc", raw, out / "broken")
    assert contents(out / "broken") == contents(out / "whole")


def test_a_finished_folder_is_left_alone(raw, out):
    voc(raw)
    manifest = prepare("voc", raw, out)
    before = contents(out)
    assert prepare("voc", raw / "no longer there", out) == manifest and contents(out) == before
    for text, message in (("{", "cannot be read"), ("[]", "not a manifest")):
        (out / "voc/manifest.json").write_text(text)
        with pytest.raises(InputError, match=f"manifest.json: {message}"):
            prepare("voc", raw, out)


def test_folders_of_others_are_left_alone(raw, out):
    voc(raw)
    photo(out / "voc/images/mine.jpg")
    with pytest.raises(InputError, match="out/voc: not from rflw data prepare; choose another"):
        prepare("voc", raw, out)
    assert [*contents(out)] == ["voc/images/mine.jpg"]


def test_two_processes_give_what_one_gives(raw, out):
    voc(raw, [f"2007_{i:06}" for i in range(6)])
    assert prepare("voc", raw, out / "two", workers=2) == prepare("voc", raw, out / "one")
    assert contents(out / "two") == contents(out / "one")
    png(raw / "VOCdevkit/VOC2012/SegmentationClass/2007_000004.png", MASK + np.uint8(3))
    with pytest.raises(InputError, match="2007_000004.png: label 23 at row 0, column 3"):
        prepare("voc", raw, out / "bad", workers=2)


# Bad input

VOC = "VOCdevkit/VOC2012"
VAL = f"{VOC}/ImageSets/Segmentation/val.txt"
JPEG, PNG = f"{VOC}/JPEGImages/2007_000002.jpg", f"{VOC}/SegmentationClass/2007_000002.png"
CLASSES = "benchmark_RELEASE/dataset/cls/2008_000010.mat"
PARTS = "Annotations_Part/2008_000003.mat"
COCO = "annotations/instances_train2017.json"
CITY = "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
FRAMES = "nyu_depth_v2_labeled.mat"
ONE = np.uint8(1)


def replaced(path: str, content):
    """What puts other content in a raw file: bytes, a .mat, an image, or removes it."""

    def damage(raw: Path) -> None:
        if content is None:
            (raw / path).unlink()
        elif isinstance(content, bytes):
            (raw / path).write_bytes(content)
        elif isinstance(content, dict):
            mat(raw / path, content)
        else:
            png(raw / path, content)

    return damage


def cut(path: str):
    return lambda raw: (raw / path).write_bytes((raw / path).read_bytes()[:150])


def region(shape):
    return lambda raw: coco(raw, shapes=(("many", 1, shape, 0),))


def broken_archive(raw):
    shutil.rmtree(raw / "benchmark_RELEASE")
    (raw / "benchmark.tgz").write_bytes(b"\x1f\x8b cut")


TAIL = {"class": "person", "mask": np.ones((H, W)), "parts": part("tail", 0, 0, 1)}


def removed(folder: str):
    return lambda raw: shutil.rmtree(raw / folder)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("voc", replaced(VAL, None), "val.txt: no such file"),
        ("voc", replaced(VAL, b"2007_000001"), "voc: id 2007_000001 twice"),
        ("voc", replaced(VAL, b""), "voc: no images for val"),
        ("voc", replaced(JPEG, b"hello"), "2007_000002.jpg: .*image"),
        ("voc", replaced(JPEG, None), "000002.jpg: no such file"),
        ("voc", replaced(PNG, MASK[:2]), "voc 2007_000002: mask of 4x2, its image is 4x3"),
        ("voc", replaced(PNG, MASK + ONE), "000002.png: label 21 at row 0, column 3"),
        ("sbd", cut(CLASSES), "2008_000010.mat: cannot be read"),
        ("sbd", replaced(CLASSES, {"x": 1}), r"000010.mat: cannot be read \('GTcls'\)"),
        ("sbd", broken_archive, "benchmark.tgz: cannot be read"),
        ("sbd", removed("benchmark_RELEASE"), "no dataset/cls nor benchmark.tgz; it is on http"),
        ("person", replaced(PARTS, {"anno": {"objects": TAIL}}), "000003.mat: .*'tail'"),
        ("context", removed("trainval"), "no trainval_merged.json; .* the folder trainval of .mat"),
        ("coco", replaced(COCO, b'{"images": [1'), "instances_train2017.json: cannot be read"),
        ("coco", region({"size": SIZE, "counts": [0, 5000]}), "2017.json, image many: cannot"),
        ("cityscapes", replaced(CITY, ROADS + ONE), "Ids.png: label 34 at row 0, column 3 is out"),
        ("nyu", cut(FRAMES), f"{FRAMES}: cannot be read"),
        (
            "nyu",
            replaced("splits.mat", {"trainNdxs": [[1], [4]], "testNdxs": [[2]]}),
            "splits.mat: trainNdxs is not within 1..3",
        ),
        (
            "nyu",
            replaced("classMapping40.mat", {"mapClass": [[41]]}),
            "classMapping40.mat: mapClass is not 894 numbers in 1..40",
        ),
    ],
)
def test_bad_raw_files_are_named(raw, out, name, damage, message):
    MAKERS[name](raw)
    damage(raw)
    fails(message, name, raw, out)


def test_labels_of_nyu_out_of_range_and_frames_of_another_size(raw, out):
    nyu(raw)
    with h5py.File(raw / FRAMES, "r+") as file:
        file["labels"][1, 30, 20] = 895
    fails(f"{FRAMES}, image 2: label 895 at row 20, column 30 is out of range", "nyu", raw, out)
    with h5py.File(raw / FRAMES, "w") as file:
        file["images"] = np.zeros((1, 3, 8, 6), np.uint8)
    fails(f"{FRAMES}: not 640x480 images", "nyu", raw, out)


def test_bad_arguments_and_a_target_that_cannot_be_written(raw, out):
    with pytest.raises(
        InputError, match="unknown data set of the paper 'camvid'; choose from: voc"
    ):
        prepare("camvid", raw, out)
    fails("raw: no such folder of raw files", "voc", raw, out)
    voc(raw)
    out.write_text("a file")
    with pytest.raises(InputError, match="voc: cannot be written"):
        prepare("voc", raw, out)

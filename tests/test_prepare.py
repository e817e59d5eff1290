"""Raw files in their true formats -> the prepared folder. Expected masks are written out or follow from a formula."""

from dataclasses import replace
import errno
import hashlib
import io
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tarfile
import zipfile

import h5py
import numpy as np
from PIL import Image
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from rflw import InputError
from rflw.data.check import check
from rflw.data.labels import LABELS, VOC_CLASSES, voc_colours
from rflw.data.readers import open_dataset
from rflw.recipes import recipe
from rflw.training import fit
from rflw_study import prepare as module
from rflw_study.prepare import CONTEXT_IDS, COUNTS, decode_colours, prepare, remap

MASK = np.array([[0, 1, 1, 20], [0, 15, 15, 255], [7, 7, 0, 255]], np.uint8)  # 4 wide, 3 high
H, W = MASK.shape
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools and NumPy 2


def photo(path: Path, size=(W, H)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = sum(path.stem.encode()) % 200
    Image.new("RGB", size, (shade, 100, 50)).save(path)
    return path


def palette_png(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(LABELS["voc"].palette())
    image.save(path)


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


def voc(
    raw: Path, train=("2007_000001", "2007_000002"), val=("2008_000003",), year=2012, masks=None
) -> Path:
    folder = raw / "VOCdevkit" / f"VOC{year}"
    masks = MASK if masks is None else masks
    for split, ids in (("train", train), ("val", val)):
        listed(
            folder / "ImageSets" / ("Segmentation" if year == 2012 else "Main") / f"{split}.txt",
            ids,
        )
        for key in ids:
            photo(folder / "JPEGImages" / f"{key}.jpg", masks.shape[::-1])
            if year == 2012:
                palette_png(folder / "SegmentationClass" / f"{key}.png", masks)
    return folder


def read(out: Path, name: str, key: str) -> np.ndarray:
    image = Image.open(out / name / "masks" / f"{key}.png")
    assert image.mode == "P" and image.getpalette()[:6] == LABELS[name].palette()[:6]
    return np.array(image)


def ids(out: Path, name: str, split: str) -> list[str]:
    return (out / name / "splits" / f"{split}.txt").read_text().split()


def fails(words: str, name: str, raw: Path, out: Path) -> str:
    """Prepare must fail in one line with these words, and leave no manifest and no part of a file."""
    with pytest.raises(InputError, match=words) as caught:
        prepare(name, raw, out)
    assert "\n" not in str(caught.value)
    assert not (out / name / "manifest.json").exists()
    assert not [
        path for part in ("images", "masks", "splits") for path in (out / name / part).glob(".*")
    ]
    return str(caught.value)


@pytest.fixture
def raw(tmp_path) -> Path:
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


class TestVoc:
    def test_masks_images_lists_and_manifest(self, raw, out):
        folder = voc(raw)
        manifest = prepare("voc", raw, out)
        assert np.array_equal(read(out, "voc", "2008_000003"), MASK)
        assert ids(out, "voc", "train") == ["2007_000001", "2007_000002"] and ids(
            out, "voc", "val"
        ) == ["2008_000003"]
        for key in ("2007_000001", "2008_000003"):
            assert (out / "voc/images" / f"{key}.jpg").read_bytes() == (
                folder / "JPEGImages" / f"{key}.jpg"
            ).read_bytes()
        assert manifest == json.loads((out / "voc/manifest.json").read_text())
        assert (manifest["name"], manifest["classes"], manifest["splits"]) == (
            "voc",
            21,
            {"train": 2, "val": 1},
        )
        assert manifest["unexpected"] == {
            "train": {"official": 1464, "found": 2},
            "val": {"official": 1449, "found": 1},
        }
        size = sum(path.stat().st_size for path in (folder / "JPEGImages").iterdir())
        assert manifest["raw"] == [{"file": "VOCdevkit/VOC2012/JPEGImages", "bytes": size}]

    def test_sums_are_what_sha256sum_checks(self, raw, out):
        voc(raw)
        manifest = prepare("voc", raw, out)
        lines = (out / "voc/SHA256SUMS").read_text().splitlines(keepends=True)
        assert len(lines) == 6
        for line in lines:
            digest, path = line.split()
            assert hashlib.sha256((out / "voc" / path).read_bytes()).hexdigest() == digest
        assert manifest["sha256"] == {
            "train": hashlib.sha256("".join(lines[:4]).encode()).hexdigest(),
            "val": hashlib.sha256("".join(lines[4:]).encode()).hexdigest(),
        }
        assert (
            subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=out / "voc").returncode
            == 0
        )

    def test_the_folder_may_be_the_devkit_or_the_year_itself(self, raw, out):
        voc(raw)
        for i, part in enumerate(("VOCdevkit", "VOCdevkit/VOC2012")):
            assert prepare("voc", raw / part, out / str(i))["splits"] == {"train": 2, "val": 1}

    def test_raw_and_out_may_be_one_folder(self, raw):
        voc(raw)
        (raw / "SHA256SUMS").touch()
        assert prepare("voc", raw, raw)["splits"] == {"train": 2, "val": 1}

    def test_counts_that_are_official_are_not_unexpected(self, raw, out, monkeypatch):
        monkeypatch.setitem(COUNTS, "voc", {"train": 2, "val": 1})
        voc(raw)
        assert prepare("voc", raw, out)["unexpected"] == {}

    def test_raw_files_stay_as_they_are(self, raw, out):
        voc(raw)
        before = {
            path: (path.read_bytes(), path.stat().st_mode)
            for path in raw.rglob("*")
            if path.is_file()
        }
        prepare("voc", raw, out)
        assert {
            path: (path.read_bytes(), path.stat().st_mode)
            for path in raw.rglob("*")
            if path.is_file()
        } == before

    def test_images_are_copied_where_they_cannot_be_linked(self, raw, out, monkeypatch):
        folder = voc(raw)

        def refuse(*_):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr("os.link", refuse)
        prepare("voc", raw, out)
        copy, source = out / "voc/images/2007_000001.jpg", folder / "JPEGImages/2007_000001.jpg"
        assert copy.read_bytes() == source.read_bytes() and not copy.samefile(source)


class TestSbd:
    def make(
        self,
        raw,
        lists=(("2008_000010", "2008_000003"), ("2007_000002", "2008_000011")),
        masks=MASK,
    ):
        voc(
            raw, masks=masks
        )  # 2008_000003 is a validation image of VOC, 2007_000002 a training image
        for split, keys in zip(("train", "val"), lists):
            listed(raw / f"benchmark_RELEASE/dataset/{split}.txt", keys)
            for key in keys:
                photo(raw / f"benchmark_RELEASE/dataset/img/{key}.jpg", masks.shape[::-1])
                boundaries = np.empty((20, 1), object)  # a cell of sparse matrices
                boundaries[:, 0] = [csc_matrix(masks.shape) for _ in range(20)]
                mat(
                    raw / f"benchmark_RELEASE/dataset/cls/{key}.mat",
                    {
                        "GTcls": {
                            "Segmentation": np.full(masks.shape, 4, np.uint8),
                            "Boundaries": boundaries,
                            "CategoriesPresent": 4,
                        }
                    },
                )

    def test_no_validation_image_of_voc_is_in_the_training_list(self, raw, out):
        self.make(raw)
        manifest = prepare("sbd", raw, out)
        assert ids(out, "sbd", "train") == [
            "2007_000001",
            "2007_000002",
            "2008_000010",
            "2008_000011",
        ]
        assert ids(out, "sbd", "val") == ["2008_000003"]
        assert manifest["unexpected"]["train"] == {"official": 10582, "found": 4}

    def test_vocs_own_mask_wins(self, raw, out):
        self.make(raw)
        prepare("sbd", raw, out)
        assert (read(out, "sbd", "2008_000010") == 4).all()
        for key in ("2007_000002", "2008_000003"):  # in both
            assert np.array_equal(read(out, "sbd", key), MASK)

    def test_a_label_beyond_range_is_named(self, raw, out):
        self.make(raw)
        mask = np.zeros((H, W), np.uint8)
        mask[2, 1] = 21
        mat(
            raw / "benchmark_RELEASE/dataset/cls/2008_000010.mat", {"GTcls": {"Segmentation": mask}}
        )
        fails("2008_000010.mat: label 21 at row 2, column 1 is beyond range", "sbd", raw, out)

    def test_damaged_and_foreign_mat_files_are_named(self, raw, out):
        self.make(raw)
        path = raw / "benchmark_RELEASE/dataset/cls/2008_000010.mat"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        fails("2008_000010.mat: cannot be read as a MATLAB 5 file", "sbd", raw, out)
        path.write_bytes(b"hello")
        fails("2008_000010.mat: cannot be read as a MATLAB 5 file", "sbd", raw, out)
        mat(path, {"LabelMap": np.zeros((H, W))})
        fails("2008_000010.mat: no field GTcls.Segmentation", "sbd", raw, out)
        mat(path, {"GTcls": {"Segmentation": np.zeros((H, W))}})
        fails("2008_000010.mat: labels are an array .* not float64", "sbd", raw, out)


class TestPerson:
    def make(self, raw):
        voc(
            raw,
            year=2010,
            train=("2008_000001", "2008_000002", "2008_000004"),
            val=("2008_000003",),
        )
        whole = np.ones((H, W), np.uint8)

        def part(name, row, start, stop):
            mask = np.zeros((H, W), np.uint8)
            mask[row, start:stop] = 1
            return {"part_name": name, "mask": mask}

        def thing(kind, parts):
            return {
                "class": kind,
                "class_ind": 1,
                "mask": whole,
                "parts": structs(parts) if parts else np.zeros((0, 0)),
            }

        def write(key, things):
            mat(
                raw / f"Annotations_Part/{key}.mat",
                {"anno": {"imname": key, "objects": structs(things)}},
            )

        write(
            "2008_000001",
            [
                thing(
                    "person",
                    [
                        part("head", 0, 0, 4),
                        part("hair", 0, 0, 1),
                        part("neck", 1, 0, 1),
                        part("torso", 1, 1, 2),
                    ],
                ),
                thing("dog", [part("head", 2, 0, 4)]),
                thing(
                    "person",
                    [
                        part("rhand", 1, 2, 3),
                        part("luarm", 1, 3, 4),
                        part("ruleg", 2, 0, 1),
                        part("lfoot", 2, 1, 2),
                    ],
                ),
            ],
        )
        write("2008_000002", [thing("dog", [part("head", 0, 0, 4)])])
        write("2008_000003", [thing("person", [part("nose", 2, 3, 4)])])  # structs of one entry
        write("2008_000004", [thing("person", []), thing("car", [])])

    def test_parts_are_merged(self, raw, out):
        self.make(raw)
        manifest = prepare("person", raw, out)
        assert read(out, "person", "2008_000001").tolist() == [
            [1, 1, 1, 1],
            [1, 2, 4, 3],
            [5, 6, 0, 0],
        ]
        assert read(out, "person", "2008_000003").tolist() == [[0] * 4, [0] * 4, [0, 0, 0, 1]]
        assert "lower arms: llarm, rlarm, lhand, rhand" in manifest["statements"]

    def test_images_without_parts_of_a_person_are_left_out(self, raw, out):
        self.make(raw)
        assert prepare("person", raw, out)["splits"] == {"train": 1, "val": 1}
        assert ids(out, "person", "train") == ["2008_000001"]
        assert sorted(path.stem for path in (out / "person/images").iterdir()) == [
            "2008_000001",
            "2008_000003",
        ]

    def test_every_part_has_one_class(self):
        parts = [part for merged in module.PERSON_PARTS.values() for part in merged]
        assert (
            len(parts) == len(set(parts)) == 24
            and tuple(module.PERSON_PARTS) == LABELS["person"].classes[1:]
        )

    def test_the_wrong_year_is_named(self, raw, out):
        self.make(raw)
        (raw / "VOCdevkit/VOC2010").rename(raw / "VOCdevkit/VOC2012")
        fails("VOC2012/JPEGImages: VOC 2010 is needed, this is another year", "person", raw, out)

    def test_an_unknown_part_is_named(self, raw, out):
        self.make(raw)
        thing = {
            "class": "person",
            "mask": np.ones((H, W)),
            "parts": {"part_name": "tail", "mask": np.ones((H, W))},
        }
        mat(raw / "Annotations_Part/2008_000002.mat", {"anno": {"objects": thing}})
        fails("2008_000002.mat: 'tail' is no field or no part", "person", raw, out)

    def test_a_mask_without_image_and_the_reverse(self, raw, out):
        self.make(raw)
        image = raw / "VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg"
        image.rename(raw / "away.jpg")
        fails(
            r"2008_000003.jpg is missing, the image of mask .*2008_000003.mat", "person", raw, out
        )
        (raw / "away.jpg").rename(image)
        (raw / "Annotations_Part/2008_000003.mat").unlink()
        fails(
            r"2008_000003.mat is missing, the mask of image .*2008_000003.jpg", "person", raw, out
        )


CONTEXT_LABELS = np.array([[284, 284, 187, 0], [360, 1, 459, 308], [427, 458, 2, 3]], np.uint16)
CONTEXT_NAMES = [
    ["person", "person", "grass", "background"],
    ["sky", "background", "background", "potted plant"],
    ["tv monitor", "wood", "aeroplane", "background"],
]


def named(mask: np.ndarray) -> list[list[str]]:
    return [[LABELS["context"].classes[i] for i in row] for row in mask]


class TestContext:
    def make(self, raw):
        voc(raw, year=2010, train=("2008_000002",), val=("2008_000003",))

    def mats(self, raw):
        self.make(raw)
        for key in ("2008_000002", "2008_000003"):
            mat(raw / f"trainval/{key}.mat", {"LabelMap": CONTEXT_LABELS})

    def test_mat_files(self, raw, out):
        self.mats(raw)
        manifest = prepare("context", raw, out)
        assert named(read(out, "context", "2008_000002")) == CONTEXT_NAMES
        assert manifest["splits"] == {"train": 1, "val": 1} and manifest["classes"] == 60
        assert [entry["file"] for entry in manifest["raw"]] == [
            "VOCdevkit/VOC2010/JPEGImages",
            "trainval",
        ]

    def test_a_label_beyond_range_is_named(self, raw, out):
        self.mats(raw)
        labels = CONTEXT_LABELS.copy()
        labels[1, 2] = 460
        mat(raw / "trainval/2008_000003.mat", {"LabelMap": labels})
        fails("2008_000003.mat: label 460 at row 1, column 2 is beyond range", "context", raw, out)

    def detail(self, raw, **changes):
        self.make(raw)
        images = [
            {
                "image_id": 1,
                "file_name": "2008_000002.jpg",
                "phase": "train",
                "height": H,
                "width": W,
            },
            {
                "image_id": 2,
                "file_name": "2008_000003.jpg",
                "phase": "val",
                "height": H,
                "width": W,
            },
            {
                "image_id": 3,
                "file_name": "2008_000009.jpg",
                "phase": "test",
                "height": H,
                "width": W,
            },
        ]
        regions = [
            {"image_id": 1, "category_id": 360, "segmentation": compressed(np.ones((H, W)))},
            {
                "image_id": 1,
                "category_id": 284,
                "segmentation": {"size": [H, W], "counts": [0, 3, 9]},
            },  # the first column
            {"image_id": 2, "category_id": 1, "segmentation": compressed(np.ones((H, W)))},
        ]
        (raw / "trainval_merged.json").write_text(
            json.dumps({"images": images, "annos_segmentation": regions} | changes)
        )

    def test_the_json_file_of_the_detail_api(self, raw, out):
        self.detail(raw)
        assert prepare("context", raw, out)["splits"] == {"train": 1, "val": 1}
        assert named(read(out, "context", "2008_000002")) == [["person", "sky", "sky", "sky"]] * 3
        assert (read(out, "context", "2008_000003") == 0).all()

    def test_other_json_is_refused(self, raw, out):
        self.detail(raw, images=[{"file_name": "x"}])
        fails("trainval_merged.json: not a file of the Detail API", "context", raw, out)
        self.detail(
            raw, annos_segmentation=[{"image_id": 1, "category_id": 460, "segmentation": {}}]
        )
        fails("category 460 of image 1 is beyond range", "context", raw, out)
        (raw / "trainval_merged.json").write_text('{"images": [')
        fails("trainval_merged.json: cannot be read as JSON", "context", raw, out)

    def test_colour_coded_masks(self, raw, out):
        self.make(raw)
        for key in ("2008_000002", "2008_000003"):
            palette_png(
                raw / "VOCdevkit/VOC2010/SegmentationClass" / f"{key}.png", MASK
            )  # not these
            rgb = np.zeros((H, W, 3), np.uint8)
            rgb[0], rgb[1, 1], rgb[2, 2] = (0, 0, 192), (0, 192, 64), (192, 128, 128)
            (raw / "coloured").mkdir(exist_ok=True)
            Image.fromarray(rgb).save(raw / "coloured" / f"{key}.png")
        prepare("context", raw, out)
        assert named(read(out, "context", "2008_000002")) == [
            ["grass"] * 4,
            ["background", "sky", "background", "background"],
            ["background", "background", "person", "background"],
        ]
        rgb[1, 3] = (1, 2, 3)
        Image.fromarray(rgb).save(raw / "coloured/2008_000003.png")
        fails(
            r"coloured/2008_000003.png: colour \(1, 2, 3\) at row 1, column 3",
            "context",
            raw,
            out.parent / "other",
        )

    def test_no_masks_at_all(self, raw, out):
        self.make(raw)
        voc(raw, train=("2008_000002",))
        prepare("voc", raw, raw)  # VOC's prepared masks have the same ids
        assert "trainval_merged.json" in fails("neither a folder trainval", "context", raw, out)

    def test_colours_of_the_authors_masks_mean_what_their_photos_show(self):
        """Two ducks on grass before pebbles and water; motorcyclists under the sky; a bus; a dog on the floor: looked at."""
        seen = {
            "bird": (128, 128, 0),
            "grass": (0, 0, 192),
            "ground": (128, 0, 192),
            "water": (192, 64, 64),
            "sky": (0, 192, 64),
            "motorbike": (64, 128, 128),
            "person": (192, 128, 128),
            "bus": (0, 128, 128),
            "road": (64, 128, 192),
            "tree": (0, 192, 192),
            "building": (192, 64, 0),
            "dog": (64, 0, 128),
            "floor": (128, 0, 64),
            "wall": (64, 64, 64),
            "table": (192, 128, 0),
            "cloth": (64, 64, 128),
        }
        coloured = decode_colours(np.array([list(seen.values())], np.uint8), voc_colours(60))
        assert [LABELS["context"].classes[i] for i in coloured[0]] == list(seen)

    @pytest.mark.parametrize(
        ("name", "seen"),
        [
            # a dog on leaves; a bicycle before a tree; a dog and two sheep; a child with a bottle
            (
                "voc",
                {
                    "dog": (64, 0, 128),
                    "bicycle": (0, 128, 0),
                    "sheep": (128, 64, 0),
                    "bottle": (128, 0, 128),
                    "person": (192, 128, 128),
                },
            ),
            # wrestlers; a man in a jacket, his bare neck of the head; men at a motorbike; a panel
            (
                "person",
                {
                    "head": (128, 0, 0),
                    "torso": (0, 128, 0),
                    "upper arms": (128, 128, 0),
                    "lower arms": (0, 0, 128),
                    "upper legs": (128, 0, 128),
                    "lower legs": (0, 128, 128),
                },
            ),
            # a kitchen with a blind; two bedrooms; a living room; a room with curtains, a picture and a chair
            (
                "nyu",
                {
                    "wall": (0, 0, 0),
                    "floor": (128, 0, 0),
                    "cabinet": (0, 128, 0),
                    "bed": (128, 128, 0),
                    "chair": (0, 0, 128),
                    "sofa": (128, 0, 128),
                    "window": (64, 0, 0),
                    "picture": (64, 128, 0),
                    "counter": (192, 128, 0),
                    "blinds": (64, 0, 128),
                    "curtain": (192, 128, 128),
                    "pillow": (128, 64, 0),
                },
            ),
        ],
    )
    def test_indices_of_the_authors_masks_mean_what_their_photos_show(self, name, seen):
        """The authors' example masks hold indices with VOC's palette: looked at, by colour."""
        indices = decode_colours(
            np.array([list(seen.values())], np.uint8), voc_colours(len(LABELS[name].classes))
        )
        assert [LABELS[name].classes[i] for i in indices[0]] == list(seen)

    def test_both_tables_hold_all_classes(self):
        assert {*CONTEXT_IDS} == {*LABELS["context"].classes} - {"background"} and len(
            CONTEXT_IDS
        ) == 59
        published = (
            2,
            259,
            260,
            415,
            324,
            9,
            258,
            144,
            18,
            19,
            22,
            23,
            397,
            25,
            284,
            158,
            159,
            416,
            33,
            162,
            420,
            454,
            295,
            296,
            427,
            44,
            45,
            46,
            308,
            59,
            440,
            445,
            31,
            232,
            65,
            354,
            424,
            68,
            326,
            72,
            458,
            34,
            207,
            80,
            355,
            85,
            347,
            220,
            349,
            360,
            98,
            187,
            104,
            105,
            366,
            189,
            368,
            113,
            115,
        )  # as users of the Detail API pass it on
        assert sorted(CONTEXT_IDS.values()) == sorted(published)
        names = [name.replace(" ", "") for name in sorted(CONTEXT_IDS, key=CONTEXT_IDS.get)]
        assert names == sorted(names)  # the 459 labels are in the order of the alphabet


def compressed(mask: np.ndarray) -> dict:
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def box(x, y, w, h) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


class TestCoco:
    SIZE = (40, 60)
    NAMES = {
        1: "person",
        2: "bicycle",
        3: "car",
        4: "motorcycle",
        5: "airplane",
        6: "bus",
        7: "train",
        8: "truck",
        9: "boat",
        16: "bird",
        17: "cat",
        18: "dog",
        19: "horse",
        20: "sheep",
        21: "cow",
        44: "bottle",
        62: "chair",
        63: "couch",
        64: "potted plant",
        67: "dining table",
        72: "tv",
        73: "laptop",
    }

    def make(self, raw, year=2017, **changes):
        h, w = self.SIZE
        ids = {"many": 1, "few": 2, "border": 3, "trucks": 4, "over": 5}
        crowd = np.zeros(self.SIZE, int)
        crowd[:, 50:] = 1
        small = np.zeros(self.SIZE, int)
        small[30:, 10:14] = 1
        column_wise = {"size": [h, w], "counts": [0, 20 * h, 40 * h]}  # the first 20 columns
        shapes = [
            ("many", 5, box(0, 0, 60, 20), 0),
            ("many", 1, compressed(small), 0),
            ("many", 1, {"size": [h, w], "counts": [50 * h, 10 * h]}, 1),
            ("few", 63, column_wise, 0),
            ("few", 73, box(0, 0, 60, 40), 0),
            ("border", 63, {"size": [h, w], "counts": [0, 1000, 1400]}, 0),
            ("over", 63, {"size": [h, w], "counts": [0, 1001, 1399]}, 0),
            ("trucks", 8, box(0, 0, 60, 40), 0),
        ]
        content = {
            "categories": [{"id": i, "name": name} for i, name in self.NAMES.items()],
            "images": [
                {"id": i, "file_name": f"{key}.jpg", "height": h, "width": w}
                for key, i in ids.items()
            ],
            "annotations": [
                {
                    "id": n,
                    "image_id": ids[key],
                    "category_id": category,
                    "segmentation": shape,
                    "iscrowd": crowd,
                    "area": 1200 - n,
                }
                for n, (key, category, shape, crowd) in enumerate(shapes)
            ],
        }
        for key in ids:
            photo(raw / f"train{year}/{key}.jpg", (w, h))
        (raw / "annotations").mkdir(parents=True, exist_ok=True)
        (raw / f"annotations/instances_train{year}.json").write_text(json.dumps(content | changes))

    def test_polygons_run_lengths_and_crowds(self, raw, out):
        self.make(raw)
        prepare("coco", raw, out)
        expected = np.zeros(self.SIZE, int)
        expected[:, 50:] = 255
        expected[:20, :] = 1  # the aeroplane covers a part of the crowd
        expected[30:, 10:14] = 15
        assert np.array_equal(read(out, "coco", "many"), expected)
        couch = np.arange(40 * 60).reshape(60, 40).T < 1001
        assert np.array_equal(read(out, "coco", "over"), 18 * couch)

    def test_smaller_things_lie_above_larger_ones(self, raw, out):
        inner, outer = box(10, 10, 10, 10), box(0, 0, 60, 40)
        parts = [
            {
                "id": i,
                "image_id": 1,
                "category_id": category,
                "segmentation": shape,
                "iscrowd": 0,
                "area": area,
            }
            for i, (category, shape, area) in enumerate([(17, inner, 100), (62, outer, 2400)])
        ]
        self.make(raw, annotations=parts)
        prepare("coco", raw, out)
        expected = np.full(self.SIZE, 9)
        expected[10:20, 10:20] = 8
        assert np.array_equal(read(out, "coco", "many"), expected)

    @pytest.mark.parametrize("year", (2017, 2014))
    def test_only_images_with_more_than_1000_pixels_and_both_years(self, raw, out, year):
        self.make(raw, year)
        manifest = prepare("coco", raw, out)
        assert ids(out, "coco", "train") == [
            "many",
            "over",
        ]  # "few" has 800 of a couch, "border" 1,000, "trucks" none
        assert manifest["splits"] == {"train": 2} and manifest["unexpected"] == {}
        assert (
            "airplane -> aeroplane" in manifest["statements"][0]
            and "trucks" in manifest["statements"][0]
        )

    def test_all_20_classes_are_there(self):
        assert sorted(module.COCO_CLASSES.values()) == sorted(VOC_CLASSES[1:]) and {
            *module.COCO_CLASSES
        } <= {*self.NAMES.values()}
        assert module.COCO_CLASSES["couch"] == "sofa" and module.COCO_CLASSES["tv"] == "tv monitor"

    def test_bad_files_are_named(self, raw, out):
        twice = [
            {"id": 1, "file_name": f"{key}.jpg", "height": 40, "width": 60}
            for key in ("many", "few")
        ]
        self.make(raw, images=twice)
        fails("instances_train2017.json: id 1 twice", "coco", raw, out)
        self.make(raw, categories=[{"id": 1, "name": "person"}])
        fails("instances_train2017.json: not a file of COCO's instances", "coco", raw, out)
        (raw / "annotations/instances_train2017.json").write_text('{"images": [1, 2')
        fails("instances_train2017.json: cannot be read as JSON", "coco", raw, out)
        self.make(raw)
        (raw / "train2017/many.jpg").unlink()
        fails("many.jpg is missing, the image of an entry", "coco", raw, out)

    @pytest.mark.parametrize(
        "shape",
        (
            {"size": [40, 60], "counts": [0, 5000]},
            {"size": [60, 40], "counts": [0, 2400]},
            {"size": [40, 60]},
            [["a"] * 6],
            {"size": [40, 60], "counts": 5},
            "x",
        ),
    )
    def test_a_bad_region_is_named(self, raw, out, shape):
        self.make(
            raw,
            annotations=[
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": 1,
                    "segmentation": shape,
                    "iscrowd": 0,
                    "area": 9,
                }
            ],
        )
        fails(
            "instances_train2017.json: a region of image many cannot be decoded", "coco", raw, out
        )

    @pytest.mark.parametrize("cut", (0, 1, 2, 5))
    def test_compressed_run_lengths_that_were_cut_are_named(self, raw, out, cut):
        noise = np.random.RandomState(0).rand(*self.SIZE) > 0.3
        shape = compressed(noise)
        whole = shape["counts"]
        assert sum(module._run_lengths(whole)) == noise.size
        shape["counts"] = whole[:-cut] if cut else ""
        part = {
            "id": 1,
            "image_id": 1,
            "category_id": 17,
            "segmentation": shape,
            "iscrowd": 0,
            "area": 1,
        }
        self.make(raw, annotations=[part])
        fails(
            "instances_train2017.json: a region of image many cannot be decoded", "coco", raw, out
        )

    def test_without_pycocotools_the_extra_is_named(self, raw, out, monkeypatch):
        self.make(raw)
        monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
        fails(r'pip install "rflw\[data\]"', "coco", raw, out)


class TestCityscapes:
    LABEL_IDS = np.array(
        [[7, 8, 0, 33], [26, 1, 3, 24], [29, 30, 10, 255]], np.uint8
    )  # road, sidewalk ... car ... caravan

    def make(self, raw):
        for split, city, key in (
            ("train", "aachen", "aachen_000000_000019"),
            ("train", "ulm", "ulm_000001_000019"),
            ("val", "lindau", "lindau_000000_000019"),
        ):
            photo(raw / f"leftImg8bit/{split}/{city}/{key}_leftImg8bit.png")
            folder = raw / f"gtFine/{split}/{city}"
            folder.mkdir(parents=True, exist_ok=True)
            for kind in ("labelIds", "instanceIds"):
                Image.fromarray(self.LABEL_IDS).save(folder / f"{key}_gtFine_{kind}.png")

    def test_train_ids(self, raw, out):
        self.make(raw)
        manifest = prepare("cityscapes", raw, out)
        assert ids(out, "cityscapes", "train") == ["aachen_000000_000019", "ulm_000001_000019"]
        assert read(out, "cityscapes", "lindau_000000_000019").tolist() == [
            [0, 1, 255, 18],
            [13, 255, 255, 11],
            [255, 255, 255, 255],
        ]
        assert (out / "cityscapes/images/aachen_000000_000019.png").exists()
        assert manifest["unexpected"]["val"] == {"official": 500, "found": 1}

    def test_images_and_masks_without_the_other(self, raw, out):
        self.make(raw)
        path = raw / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png"
        path.rename(raw / "away.png")
        fails(
            "ulm_000001_000019_leftImg8bit.png is missing, the image of mask",
            "cityscapes",
            raw,
            out,
        )
        (raw / "away.png").rename(path)
        (raw / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png").unlink()
        fails(
            "lindau_000000_000019_gtFine_labelIds.png is missing, the mask of image",
            "cityscapes",
            raw,
            out,
        )

    def test_a_label_beyond_range_is_named(self, raw, out):
        self.make(raw)
        Image.fromarray(self.LABEL_IDS + np.uint8(10)).save(
            raw / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"
        )
        fails("labelIds.png: label 43 at row 0, column 3 is beyond range", "cityscapes", raw, out)


class TestNyu:
    def make(self, raw, top=5, left=9, bottom=7, right=6, frames=3):
        """Three frames with a white border, in MATLAB 7.3's order of axes; labels are 1 + column // 10, raw class i has
        class i % 40 + 1 of the 40."""
        y, x = np.mgrid[:480, :640]
        images = np.stack(
            [np.stack([(x + c * 40 + i) % 200 for c in range(3)], -1) for i in range(frames)]
        ).astype(np.uint8)
        border = (y < top) | (y >= 480 - bottom) | (x < left) | (x >= 640 - right)
        images[:, border] = 255
        labels = np.where(border, 0, 1 + x // 10).astype(np.uint16)
        raw.mkdir(parents=True, exist_ok=True)
        with h5py.File(raw / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
            file["images"] = images.transpose(0, 3, 2, 1)
            file["labels"] = np.stack([labels.T] * frames)
        mat(
            raw / "splits.mat",
            {"trainNdxs": np.array([[3], [1]], np.uint16), "testNdxs": np.array([[2]], np.uint16)},
        )
        mat(
            raw / "classMapping40.mat",
            {"mapClass": (np.arange(1, 895) % 40 + 1)[None].astype(np.uint8)},
        )
        return images, labels

    def test_frames_classes_and_splits(self, raw, out):
        images, _ = self.make(raw)
        manifest = prepare("nyu", raw, out)
        assert ids(out, "nyu", "train") == ["000001", "000003"] and ids(out, "nyu", "val") == [
            "000002"
        ]
        assert manifest["unexpected"]["train"] == {"official": 795, "found": 2}
        assert np.array_equal(
            np.array(Image.open(out / "nyu/images/000003.png")), images[2][5:473, 9:634]
        )
        expected = (1 + np.arange(9, 634) // 10) % 40  # class i % 40 + 1 of the 40 has index i % 40
        assert np.array_equal(read(out, "nyu", "000002"), np.tile(expected, (468, 1)))
        assert "rows 5 to 472 and columns 9 to 633" in manifest["statements"][0]

    def test_the_frame_that_holds_most_where_the_border_has_another_size(self, raw, out):
        images, labels = self.make(
            raw, top=2
        )  # 471 rows are not white: any 468 of them hold as much, the middle ones are taken
        statement = prepare("nyu", raw, out)["statements"][0]
        assert (
            statement.startswith("rows 4 to 471 and columns 9 to 633")
            and f"{100 * 468 / 471:.2f} %" in statement
        )
        assert np.array_equal(
            np.array(Image.open(out / "nyu/images/000001.png")), images[0][4:472, 9:634]
        )
        assert np.array_equal(read(out, "nyu", "000001"), (labels % 40)[4:472, 9:634])

    def test_single_white_or_coloured_pixels_do_not_move_the_frame(self, raw, out):
        self.make(raw)
        with h5py.File(raw / "nyu_depth_v2_labeled.mat", "r+") as file:
            file["images"][0, :, 2, 1] = 7  # in the border
            file["images"][:, :, 9:634, 100] = 255  # a white row inside
        assert "rows 5 to 472 and columns 9 to 633" in prepare("nyu", raw, out)["statements"][0]

    def test_bad_files_are_named(self, raw, out):
        self.make(raw)
        path = raw / "nyu_depth_v2_labeled.mat"
        with h5py.File(path, "r+") as file:
            file["labels"][1, 30, 20] = 895
        fails(
            "nyu_depth_v2_labeled.mat, image 2: label 895 at row 20, column 30 is beyond range",
            "nyu",
            raw,
            out,
        )
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        fails("nyu_depth_v2_labeled.mat: cannot be read as a MATLAB 7.3 file", "nyu", raw, out)
        for shape, words in (
            ((1, 3, 8, 6), "not 640x480 images"),
            ((1, 3, 640, 480), "cannot be read as a MATLAB 7.3 file .*labels"),
        ):
            with h5py.File(path, "w") as file:
                file["images"] = np.zeros(shape, np.uint8)
            fails(f"nyu_depth_v2_labeled.mat: {words}", "nyu", raw, out)

    def test_bad_splits_are_named(self, raw, out):
        self.make(raw)
        mat(raw / "splits.mat", {"trainNdxs": [[1], [4]], "testNdxs": [[2]]})
        fails("splits.mat: trainNdxs is not within 1..3", "nyu", raw, out)
        mat(raw / "splits.mat", {"trainNdxs": [[1], [2]], "testNdxs": [[2]]})
        fails("nyu: id 000002 twice", "nyu", raw, out)
        mat(raw / "classMapping40.mat", {"mapClass": [[41]]})
        fails("classMapping40.mat: mapClass is not 894 numbers in 1..40", "nyu", raw, out)

    def test_missing_files_name_the_page(self, raw, out):
        self.make(raw)
        (raw / "splits.mat").unlink()
        fails("no splits.mat; it is on https://cs.nyu.edu", "nyu", raw, out)


class TestEverySet:
    """From raw files to tensors."""

    MAKERS = {
        "voc": voc,
        "sbd": TestSbd().make,
        "person": TestPerson().make,
        "context": TestContext().mats,
        "coco": TestCoco().make,
        "cityscapes": TestCityscapes().make,
        "nyu": TestNyu().make,
    }

    def test_none_is_left_out(self):
        assert self.MAKERS.keys() == COUNTS.keys() == LABELS.keys() - {"camvid", "embedded"}

    @pytest.mark.parametrize("name", MAKERS)
    def test_prepare_check_read(self, raw, out, name, monkeypatch):
        self.MAKERS[name](raw)
        manifest = prepare(name, raw, out)
        found = check(name, out)
        assert {split: part["images"] for split, part in found["splits"].items()} == manifest[
            "splits"
        ]
        assert not found["changed"] and not any(part["faults"] for part in found["splits"].values())
        for split, part in found["splits"].items():
            dataset = open_dataset(name, split, out)
            masks = [mask for _, mask in (dataset[i] for i in range(len(dataset)))]
            assert dataset.ids == ids(out, name, split) and all(
                image.shape[:2] == mask.shape for image, mask in dataset
            )
            assert [*part["pixels"].values()] == [
                sum(int((mask == c).sum()) for mask in masks) for c in range(manifest["classes"])
            ]
        assert found["clean"] == (name == "coco")  # which alone has no official number
        monkeypatch.setattr("rflw.data.check.OFFICIAL", {name: manifest["splits"]})
        again = check(name, out)
        assert again["clean"] == (not again["shared"])

    def test_coco_then_sbd_with_voc_then_voc(self, raw, out):
        masks = np.zeros((40, 60), np.uint8)
        masks[:, 30:], masks[5] = 15, 255
        TestCoco().make(raw)
        TestSbd().make(raw, masks=masks)
        for name in ("coco", "sbd", "voc"):
            prepare(name, raw, out)
        paper = recipe("paper-voc-lw-mobilenet_v2")
        short = replace(
            paper,
            weights=None,
            crop=(48, 48),
            batch=2,
            stages=tuple(replace(s, epochs=1) for s in paper.stages),
        )
        model, record = fit(short, out / "run", root=out, device="cpu")
        assert record["status"] == "done" and [
            (row["stage"], row["epoch"]) for row in record["curve"]
        ] == [(0, 1), (1, 1), (2, 1)]
        manifests = {
            name: json.loads((out / name / "manifest.json").read_text())["sha256"]
            for name in ("coco", "sbd", "voc")
        }
        assert record["data"] == {
            f"{name}/train": sums["train"] for name, sums in manifests.items()
        } | {"voc/val": manifests["voc"]["val"]}
        assert model.num_classes == 21 and record["metrics"]["images"] == 1


def pack(raw: Path, archive: Path) -> None:
    """Move all that lies in `raw` into an archive, by its suffix."""
    parts = sorted(raw.iterdir())
    files = [
        path
        for part in parts
        for path in ([part] if part.is_file() else sorted(part.rglob("*")))
        if path.is_file()
    ]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as members:
            for path in files:
                members.write(path, path.relative_to(raw))
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as members:
            for path in files:
                members.add(path, path.relative_to(raw))
    for path in files:
        path.unlink()
    for part in parts:
        if part.is_dir():
            shutil.rmtree(part)


class TestArchives:
    def test_a_tar_gives_what_the_folder_gives(self, raw, out):
        voc(raw)
        plain = prepare("voc", raw, out / "plain")
        pack(raw, raw / "VOCtrainval_11-May-2012.tar")
        packed = prepare("voc", raw, out / "packed")
        assert packed["sha256"] == plain["sha256"] and packed["splits"] == plain["splits"]
        assert packed["raw"] == [
            {
                "file": "VOCtrainval_11-May-2012.tar",
                "bytes": (raw / "VOCtrainval_11-May-2012.tar").stat().st_size,
            }
        ]
        assert np.array_equal(read(out / "packed", "voc", "2008_000003"), MASK)
        assert not (out / "packed/.raw-voc").exists()

    def test_zip_archives_and_several_of_them(self, raw, out):
        TestCityscapes().make(raw)
        (raw / "gtFine").rename(raw.parent / "gtFine")
        pack(raw, raw / "leftImg8bit_trainvaltest.zip")
        (raw.parent / "gtFine").rename(raw / "gtFine")
        (raw / "leftImg8bit_trainvaltest.zip").rename(raw.parent / "left.zip")
        pack(raw, raw / "gtFine_trainvaltest.zip")
        (raw.parent / "left.zip").rename(raw / "leftImg8bit_trainvaltest.zip")
        assert prepare("cityscapes", raw, out)["splits"] == {"train": 2, "val": 1}

    def test_compressed_tars_in_a_folder_of_their_own(self, raw, out):
        TestPerson().make(raw)
        (raw / "VOCdevkit").rename(raw.parent / "VOCdevkit")
        pack(raw, raw / "trainval.tar.gz")
        (raw / "parts").mkdir()
        (raw / "trainval.tar.gz").rename(raw / "parts/trainval.tar.gz")
        (raw.parent / "VOCdevkit").rename(raw / "VOCdevkit")
        manifest = prepare("person", raw, out)
        assert manifest["splits"] == {"train": 1, "val": 1}
        assert [entry["file"] for entry in manifest["raw"]] == [
            "VOCdevkit/VOC2010/JPEGImages",
            "parts/trainval.tar.gz",
        ]

    def test_an_archive_without_what_is_needed(self, raw, out):
        voc(raw)
        (raw / "VOCdevkit/VOC2012").rename(raw / "VOCdevkit/elsewhere")
        pack(raw, raw / "VOCtrainval_11-May-2012.tar")
        fails("no VOC2012/JPEGImages nor VOCtrainval_11-May-2012.tar", "voc", raw, out)

    def test_an_archive_of_another_year_is_named(self, raw, out):
        voc(raw)
        pack(raw, raw / "VOCtrainval_11-May-2012.tar")
        fails(
            "VOCtrainval_11-May-2012.tar: VOC 2010 is needed, this is another year",
            "person",
            raw,
            out,
        )

    @pytest.mark.parametrize("name", ("VOCtrainval_11-May-2012.tar", "benchmark.tgz"))
    @pytest.mark.parametrize("keep", (0.0, 0.3, 0.8))
    def test_cut_archives_are_named(self, raw, out, name, keep):
        if name == "benchmark.tgz":
            TestSbd().make(raw)
            (raw / "VOCdevkit").rename(raw.parent / "VOCdevkit")
            pack(raw, raw / name)
            (raw.parent / "VOCdevkit").rename(raw / "VOCdevkit")
        else:
            voc(raw)
            pack(raw, raw / name)
        whole = (raw / name).read_bytes()
        (raw / name).write_bytes(whole[: int(keep * len(whole))])
        fails(f"{name}: cannot be unpacked, is it whole", "sbd", raw, out)
        assert not [*(out / ".raw-sbd").glob(f"{name}*")]
        (raw / name).write_bytes(whole)
        if name == "benchmark.tgz":
            assert prepare("sbd", raw, out)["splits"] == {
                "train": 4,
                "val": 1,
            }  # a rerun with the whole file finishes

    def test_a_tar_cut_between_two_members(self, raw, out):
        voc(raw)
        pack(raw, raw / "VOCtrainval_11-May-2012.tar")
        with tarfile.open(raw / "VOCtrainval_11-May-2012.tar") as members:
            offset = members.getmembers()[-1].offset
        with (raw / "VOCtrainval_11-May-2012.tar").open("r+b") as file:
            file.truncate(offset)
        fails("11-May-2012.tar: cannot be unpacked, is it whole", "voc", raw, out)

    def test_cut_zip(self, raw, out):
        TestCityscapes().make(raw)
        pack(raw, raw / "gtFine_trainvaltest.zip")
        whole = (raw / "gtFine_trainvaltest.zip").read_bytes()
        (raw / "gtFine_trainvaltest.zip").write_bytes(whole[:-40])
        fails("gtFine_trainvaltest.zip: cannot be unpacked", "cityscapes", raw, out)

    def member(self, name, **fields) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(member, key, value)
        return member

    @pytest.mark.parametrize(
        "name, fields",
        [
            ("../../x", {}),
            ("/tmp/rflw-x", {}),
            ("a/../../x", {}),
            ("link", {"type": tarfile.SYMTYPE, "linkname": "../../.."}),
            ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
            ("hard", {"type": tarfile.LNKTYPE, "linkname": "../../x"}),
            ("device", {"type": tarfile.CHRTYPE}),
            ("pipe", {"type": tarfile.FIFOTYPE}),
        ],
    )
    def test_tar_members_that_lead_outside(self, raw, out, name, fields):
        raw.mkdir()
        with tarfile.open(raw / "VOCtrainval_11-May-2012.tar", "w") as members:
            members.addfile(self.member(name, **fields), io.BytesIO())
        before = {*raw.parent.rglob("*")} | {*out.parent.iterdir()}
        message = fails("leads outside of it or is no plain file", "voc", raw, out)
        assert name in message and "VOCtrainval_11-May-2012.tar" in message
        new = {*raw.parent.rglob("*")} - before
        assert (
            not [path for path in new if path.is_file() or path.is_symlink()]
            and not Path("/tmp/rflw-x").exists()
        )

    @pytest.mark.parametrize("name", ("../../x", "/tmp/rflw-x", "a\\..\\..\\x", "C:/x", "link"))
    def test_zip_members_that_lead_outside(self, raw, out, name):
        raw.mkdir()
        with zipfile.ZipFile(raw / "gtFine_trainvaltest.zip", "w") as members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
            members.writestr(info, "/etc")
        before = {*raw.parent.rglob("*")}
        fails(r"gtFine_trainvaltest.zip: member .* leads outside of it", "cityscapes", raw, out)
        assert not [path for path in {*raw.parent.rglob("*")} - before if not path.is_dir()]

    def test_what_was_unpacked_is_kept_when_a_run_is_interrupted(self, raw, out, monkeypatch):
        voc(raw)
        pack(raw, raw / "VOCtrainval_11-May-2012.tar")
        with monkeypatch.context() as patch:
            patch.setattr(module, "convert", interrupt_after(1))
            with pytest.raises(KeyboardInterrupt):
                prepare("voc", raw, out)
        monkeypatch.setattr(module, "_untar", None)  # not a second time
        assert prepare("voc", raw, out)["splits"] == {"train": 2, "val": 1}

    def test_an_archive_that_was_replaced_is_unpacked_again(self, raw, out):
        folder = voc(raw)
        bad = folder / "JPEGImages/2007_000002.jpg"
        whole = bad.read_bytes()
        bad.write_bytes(whole[: len(whole) // 2])
        pack(raw, raw / "VOCtrainval_11-May-2012.tar")
        fails("2007_000002.jpg: cannot be read", "voc", raw, out)
        voc(raw)
        (raw / "VOCtrainval_11-May-2012.tar").unlink()
        pack(raw, raw / "VOCtrainval_11-May-2012.tar")
        assert prepare("voc", raw, out)["splits"] == {"train": 2, "val": 1}


def interrupt_after(count: int):
    """The true `convert`, but Ctrl+C comes after some items."""
    convert, done = module.convert, []

    def interrupted(*args, **options):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(args)
        return convert(*args, **options)

    return interrupted


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestRuns:
    TRAIN = tuple(f"2007_{i:06}" for i in range(6))

    @pytest.mark.parametrize("after", (0, 2, 6))
    def test_a_rerun_after_an_interrupt_gives_the_same(self, raw, out, monkeypatch, after):
        voc(raw, train=self.TRAIN)
        unbroken = prepare("voc", raw, out / "unbroken")
        with monkeypatch.context() as patch:
            patch.setattr(module, "convert", interrupt_after(after))
            with pytest.raises(KeyboardInterrupt):
                prepare("voc", raw, out / "broken")
        assert not (out / "broken/voc/manifest.json").exists()
        assert len([*(out / "broken/voc/masks").iterdir()]) == after
        made = []
        monkeypatch.setattr(module, "_voc_mask", lambda path: made.append(path.stem) or MASK)
        assert prepare("voc", raw, out / "broken") == unbroken
        assert contents(out / "broken/voc") == contents(out / "unbroken/voc")
        assert len(made) == 7 - after  # what was there is kept

    def test_an_interrupt_while_a_file_is_written_leaves_nothing(self, raw, out, monkeypatch):
        voc(raw)

        def broken(self, path, **_):
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "save", broken)
            with pytest.raises(KeyboardInterrupt):
                prepare("voc", raw, out)
        assert not [*(out / "voc/masks").iterdir()]
        assert prepare("voc", raw, out)["splits"] == {"train": 2, "val": 1}

    def interrupted(self, raw, out, monkeypatch):
        voc(raw)
        with monkeypatch.context() as patch:
            patch.setattr(module, "convert", interrupt_after(2))
            with pytest.raises(KeyboardInterrupt):
                prepare("voc", raw, out)

    def test_what_a_power_cut_left_empty_is_made_anew(self, raw, out, monkeypatch):
        self.interrupted(raw, out, monkeypatch)
        image, mask = out / "voc/images/2007_000001.jpg", out / "voc/masks/2007_000002.png"
        assert mask.stat().st_size
        image.unlink()
        image.write_bytes(b"")
        mask.write_bytes(b"")
        prepare("voc", raw, out)
        assert (
            image.read_bytes()
            == (raw / "VOCdevkit/VOC2012/JPEGImages/2007_000001.jpg").read_bytes()
        )
        assert np.array_equal(read(out, "voc", "2007_000002"), MASK)

    def test_nothing_of_other_raw_files_is_kept(self, raw, out, monkeypatch):
        self.interrupted(raw, out, monkeypatch)
        other = raw.parent / "other"
        voc(other, masks=np.zeros((7, 9), np.uint8))
        prepare("voc", other, out)
        assert (read(out, "voc", "2007_000001") == np.zeros((7, 9))).all()
        assert (out / "voc/images/2007_000001.jpg").read_bytes() == (
            other / "VOCdevkit/VOC2012/JPEGImages/2007_000001.jpg"
        ).read_bytes()
        assert {path.name for path in (out / "voc").iterdir()} == {
            "images",
            "masks",
            "splits",
            "SHA256SUMS",
            "manifest.json",
        }

    def test_raw_files_may_lie_where_the_result_goes(self, tmp_path):
        voc(tmp_path / "voc")
        assert prepare("voc", tmp_path / "voc", tmp_path)["splits"] == {"train": 2, "val": 1}
        assert len(open_dataset("voc", "train", tmp_path)) == 2

    def test_folders_of_others_are_left_alone(self, tmp_path):
        voc(tmp_path / "voc")
        mine = photo(tmp_path / "voc/images/mine.jpg")
        fails(
            "voc/images: is there already, and not from rflw data prepare",
            "voc",
            tmp_path / "voc",
            tmp_path,
        )
        assert mine.exists()

    def test_no_images_at_all(self, raw, out):
        for name in ("gtFine", "leftImg8bit"):
            (raw / name).mkdir(parents=True)
        fails("no images for train in", "cityscapes", raw, out)

    def test_lists_and_sums_that_were_changed_show(self, raw, out):
        voc(raw)
        before = prepare("voc", raw, out)["sha256"]["train"]
        assert open_dataset("voc", "train", out).digest == before
        (out / "voc/splits/train.txt").write_text("2007_000001\n")
        assert open_dataset("voc", "train", out).digest != before
        assert check("voc", out)["changed"] == [
            f"{out / 'voc/splits/train'}.txt or SHA256SUMS: not what was prepared"
        ]
        (out / "voc/splits/train.txt").write_bytes(b"\xff\n")
        with pytest.raises(InputError, match="voc: .*cannot be read"):
            open_dataset("voc", "train", out)
        (out / "voc/manifest.json").write_text("[]")
        for act in (lambda: open_dataset("voc", "train", out), lambda: prepare("voc", raw, out)):
            with pytest.raises(InputError, match="manifest.json: not a manifest"):
                act()

    def test_a_finished_folder_is_left_alone(self, raw, out):
        voc(raw)
        manifest = prepare("voc", raw, out)
        before = contents(out)
        assert prepare("voc", raw / "no longer there", out) == manifest and contents(out) == before
        (out / "voc/manifest.json").write_text("{")
        with pytest.raises(InputError, match="manifest.json: cannot be read as JSON"):
            prepare("voc", raw, out)

    def test_two_processes_give_what_one_gives(self, raw, out):
        voc(raw, train=self.TRAIN)
        assert prepare("voc", raw, out / "two", workers=2) == prepare("voc", raw, out / "one")
        assert contents(out / "two") == contents(out / "one")

    def test_errors_in_another_process_are_the_same(self, raw, out):
        voc(raw, train=self.TRAIN)
        palette_png(raw / "VOCdevkit/VOC2012/SegmentationClass/2007_000004.png", MASK + np.uint8(3))
        with pytest.raises(InputError, match="2007_000004.png: label 23 at row 0, column 3"):
            prepare("voc", raw, out, workers=2)

    def test_a_worker_that_is_killed(self, raw, out, monkeypatch):
        voc(raw)
        monkeypatch.setattr(module, "convert", kill)
        with pytest.raises(InputError, match="a worker process was killed"):
            prepare("voc", raw, out, workers=1)

    def test_no_progress_bar_without_a_terminal(self, raw, out, capfd):
        voc(raw)
        prepare("voc", raw, out, progress=True)
        assert capfd.readouterr() == ("", "")


def kill(item, **_):
    os._exit(9)


class TestErrors:
    def test_unknown_name_and_missing_folder(self, raw, out):
        with pytest.raises(InputError, match="cannot prepare 'camvid': one of voc, sbd"):
            prepare("camvid", raw, out)
        fails("raw: no such folder of raw files", "voc", raw, out)

    def test_missing_raw_files_name_archive_and_page(self, raw, out):
        raw.mkdir()
        fails(
            "no VOC2012/JPEGImages nor VOCtrainval_11-May-2012.tar; it is on http://host.robots.ox.ac.uk",
            "voc",
            raw,
            out,
        )
        fails(
            "no instances_train2017.json nor annotations_trainval2017.zip; it is on https://cocodataset.org",
            "coco",
            raw,
            out,
        )
        fails(
            "no gtFine nor gtFine_trainvaltest.zip; it is on https://www.cityscapes",
            "cityscapes",
            raw,
            out,
        )
        voc(raw)
        fails("no dataset/cls nor benchmark.tgz", "sbd", raw, out)
        (raw / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()
        fails("val.txt: the list of ids cannot be read", "voc", raw, out)

    def test_bad_lists(self, raw, out):
        folder = voc(raw) / "ImageSets/Segmentation"
        listed(folder / "train.txt", ["2007_000001", "2007_000001"])
        fails("train.txt: id 2007_000001 twice", "voc", raw, out)
        listed(folder / "train.txt", ["2007_000001", "2008_000003"])
        fails("voc: id 2008_000003 twice", "voc", raw, out)
        listed(folder / "train.txt", ["../2007_000001"])
        fails("train.txt: id '../2007_000001' cannot name a file", "voc", raw, out)
        listed(folder / "train.txt", [])
        fails("train.txt: an empty list", "voc", raw, out)

    def test_missing_partners_and_sizes(self, raw, out):
        folder = voc(raw)
        photo(folder / "JPEGImages/2007_000002.jpg", (5, 3))
        fails("2007_000002: mask of 4x3, its image is 5x3", "voc", raw, out)
        (folder / "JPEGImages/2007_000002.jpg").write_text("hello")
        fails("2007_000002.jpg: not an image that can be read", "voc", raw, out)
        (folder / "JPEGImages/2007_000002.jpg").unlink()
        fails("2007_000002.jpg is missing, the image of mask", "voc", raw, out)

    def test_labels_beyond_range(self, raw, out):
        voc(raw, masks=np.where(MASK == 20, 21, MASK))
        fails("2007_000001.png: label 21 at row 0, column 3", "voc", raw, out)

    def test_a_target_that_cannot_be_written(self, raw, out):
        voc(raw)
        out.write_text("a file")
        with pytest.raises(InputError, match="cannot be written"):
            prepare("voc", raw, out)

    def test_a_full_disk(self, raw, out, monkeypatch):
        voc(raw)

        def full(self, path, **_):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "save", full)
            fails(
                r"masks/2007_000001.png: cannot be written \(No space left on device\)",
                "voc",
                raw,
                out,
            )
        assert prepare("voc", raw, out)["splits"] == {"train": 2, "val": 1}


class TestDecoding:
    def test_every_colour_comes_back(self):
        indices = np.random.RandomState(0).randint(0, 60, (50, 70)).astype(np.uint8)
        decoded = decode_colours(np.array(voc_colours(60), np.uint8)[indices], voc_colours(60))
        assert decoded.dtype == np.uint8 and np.array_equal(decoded, indices)

    @pytest.mark.parametrize("colour", ((0, 0, 1), (255, 255, 255), (127, 0, 0)))
    def test_other_colours_are_refused(self, colour):
        rgb = np.zeros((4, 5, 3), np.uint8)
        rgb[2, 3] = rgb[3, 0] = colour
        with pytest.raises(InputError) as caught:
            decode_colours(rgb, voc_colours(60), "x.png")
        assert str(caught.value) == f"x.png: colour {colour} at row 2, column 3 is of no class"

    def test_remap(self):
        table = np.array([255, 0, -1, 3])
        assert remap(np.array([[0, 1, 3]], np.int16), table, "x").tolist() == [[255, 0, 3]]
        for bad in (2, 4, -1, 300):
            with pytest.raises(InputError, match=f"x: label {bad} at row 0, column 1"):
                remap(np.array([[0, bad]], np.int16), table, "x")

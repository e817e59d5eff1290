"""Images, masks, data sets, transforms."""

import hashlib
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageCms
import pytest
import torch
from torchvision import tv_tensors

from rflw import InputError
from rflw.data.check import OFFICIAL, check
from rflw.data.images import read_image, read_mask
from rflw.data.labels import LABELS, labels_for, voc_colours
from rflw.data.readers import Cached, blocks, in_memory, manifest_hash, open_dataset
from rflw.data.synthetic import Scenes, scene
from rflw.data.transforms import Augmented, RandomScale, training_transform

RGB = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)


def saved(folder, pixels, name="x.png", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(folder / name, **options)
    return folder / name


def refused(words, action, *args):
    with pytest.raises(InputError, match=words) as caught:
        action(*args)
    return str(caught.value)


PALETTE = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
PALETTE.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
GREY16 = np.array([[0, 257, 256, 65535], [300, 514, 32896, 65278]], np.uint16)
ON_WHITE = np.array([[[9, 9, 9, 0], [0, 0, 0, 128], [1, 2, 3, 255]]], np.uint8)


class TestImages:
    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (RGB, RGB),
            (RGB[..., 0], np.repeat(RGB[..., :1], 3, 2)),
            (GREY16, np.dstack([[[0, 1, 0, 255], [1, 2, 128, 254]]] * 3)),
            (ON_WHITE, [[[255] * 3, [127] * 3, [1, 2, 3]]]),
            (PALETTE, [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]),
        ],
        ids=["RGB", "grey", "16 bits", "alpha", "palette"],
    )
    def test_images_of_every_mode_become_rgb(self, tmp_path, image, expected):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        for source in (image, saved(tmp_path, image)):
            assert np.array_equal(read_image(source), expected)

    def test_cmyk_and_exif_rotation_are_shown_as_by_a_viewer(self, tmp_path):
        cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
        out = read_image(saved(tmp_path, cyan, "x.jpg", quality=95))
        assert out[4, 4, 0] < 20 and out[4, 4, 1:].min() > 235
        turned = Image.Exif()
        turned[0x0112] = 6  # a quarter clockwise
        assert np.array_equal(read_image(saved(tmp_path, RGB, exif=turned)), np.rot90(RGB, -1))

    def test_colour_profiles_are_applied_where_they_fit(self, tmp_path):
        """In this one, red and blue have changed places."""
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ")
        swapped = swapped.replace(b"tXYZ", b"bXYZ")
        grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
        for name in ("x.png", "x.jpg"):
            picture = np.stack([grey, grey.T, grey[::-1]], -1)
            path = saved(tmp_path, picture, name, icc_profile=swapped, quality=100)
            with Image.open(path) as stored:
                assert abs(read_image(path).astype(int) - np.array(stored)[..., ::-1]).max() <= 2
        for unfit in (swapped, b"damaged", profile[:200]):
            path = saved(tmp_path, grey, icc_profile=unfit)
            assert np.array_equal(read_image(path), np.dstack([grey] * 3))

    def test_what_is_no_image_is_refused_by_name(self, tmp_path):
        (tmp_path / "text.png").write_text("hello")
        whole = saved(tmp_path, np.tile(RGB, (40, 40, 1))).read_bytes()
        (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
        saved(tmp_path, np.ones((4, 4), np.float32), "float.tiff")
        for name, words in (
            ("text.png", "not an image"),
            ("cut.png", "cannot be read"),
            ("none.png", "no such file"),
            ("float.tiff", "floating point"),
            (".", "cannot be read"),
        ):
            assert str(tmp_path / name) in refused(words, read_image, tmp_path / name)

    def test_masks(self, tmp_path):
        path = saved(tmp_path, np.array([[0, 10, 11], [3, 255, 1]], np.uint8))
        assert read_mask(path, 11, void=11).tolist() == [[0, 10, 255], [3, 255, 1]]
        refused("label 10 at row 0, column 1", read_mask, path, 10, 11)
        refused("mask of 3x2, its image is 3x4", read_mask, path, 21, 255, (4, 3))

    def test_every_class_has_a_name_and_a_colour_of_its_own(self):
        for labels in (*LABELS.values(), labels_for(map(str, range(40)))):
            for names in (labels.classes, labels.colours):
                assert len(set(names)) == len(names) == len(labels.classes)
            assert len(labels.palette()) == 768 and labels.palette()[-3:] == [255, 255, 255]
        colours = voc_colours(21)  # the first and last of the published palette
        assert colours[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
        assert colours[15] == (192, 128, 128) and colours[20] == (0, 64, 128)


@pytest.fixture
def camvid(tmp_path):
    """Three tiny frames in CamVid's layout."""
    folder = tmp_path / "camvid"
    for part in ("train", "trainannot"):
        (folder / part).mkdir(parents=True)
    for i in range(3):
        saved(folder / "train", RGB + np.uint8(i), f"f{i}.png")
        saved(folder / "trainannot", np.full((6, 8), 11 if i == 2 else i, np.uint8), f"f{i}.png")
    return folder


class TestCamVid:
    def test_pairs_from_the_folder_of_the_environment(self, camvid, monkeypatch):
        monkeypatch.setenv("RFLW_DATA", str(camvid.parent))
        dataset = open_dataset("camvid", "train")
        assert (len(dataset), dataset.ids) == (3, ["f0", "f1", "f2"])
        image, mask = dataset[1]
        assert np.array_equal(image, RGB + np.uint8(1)) and (mask == 1).all()
        assert (dataset[2][1] == 255).all()

    def test_the_holdout_is_the_last_fifth_of_each_sequence(self, camvid):
        for path in [*camvid.glob("*/*.png")]:
            for name in [f"00000{drive}_{i}.png" for drive in (1, 2) for i in range(5)]:
                (path.parent / name).write_bytes(path.read_bytes())
            path.unlink()
        parts = ("fit", "holdout", "train")
        fit, holdout, train = (open_dataset("camvid", part, camvid.parent) for part in parts)
        assert holdout.ids == ["000001_4", "000002_4"] and fit.split == "fit"
        assert sorted(fit.ids + holdout.ids) == train.ids and holdout[0][0].shape == (6, 8, 3)

    def test_missing_parts_are_named(self, camvid):
        take = lambda: open_dataset("camvid", "train", camvid.parent)
        (camvid / "trainannot/f1.png").unlink()
        refused("f1.png is missing, the mask of .*f1.png$", take)
        (camvid / "trainannot/f2.png").rename(camvid / "trainannot/f3.png")
        refused("f3.png: has no frame in .*; and 2 more: `rflw data check` lists all$", take)

    def test_its_hash_changes_with_any_pixel_and_small_sets_are_read_once(
        self, camvid, monkeypatch
    ):
        dataset = open_dataset("camvid", "train", camvid.parent)
        before = manifest_hash(dataset)
        cached = in_memory(dataset)
        assert isinstance(cached, Cached) and manifest_hash(cached) == before
        saved(camvid / "trainannot", np.full((6, 8), 3, np.uint8), "f0.png")
        assert manifest_hash(dataset) != before == manifest_hash(cached)
        monkeypatch.setattr("rflw.data.readers.MEMORY", 3 * 4 * 6 * 8)
        assert in_memory(dataset) is dataset  # as large as what may be held


def test_blocks_of_images_that_are_alike():
    drives = [f"0001TP_{i:06}" for i in range(23)] + [f"0016E5_{i:06}" for i in range(11)]
    for name, ids, expected in (
        ("camvid", drives, [0] * 10 + [1] * 10 + [2] * 3 + [3] * 10 + [4]),
        ("nyu", "000003 000004 000005 000007 000010 000011".split(), [0, 0, 0, 1, 2, 2]),
        ("nyu", ["img_1", "img_2"], [0, 1]),  # numbers are unknown
        ("voc", ["000003", "000004"], None),
    ):
        assert blocks(SimpleNamespace(name=name, ids=ids)) == expected


FRAMES = np.random.RandomState(1).randint(0, 256, (480, 640, 3)).astype(np.uint8)
OBJECTS = (np.indices((480, 640)).sum(0) % 40).astype(np.uint8)
OBJECTS[:, ::9] = 255
CUT = slice(6, 474), slice(7, 632)


def pair(number, split="train"):
    return f"{split}_images/{number:06}.jpg", f"{split}_labels/{number:06}.png"


@pytest.fixture
def nyu(tmp_path):
    """Four frames in the layout of the authors' scripts; only 3 and 5 are still uncut."""
    folder = tmp_path / "nyu"
    for split, numbers in (("train", (3, 4, 5)), ("val", (9,))):
        for part in ("images", "labels"):
            (folder / f"{split}_{part}").mkdir(parents=True)
        for number in numbers:
            for name, pixels in zip(pair(number, split), (FRAMES + np.uint8(number), OBJECTS)):
                uncut = number in (3, 5)
                saved(folder, pixels if uncut else np.ascontiguousarray(pixels[CUT]), name)
        lines = ["\ufeff"] * (split == "val") + ["\t".join(pair(n, split)) for n in numbers]
        (folder / f"{split}.nyu").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return folder


def opened(nyu, split):
    return open_dataset("nyu", split, nyu.parent)


class TestNYU:
    def test_frames_are_cut_where_they_are_not_yet(self, nyu):
        saved(nyu, FRAMES, "train_images/000003.png")
        mask = "train_labels/000003.png"
        lines = f"train_images/000003.png {mask}\r\ntrain_images/000004.jpg {mask}\r\n"
        (nyu / "train.nyu").write_text(lines)
        train = opened(nyu, "train")
        assert (train.name, train.split, train.ids) == ("nyu", "train", ["000003", "000004"])
        assert np.array_equal(train[0][0], FRAMES[CUT]) and train[1][0].shape == (468, 625, 3)
        for _, mask in (train[0], train[1], opened(nyu, "val")[0]):
            assert np.array_equal(mask, OBJECTS[CUT])
        refused("no split 'test'; choose from: train, val, fit, holdout$", opened, nyu, "test")
        (nyu / "manifest.json").write_text("{}")  # as of a prepared folder
        refused("not a manifest", opened, nyu, "train")

    def test_the_holdout_is_every_fifth_row_of_numbers(self, nyu):
        numbers = [3, 4, 5, 7, 8, 10, 12, 20, 21, 30, 32, 33, 40, 42, 46, 47]  # ten rows
        (nyu / "train.nyu").write_text("\n".join(" ".join(pair(n)) for n in reversed(numbers)))
        for name in [name for number in numbers for name in pair(number)]:
            (nyu / name).touch()
        fit, holdout = opened(nyu, "fit"), opened(nyu, "holdout")
        assert [*map(int, holdout.ids)] == [20, 21, 46, 47] and holdout.split == "holdout"
        assert holdout.images[0].name == "000020.jpg" and holdout.masks[3].name == "000047.png"
        assert sorted(map(int, fit.ids + holdout.ids)) == numbers
        (nyu / "train.nyu").write_text("train_images/attic.jpg train_labels/000003.png\n")
        refused("attic is no number: 'fit' needs .* official numbers", opened, nyu, "fit")

    @pytest.mark.parametrize(
        ("labels", "sign"),
        [((0, 1, 40), "label 40"), ((0, 40, 255), "label 40"), ((0, 1, 39), r"no void \(255\)")],
    )
    def test_masks_that_count_from_1_are_refused_with_what_to_do(self, nyu, labels, sign):
        mask = np.resize(np.array(labels, np.uint8), (468, 625))
        saved(nyu, mask, "val_labels/000009.png")
        words = "as where classes are 1..40 and void is 0: write 0..39 for classes and 255 for void"
        refused(f"000009.png: {sign}, {words}", lambda: opened(nyu, "val")[0])
        right = np.where((mask == 0) | (mask == 255), 255, mask - np.uint8(1)).astype(np.uint8)
        saved(nyu, right, "val_labels/000009.png")
        assert np.array_equal(opened(nyu, "val")[0][1], right)

    def test_a_check_counts_pixels_and_finds_images_of_both_splits(self, nyu, monkeypatch):
        monkeypatch.setitem(OFFICIAL, "nyu", {"train": 3, "val": 1})
        found = check("nyu", nyu.parent)
        train = found["splits"]["train"]
        assert found["clean"] and train["images"] == 3 and train["faults"] == found["shared"] == []
        counts = 3 * np.bincount(OBJECTS[CUT].ravel(), minlength=256)
        assert [*train["pixels"].values()] == counts[:40].tolist()
        assert train["void"] == counts[255]
        (nyu / "val_images/000009.jpg").write_bytes((nyu / "train_images/000004.jpg").read_bytes())
        found = check("nyu", nyu.parent)
        assert found["shared"] == [["train", "000004", "val", "000009"]] and not found["clean"]

    def test_a_check_lists_every_fault(self, nyu):
        first, last, long = " ".join(pair(3)), " ".join(pair(5)), "x" * 300
        lines = (first, pair(4)[0], last, "no.jpg no.png", first, f"{long} {pair(3)[1]}")
        (nyu / "train.nyu").write_text("\n".join(lines))
        saved(nyu, FRAMES[:100], pair(3)[0])
        wrong = OBJECTS.copy()
        wrong[200, 307] = 41
        saved(nyu, wrong, pair(3)[1])
        saved(nyu, OBJECTS[:400], pair(5)[1])
        (nyu / "val.nyu").unlink()
        found = check("nyu", nyu.parent)["splits"]
        label = (
            "train_labels/000003.png: label 41 at row 194, column 300: "
            "labels are 0..39, 255 for void; `rflw data convert` renumbers"
        )
        assert [line.replace(f"{nyu}/", "") for line in found["train"]["faults"]] == [
            "train.nyu, line 2: not an image and its mask: train_images/000004.jpg",
            "train.nyu, line 5: 000003 is there twice",
            "train_images/000003.jpg: 640x100, NYUDv2 has 640x480 or, cut, 625x468",
            label,
            "train_labels/000005.png: 640x400, NYUDv2 has 640x480 or, cut, 625x468",
            "no.jpg: no such file",
            "no.png: no such file",
            f"{long}: cannot be read (File name too long)",
            label,
        ]
        assert found["val"]["faults"] == [f"{nyu / 'val.nyu'}: no such file"]


def test_scenes_are_the_same_everywhere():
    golden = {
        "embedded": "da2ffdb35285c42a842c27cab19d20e30832d8f44bb5c273a8aac52bc82be515",
        "clutter": "380046e52364b21c6d8ef78b29a9398de8563bb19b1e2815eb90b8e30e9515d2",
        "clutter-large": "380046e52364b21c6d8ef78b29a9398de8563bb19b1e2815eb90b8e30e9515d2",
    }
    for name, expected in golden.items():
        digest = hashlib.sha256()
        for split in ("train", "val"):
            for i in range(8):
                for array in scene(split, i, name):
                    digest.update(array.tobytes())
        assert digest.hexdigest() == expected
    with pytest.raises(IndexError):
        Scenes("val")[128]


def augmented(key, size=(40, 60), **changes):
    """A pair as training sees it: a picture of ramps, whose labels are squares of 20 pixels."""
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.stack([x * 4, y * 4, (x + y) * 2], -1).astype(np.uint8)
    mask = (x // 20 + 3 * (y // 20)).astype(np.uint8)
    settings = {"crop": size, "scale": (1.0, 1.0), "min_side": 0, "flip": True, "jitter": 0.0}
    norm = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    return Augmented([(image, mask)], training_transform(**settings | changes, **norm))[(key, 0)]


class TestTransforms:
    def test_same_key_same_result_other_key_other_result(self):
        a, b, c = (augmented(key, crop=(32, 32), scale=(0.5, 2.0)) for key in (1, 1, 2))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[0], c[0])

    def test_outside_is_mean_pixel_and_void(self):
        x, y = augmented(0, (20, 20), crop=(32, 32))
        assert (y == 255).sum() == 32 * 32 - 20 * 20
        assert x[:, y == 255].abs().max() < 0.02  # the mean, rounded to 8 bits
        assert x.shape == (3, 32, 32) and x.dtype == torch.float32 and y.dtype == torch.uint8

    def test_the_shorter_side_is_kept(self):
        """That scales are uniform: `test_on_device.py`."""
        image = tv_tensors.Image(torch.zeros(3, 40, 60, dtype=torch.uint8))
        sizes = {tuple(RandomScale(0.1, 0.2, 30)(image).shape[1:]) for _ in range(9)}
        assert sizes == {(30, 45)}

    def test_half_are_flipped_and_colour_jitter_leaves_the_mask_alone(self):
        assert 30 < sum(augmented(key)[1][0, 0].item() == 2 for key in range(100)) < 70
        plain, jittered = (augmented(3, flip=False, jitter=jitter) for jitter in (0.0, 0.5))
        assert torch.equal(plain[1], jittered[1]) and not torch.allclose(plain[0], jittered[0])


@pytest.fixture
def own(tmp_path):
    """Seven images of a fictional data set with three classes."""
    root = tmp_path / "mine"
    for folder in ("images", "masks", "splits"):
        (root / folder).mkdir(parents=True)
    for i in range(7):
        saved(root / "images", RGB + np.uint8(i), f"{i}.{'jpg' if i == 3 else 'png'}")
        saved(root / "masks", np.full(RGB.shape[:2], i % 3, np.uint8), f"{i}.png")
    (root / "classes.txt").write_text("road\n roof \nrest\n\n")
    return root


class TestOwn:
    def test_every_fifth_image_is_for_validation(self, own):
        (own / "splits").rmdir()
        train, val = (open_dataset(str(own), split) for split in ("train", "val"))
        assert (train.ids, val.ids) == (["0", "1", "2", "3", "5", "6"], ["4"])
        image, mask = val[0]
        assert np.array_equal(image, RGB + np.uint8(4)) and (mask == 1).all()
        assert train[3][0].shape == RGB.shape
        assert train.labels.classes == ("road", "roof", "rest") and len(train.labels.colours) == 3

    def test_lists_are_followed_and_a_byte_order_mark_is_no_part_of_a_name(self, own):
        for part in ("images", "masks"):
            (own / part / "1.png").rename(own / part / "first one.png")
        (own / "splits/train.txt").write_text("6\r\nfirst one\r\n\r\n", encoding="utf-8-sig")
        (own / "splits/test.txt").write_text("0")
        (own / "classes.txt").write_text("road\r\nroof\r\nrest\r\n", encoding="utf-8-sig")
        dataset = open_dataset(str(own), "train")
        assert dataset.ids == ["6", "first one"] and (dataset[1][1] == 1).all()
        assert dataset.labels.classes == ("road", "roof", "rest")
        assert open_dataset(str(own), "test").ids == ["0"]
        refused(r"val\.txt: no such file", open_dataset, str(own), "val")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"one", "1 names; 2 to 255"),
            (b"a\nb\na", r"classes\.txt: a twice"),
            (b"\xff\xfe\n\n", r"classes\.txt: cannot be read"),
            (b"a\nb\nc", "no folder masks"),
        ],
    )
    def test_what_is_wrong_is_named(self, own, content, message):
        (own / "classes.txt").write_bytes(content)
        (own / "masks").rename(own / "labels")
        refused(message, open_dataset, f"{own}/", "train")

    def test_a_check_lists_every_fault(self, own):
        (own / "splits/train.txt").write_text("9\n0\n0\n1\n2")
        (own / "splits/val.txt").write_text("")
        (own / "masks/1.png").unlink()
        (own / "images/2.png").write_bytes(b"")
        (own / "masks/x.png").touch()
        words = "masks/x.png: has no image in .*; and 3 more: "
        refused(words, open_dataset, str(own), "train")
        found = check(str(own))["splits"]
        assert [line.replace(f"{own}/", "") for line in found["train"]["faults"]] == [
            "masks/x.png: has no image in images",
            "splits/train.txt: 9: no such image (names are listed without their ending)",
            "splits/train.txt: 0: twice",
            "masks/1.png: no such file",
            "images/2.png: not an image that can be read",
        ]
        assert found["train"]["images"] == 3
        assert found["val"]["faults"][-1] == f"{own}: no images in split 'val'"

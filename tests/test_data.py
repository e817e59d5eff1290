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
from rflw.data.synthetic import BEACON, BLUE, BLUE_TWIN, FAR, RED, RED_TWIN, Embedded, scene
from rflw.data.transforms import Augmented, RandomScale, training_transform

RGB = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)


def saved(tmp_path, image: Image.Image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


PALETTE = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
PALETTE.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
GREY16 = np.array([[0, 257, 256, 65535], [300, 514, 32896, 65278]], np.uint16)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # shown turned a quarter clockwise
BELOW_WHITE = np.array([[[9, 9, 9, 0], [0, 0, 0, 128], [1, 2, 3, 255]]], np.uint8)


class TestImages:
    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (RGB, RGB),
            (RGB[..., 0], np.repeat(RGB[..., :1], 3, 2)),
            (GREY16, np.dstack([[[0, 1, 0, 255], [1, 2, 128, 254]]] * 3)),
            (BELOW_WHITE, [[[255] * 3, [127] * 3, [1, 2, 3]]]),
            (PALETTE, [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]),
        ],
        ids=["RGB", "grey", "16 bits", "alpha", "palette"],
    )
    def test_modes(self, tmp_path, image, expected):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        for source in (image, saved(tmp_path, image)):
            assert np.array_equal(read_image(source), expected)

    def test_cmyk(self, tmp_path):
        cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
        out = read_image(saved(tmp_path, cyan, "x.jpg", quality=95))
        assert out[4, 4, 0] < 20 and out[4, 4, 1:].min() > 235

    @pytest.mark.parametrize("name", ["x.png", "x.tif", "x.jpg", "x.webp"])
    def test_colour_profiles_are_applied(self, tmp_path, name):
        """In this one, red and blue have changed places."""
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ")
        swapped = swapped.replace(b"tXYZ", b"bXYZ")
        grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
        picture = Image.fromarray(np.stack([grey, grey.T, grey[::-1]], -1))
        path = saved(tmp_path, picture, name, icc_profile=swapped, quality=100)
        with Image.open(path) as stored:
            assert abs(read_image(path).astype(int) - np.array(stored)[..., ::-1]).max() <= 2
        for unfit in (swapped, b"damaged", profile[:200]):
            path = saved(tmp_path, Image.fromarray(grey), "grey.png", icc_profile=unfit)
            assert np.array_equal(read_image(path), np.dstack([grey] * 3))

    def test_premultiplied_grey_lies_on_white(self, tmp_path):
        grey = Image.merge("LA", [Image.new("L", (2, 1), 100), Image.new("L", (2, 1), 255)])
        grey.putpixel((1, 0), (100, 0))
        assert read_image(grey.convert("La"))[0, :, 0].tolist() == [100, 255]

    def test_exif_rotation_is_applied(self, tmp_path):
        out = read_image(saved(tmp_path, Image.fromarray(RGB), exif=TURNED))
        assert np.array_equal(out, np.rot90(RGB, -1))

    def test_what_is_no_image_is_refused_by_name(self, tmp_path):
        (tmp_path / "text.png").write_text("hello")
        whole = saved(tmp_path, Image.fromarray(np.tile(RGB, (40, 40, 1)))).read_bytes()
        (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
        Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
        for name, words in (
            ("text.png", "not an image"),
            ("cut.png", "cannot be read"),
            ("none.png", "no such file"),
            ("float.tiff", "floating point"),
            (".", "cannot be read"),
        ):
            with pytest.raises(InputError, match=words) as caught:
                read_image(tmp_path / name)
            assert str(tmp_path) in str(caught.value)


def test_masks(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 10, 11], [3, 255, 1]], np.uint8)))
    assert read_mask(path, 11, void=11).tolist() == [[0, 10, 255], [3, 255, 1]]
    with pytest.raises(InputError, match="label 10 at row 0, column 1"):
        read_mask(path, 10, void=11)
    with pytest.raises(InputError, match="mask of 3x2, its image is 3x4"):
        read_mask(path, 21, size=(4, 3))


class TestLabels:
    def test_voc_colours(self):  # the first and last of the published palette
        colours = voc_colours(21)
        assert colours[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
        assert colours[15] == (192, 128, 128) and colours[20] == (0, 64, 128)

    @pytest.mark.parametrize("labels", [*LABELS.values(), labels_for(map(str, range(40)))])
    def test_every_class_has_a_name_and_a_colour_of_its_own(self, labels):
        for names in (labels.classes, labels.colours):
            assert len(set(names)) == len(names) == len(labels.classes)
        assert len(labels.palette()) == 768 and labels.palette()[-3:] == [255, 255, 255]


@pytest.fixture
def camvid(tmp_path):
    """Three tiny frames in CamVid's layout."""
    for folder in ("train", "trainannot"):
        (tmp_path / "camvid" / folder).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(RGB + np.uint8(i)).save(tmp_path / "camvid/train" / f"f{i}.png")
        Image.fromarray(np.full((6, 8), 11 if i == 2 else i, np.uint8)).save(
            tmp_path / "camvid/trainannot" / f"f{i}.png"
        )
    return tmp_path


class TestCamVid:
    def test_pairs(self, camvid):
        dataset = open_dataset("camvid", "train", camvid)
        assert (len(dataset), dataset.ids) == (3, ["f0", "f1", "f2"])
        image, mask = dataset[1]
        assert np.array_equal(image, RGB + np.uint8(1)) and (mask == 1).all()
        assert (dataset[2][1] == 255).all()

    def test_the_holdout_is_the_last_fifth_of_each_sequence(self, camvid):
        for folder in ("train", "trainannot"):
            for path in (camvid / "camvid" / folder).glob("*.png"):
                for name in [
                    f"{sequence}_{i}.png" for sequence in ("000001", "000002") for i in range(5)
                ]:
                    (path.parent / name).write_bytes(path.read_bytes())
                path.unlink()
        fit, holdout = (open_dataset("camvid", split, camvid) for split in ("fit", "holdout"))
        assert holdout.ids == ["000001_4", "000002_4"] and fit.split == "fit"
        assert sorted(fit.ids + holdout.ids) == open_dataset("camvid", "train", camvid).ids
        assert holdout[0][0].shape == (6, 8, 3)

    def test_root_from_the_environment(self, camvid, monkeypatch):
        monkeypatch.setenv("RFLW_DATA", str(camvid))
        assert len(open_dataset("camvid", "train")) == 3

    def test_missing_parts_are_named(self, camvid):
        with pytest.raises(InputError, match="val.*RFLW_DATA"):
            open_dataset("camvid", "val", camvid)
        (camvid / "camvid/trainannot/f1.png").unlink()
        with pytest.raises(InputError, match="f1.png is missing, the mask of .*f1.png$"):
            open_dataset("camvid", "train", camvid)
        (camvid / "camvid/trainannot/f2.png").rename(camvid / "camvid/trainannot/f3.png")
        with pytest.raises(
            InputError, match="f3.png: has no frame in .*; and 2 more: `rflw data check` lists all$"
        ):
            open_dataset("camvid", "train", camvid)
        with pytest.raises(InputError, match="unknown data set 'imagenet'; choose from: camvid"):
            open_dataset("imagenet", "train", camvid)

    def test_manifest_hash_changes_with_any_pixel(self, camvid):
        before = manifest_hash(open_dataset("camvid", "train", camvid))
        assert manifest_hash(Cached(open_dataset("camvid", "train", camvid))) == before
        Image.fromarray(np.full((6, 8), 3, np.uint8)).save(camvid / "camvid/trainannot/f0.png")
        assert manifest_hash(open_dataset("camvid", "train", camvid)) != before

    def test_small_sets_are_read_once(self, camvid):
        cached = in_memory(open_dataset("camvid", "train", camvid))
        first = cached[0][0]
        (camvid / "camvid/train/f0.png").unlink()
        assert cached[0][0] is first


@pytest.mark.parametrize(
    ("name", "ids", "expected"),
    [
        # two drives: of more than ten frames, and another in the middle of a block
        (
            "camvid",
            [f"0001TP_{i:06}" for i in range(23)] + [f"0016E5_{i:06}" for i in range(11)],
            [0] * 10 + [1] * 10 + [2] * 3 + [3] * 10 + [4],
        ),
        ("nyu", ["000003", "000004", "000005", "000007", "000010", "000011"], [0, 0, 0, 1, 2, 2]),
        ("nyu", ["img_1", "img_2"], [0, 1]),  # numbers are unknown
        ("voc", ["000003", "000004"], None),
    ],
)
def test_blocks_of_images_that_are_alike(name, ids, expected):
    assert blocks(SimpleNamespace(name=name, ids=ids)) == expected


FRAMES = np.random.RandomState(1).randint(0, 256, (480, 640, 3)).astype(np.uint8)
OBJECTS = (np.indices((480, 640)).sum(0) % 40).astype(np.uint8)
OBJECTS[:, ::9] = 255


@pytest.fixture
def nyu(tmp_path):
    """Four frames in the layout of the authors' scripts; only 3 and 5 are still uncut."""
    folder = tmp_path / "nyu"
    for split, numbers in (("train", (3, 4, 5)), ("val", (9,))):
        lines = ["\ufeff"] if split == "val" else []
        for number in numbers:
            image, mask = f"{split}_images/{number:06}.jpg", f"{split}_labels/{number:06}.png"
            for file, pixels in ((image, FRAMES + np.uint8(number)), (mask, OBJECTS)):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                cut = pixels if number in (3, 5) else pixels[6:474, 7:632]
                saved(folder, Image.fromarray(np.ascontiguousarray(cut)), file)
            lines += [f"{image}\t{mask}"]
        (folder / f"{split}.nyu").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return folder


class TestNYU:
    """NYUDv2 in the layout of the authors' scripts."""

    def test_frames_are_cut_where_they_are_not_yet(self, nyu):
        saved(nyu, Image.fromarray(FRAMES), "train_images/000003.png")
        (nyu / "train.nyu").write_text(
            "train_images/000003.png train_labels/000003.png\r\n"
            "train_images/000004.jpg train_labels/000003.png\r\n"
        )
        train = open_dataset("nyu", "train", nyu.parent)
        assert (train.name, train.split, train.ids) == ("nyu", "train", ["000003", "000004"])
        assert np.array_equal(train[0][0], FRAMES[6:474, 7:632]) and train[1][0].shape == (
            468,
            625,
            3,
        )
        for _, mask in (train[0], train[1], open_dataset("nyu", "val", nyu.parent)[0]):
            assert np.array_equal(mask, OBJECTS[6:474, 7:632])
        with pytest.raises(
            InputError, match="no split 'test'; choose from: train, val, fit, holdout$"
        ):
            open_dataset("nyu", "test", nyu.parent)

    def test_the_holdout_is_every_fifth_row_of_numbers(self, nyu):
        numbers = [3, 4, 5, 7, 8, 10, 12, 20, 21, 30, 32, 33, 40, 42, 46, 47]  # ten rows
        pairs = [f"train_images/{n:06}.jpg train_labels/{n:06}.png" for n in numbers]
        (nyu / "train.nyu").write_text("\n".join(reversed(pairs)))
        for name in " ".join(pairs).split():
            (nyu / name).touch()
        fit, holdout = (open_dataset("nyu", split, nyu.parent) for split in ("fit", "holdout"))
        assert [*map(int, holdout.ids)] == [20, 21, 46, 47] and holdout.split == "holdout"
        assert holdout.images[0].name == "000020.jpg" and holdout.masks[3].name == "000047.png"
        assert sorted(map(int, fit.ids + holdout.ids)) == numbers
        (nyu / "train_images/000003.jpg").rename(nyu / "train_images/attic.jpg")
        (nyu / "train.nyu").write_text("train_images/attic.jpg train_labels/000003.png\n")
        with pytest.raises(InputError, match="attic is no number: 'fit' needs .* official numbers"):
            open_dataset("nyu", "fit", nyu.parent)

    @pytest.mark.parametrize(
        ("labels", "sign"),
        [((0, 1, 40), "label 40"), ((0, 40, 255), "label 40"), ((0, 1, 39), r"no void \(255\)")],
    )
    def test_masks_that_count_from_1_are_refused_with_what_to_do(self, nyu, labels, sign):
        mask = np.resize(np.array(labels, np.uint8), (468, 625))
        saved(nyu, Image.fromarray(mask), "val_labels/000009.png")
        with pytest.raises(
            InputError,
            match=f"000009.png: {sign}, as where classes are 1..40 and "
            "void is 0: write 0..39 for classes and 255 for void",
        ):
            open_dataset("nyu", "val", nyu.parent)[0]
        assert len(check("nyu", nyu.parent)["splits"]["val"]["faults"]) == 1
        right = np.where((mask == 0) | (mask == 255), 255, mask - np.uint8(1)).astype(np.uint8)
        saved(nyu, Image.fromarray(right), "val_labels/000009.png")
        assert np.array_equal(open_dataset("nyu", "val", nyu.parent)[0][1], right)

    def test_a_check_of_a_whole_set_is_clean(self, nyu, monkeypatch):
        monkeypatch.setitem(OFFICIAL, "nyu", {"train": 3, "val": 1})
        found = check("nyu", nyu.parent)
        train = found["splits"]["train"]
        assert found["clean"] and train["images"] == 3 and train["faults"] == found["shared"] == []
        cut = np.bincount(OBJECTS[6:474, 7:632].ravel(), minlength=256)
        assert [*train["pixels"].values()] == (3 * cut[:40]).tolist() and train["void"] == 3 * cut[
            255
        ]
        (nyu / "val_images/000009.jpg").write_bytes((nyu / "train_images/000004.jpg").read_bytes())
        found = check("nyu", nyu.parent)
        assert found["shared"] == [["train", "000004", "val", "000009"]] and not found["clean"]

    def test_a_check_lists_every_fault(self, nyu):
        first, last = (f"train_images/{n}.jpg train_labels/{n}.png" for n in ("000003", "000005"))
        (nyu / "train.nyu").write_text(
            f"{first}\ntrain_images/000004.jpg\n{last}\nno.jpg no.png\n{first}\n"
            f"{'x' * 300} train_labels/000003.png"
        )
        saved(nyu, Image.fromarray(FRAMES[:100]), "train_images/000003.jpg")
        wrong = OBJECTS.copy()
        wrong[200, 307] = 41
        saved(nyu, Image.fromarray(wrong), "train_labels/000003.png")
        saved(nyu, Image.fromarray(OBJECTS[:400]), "train_labels/000005.png")
        (nyu / "val.nyu").unlink()
        with pytest.raises(
            InputError,
            match="line 2: not an image and its mask: train_images/000004.jpg"
            "; and 4 more: `rflw data check` lists all$",
        ):
            open_dataset("nyu", "train", nyu.parent)
        found = check("nyu", nyu.parent)["splits"]
        place = "label 41 at row 194, column 300"
        label = (
            f"train_labels/000003.png: {place}: labels are 0..39, 255 for void; "
            "`rflw data convert` renumbers"
        )
        assert [line.replace(f"{nyu}/", "") for line in found["train"]["faults"]] == [
            "train.nyu, line 2: not an image and its mask: train_images/000004.jpg",
            "train.nyu, line 5: 000003 is there twice",
            "train_images/000003.jpg: 640x100, NYUDv2 has 640x480 or, cut, 625x468",
            label,
            "train_labels/000005.png: 640x400, NYUDv2 has 640x480 or, cut, 625x468",
            "no.jpg: no such file",
            "no.png: no such file",
            f"{'x' * 300}: cannot be read (File name too long)",
            label,
        ]
        assert found["val"]["faults"] == [f"{nyu / 'val.nyu'}: no such file"]

    def test_a_prepared_folder_is_read_as_such(self, nyu):
        (nyu / "manifest.json").write_text("{}")
        with pytest.raises(InputError, match="not a manifest"):
            open_dataset("nyu", "train", nyu.parent)


class TestEmbedded:
    def test_pixels_are_the_same_everywhere(self):
        digest = hashlib.sha256()
        for split in ("train", "val"):
            for i in range(8):
                for array in scene(split, i):
                    digest.update(array.tobytes())
        assert digest.hexdigest() == GOLDEN

    def test_twins_agree_with_a_beacon_that_is_far_away(self):
        kinds = set()
        for i in range(40):
            image, mask = scene("val", i)
            beacon = np.argwhere(mask == BEACON).mean(0)
            colour = image[mask == BEACON].mean(0)
            red = abs(colour - RED).sum() < abs(colour - BLUE).sum()
            twin, other = (RED_TWIN, BLUE_TWIN) if red else (BLUE_TWIN, RED_TWIN)
            assert not (mask == other).any()
            pixels = np.argwhere(mask == twin)
            kinds.add(twin)
            if len(pixels):  # centres are FAR apart; a twin reaches 20 pixels from its own
                assert np.hypot(*(pixels - beacon).T).min() > FAR - 20 - 2
        assert kinds == {RED_TWIN, BLUE_TWIN}

    def test_splits(self):
        train, val = Embedded("train"), Embedded("val")
        assert (len(train), len(val)) == (2048, 128)
        assert not np.array_equal(train[0][0], val[0][0])
        with pytest.raises(IndexError):
            val[128]
        with pytest.raises(InputError, match="no split"):
            Embedded("test")


GOLDEN = "da2ffdb35285c42a842c27cab19d20e30832d8f44bb5c273a8aac52bc82be515"


class TestTransforms:
    MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)

    def pair(self, h=40, w=60):
        y, x = np.mgrid[:h, :w]
        image = np.stack([x * 4, y * 4, (x + y) * 2], -1).astype(np.uint8)
        return image, (x // 20 + 3 * (y // 20)).astype(np.uint8)

    def apply(self, key, image, mask, **changes):
        settings = {
            "crop": (32, 32),
            "scale": (0.5, 2.0),
            "min_side": 0,
            "flip": True,
            "jitter": 0.0,
        } | changes
        transform = training_transform(**settings, mean=self.MEAN, std=self.STD)
        return Augmented([(image, mask)], transform)[(key, 0)]

    def test_same_key_same_result_other_key_other_result(self):
        image, mask = self.pair()
        a, b, c = self.apply(1, image, mask), self.apply(1, image, mask), self.apply(2, image, mask)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        assert not torch.equal(a[0], c[0])

    def test_outside_is_mean_pixel_and_void(self):
        image, mask = self.pair(20, 20)
        x, y = self.apply(0, image, mask, scale=(1.0, 1.0))
        assert (y == 255).sum() == 32 * 32 - 20 * 20
        assert x[:, y == 255].abs().max() < 0.02  # the mean, rounded to 8 bits
        assert x.shape == (3, 32, 32) and x.dtype == torch.float32 and y.dtype == torch.uint8

    def test_scale_is_uniform_and_keeps_the_shorter_side(self):
        torch.manual_seed(0)
        image = tv_tensors.Image(torch.zeros(3, 40, 60, dtype=torch.uint8))
        sizes = [RandomScale(0.5, 2.0, 30)(image).shape[1:] for _ in range(400)]
        shorter = np.array([s[0] for s in sizes])
        assert all(abs(w - 1.5 * h) <= 1 for h, w in sizes)
        assert shorter.min() == 30 and 78 <= shorter.max() <= 80
        assert np.mean(shorter == 30) == pytest.approx(
            1 / 6, abs=0.06
        )  # U(0.5, 2) is below 0.75 one time in six

    def test_flip_happens_half_the_time(self):
        image, mask = self.pair()
        flipped = [
            self.apply(key, image, mask, crop=(40, 60), scale=(1.0, 1.0))[1][0, 0].item() == 2
            for key in range(100)
        ]
        assert 30 < sum(flipped) < 70

    def test_colour_jitter_leaves_the_mask_alone(self):
        image, mask = self.pair()
        plain = self.apply(3, image, mask, crop=(40, 60), scale=(1.0, 1.0), flip=False)
        jittered = self.apply(
            3, image, mask, crop=(40, 60), scale=(1.0, 1.0), flip=False, jitter=0.5
        )
        assert torch.equal(plain[1], jittered[1])
        assert not torch.allclose(plain[0], jittered[0])


@pytest.fixture
def own(tmp_path):
    """Seven images of a fictional data set with three classes."""
    root = tmp_path / "mine"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(7):
        Image.fromarray(RGB + np.uint8(i)).save(
            root / "images" / f"{i}.{'jpg' if i == 3 else 'png'}"
        )
        Image.fromarray(np.full(RGB.shape[:2], i % 3, np.uint8)).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("road\n roof \nrest\n\n")
    return root


class TestOwn:
    def test_every_fifth_image_is_for_validation(self, own):
        train, val = (open_dataset(str(own), split) for split in ("train", "val"))
        assert (train.ids, val.ids) == (["0", "1", "2", "3", "5", "6"], ["4"])
        image, mask = val[0]
        assert (
            np.array_equal(image, RGB + np.uint8(4))
            and (mask == 1).all()
            and train[3][0].shape == RGB.shape
        )
        assert train.labels.classes == ("road", "roof", "rest") and len(train.labels.colours) == 3

    def test_split_lists_are_followed(self, own):
        (own / "splits").mkdir()
        (own / "splits" / "train.txt").write_text("6\n2\n")
        (own / "splits" / "test.txt").write_text("0")
        assert open_dataset(str(own), "train").ids == ["6", "2"] and open_dataset(
            str(own), "test"
        ).ids == ["0"]
        with pytest.raises(InputError, match=r"val\.txt: no such file"):
            open_dataset(str(own), "val")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda root: (root / "images" / "1.png").unlink(), r"masks/1\.png: has no image"),
            (lambda root: (root / "classes.txt").write_text("one"), "1 names; 2 to 255"),
            (lambda root: (root / "classes.txt").write_text("a\nb\na"), r"classes\.txt: a twice"),
            (
                lambda root: (root / "classes.txt").write_bytes(b"\xff\xfe\n\n"),
                r"classes\.txt: cannot be read",
            ),
            (lambda root: (root / "masks").rename(root / "labels"), "no folder masks"),
        ],
    )
    def test_what_is_wrong_is_named(self, own, damage, message):
        damage(own)
        with pytest.raises(InputError, match=message):
            open_dataset(f"{own}/", "train")

    def test_a_byte_order_mark_is_no_part_of_a_name_and_names_may_have_spaces(self, own):
        for part in ("images", "masks"):
            (own / part / "1.png").rename(own / part / "first one.png")
        (own / "splits").mkdir()
        (own / "splits/train.txt").write_text("0\r\nfirst one\r\n\r\n", encoding="utf-8-sig")
        (own / "classes.txt").write_text("road\r\nroof\r\nrest\r\n", encoding="utf-8-sig")
        dataset = open_dataset(str(own), "train")
        assert dataset.ids == ["0", "first one"] and (dataset[1][1] == 1).all()
        assert dataset.labels.classes == ("road", "roof", "rest")

    def test_a_check_lists_every_fault(self, own):
        (own / "splits").mkdir()
        (own / "splits/train.txt").write_text("9\n0\n0\n1\n2")
        (own / "splits/val.txt").write_text("")
        (own / "masks/1.png").unlink()
        (own / "images/2.png").write_bytes(b"")
        (own / "masks/x.png").touch()
        with pytest.raises(InputError, match="masks/x.png: has no image in .*; and 3 more: "):
            open_dataset(str(own), "train")
        found = check(str(own))["splits"]
        assert [line.replace(f"{own}/", "") for line in found["train"]["faults"]] == [
            f"masks/x.png: has no image in {own / 'images'}".replace(f"{own}/", ""),
            "splits/train.txt: 9: no such image (names are listed without their ending)",
            "splits/train.txt: 0: twice",
            "masks/1.png: no such file",
            "images/2.png: not an image that can be read",
        ]
        assert (
            found["train"]["images"] == 3
            and found["val"]["faults"][-1] == f"{own}: no images in split 'val'"
        )

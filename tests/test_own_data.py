"""One's own data as people have them: read right, or refused with the file and what to do."""

import json
import struct
import unicodedata
import zlib

import numpy as np
from PIL import Image
import pytest

from rflw import InputError
from rflw.data.check import check, check_labels, smoothed, unmeant
from rflw.data.convert import convert
from rflw.data.images import read_mask
from rflw.data.readers import open_dataset, own_labels

LABELS = np.repeat(np.arange(4, dtype=np.uint8), 40).reshape(4, 40)[:, :37].repeat(12, 0)
MASK = Image.fromarray(LABELS)
CODES = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)], np.uint8)


def paletted(colours):
    image = MASK.copy()
    image.putpalette([value for colour in colours for value in colour])
    return image


def make(
    root, masks=(LABELS,), ending="png", names="abcde", classes="ground\na\nb\nc\n", exif=None
):
    """A data set: a mask for each name, an array or an image; photos differ by a pixel."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text(classes)
    for i, name in enumerate(names):
        mask = masks[i % len(masks)]
        mask = Image.fromarray(mask) if isinstance(mask, np.ndarray) else mask
        photo = Image.new("RGB", MASK.size, (90, 90, 90))
        photo.putpixel((0, 0), (i, i, i))
        for folder, image in ((f"images/{name}.{ending}", photo), (f"masks/{name}.png", mask)):
            (root / folder).parent.mkdir(exist_ok=True)
            image.save(root / folder, **{"exif": exif} if exif and image is photo else {})
    return root


def opened(root, split="train"):
    return open_dataset(str(root), split)


def faults(root):
    return check(f"{root}/")["splits"]["train"]["faults"]


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth, rows):
    """A grey PNG by hand; rows: of bytes, each after a zero."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in chunks)


class TestMaskFiles:
    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    def test_pngs_of_few_bits_hold_what_was_written(self, tmp_path, bits):
        labels, rows = LABELS & (2**bits - 1), b""
        for row in labels:
            text = "".join(f"{value:0{bits}b}" for value in row)
            text += "0" * (-len(text) % 8)
            rows += b"\0" + int(text, 2).to_bytes(len(text) // 8)
        (tmp_path / "m.png").write_bytes(png(*MASK.size, bits, rows))
        assert np.array_equal(read_mask(tmp_path / "m.png", 4), labels)

    @pytest.mark.parametrize("name", ["m.png", "m.tif", "m.bmp", "m.gif"])
    def test_exact_formats_are_read(self, tmp_path, name):
        paletted(CODES).save(tmp_path / name, **{"bits": 2} if name == "m.png" else {})
        assert np.array_equal(read_mask(tmp_path / name, 4), LABELS)

    @pytest.mark.parametrize(
        ("name", "image", "options", "words"),
        [
            ("m.png", MASK, {"format": "JPEG"}, "JPEG changes .*convert --nearest"),
            ("m.png", MASK, {"format": "WEBP"}, "WEBP changes"),
            ("m.tif", MASK, {"compression": "jpeg"}, "jpeg changes"),
            ("m.tif", MASK, {"tiffinfo": {262: 0}}, "the form L;I are not kept"),  # 0 is white
            *((f"m.{end}", None, {}, "holds 2 pictures") for end in ("png", "tif", "gif")),
            ("m.png", MASK.convert("RGB"), {}, "this is RGB; `rflw data convert`"),
            ("m.png", Image.fromarray(LABELS.astype(np.uint16)), {}, "this is I;16"),
        ],
    )
    def test_others_are_refused_under_any_name(self, tmp_path, name, image, options, words):
        if image is None:
            image, other = (Image.fromarray(LABELS == k) for k in (0, 1))
            options = {"save_all": True, "append_images": [other]}
        image.save(tmp_path / name, **options)
        with pytest.raises(InputError, match=f"{name}: .*{words}"):
            read_mask(tmp_path / name, 4)


class TestLabels:
    @pytest.mark.parametrize(
        ("pixels", "void", "senseless"),
        [
            ((5, 5), 90, (False, False)),
            ((93, 0), 7, (True, True)),  # masks of 0 and 255
            ((50, 0), 0, (True, True)),  # one class alone
            ((40, 40, 0), 20, (True, True)),  # 255 may be the third
            ((40, 40, 0), 0, (False, False)),  # a list of classes may be longer than its use
            ((40, 40, 0), 0.5, (False, False)),
            ((0, 40, 40), 0, (True, False)),  # masks may count from 1
            ((40, 40, 0, 0), 5, (True, False)),  # part of VOC, with its rims
        ],
    )
    def test_what_cannot_be_meant(self, pixels, void, senseless):
        counts = np.zeros((1, 256))
        counts[0, : len(pixels)], counts[0, 255] = pixels, void
        line, refused = unmeant("d", "abcd"[: len(pixels)], counts)
        assert (line is not None, refused) == senseless

    @pytest.mark.parametrize("odd", [(0, 1), (2,), (4,)])  # 4 is for validation
    def test_masks_of_0_and_255_among_masks_of_0_and_1(self, tmp_path, odd):
        pair = (LABELS > 1).astype(np.uint8)
        rims = np.where(np.arange(37) % 9 == 8, 255, pair).astype(np.uint8)
        sound = [rims, pair, np.full_like(pair, 255), 0 * pair, pair]
        assert check(str(make(tmp_path / "good", sound, classes="0\n1\n")))["clean"]
        masks = [pair * np.uint8(255 if i in odd else 1) for i in range(5)]
        root = make(tmp_path / "d", masks, classes="ground\nroad\n")
        assert "some masks have road, some 255, and none has both" in faults(root)[0]
        with pytest.raises(InputError, match="some masks have road, .* --map 255=N"):
            check_labels(opened(root), opened(root, "val"))

    def test_an_image_of_both_splits_is_named(self, tmp_path, capsys):
        root = make(tmp_path / "d")
        train, val = opened(root), opened(root, "val")
        check_labels(train, val)
        assert not capsys.readouterr().err
        val.images[0] = train.images[2]
        check_labels(train, val)
        said = f"rflw: {root}: e of val also trains: its score is too high\n"
        assert capsys.readouterr().err == said

    def test_palettes_must_agree_on_the_labels_that_occur(self, tmp_path):
        same = [paletted(CODES), paletted([*CODES, (9, 9, 9)]), MASK]
        assert check(str(make(tmp_path / "good", same)))["clean"]
        other = make(tmp_path / "d", [paletted(CODES)] * 4 + [paletted(CODES[::-1])])
        [line] = faults(other)  # e.png is a mask of the other split
        assert f"{other / 'masks/e.png'}: label 0 has the colour (128, 128, 0), in a.png" in line

    def test_smoothed_masks_are_named(self, tmp_path):
        shapes = np.zeros((60, 80), np.uint8)
        shapes[10:50, 20:60], shapes[5:12, 5:75], shapes[30:50, 40:60] = 5, 3, 1
        image, ways = Image.fromarray(shapes), Image.Resampling
        for scale in (0.5, 0.7, 1.5, 3):
            size = (round(80 * scale), round(60 * scale))
            assert not smoothed(np.asarray(image.resize(size, ways.NEAREST))), scale
            assert smoothed(np.asarray(image.resize(size, ways.BILINEAR))), scale
        outlined = np.where(shapes == 5, 2, 0).astype(np.uint8)  # 1 is the rim of 2, a pixel wide
        outlined[10:50, 20], outlined[10:50, 59], outlined[9, 20:60] = 1, 1, 1
        assert not smoothed(outlined)
        masks = [image.resize(MASK.size, ways.BILINEAR)]
        root = make(tmp_path / "d", masks, classes="0\n1\n2\n3\n4\n5\n")
        assert "a: between its labels lie others" in faults(root)[0]
        with pytest.raises(InputError, match="a: between its labels lie others"):
            check_labels(opened(root))

    def test_small_pictures_are_named_where_they_are_validated(self, tmp_path):
        root = make(tmp_path / "d")
        for part in ("images", "masks"):
            Image.open(root / part / "e.png").crop((0, 0, 20, 48)).save(root / part / "e.png")
        found = check(str(root))
        assert found["splits"]["val"]["faults"] == ["e: 20x48; networks take 33x33 and up"]

    def test_names_of_classes(self, tmp_path):
        for text, said in (
            ("a\n\nb\n", "2 names no"),
            ("a\n\u200b\nb", "2 names no"),  # a space without width
            ("__ignore__\n_background_\na", "1 names no"),
            ("name,r,g,b\na,0,0,0\nb,9,0,0", "1 names no"),
            ("1 a\n2 b", "1 is numbered 1"),
            ("id,name\n0,a\n1,b", "2 is numbered 0"),
        ):
            (tmp_path / "classes.txt").write_text(text)
            with pytest.raises(InputError, match=rf"classes.txt: line {said}.*; line n"):
                own_labels(tmp_path)
        for text in (
            "0 a\n1 b",
            "ground\n2 wheels",
            "ground\n1 a\n2 b",
            "a\x0cb\n\u0645\u06cc\u200c\u0631",
        ):
            (tmp_path / "classes.txt").write_text(text)
            assert len(own_labels(tmp_path).classes) == text.count("\n") + 1


class TestNames:
    def test_folders_inside_are_read(self, tmp_path):
        names = ["a", "day2/a", "day2/b", "c", "\udcff"]  # the last is no valid text
        root = make(tmp_path / "d", names=names)
        (root / "images/.trash").mkdir()
        for name in (".trash/x.png", "._a.png", "Thumbs.db", "day2/desktop.ini"):
            (root / "images" / name).write_text("")
        assert opened(root).ids == ["a", "c", "day2/a", "day2/b"] and check(str(root))["clean"]
        (root / "masks/day2/b.png").unlink()
        with pytest.raises(InputError, match=r"masks/day2/b\.png is missing"):
            opened(root)

    def test_names_may_differ_in_case_form_or_ending(self, tmp_path):
        decomposed = unicodedata.normalize("NFD", "Bäume")
        classes = f"\ufeffHaus\r\n{decomposed} \r\nb\r\nc\r\n \r\n"
        names = ["IMG_1", "Bäume", "c", "d", "e"]
        root = make(tmp_path / "d", names=names, ending="JPG", classes=classes)
        assert opened(root).labels.classes == ("Haus", "Bäume", "b", "c")
        masks = root / "masks"
        (masks / "IMG_1.png").rename(masks / "img_1.PNG")
        (masks / "Bäume.png").rename(masks / f"{decomposed}.png")
        Image.open(masks / "c.png").save(masks / "c.TIF")
        (masks / "c.png").unlink()
        (masks / "notes.txt").write_text("c is odd")
        data = opened(root)
        assert all(np.array_equal(data[i][1], LABELS) for i in range(len(data)))
        assert sorted(data.ids + opened(root, "val").ids) == sorted(names)
        (root / "splits").mkdir()
        (root / "splits/train.txt").write_text("img_1\n")
        assert opened(root).ids == ["IMG_1"]

    @pytest.mark.parametrize(("part", "other"), [("images", "A.jpg"), ("masks", "a.tif")])
    def test_one_mask_is_never_that_of_two_images_nor_the_reverse(self, tmp_path, part, other):
        root = make(tmp_path / "d")
        MASK.save(root / part / other)
        with pytest.raises(InputError, match=f"{part}: .*{other}.* are one name"):
            opened(root)


def turned(turn):
    exif = Image.Exif()
    exif[0x112] = turn
    return exif


class TestTurned:
    """Photos with EXIF; a mask may fit them as stored or as shown."""

    @pytest.mark.parametrize("turn", [0, 1, 2, 3, 6])
    def test_masks_drawn_on_the_stored_pixels(self, tmp_path, turn):
        root = make(tmp_path / "d", ending="jpg", exif=turned(turn))
        told = [line for line in faults(root) if f"EXIF turns it (orientation {turn})" in line]
        assert len(told) == (0 if turn < 2 else 4)
        assert turn < 2 or str(root / "images/a.jpg") in told[0]

    def test_masks_drawn_on_what_is_shown(self, tmp_path):
        masks = [np.ascontiguousarray(LABELS.T)]
        assert check(str(make(tmp_path / "d", masks, "jpg", exif=turned(5))))["clean"]
        root = make(tmp_path / "other", ending="jpg", exif=turned(3))
        for file in (root / "masks").iterdir():  # a mask that is turned alike
            MASK.save(file, exif=turned(3))
        assert np.array_equal(opened(root)[0][1], LABELS[::-1, ::-1])

    @pytest.mark.parametrize("part", ["images", "masks"])
    def test_a_png_that_is_turned_behind_its_pixels(self, tmp_path, part):
        root = make(tmp_path / "d")
        file = root / part / "b.png"
        sound = file.read_bytes()
        exif = turned(3).tobytes().removeprefix(b"Exif\0\0")
        file.write_bytes(sound[:-12] + png_chunk(b"eXIf", exif) + sound[-12:])
        [line] = faults(root)
        assert line.startswith(f"{file}: EXIF turns it (orientation 3) and not {root}")


class TestConvert:
    def masks(self, tmp_path, image, name="m.png", **options):
        (tmp_path / "masks/day2").mkdir(parents=True)
        image.save(tmp_path / "masks/day2" / name, **options)
        return tmp_path / "masks", tmp_path / "out"

    def result(self, out):
        return read_mask(out / "day2/m.png", 4)

    @pytest.mark.parametrize(
        "image",
        [
            Image.fromarray(LABELS.astype(np.uint16)),
            MASK.convert("RGB"),
            MASK.convert("LA"),
            MASK.convert("RGBA"),
            paletted(CODES[::-1]),
        ],
        ids=["16 bits", "grey as RGB", "grey with alpha", "RGBA", "palette"],
    )
    def test_numbers(self, tmp_path, image):
        masks, out = self.masks(tmp_path, image)
        before = (masks / "day2/m.png").read_bytes()
        rows = convert(masks, out)
        assert np.array_equal(self.result(out), LABELS)
        counts = {row["label"]: row["pixels"] for row in rows.values()}
        assert counts == dict(enumerate(np.bincount(LABELS.ravel()).tolist()))
        assert (masks / "day2/m.png").read_bytes() == before

    def test_from_one_and_by_a_map(self, tmp_path):
        masks, out = self.masks(tmp_path, Image.fromarray(LABELS.astype(np.uint16) * 1000))
        convert(masks, out, table={1000: 1, 2000: 255, 3000: 2})
        assert np.array_equal(self.result(out), np.array([0, 1, 255, 2], np.uint8)[LABELS])
        convert(out, tmp_path / "again", first=1)
        again = self.result(tmp_path / "again")
        assert np.array_equal(again, np.array([255, 0, 255, 1], np.uint8)[LABELS])

    @pytest.mark.parametrize("image", [Image.fromarray(CODES[LABELS]), paletted(CODES)])
    def test_colours_of_a_list(self, tmp_path, image):
        masks, out = self.masks(tmp_path, image)
        file = tmp_path / "list.txt"
        colours = "\ufeff128 128 0 olive\r\nvoid: 0, 128, 0\r\n\r\n#800000\r\nblack 0\t0\t0\r\n"
        file.write_text(colours)
        convert(masks, out, colours=str(file))
        assert np.array_equal(self.result(out), np.array([2, 1, 255, 0], np.uint8)[LABELS])
        # which three are the colour?
        for line in ("1 128 0 0 olive", "128 0", "300 0 0", "#000000"):
            file.write_text(f"0 0 0\n{line}\n")
            with pytest.raises(InputError, match="list.txt, line 2: .*(not a colour|there before)"):
                convert(masks, tmp_path / "new", colours=str(file), nearest=True)

    def test_lossy_masks_by_the_nearest(self, tmp_path):
        masks, out = self.masks(tmp_path, Image.fromarray(LABELS * 85), "m.jpg", quality=95)
        with pytest.raises(InputError, match="m.jpg: JPEG changes"):
            convert(masks, out)
        convert(masks, out, table={0: 0, 85: 1, 170: 2, 255: 3}, nearest=True)
        assert (self.result(out) == LABELS).mean() > 0.97
        assert self.result(out)[5, 5] == 0 and self.result(out)[-3, -3] == 3

    @pytest.mark.parametrize(
        ("image", "options", "message"),
        [
            (Image.fromarray(CODES[LABELS]), {}, "it has colours: --colours FILE"),
            (
                Image.fromarray(CODES[LABELS]),
                {"table": {(0, 0, 0): 0}},
                "no label for 0,128,0 and 128,0,0 and 128,128,0: --map 0,128,0=N",
            ),
            (Image.fromarray(LABELS + np.uint16(254)), {}, "no label for 256 and 257: --map 256=N"),
            (Image.new("RGBA", (8, 8), (9, 9, 9, 0)), {}, "parts of it are transparent"),
            (MASK, {"nearest": True}, "says what may be near"),
        ],
    )
    def test_what_has_no_label_is_named(self, tmp_path, image, options, message):
        masks, out = self.masks(tmp_path, image)
        with pytest.raises(InputError, match=message):
            convert(masks, out, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["masks"]

    def test_input_stays_and_half_done_work_is_taken_away(self, tmp_path, monkeypatch):
        masks, out = self.masks(tmp_path, MASK)
        for taken in (masks, masks / "new", tmp_path):
            with pytest.raises(InputError, match="not a new folder outside of"):
                convert(masks, taken)

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", full)
        with pytest.raises(InputError, match="out: cannot be written .No space"):
            convert(masks, out)
        assert len([*tmp_path.rglob("*")]) == 3  # masks, day2 and the mask

    def test_the_command(self, tmp_path, capsys):
        from rflw import cli

        masks, out = self.masks(tmp_path, Image.fromarray(CODES[LABELS]))
        words = ["data", "convert", str(masks), "-o", str(out), "--json", "--map", "0,0,0=0"]
        words += ["128,0,0=1", "0,128,0=2", "128,128,0=255"]
        cli.app(words, standalone_mode=False)
        assert json.loads(capsys.readouterr().out)["128,128,0"]["label"] == 255
        assert np.array_equal(self.result(out), np.array([0, 1, 2, 255], np.uint8)[LABELS])
        with pytest.raises(InputError, match="--map 1=256: "):
            cli.app([*words[:6], "--map", "1=256"], standalone_mode=False)

"""Data sets from disk: sequences of (image, mask) arrays with `name`, `split`, `ids`, `labels`.

An image is (H, W, 3) uint8 RGB, a mask (H, W) uint8 with classes 0..K-1 and 255 as void.
"""

from collections.abc import Iterator
from contextlib import suppress
import hashlib
from itertools import groupby
import json
import os
from pathlib import Path
import re
from unicodedata import normalize

import numpy as np

from rflw.data.images import Header, check_labels, open_mask, read_header, read_image, read_mask
from rflw.data.labels import LABELS, VOID, Labels, labels_for
from rflw.data.synthetic import KINDS, Scenes
from rflw.errors import InputError, reading

# height, width of NYUDv2's frames, and of what the paper keeps of them
FRAME, CROPPED = (480, 640), (468, 625)
# What is cropped to: the authors' published masks have these rows and columns.
INSIDE = slice(6, 474), slice(7, 632)
ROOT = Path(__file__).resolve().parents[2] / "data" / "datasets"


class _Pairs:
    """Images and masks in files. `image` and `mask` read one: a check finds faults of both.

    `faults` holds a line for each thing wrong that is known before files are read.
    """

    name: str
    ids: list[str]
    images: list[Path]
    masks: list[Path]
    labels: Labels
    faults: list[str]
    headers: dict[Path, Header] = {}  # that have been read
    void = VOID  # in the files

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> np.ndarray:
        return read_image(self.images[index])

    def mask(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        return read_mask(self.masks[index], len(self.labels.classes), void=self.void, size=size)

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image, from its header."""
        path = self.images[index]
        return (self.headers.get(path) or read_header(path)).shown

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = self.image(index)
        return image, self.mask(index, image.shape[:2])

    def missing(self) -> Iterator[str]:
        """A line for each file that is not there."""
        for image, mask in zip(self.images, self.masks):
            for file, kind, other in ((image, "image", mask), (mask, "mask", image)):
                if not os.path.isfile(file):
                    yield f"{self.name}: {file} is missing, the {kind} of {other}"


def _lines(path: Path) -> list[str]:
    with reading(path):  # `splitlines` would also end lines within names
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]


def _need_split(name: str, split: str, splits) -> None:
    if split not in splits:
        raise InputError(f"{name}: no split {split!r}; choose from: {', '.join(splits)}")


class CamVid(_Pairs):
    """CamVid in SegNet's form: 480x360, 11 classes, label 11 void; 367 training frames, 101 others.

    Folders `train`, `val` (and `test`) hold frames, `trainannot`, `valannot` masks of the same
    names. For choosing settings there are two splits more: "holdout", the last fifth of each
    training drive, and "fit", the rest.
    """

    name, labels = "camvid", LABELS["camvid"]
    void = len(labels.classes)

    def __init__(self, root: Path, split: str = "train"):
        part = "train" if split in ("fit", "holdout") else split
        frames, masks = root / part, root / f"{part}annot"
        for folder in (frames, masks):
            if not folder.is_dir():
                raise InputError(
                    f"camvid: no folder {folder}; --root or RFLW_DATA must name the folder that "
                    f"holds camvid/{folder.name}"
                )
        self.split, self.images = split, sorted(frames.glob("*.png"))
        if not self.images:
            raise InputError(f"camvid: no PNG files in {frames}")
        lone = {*masks.glob("*.png")} - {masks / frame.name for frame in self.images}
        self.faults = [f"camvid: {mask}: has no frame in {frames}" for mask in sorted(lone)]
        if part != split:
            self.images = self._held_out(self.images, split == "holdout")
        self.masks = [masks / frame.name for frame in self.images]
        self.ids = [frame.stem for frame in self.images]

    @staticmethod
    def _held_out(frames: list[Path], last: bool) -> list[Path]:
        """The last fifth of each drive, or the rest."""
        drives = [list(drive) for _, drive in groupby(frames, key=lambda frame: frame.name[:6])]
        cuts = [round(0.8 * len(drive)) for drive in drives]
        parts = (drive[cut:] if last else drive[:cut] for drive, cut in zip(drives, cuts))
        return [frame for part in parts for frame in part]


class NYU(_Pairs):
    """NYUDv2 as the authors' scripts read it: 795 and 654 frames, 40 classes, void 255.

    `train.nyu` and `val.nyu` list an image and its mask a line, by their paths from the folder on.
    A frame or mask of 640x480 is cut to the paper's 625x468: rows 6 to 473 and columns 7 to 631,
    from 0. For choosing settings there are two more splits, of whole scenes. The numbers of the
    frames go scene by scene, and no scene is in both official splits. So training frames whose
    numbers follow each other form whole scenes. "holdout" is every fifth group, "fit" the rest.
    """

    name, labels = "nyu", LABELS["nyu"]

    def __init__(self, root: Path, split: str = "train"):
        _need_split("nyu", split, ("train", "val", "fit", "holdout"))
        self.split = split
        path = root / f"{'val' if split == 'val' else 'train'}.nyu"
        pairs, self.faults = {}, []
        for number, line in enumerate(_lines(path), start=1):
            names = line.split()
            key = Path(names[0]).stem if names else None
            if len(names) not in (0, 2):
                self.faults.append(f"{path}, line {number}: not an image and its mask: {line}")
            elif key in pairs:
                self.faults.append(f"{path}, line {number}: {key} is there twice")
            elif names:
                pairs[key] = [root / name for name in names]
        self.ids = [*pairs] if split in ("train", "val") else self._scenes(path, [*pairs])
        self.images, self.masks = ([pairs[key][part] for key in self.ids] for part in (0, 1))
        if not self.ids:
            self.faults.append(f"{path}: lists nothing for {split!r}")

    def _scenes(self, path: Path, ids: list[str]) -> list[str]:
        """The ids whose row of consecutive numbers is of this split."""
        odd = next((key for key in ids if not key.isdecimal()), None)
        if odd is not None:
            raise InputError(
                f"{path}: {odd} is no number: {self.split!r} needs frames named by "
                "their official numbers, which go scene by scene"
            )
        ids = sorted(ids, key=int)
        rows = groupby(range(len(ids)), key=lambda i: int(ids[i]) - i)
        return [
            ids[i]
            for row, (_, part) in enumerate(rows)
            if (row % 5 == 4) == (self.split == "holdout")
            for i in part
        ]

    def image(self, index: int) -> np.ndarray:
        return self._cut(super().image(index), self.images[index])

    def mask(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        path, classes = self.masks[index], len(self.labels.classes)
        mask = self._cut(read_mask(path, 256), path)
        # every official mask has void; one without may count from 1 and lack the 40
        sign = f"label {classes}" if (mask == classes).any() else "no void (255)"
        if (mask == classes).any() or not (mask == VOID).any():
            raise InputError(
                f"{path}: {sign}, as where classes are 1..{classes} and void is 0: "
                f"write 0..{classes - 1} for classes and 255 for void in all masks"
            )
        return check_labels(mask, classes, path)

    @staticmethod
    def _cut(pixels: np.ndarray, path: Path) -> np.ndarray:
        if pixels.shape[:2] == FRAME:
            return pixels[INSIDE].copy()
        if pixels.shape[:2] != CROPPED:
            raise InputError(
                f"{path}: {pixels.shape[1]}x{pixels.shape[0]}, NYUDv2 has 640x480 or, cut, 625x468"
            )
        return pixels


def read_json(path: Path):
    """What a JSON file holds. Raises InputError for one that cannot be read."""
    with reading(path):
        return json.loads(path.read_text())


def read_manifest(folder: Path) -> dict:
    """The manifest of a prepared folder. Raises InputError for another file."""
    manifest = read_json(folder / "manifest.json")
    keys = {"splits", "sha256", "statements", "unexpected"}
    if not isinstance(manifest, dict) or not keys <= manifest.keys():
        raise InputError(f"{folder / 'manifest.json'}: not a manifest of a prepared data set")
    return manifest


def sum_line(folder: Path, path: Path) -> str:
    """A file's line in SHA256SUMS, `path` being from `folder` on."""
    with reading(folder / path), open(folder / path, "rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.as_posix()}\n"


class Prepared(_Pairs):
    """What `rflw data prepare` makes: `images`, `masks` (index PNGs), `splits`, manifest.json.

    Attributes:
        digest: SHA-256 over the sums of the files that the split's list names.
        changed: whether list or sums are not what was prepared.
    """

    faults = ()

    def __init__(self, root: Path, name: str, split: str = "train"):
        self.folder, self.name, self.split, self.labels = root, name, split, LABELS[name]
        if not (root / "manifest.json").exists():
            raise InputError(
                f"{name}: no {root / 'manifest.json'}: make the folder with `rflw data prepare "
                f"{name} --raw DIR --out {root.parent}`, or name the folder that holds {name}/ "
                "with --root or RFLW_DATA"
            )
        manifest = read_manifest(root)
        _need_split(name, split, manifest["sha256"])
        self.ids = [line for line in _lines(root / "splits" / f"{split}.txt") if line]
        with reading(root / "SHA256SUMS"):
            sums = (root / "SHA256SUMS").read_text().splitlines(keepends=True)
        with reading(root / "images"):
            images = {path.stem: path for path in (root / "images").iterdir()}
        listed = {*self.ids}
        lines = [line for line in sums if Path(line.partition("  ")[2].rstrip()).stem in listed]
        self.digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        self.changed = self.digest != manifest["sha256"][split] or len(listed) != len(self.ids)
        self.images = [images.get(key, root / "images" / key) for key in self.ids]
        self.masks = [root / "masks" / f"{key}.png" for key in self.ids]


class Own(_Pairs):
    """Anybody's own data: a folder with `classes.txt`, a name a line, `images` and `masks`.

    Masks have the images' names, with any ending, and lie in the same folders; they hold the index
    of a line, from 0, or 255 for void. `splits/train.txt` and `splits/val.txt` may list names;
    without them every fifth image, in the order of names, is for validation. Names that differ
    only in case or Unicode form count as the same name.
    """

    def __init__(self, root: Path, split: str = "train"):
        self.name, self.split, self.labels, self.faults = str(root), split, own_labels(root), []
        images, masks = self._by_name(root / "images"), self._by_name(root / "masks", ENDINGS)
        for key in sorted(masks.keys() - images.keys()):
            self.faults.append(f"{masks[key]}: has no image in {root / 'images'}")
        keys = self._split(root / "splits", images)
        if not keys:
            self.faults.append(f"{root}: no images in split {split!r}")
        self.images = [images[key] for key in keys]
        self.ids = [_name(path, root / "images") for path in self.images]
        missing = root / "masks"
        self.masks = [masks.get(k, missing / f"{name}.png") for k, name in zip(keys, self.ids)]
        self.headers = {}  # reading the rest will tell why there is none of a file
        for path in (*self.images, *masks.values()):
            with suppress(InputError):
                self.headers[path] = read_header(path)
        self.faults += _turned(self.images, self.masks, self.headers)
        self.faults += _other_colours([*masks.values()], self.headers)

    def _by_name(self, folder: Path, endings: tuple[str, ...] = ("",)) -> dict[str, Path]:
        """The files of `images` or `masks`, and of folders inside, by what their names mean."""
        named = {}
        if not folder.is_dir():
            what = "one's own data are images/, masks/ and classes.txt"
            raise InputError(f"{folder.parent}: no folder {folder.name}; {what}")
        for path in walk(folder):
            if path.name.lower().endswith(endings):  # notes may lie between masks
                first = named.setdefault(_plain(_name(path, folder)), path)
                if first != path:
                    self.faults.append(f"{folder}: {first.name} and {path.name} are one name")
        return named

    def _split(self, folder: Path, images: dict[str, Path]) -> list[str]:
        """The keys of the split's images."""
        if not folder.is_dir():
            _need_split(str(folder.parent), self.split, ("train", "val"))
            return [key for i, key in enumerate(images) if (i % 5 == 4) == (self.split == "val")]
        path, keys = folder / f"{self.split}.txt", {}
        for name in filter(None, _lines(path)):
            if _plain(name) not in images:
                said = "no such image (names are listed without their ending)"
                self.faults.append(f"{path}: {name}: {said}")
            elif _plain(name) in keys:
                self.faults.append(f"{path}: {name}: twice")
            else:
                keys[_plain(name)] = name
        return [*keys]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _plain(name: str) -> str:
    """A name without case and Unicode form, which file systems change."""
    return normalize("NFC", name).casefold()


def walk(folder: Path) -> list[Path]:
    """The files of a folder and of those inside it, sorted; hidden ones, as those that Windows
    hides, are left out."""
    files = []
    for at, inside, names in os.walk(folder, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".")]
        files += [Path(at, name) for name in names if not name.startswith((".", *HIDDEN))]
    return sorted(files)


HIDDEN = ("Thumbs.db", "desktop.ini")
ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg", ".webp")  # of masks


def _turned(images: list[Path], masks: list[Path], headers: dict) -> Iterator[str]:
    """A line for each photo that EXIF turns though its mask may have been drawn on it unturned."""
    for image, mask in zip(images, masks):
        photo, labels = headers.get(image), headers.get(mask)
        if photo and labels and photo.turn != labels.turn and photo.stored == labels.stored:
            turn, turned, other = max((photo.turn, image, mask), (labels.turn, mask, image))
            yield (
                f"{turned}: EXIF turns it (orientation {turn}) and not {other}, of the size that "
                "it has unturned: `mogrify -auto-orient` turns files for good, "
                "`exiftool -Orientation=` takes the note away"
            )


def _other_colours(masks: list[Path], headers: dict) -> Iterator[str]:
    """A line for each mask whose palette gives an index another colour than one before it."""
    palettes = {path: headers[path].palette for path in masks if path in headers}
    paletted, first = [path for path in masks if palettes.get(path)], {}
    for path in paletted if len({palettes[path] for path in paletted}) > 1 else ():
        with suppress(InputError):
            image, _ = open_mask(path)
            flat = image.getpalette()
            for index in np.unique(np.asarray(image)).tolist():
                colour = tuple(flat[3 * index : 3 * index + 3])
                theirs, other = first.setdefault(index, (colour, path.name))
                if colour != theirs:
                    yield (
                        f"{path}: label {index} has the colour {colour}, in {other} {theirs}: "
                        "`rflw data convert --colours` makes indices by colours"
                    )
                    break


def own_labels(root: Path) -> Labels:
    """The classes of one's own data: classes.txt must list 2 to 255 names."""
    path = root / "classes.txt"
    names = [normalize("NFC", line) for line in _lines(path)]
    while names and not names[-1]:
        names.pop()
    if odd := _odd_line(names):
        raise InputError(f"{path}: line {odd}; line n names the label n - 1")
    if not 2 <= len(names) <= 255:
        raise InputError(f"{path}: {len(names)} names; 2 to 255 classes, a line each")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"{path}: {twice} twice")
    return labels_for(names)


NUMBERED = r"(\d+)[\W_]+[^\W\d]"


def _odd_line(names: list[str]) -> str | None:
    """The first line that names no label, or by its number another one, and what is odd."""
    numbers = {i: int(m[1]) for i, name in enumerate(names) if (m := re.match(NUMBERED, name))}
    numbered = len(numbers) >= max(2, len(names) - 1)
    rows = [bool(re.search(r"[,;\t]\s*\d", name)) for name in names]
    table = len(rows) > 2 and not rows[0] and all(rows[1:])
    for i, name in enumerate(names):
        text = "".join(filter(str.isprintable, name)).strip()
        head = table and i == 0
        if not text or head or text.startswith(("#", "//", "__ignore__")):  # the last is labelme's
            return f"{i + 1} names no class: {text!r}"
        if numbered and numbers.get(i, i) != i:
            return f"{i + 1} is numbered {numbers[i]}"
    return None


def open_dataset(
    name: str, split: str, root: str | Path | None = None, faults: list[str] | None = None
):
    """A data set by name, or one's own by its folder.

    Args:
        name: a key of `LABELS`, or a folder with images/, masks/ and classes.txt.
        split: "train", "val", or another that the set has.
        root: the folder that holds `<name>/`, which `rflw data prepare` makes; NYUDv2 may also
            be in the layout of the authors' scripts. None: the folder RFLW_DATA, or data/datasets.
        faults: a list that collects faults of the set's files and lists, so that the rest can be
            read.

    Returns:
        A sequence of (image (H, W, 3), mask (H, W)) uint8 arrays.

    Raises:
        InputError: for an unknown name or split and, without `faults`, when files are missing.
    """
    dataset = _opened(name, split, root)
    known = getattr(dataset, "faults", ())
    if faults is not None:  # missing files are met when they are read
        faults += known
    elif lines := [*known, *(dataset.missing() if isinstance(dataset, _Pairs) else ())]:
        more = f"; and {len(lines) - 1} more: `rflw data check` lists all"
        raise InputError(lines[0] + (more if lines[1:] else ""))
    return dataset


def _opened(name: str, split: str, root: str | Path | None):
    if is_folder(name):
        return Own(Path(name), split)
    labels_of(name)
    if name in KINDS:
        return Scenes(split, name)
    folder = Path(root or os.environ.get("RFLW_DATA") or ROOT) / name
    if name == "camvid":
        return CamVid(folder, split)
    listed = any((folder / f"{part}.nyu").exists() for part in ("train", "val"))
    if name == "nyu" and listed and not (folder / "manifest.json").exists():
        return NYU(folder, split)
    return Prepared(folder, name, split)


def is_folder(name: str) -> bool:
    """Whether this names one's own data: it has a separator, or classes.txt is in it."""
    return name not in LABELS and (
        os.sep in name or name in (".", "..") or os.path.exists(Path(name) / "classes.txt")
    )


def labels_of(name: str) -> Labels:
    """Classes and colours of a data set, or of one's own by its folder."""
    if is_folder(name):
        return own_labels(Path(name))
    if name not in LABELS:
        raise InputError(
            f"unknown data set {name!r}; choose from: {', '.join(LABELS)}, "
            "or name a folder with images/, masks/ and classes.txt"
        )
    return LABELS[name]


BLOCK = 10  # neighbouring frames of a drive of CamVid that are drawn together: they are alike


def blocks(dataset) -> list[int] | None:
    """The number of each image's block, None where images are independent of each other.

    A block is up to 10 neighbouring frames of a drive of CamVid; of NYUDv2, frames numbered one
    after the other, which show the same rooms.
    """
    if dataset.name not in ("camvid", "nyu"):
        return None
    numbers, first = [0], 0
    for i, (before, name) in enumerate(zip(dataset.ids, dataset.ids[1:]), start=1):
        if dataset.name == "camvid":
            same = name[:6] == before[:6] and i - first < BLOCK
        else:
            numbered = name.isdecimal() and before.isdecimal()
            same = numbered and int(name) == int(before) + 1
        first = first if same else i
        numbers.append(numbers[-1] + (not same))
    return numbers


def spread(number: int, of: int) -> list[int]:
    """`number` indices evenly spread over `of`, all if there are fewer."""
    if number < 1:
        raise InputError(f"{number} images: one at least")
    number = min(number, of)
    return [round(i * (of - 1) / max(number - 1, 1)) for i in range(number)]


def sizes(dataset) -> list[tuple[int, int]]:
    """(H, W) of every image, from the headers of files; other data sets have one size."""
    dataset = getattr(dataset, "dataset", dataset)  # that of `Cached`
    if hasattr(dataset, "size"):
        return [dataset.size(i) for i in range(len(dataset))]
    return [dataset[0][0].shape[:2]] * len(dataset)


MEMORY = 3e9  # bytes of decoded images and masks that are kept in memory


def in_memory(dataset):
    """The data set, cached if all its images and masks are small enough (NYUDv2, 1.4 GB, is)."""
    return Cached(dataset) if sum(4 * h * w for h, w in sizes(dataset)) < MEMORY else dataset


class Cached:
    """A data set whose decoded arrays stay in memory after the first read (CamVid: 260 MB)."""

    def __init__(self, dataset):
        self.dataset, self.name, self.split = dataset, dataset.name, dataset.split
        self.ids, self.labels = dataset.ids, dataset.labels
        self.digest = getattr(dataset, "digest", None)
        self.items = [None] * len(dataset)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if self.items[index] is None:
            self.items[index] = self.dataset[index]
        return self.items[index]


def manifest_hash(dataset) -> str:
    """SHA-256 over names, pixels and labels, in order; of a prepared set, over its files' sums."""
    if getattr(dataset, "digest", None):
        return dataset.digest
    digest = hashlib.sha256()
    for name, (image, mask) in zip(dataset.ids, (dataset[i] for i in range(len(dataset)))):
        add_item(digest, name, image, mask)
    return digest.hexdigest()


def add_item(digest, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    """Let a hash take in one item of a data set."""
    digest.update(os.fsencode(f"{name} {image.shape}"))  # a name may be no valid text
    digest.update(image.tobytes())
    digest.update(mask.tobytes())

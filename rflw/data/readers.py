"""Data sets from disk: a data set is a sequence of (image, mask) arrays with `name`, `split`, `ids` and `labels`.

An image is (H, W, 3) uint8 RGB, a mask (H, W) uint8 with classes 0..K-1 and 255 as void.
"""

from collections import Counter
import hashlib
from itertools import groupby
import json
import os
from pathlib import Path

import numpy as np

from rflw.data.images import check_labels, read_image, read_mask
from rflw.data.labels import LABELS, VOID, Labels, labels_for
from rflw.data.synthetic import Embedded
from rflw.errors import InputError, no_pipe

FRAME, CROPPED = (
    (480, 640),
    (468, 625),
)  # height, width of NYUDv2's frames, and of what the paper keeps of them
ROOT = Path(__file__).resolve().parents[2] / "data" / "datasets"


class _Pairs:
    """Images and masks in files. `image` and `mask` read one alone: a check finds faults of both."""

    ids: list[str]
    images: list[Path]
    masks: list[Path]
    labels: Labels
    void = VOID  # in the files

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> np.ndarray:
        return read_image(self.images[index])

    def mask(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        return read_mask(self.masks[index], len(self.labels.classes), void=self.void, size=size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = self.image(index)
        return image, self.mask(index, image.shape[:2])


def _refuse(found: list[str], missing: list[str], faults: list[str] | None) -> None:
    """Raises InputError for the first fault of a set. A check gets those `found` on its list instead;
    it meets what is `missing` when it reads."""
    if faults is not None:
        faults += found
    elif lines := found + missing:
        more = f"; and {len(lines) - 1} more: `rflw data check` lists all" if lines[1:] else ""
        raise InputError(lines[0] + more)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as e:  # no text, or no name of a file
        raise InputError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
    return [line.strip() for line in lines]


class CamVid(_Pairs):
    """CamVid in SegNet's form: 480x360, 11 classes, label 11 void; 367 training and 101 validation frames.

    Folders `train`, `val` (and `test`) with frames, `trainannot`, `valannot` with masks of the same names. For choosing
    settings there are two splits more: "holdout", the last fifth of each training sequence, and "fit", the rest.
    """

    name, labels = "camvid", LABELS["camvid"]
    void = len(labels.classes)

    def __init__(self, root: Path, split: str = "train", faults: list[str] | None = None):
        part = "train" if split in ("fit", "holdout") else split
        frames, masks = root / part, root / f"{part}annot"
        for folder in (frames, masks):
            if not folder.is_dir():
                raise InputError(
                    f"camvid: no folder {folder}; --root or RFLW_DATA must name the folder that holds "
                    f"camvid/{folder.name}"
                )
        self.split = split
        self.images = sorted(frames.glob("*.png"))
        if part != split:
            self.images = [
                frame
                for sequence in self._sequences()
                for frame in (
                    sequence[: round(0.8 * len(sequence))]
                    if split == "fit"
                    else sequence[round(0.8 * len(sequence)) :]
                )
            ]
        self.masks = [masks / frame.name for frame in self.images]
        self.ids = [frame.stem for frame in self.images]
        if not self.images:
            raise InputError(f"camvid: no PNG files in {frames}")
        lone = [
            f"camvid: {frames / mask.name} is missing, the frame of {mask}"
            for mask in sorted(masks.glob("*.png"))
            if not (frames / mask.name).exists()
        ]
        missing = [
            f"camvid: {mask} is missing, the mask of {frame}"
            for frame, mask in zip(self.images, self.masks)
            if not mask.exists()
        ]
        _refuse(lone, missing, faults)

    def _sequences(self) -> list[list[Path]]:
        return [list(group) for _, group in groupby(self.images, key=lambda frame: frame.name[:6])]


class NYU(_Pairs):
    """NYUDv2 as the authors' scripts read it: `train.nyu` and `val.nyu` list an image and its mask a
    line, by their paths from the folder on; 795 and 654 frames, 40 classes, void 255.

    A frame or mask of 640x480 is cut to the paper's 625x468: rows 6 to 473 and columns 7 to 631, from
    0. For choosing settings there are two splits more, of whole scenes: the numbers that name the
    frames go scene by scene and no scene is in both official splits, so that training frames with
    numbers in a row are whole scenes. "holdout" is every fifth such row, "fit" the rest.
    """

    name, labels = "nyu", LABELS["nyu"]
    SPLITS = ("train", "val", "fit", "holdout")

    def __init__(self, root: Path, split: str = "train", faults: list[str] | None = None):
        if split not in self.SPLITS:
            raise InputError(f"nyu: no split {split!r}; choose from: {', '.join(self.SPLITS)}")
        self.split = split
        path = root / f"{'val' if split == 'val' else 'train'}.nyu"
        pairs, found, missing = {}, [], []
        for number, line in enumerate(_lines(path), start=1):
            names = line.split()
            key = Path(names[0]).stem if names else None
            if len(names) not in (0, 2):
                found.append(f"{path}, line {number}: not an image and its mask: {line}")
            elif key in pairs:
                found.append(f"{path}, line {number}: {key} is there twice")
            elif names:
                pairs[key] = [root / name for name in names]
                missing += [
                    f"{path}, line {number}: {file} is missing"
                    for file in pairs[key]
                    if not os.path.isfile(file)
                ]
        self.ids = [*pairs] if split in ("train", "val") else self._scenes(path, [*pairs])
        self.images, self.masks = ([pairs[key][part] for key in self.ids] for part in (0, 1))
        if not self.ids:
            found.append(f"{path}: lists nothing for {split!r}")
        _refuse(found, missing, faults)

    def _scenes(self, path: Path, ids: list[str]) -> list[str]:
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
            return pixels[6:474, 7:632].copy()
        if pixels.shape[:2] != CROPPED:
            raise InputError(
                f"{path}: {pixels.shape[1]}x{pixels.shape[0]}, NYUDv2 has 640x480 or, cut, 625x468"
            )
        return pixels


def read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(
            f"{path}: cannot be read as JSON ({next(iter(str(e).splitlines()), '') or type(e).__name__})"
        ) from e


def read_manifest(folder: Path) -> dict:
    """The manifest of a prepared folder. Raises InputError for what is none."""
    manifest = read_json(folder / "manifest.json")
    fits = (
        isinstance(manifest, dict)
        and all(
            isinstance(manifest.get(key), kind)
            for key, kind in (
                ("splits", dict),
                ("sha256", dict),
                ("statements", list),
                ("unexpected", dict),
            )
        )
        and all(
            isinstance(counts, dict) and {"official", "found"} <= counts.keys()
            for counts in manifest["unexpected"].values()
        )
    )
    if not fits:
        raise InputError(f"{folder / 'manifest.json'}: not a manifest of a prepared data set")
    return manifest


def sum_line(folder: Path, path: Path) -> str:
    """A file's line in SHA256SUMS, `path` being from `folder` on."""
    no_pipe(folder / path)
    with open(folder / path, "rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.as_posix()}\n"


class Prepared(_Pairs):
    """A data set in the form that `rflw data prepare` makes: folders `images`, `masks` (index PNGs) and `splits`, and a
    manifest.json that is written last."""

    def __init__(
        self, root: Path, name: str, split: str = "train", faults: list[str] | None = None
    ):
        self.folder, self.name, self.split, self.labels = root, name, split, LABELS[name]
        if not (root / "manifest.json").exists():
            raise InputError(
                f"{name}: no {root / 'manifest.json'}: make the folder with `rflw data prepare {name} --raw DIR "
                f"--out {root.parent}`, or name the folder that holds {name}/ with --root or RFLW_DATA"
            )
        manifest = read_manifest(root)
        if split not in manifest["sha256"]:
            raise InputError(f"{name}: no split {split!r}, only {', '.join(manifest['sha256'])}")
        try:
            self.ids = (root / "splits" / f"{split}.txt").read_text().split()
            sums = (root / "SHA256SUMS").read_text().splitlines(keepends=True)
            images = {path.stem: path for path in (root / "images").iterdir()}
        except (OSError, ValueError) as e:
            raise InputError(
                f"{name}: {getattr(e, 'filename', None) or root}: cannot be read "
                f"({getattr(e, 'strerror', None) or e})"
            ) from e
        here = {
            *self.ids
        }  # the sums of what the list names: a list that was changed has another digest
        lines = [line for line in sums if Path(line.rstrip().partition("  ")[2]).stem in here]
        self.digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        self.changed = self.digest != manifest["sha256"][split] or len(here) != len(self.ids)
        self.images = [images.get(key, root / "images" / key) for key in self.ids]
        self.masks = [root / "masks" / f"{key}.png" for key in self.ids]
        _refuse(
            [],
            [
                f"{name}: {root / 'images'} has no image {key}, which {split}.txt lists"
                for key in self.ids
                if key not in images
            ],
            faults,
        )


class Own(_Pairs):
    """Anybody's own data: a folder with `classes.txt`, a name a line, `images` and `masks`, PNGs of the same names with the index
    of a line, from 0, or 255 for void. `splits/train.txt` and `splits/val.txt` may list names; without them every fifth image, in
    the order of names, is for validation."""

    def __init__(self, root: Path, split: str = "train", faults: list[str] | None = None):
        self.name, self.split = str(root), split
        self.labels, masks = own_labels(root), root / "masks"
        for folder in (root / "images", masks):
            if not folder.is_dir():
                raise InputError(
                    f"{root}: no folder {folder.name}; one's own data are images/, masks/ and classes.txt"
                )
        files = sorted(
            path
            for path in (root / "images").iterdir()
            if path.is_file() and not path.name.startswith(".")
        )
        images, found = {}, []
        for path in files:
            if images.setdefault(path.stem, path) != path:
                found.append(
                    f"{root}: {images[path.stem].name} and {path.name} would have the same mask"
                )
        found += [
            f"{mask}: has no image in {root / 'images'}"
            for mask in sorted(masks.glob("*.png"))
            if mask.stem not in images
        ]
        self.ids = self._split(root / "splits", [*images], found)
        self.images = [images[key] for key in self.ids]
        self.masks = [masks / f"{key}.png" for key in self.ids]
        if not self.ids:
            found.append(f"{root}: no images in split {split!r}")
        _refuse(
            found,
            [
                f"{mask} is missing, the mask of {image}"
                for image, mask in zip(self.images, self.masks)
                if not mask.exists()
            ],
            faults,
        )

    def _split(self, folder: Path, images: list[str], found: list[str]) -> list[str]:
        """The images of the split, by name; what is wrong with its list goes to `found`."""
        if not folder.is_dir():
            if self.split not in ("train", "val"):
                raise InputError(f"{folder.parent}: no split {self.split!r}, only train, val")
            return [key for i, key in enumerate(images) if (i % 5 == 4) == (self.split == "val")]
        path, here = folder / f"{self.split}.txt", {*images}
        ids = Counter(line for line in _lines(path) if line)
        for key, count in ids.items():
            if key not in here:
                found.append(
                    f"{path}: {key}: no such image (names are listed without their ending)"
                )
            elif count > 1:
                found.append(f"{path}: {key}: twice")
        return [key for key in ids if key in here]


def own_labels(root: Path) -> Labels:
    """The classes of one's own data. Raises InputError if classes.txt is no list of 2 to 255 names."""
    path = root / "classes.txt"
    names = [line for line in _lines(path) if line]
    if not 2 <= len(names) <= 255:
        raise InputError(f"{path}: {len(names)} names; 2 to 255 classes, a line each")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"{path}: {twice} twice")
    return labels_for(names)


def open_dataset(
    name: str, split: str, root: str | Path | None = None, faults: list[str] | None = None
):
    """A data set by name, or one's own by its folder. `root`: the folder that holds `<name>/`, as `rflw data prepare` makes
    it, of NYUDv2 also as the authors' scripts read it; else RFLW_DATA, else data/datasets.

    faults: a list that takes in what is wrong with the set's files and lists, so that the rest can be
    read. Raises InputError for an unknown name or split and, without that list, when files are missing.
    """
    if is_folder(name):
        return Own(Path(name), split, faults)
    labels_of(name)
    if name == "embedded":
        return Embedded(split)
    folder = Path(root or os.environ.get("RFLW_DATA") or ROOT) / name
    if name == "camvid":
        return CamVid(folder, split, faults)
    listed = any((folder / f"{part}.nyu").exists() for part in ("train", "val"))
    if name == "nyu" and listed and not (folder / "manifest.json").exists():
        return NYU(folder, split, faults)
    return Prepared(folder, name, split, faults)


def is_folder(name: str) -> bool:
    """Whether this names a folder of one's own data and no known data set: it has a separator, or classes.txt is in it. What no
    folder can be named is none."""
    return name not in LABELS and (
        os.sep in name or name in (".", "..") or os.path.exists(Path(name) / "classes.txt")
    )


def labels_of(name: str) -> Labels:
    """Classes and colours of a data set, or of one's own by its folder. Raises InputError if there is none."""
    if is_folder(name):
        return own_labels(Path(name))
    if name not in LABELS:
        raise InputError(
            f"unknown data set {name!r}: one of {', '.join(LABELS)}, or a folder with images/, masks/ and classes.txt"
        )
    return LABELS[name]


BLOCK = 10  # neighbouring frames of a drive of CamVid that are drawn together: frames of a film are not independent


def blocks(dataset) -> list[int] | None:
    """The number of each image's block: of CamVid, up to 10 neighbouring frames of a drive; of NYUDv2, frames numbered one after
    the other, which show the same rooms. None where images are independent."""
    if dataset.name not in ("camvid", "nyu"):
        return None
    numbers, frames = [], 0
    for before, name in zip((None, *dataset.ids), dataset.ids):
        same = before is not None and (
            name[:6] == before[:6] and frames < BLOCK
            if dataset.name == "camvid"
            else int(name) == int(before) + 1
        )
        frames = frames + 1 if same else 1
        numbers.append(numbers[-1] + (not same) if numbers else 0)
    return numbers


HELD = 3e9  # bytes of decoded images and masks that are kept in memory


def in_memory(dataset):
    """The data set, in memory if it is small enough for that, by its first image (NYUDv2, 1.4 GB, is)."""
    return (
        Cached(dataset)
        if len(dataset) and len(dataset) * dataset[0][0].nbytes * 4 / 3 < HELD
        else dataset
    )


def spread(number: int, of: int) -> list[int]:
    """`number` indices evenly spread over `of`, all if there are fewer. Raises InputError for less than one."""
    if number < 1:
        raise InputError(f"{number} images: one at least")
    number = min(number, of)
    return [round(i * (of - 1) / max(number - 1, 1)) for i in range(number)]


def of_one_size(dataset) -> bool:
    """Whether all images are as large as the first."""
    return all(dataset[i][0].shape == dataset[0][0].shape for i in range(len(dataset)))


class Cached:
    """A data set whose decoded arrays stay in memory after the first read: for sets that fit (CamVid: 260 MB)."""

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
    """SHA-256 over names, pixels and labels of a data set, in order: two runs saw the same data if it is the same. A prepared
    set has one in its manifest, over its files."""
    if getattr(dataset, "digest", None):
        return dataset.digest
    digest = hashlib.sha256()
    for name, (image, mask) in zip(dataset.ids, (dataset[i] for i in range(len(dataset)))):
        add_item(digest, name, image, mask)
    return digest.hexdigest()


def add_item(digest, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    """Let a hash take in one item of a data set."""
    digest.update(f"{name} {image.shape}".encode())
    digest.update(image.tobytes())
    digest.update(mask.tobytes())

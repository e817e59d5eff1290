"""Data sets from disk: a data set is a sequence of (image, mask) arrays with `name`, `split`, `ids` and `labels`.

An image is (H, W, 3) uint8 RGB, a mask (H, W) uint8 with classes 0..K-1 and 255 as void.
"""
from collections import Counter
import hashlib
from itertools import groupby
import os
from pathlib import Path

import numpy as np

from rflw.datasets.images import read_image, read_mask
from rflw.datasets.labels import LABELS, Labels, labels_for
from rflw.datasets.prepare import raw_items, read_manifest
from rflw.datasets.synthetic import Embedded
from rflw.errors import InputError

ROOT = Path(__file__).resolve().parents[2] / "data" / "datasets"


class CamVid:
    """CamVid in SegNet's form: 480x360, 11 classes, label 11 void; 367 training and 101 validation frames.

    Folders `train`, `val` (and `test`) with frames, `trainannot`, `valannot` with masks of the same names. For choosing
    settings there are two splits more: "holdout", the last fifth of each training sequence, and "fit", the rest.
    """

    name, labels = "camvid", LABELS["camvid"]

    def __init__(self, root: Path, split: str = "train"):
        part = "train" if split in ("fit", "holdout") else split
        frames, masks = root / part, root / f"{part}annot"
        for folder in (frames, masks):
            if not folder.is_dir():
                raise InputError(f"camvid: no folder {folder}; --root or RFLW_DATA must name the folder that holds "
                                 f"camvid/{folder.name}")
        self.split = split
        self.frames = sorted(frames.glob("*.png"))
        if part != split:
            self.frames = [frame for sequence in self._sequences() for frame in (
                sequence[: round(0.8 * len(sequence))] if split == "fit" else sequence[round(0.8 * len(sequence)):])]
        self.masks = [masks / frame.name for frame in self.frames]
        self.ids = [frame.stem for frame in self.frames]
        if not self.frames:
            raise InputError(f"camvid: no PNG files in {frames}")
        missing = [mask for mask in self.masks if not mask.exists()]
        if missing:
            raise InputError(f"camvid: {missing[0]} is missing, the mask of {frames / missing[0].name}{_more(missing)}")
        lone = [mask for mask in sorted(masks.glob("*.png")) if not (frames / mask.name).exists()]
        if lone:
            raise InputError(f"camvid: {frames / lone[0].name} is missing, the frame of {lone[0]}{_more(lone)}")

    def _sequences(self) -> list[list[Path]]:
        return [list(group) for _, group in groupby(self.frames, key=lambda frame: frame.name[:6])]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = read_image(self.frames[index])
        classes = len(self.labels.classes)
        return image, read_mask(self.masks[index], classes, void=classes, size=image.shape[:2])


def _more(paths: list[Path]) -> str:
    return f"; so are those of {', '.join(path.stem for path in paths[1:])}" if paths[1:] else ""


class _Pairs:
    """Images by id, and a folder of index masks named after the ids."""

    ids: list[str]
    images: dict[str, Path]
    masks: Path
    labels: Labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        key = self.ids[index]
        image = read_image(self.images[key])
        return image, read_mask(self.masks / f"{key}.png", len(self.labels.classes), size=image.shape[:2])


class Prepared(_Pairs):
    """A data set in the form that `rflw data prepare` makes: folders `images`, `masks` (index PNGs) and `splits`, and a
    manifest.json that is written last."""

    def __init__(self, root: Path, name: str, split: str = "train"):
        self.folder, self.name, self.split, self.labels = root, name, split, LABELS[name]
        if not (root / "manifest.json").exists():
            raise InputError(f"{name}: no {root / 'manifest.json'}: make the folder with `rflw data prepare {name} --raw DIR "
                             f"--out {root.parent}`, or name the folder that holds {name}/ with --root or RFLW_DATA")
        manifest = read_manifest(root)
        if split not in manifest["sha256"]:
            raise InputError(f"{name}: no split {split!r}, only {', '.join(manifest['sha256'])}")
        try:
            self.ids = (root / "splits" / f"{split}.txt").read_text().split()
            sums = (root / "SHA256SUMS").read_text().splitlines(keepends=True)
            self.images, self.masks = {path.stem: path for path in (root / "images").iterdir()}, root / "masks"
        except (OSError, ValueError) as e:
            raise InputError(f"{name}: {getattr(e, 'filename', None) or root}: cannot be read "
                             f"({getattr(e, 'strerror', None) or e})") from e
        here = {*self.ids}  # the sums of what the list names: a list that was changed has another digest
        lines = [line for line in sums if Path(line.rstrip().partition("  ")[2]).stem in here]
        self.digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        self.changed = self.digest != manifest["sha256"][split] or len(here) != len(self.ids)
        missing = next((i for i in self.ids if i not in self.images), None)
        if missing is not None:
            raise InputError(f"{name}: {root / 'images'} has no image {missing}, which {split}.txt lists")


class Raw:
    """A data set of the paper as its official archives unpack, without preparing it: what `rflw data prepare` would write, made
    when asked for. Good for folders of images and masks; where masks must be made from MATLAB files, preparing once is faster."""

    def __init__(self, root: Path, name: str, split: str = "train"):
        self.name, self.split, self.labels = name, split, LABELS[name]
        splits = raw_items(name, root)
        if split not in splits:
            raise InputError(f"{name}: no split {split!r}, only {', '.join(splits)}")
        self.items = splits[split]
        self.ids = [item.id for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        item = self.items[index]
        image = read_image(item.image) if isinstance(item.image, Path) else item.image()
        mask = item.mask()
        if mask.shape != image.shape[:2]:
            raise InputError(f"{self.name} {item.id}: mask of {mask.shape[1]}x{mask.shape[0]}, its image is "
                             f"{image.shape[1]}x{image.shape[0]}")
        return image, mask


class Own(_Pairs):
    """Anybody's own data: a folder with `classes.txt`, a name a line, `images` and `masks`, PNGs of the same names with the index
    of a line, from 0, or 255 for void. `splits/train.txt` and `splits/val.txt` may list names; without them every fifth image, in
    the order of names, is for validation."""

    def __init__(self, root: Path, split: str = "train"):
        self.name, self.split = str(root), split
        self.labels, self.masks = own_labels(root), root / "masks"
        for folder in (root / "images", self.masks):
            if not folder.is_dir():
                raise InputError(f"{root}: no folder {folder.name}; one's own data are images/, masks/ and classes.txt")
        files = sorted(path for path in (root / "images").iterdir() if path.is_file() and not path.name.startswith("."))
        self.images = {}
        for path in files:
            if self.images.setdefault(path.stem, path) != path:
                raise InputError(f"{root}: {self.images[path.stem].name} and {path.name} would have the same mask")
        lone = next((mask for mask in sorted(self.masks.glob("*.png")) if mask.stem not in self.images), None)
        if lone:
            raise InputError(f"{lone}: has no image in {root / 'images'}")
        self.ids = self._split(root / "splits", split)
        if not self.ids:
            raise InputError(f"{root}: no images in split {split!r}")
        missing = next((key for key in self.ids if not (self.masks / f"{key}.png").exists()), None)
        if missing is not None:
            raise InputError(f"{self.masks / f'{missing}.png'} is missing, the mask of {self.images[missing]}")

    def _split(self, folder: Path, split: str) -> list[str]:
        if not folder.is_dir():
            if split not in ("train", "val"):
                raise InputError(f"{folder.parent}: no split {split!r}, only train, val")
            return [key for i, key in enumerate(self.images) if (i % 5 == 4) == (split == "val")]
        try:
            lines = (folder / f"{split}.txt").read_text(encoding="utf-8-sig").splitlines()
            ids = [line.strip() for line in lines if line.strip()]
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"{folder / f'{split}.txt'}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
        wrong = next((key for key, count in Counter(ids).items() if key not in self.images or count > 1), None)
        if wrong is not None:
            why = "twice" if wrong in self.images else "no such image (names are listed without their ending)"
            raise InputError(f"{folder / f'{split}.txt'}: {wrong}: {why}")
        return ids


def own_labels(root: Path) -> Labels:
    """The classes of one's own data. Raises InputError if classes.txt is no list of 2 to 255 names."""
    path = root / "classes.txt"
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as e:  # no text, or no name of a file
        raise InputError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
    if not 2 <= len(names) <= 255:
        raise InputError(f"{path}: {len(names)} names; 2 to 255 classes, a line each")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"{path}: {twice} twice")
    return labels_for(names)


def open_dataset(name: str, split: str, root: str | Path | None = None):
    """A data set by name, or one's own by its folder. `root`: the folder that holds `<name>/`, prepared or as the official archives
    unpack; else RFLW_DATA, else data/datasets.

    Raises InputError for an unknown name or split, or when files are missing.
    """
    if is_folder(name):
        return Own(Path(name), split)
    labels_of(name)
    if name == "embedded":
        return Embedded(split)
    folder = Path(root or os.environ.get("RFLW_DATA") or ROOT) / name
    if name == "camvid":
        return CamVid(folder, split)
    return (Raw if folder.is_dir() and not (folder / "manifest.json").exists() else Prepared)(folder, name, split)


def is_folder(name: str) -> bool:
    """Whether this names a folder of one's own data and no known data set: it has a separator, or classes.txt is in it. What no
    folder can be named is none."""
    return name not in LABELS and (os.sep in name or name in (".", "..") or os.path.exists(Path(name) / "classes.txt"))


def labels_of(name: str) -> Labels:
    """Classes and colours of a data set, or of one's own by its folder. Raises InputError if there is none."""
    if is_folder(name):
        return own_labels(Path(name))
    if name not in LABELS:
        raise InputError(f"unknown data set {name!r}: one of {', '.join(LABELS)}, or a folder with images/, masks/ and classes.txt")
    return LABELS[name]


BLOCK = 10  # neighbouring frames of a drive of CamVid that are drawn together: frames of a film are not independent


def blocks(dataset) -> list[int] | None:
    """The number of each image's block: of CamVid, up to 10 neighbouring frames of a drive; of NYUDv2, frames numbered one after
    the other, which show the same rooms. None where images are independent."""
    if dataset.name not in ("camvid", "nyu"):
        return None
    numbers, frames = [], 0
    for before, name in zip((None, *dataset.ids), dataset.ids):
        same = before is not None and (name[:6] == before[:6] and frames < BLOCK if dataset.name == "camvid"
                                       else int(name) == int(before) + 1)
        frames = frames + 1 if same else 1
        numbers.append(numbers[-1] + (not same) if numbers else 0)
    return numbers


HELD = 3e9  # bytes of decoded images and masks that are kept in memory


def in_memory(dataset):
    """The data set, in memory if it is small enough for that, by its first image (NYUDv2, 1.4 GB, is)."""
    return Resident(dataset) if len(dataset) and len(dataset) * dataset[0][0].nbytes * 4 / 3 < HELD else dataset


def spread(number: int, of: int) -> list[int]:
    """`number` indices evenly spread over `of`, all if there are fewer. Raises InputError for less than one."""
    if number < 1:
        raise InputError(f"{number} images: one at least")
    number = min(number, of)
    return [round(i * (of - 1) / max(number - 1, 1)) for i in range(number)]


def of_one_size(dataset) -> bool:
    """Whether all images are as large as the first."""
    return all(dataset[i][0].shape == dataset[0][0].shape for i in range(len(dataset)))


class Resident:
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

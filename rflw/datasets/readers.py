"""Images, masks and data sets from disk: a data set is a sequence of (image, mask) arrays.

An image is (H, W, 3) uint8 RGB, a mask (H, W) uint8 with classes 0..K-1 and 255 as void.
"""
import hashlib
import os
from pathlib import Path
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rflw.datasets.labels import LABELS, VOID
from rflw.datasets.synthetic import Embedded
from rflw.errors import InputError

ROOT = Path(__file__).resolve().parents[2] / "data" / "datasets"


def read_image(source: str | Path | Image.Image) -> np.ndarray:
    """An image file, or a PIL image, as a viewer shows it -> (H, W, 3) uint8.

    EXIF rotation is applied, transparency laid on white, 16-bit grey scaled to 8 bits, grey, CMYK and palette
    converted. Raises InputError for what is no image, cannot be read whole, or holds floating point numbers.
    """
    where = "image" if isinstance(source, Image.Image) else str(source)
    image = _open(source, where)
    if image.mode.startswith("I"):  # I;16 and its kin: 16 bits of grey
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(f"{where}: grey values outside 0..65535")
        image = Image.fromarray((grey // 257).astype(np.uint8))
    elif image.mode == "F":
        raise InputError(f"{where}: floating point pixels have no known range; convert it to 8 or 16 bits")
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    try:
        return np.array(image.convert("RGB"))
    except ValueError as e:
        raise InputError(f"{where}: pixels of mode {image.mode} cannot be shown as RGB") from e


def read_mask(path: str | Path, num_classes: int, void: int = VOID, size: tuple[int, int] | None = None) -> np.ndarray:
    """An index mask (grey or palette PNG) -> (H, W) uint8; the file's `void` label and 255 become 255.

    size: (H, W) that it must have. Raises InputError for another size, a mode that holds no indices, or a label that
    is neither below `num_classes` nor void.
    """
    image = _open(path, str(path), rotate=False)
    if image.mode not in ("L", "P", "1"):
        raise InputError(f"{path}: a mask of class indices is a grey or palette image, this is {image.mode}")
    mask = np.array(image, dtype=np.uint8)
    if size is not None and mask.shape != size:
        raise InputError(f"{path}: mask of {mask.shape[1]}x{mask.shape[0]}, its image is {size[1]}x{size[0]}")
    if void != VOID:
        mask[mask == void] = VOID
    wrong = (mask >= num_classes) & (mask != VOID)
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise InputError(f"{path}: label {mask[y, x]} at row {y}, column {x}: labels are 0..{num_classes - 1}, "
                         f"{void} or {VOID} for void")
    return mask


def _open(source, where: str, rotate: bool = True) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice its limit is an error still
            image = source if isinstance(source, Image.Image) else Image.open(source)
        return (ImageOps.exif_transpose(image) if rotate else image).copy()  # copy: reads all of the file now
    except FileNotFoundError as e:
        raise InputError(f"{where}: no such file") from e
    except UnidentifiedImageError as e:
        raise InputError(f"{where}: not an image that can be read") from e
    except (OSError, SyntaxError, ValueError, RuntimeError, MemoryError, Image.DecompressionBombError) as e:
        raise InputError(f"{where}: cannot be read ({e})") from e


class CamVid:
    """CamVid in SegNet's form: 480x360, 11 classes, label 11 void; 367 training and 101 validation frames.

    Folders `train`, `val` (and `test`) with frames, `trainannot`, `valannot` with masks of the same names.
    """

    name = "camvid"

    def __init__(self, root: Path, split: str = "train"):
        frames, masks = root / split, root / f"{split}annot"
        for folder in (frames, masks):
            if not folder.is_dir():
                raise InputError(f"camvid: no folder {folder}; --root or RFLW_DATA must name the folder that holds "
                                 f"camvid/{folder.name}")
        self.split = split
        self.frames = sorted(frames.glob("*.png"))
        self.masks = [masks / frame.name for frame in self.frames]
        self.ids = [frame.stem for frame in self.frames]
        if not self.frames:
            raise InputError(f"camvid: no PNG files in {frames}")
        missing = next((mask for mask in self.masks if not mask.exists()), None)
        if missing:
            raise InputError(f"camvid: {missing} is missing, the mask of {frames / missing.name}")

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = read_image(self.frames[index])
        classes = len(LABELS[self.name].classes)
        return image, read_mask(self.masks[index], classes, void=classes, size=image.shape[:2])


DATASETS = ("camvid", "embedded")


def open_dataset(name: str, split: str, root: str | Path | None = None):
    """A data set by name. `root`: the folder that holds `<name>/`; else RFLW_DATA, else data/datasets.

    Raises InputError for an unknown name or split, or when files are missing.
    """
    if name == "embedded":
        return Embedded(split)
    if name == "camvid":
        return CamVid(Path(root or os.environ.get("RFLW_DATA") or ROOT) / name, split)
    raise InputError(f"unknown data set {name!r}: one of {', '.join(DATASETS)}")


class Resident:
    """A data set whose decoded arrays stay in memory after the first read: for sets that fit (CamVid: 260 MB)."""

    def __init__(self, dataset):
        self.dataset, self.name, self.split, self.ids = dataset, dataset.name, dataset.split, dataset.ids
        self.items = [None] * len(dataset)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if self.items[index] is None:
            self.items[index] = self.dataset[index]
        return self.items[index]


def manifest_hash(dataset) -> str:
    """SHA-256 over names, pixels and labels of a data set, in order: two runs saw the same data if it is the same."""
    digest = hashlib.sha256()
    for name, (image, mask) in zip(dataset.ids, (dataset[i] for i in range(len(dataset)))):
        digest.update(f"{name} {image.shape}".encode())
        digest.update(image.tobytes())
        digest.update(mask.tobytes())
    return digest.hexdigest()

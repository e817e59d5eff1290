"""Whether a data set is what it should be: counts, unreadable files, labels, shared images."""

from collections.abc import Callable
import hashlib
from pathlib import Path
import sys

import numpy as np
from tqdm import tqdm

from rflw.data.labels import COUNTS, VOID
from rflw.data.readers import Prepared, add_item, is_folder, open_dataset, sum_line
from rflw.errors import InputError

OFFICIAL = COUNTS | {"camvid": {"train": 367, "val": 101}, "embedded": {"train": 2048, "val": 128}}


def check(name: str, root=None, progress: bool = False) -> dict:
    """Read all of a data set.

    Args:
        name: a data set, or a folder of one's own.
        root: the folder that holds it, see `open_dataset`.
        progress: show bars on a terminal.

    Returns:
        {"data", "splits": {split: {"images", "official", "faults": [line], "pixels": {class: n},
        "void": n, "sha256"}}, "shared": [[split, id, split, id]], "changed": [line], "clean"}.
        faults name each image or mask that cannot be read or does not fit, and each wrong line of
        a list; shared are images of the same pixels in two splits; changed are files of a prepared
        set that are not, or no longer, what its SHA256SUMS says. sha256 is over ids, pixels and
        labels, as in the records of training.

    Raises:
        InputError: if no split is there.
    """
    splits, places, shared, changed, absent = {}, {}, [], [], []
    dataset = None
    for split, official in _official(name).items():
        faults = []
        try:
            dataset = open_dataset(name, split, root, faults)
        except InputError as e:
            absent.append(e)
            counts = {"images": 0, "official": official, "faults": [str(e)], "pixels": {}}
            splits[split] = counts | {"void": 0, "sha256": hashlib.sha256().hexdigest()}
            continue
        splits[split] = {"images": len(dataset), "official": official, "faults": faults}
        splits[split] |= _read(dataset, faults, places, shared, progress)
        if isinstance(dataset, Prepared) and dataset.changed:
            path = dataset.folder / "splits" / f"{split}.txt"
            changed.append(f"{path} or SHA256SUMS: not what was prepared")
    if dataset is None:
        raise absent[0]
    if isinstance(dataset, Prepared):
        changed += _changed(dataset.folder)
    fits = (not s["faults"] and s["official"] in (None, s["images"]) for s in splits.values())
    clean = not shared and not changed and all(fits)
    return {"data": name, "splits": splits, "shared": shared, "changed": changed, "clean": clean}


def _official(name: str) -> dict[str, int | None]:
    """The splits of a data set and their official numbers of images, where there are such."""
    others = {"train": None, "val": None} if is_folder(name) else {"train": None}  # COCO
    return OFFICIAL.get(name) or others


def _read(dataset, faults: list[str], places: dict, shared: list, progress: bool) -> dict:
    """Read a split -> its pixels, void and sha256; adds to faults, to the places of images by their
    hash, and to what two splits share."""
    title, pixels, digest = f"{dataset.name}/{dataset.split}", np.zeros(256, int), hashlib.sha256()
    for i, key in enumerate(
        tqdm(dataset.ids, title, file=sys.stderr, disable=not progress or None)
    ):
        try:
            image, mask = dataset[i]
        except InputError as e:
            parts = (_fault(read, i) for read in (dataset.image, dataset.mask))
            faults += dict.fromkeys(line for line in (*parts, str(e)) if line)
            continue
        pixels += np.bincount(mask.ravel(), minlength=256)
        add_item(digest, key, image, mask)
        here = (dataset.split, key)
        first = places.setdefault(hashlib.sha256(image.tobytes()).digest(), here)
        if first[0] != dataset.split:
            shared.append([*first, *here])
    counts = dict(zip(dataset.labels.classes, pixels.tolist()))
    return {"pixels": counts, "void": int(pixels[VOID]), "sha256": digest.hexdigest()}


def _fault(read: Callable, index: int) -> str | None:
    try:
        read(index)
    except InputError as e:
        return str(e)


def _changed(folder: Path) -> list[str]:
    """A line for each file that SHA256SUMS lists and that is missing or has another sum."""
    sums, wrong = folder / "SHA256SUMS", []
    for line in sums.read_text().splitlines():
        path = Path(line.partition("  ")[2])
        if path.is_absolute() or ".." in path.parts:
            wrong.append(f"{sums}: {path} leads out of the folder")
        elif not (folder / path).is_file():
            wrong.append(f"{folder / path}: missing")
        elif sum_line(folder, path) != f"{line}\n":
            wrong.append(f"{folder / path}: not the file that was prepared")
    return wrong

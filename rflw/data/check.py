"""Whether a data set is what it should be: counts, files that cannot be read, labels, and images that two splits share."""

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
    """Read all of a data set -> {"data", "splits": {split: {"images", "official", "faults": [line], "pixels": {class: n},
    "void": n, "sha256"}}, "shared": [[split, id, split, id]], "changed": [line], "clean"}.

    faults name each image or mask that cannot be read or does not fit, and each wrong line of a list;
    shared are images of the same pixels in two splits; changed are files of a prepared set that are
    not, or no longer, what its SHA256SUMS says. sha256 is over ids, pixels and labels, as in the
    records of training. Raises InputError if no split is there.
    """
    splits, seen, shared, changed, absent = {}, {}, [], [], []
    official = OFFICIAL.get(name) or {"train": None} | (
        {"val": None} if is_folder(name) else {}
    )  # of COCO, training images only
    for split in official:
        faults, pixels, whole = [], np.zeros(256, dtype=np.int64), hashlib.sha256()
        try:
            dataset = open_dataset(name, split, root, faults)
        except InputError as e:
            absent.append(e)
            splits[split] = {
                "images": 0,
                "official": official[split],
                "faults": [str(e)],
                "pixels": {},
                "void": 0,
                "sha256": whole.hexdigest(),
            }
            continue
        for i, key in enumerate(
            tqdm(dataset.ids, desc=f"{name}/{split}", file=sys.stderr, disable=not progress or None)
        ):
            try:
                image, mask = dataset[i]
            except InputError as e:
                parts = (_fault(read, i) for read in (dataset.image, dataset.mask))
                faults += dict.fromkeys(line for line in (*parts, str(e)) if line)
                continue
            pixels += np.bincount(mask.ravel(), minlength=256)
            add_item(whole, key, image, mask)
            first = seen.setdefault(hashlib.sha256(image.tobytes()).digest(), (split, key))
            if first[0] != split:
                shared.append([*first, split, key])
        classes = dataset.labels.classes
        splits[split] = {
            "images": len(dataset),
            "official": official[split],
            "faults": faults,
            "pixels": dict(zip(classes, pixels.tolist())),
            "void": int(pixels[VOID]),
            "sha256": whole.hexdigest(),
        }
        if isinstance(dataset, Prepared) and dataset.changed:
            changed.append(
                f"{dataset.folder / 'splits' / split}.txt or SHA256SUMS: not what was prepared"
            )
    if len(absent) == len(splits):
        raise absent[0]
    if isinstance(dataset, Prepared):
        changed += _changed(dataset.folder)
    clean = (
        not shared
        and not changed
        and all(not s["faults"] and s["official"] in (None, s["images"]) for s in splits.values())
    )
    return {"data": name, "splits": splits, "shared": shared, "changed": changed, "clean": clean}


def _fault(read: Callable, index: int) -> str | None:
    try:
        read(index)
    except InputError as e:
        return str(e)


def _changed(folder: Path) -> list[str]:
    """A line for each file that SHA256SUMS lists and that is missing or has another sum."""
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
    except (OSError, ValueError):
        return [f"{folder / 'SHA256SUMS'}: cannot be read"]
    wrong = []
    for line in lines:
        path = Path(line.partition("  ")[2])
        if path.is_absolute() or ".." in path.parts:
            wrong.append(f"{folder / 'SHA256SUMS'}: {path} leads out of the folder")
        elif not (folder / path).is_file():
            wrong.append(f"{folder / path}: missing")
        elif sum_line(folder, path) != f"{line}\n":
            wrong.append(f"{folder / path}: not the file that was prepared")
    return wrong

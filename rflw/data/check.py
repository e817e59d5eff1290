"""Whether a data set is what it should be: counts, unreadable files, labels, shared images."""

from collections.abc import Iterator
import hashlib
from pathlib import Path
import sys

import numpy as np
from tqdm import tqdm

from rflw.data.labels import COUNTS, VOID
from rflw.data.readers import Prepared, add_item, is_folder, open_dataset, sum_line
from rflw.data.synthetic import KINDS
from rflw.errors import InputError

SMALLEST = 33  # pixels of a side that networks take, `rflw.nn.refinenet.MIN_SIZE`
OFFICIAL = COUNTS | {
    "camvid": {"train": 367, "val": 101, "test": 233},
    **{name: kind.sizes for name, kind in KINDS.items()},
}


def check(name: str, root=None, progress: bool = False) -> dict:
    """Read all of a data set.

    Args:
        name: a data set, or a folder of one's own.
        root: the folder that holds it, see `open_dataset`.
        progress: show bars on a terminal.

    Returns:
        dict: {"data", "splits": {split: {"images", "official", "faults": [line],
        "pixels": {class: n}, "void": n, "sha256"}}, "shared": [[split, id, split, id]],
        "changed": [line], "clean"}.
        faults name each image or mask that cannot be read or does not fit, and each wrong line of
        a list; shared are images of the same pixels in two splits; changed are files of a prepared
        set that are not, or no longer, what its SHA256SUMS says. sha256 is over ids, pixels and
        labels, as in the records of training.

    Raises:
        InputError: if no split is there.
    """
    splits, numbers, places, shared, changed = {}, [], {}, [], []
    dataset = absent = None
    others = {"train": None, "val": None} if is_folder(name) else {"train": None}  # COCO
    for split, official in (OFFICIAL.get(name) or others).items():
        faults = []
        facts = {"images": 0, "official": official, "faults": faults, "pixels": {}, "void": 0}
        splits[split] = facts | {"sha256": hashlib.sha256().hexdigest()}
        try:
            dataset = open_dataset(name, split, root, faults)
        except InputError as e:
            faults.append(str(e))
            absent = absent or e
            continue
        counts, sha256, hashes = _read(dataset, faults, progress)
        pixels = counts.sum(0).tolist()
        splits[split] |= {"images": len(dataset), "void": pixels[VOID], "sha256": sha256}
        splits[split]["pixels"] = dict(zip(dataset.labels.classes, pixels))
        numbers.append(counts)
        for key, pixels_hash in hashes.items():
            first = places.setdefault(pixels_hash, (split, key))
            shared += [[*first, split, key]] if first[0] != split else []
        if isinstance(dataset, Prepared) and dataset.changed:
            path = dataset.folder / "splits" / f"{split}.txt"
            changed.append(f"{path} or SHA256SUMS: not what was prepared")
    if dataset is None:
        raise absent
    faults = splits["train"]["faults"]
    if is_folder(name) and not faults:  # else classes may be in what is unread
        line, _ = unmeant(name, dataset.labels.classes, *numbers)
        faults += [line] if line else []
    if isinstance(dataset, Prepared):
        changed += _changed(dataset.folder)
    fits = (not s["faults"] and s["official"] in (None, s["images"]) for s in splits.values())
    clean = not shared and not changed and all(fits)
    return {"data": name, "splits": splits, "shared": shared, "changed": changed, "clean": clean}


def unmeant(name: str, classes, training: np.ndarray, *others: np.ndarray) -> tuple:
    """A line about classes of one's own data that have no pixels, or that seem to be stored as 255;
    and whether the data must be refused for this.

    training, others: pixels of each label in each mask, (N, 256).
    """
    pixels, there = training.sum(0), np.concatenate([training, *others]) > 0
    absent = [label for label, count in zip(classes, pixels) if not count]
    share = pixels[VOID] / max(pixels.sum(), 1)
    alone, abounds = len(classes) - len(absent) < 2, share > 0.01
    remedy = "255 is void: `rflw data convert --map 255=N` makes it the label N"
    if absent and (alone or abounds):
        what = f"no pixel of the training images is {', '.join(absent)}"
        more = f", and {share:.1%} are 255; {remedy}" if share else ": one class teaches nothing"
        return f"{name}: {what}{more}", alone or len(absent) == 1
    if not there[:, 0].any():
        remedy = "as where masks count from 1; `rflw data convert --first 1` makes 1 to 0"
        return f"{name}: no pixel is {classes[0]}, the label 0, {remedy}", False
    beside = [(there[:, VOID] & there[:, label]).any() for label in range(len(classes))]
    if len(classes) == 2 and sum(beside) == 1:  # the other never is where 255 is
        kind = classes[beside.index(False)]
        return f"{name}: some masks have {kind}, some 255, and none has both; {remedy}", True
    return None, False


def check_labels(*datasets) -> None:
    """Raises InputError for one's own data that cannot be read or validated, or that look wrong.

    The training data come first. stderr names classes without pixels, and images in both splits."""
    numbers, seen = [], set()
    for dataset in datasets:
        faults = []
        counts, sha256, hashes = _read(dataset, faults)
        numbers.append(counts)
        if faults:
            raise InputError(f"{dataset.name}: {faults[0]}")
        dataset.digest = sha256  # `manifest_hash` need not read all of it again
        if both := [key for key, pixels in hashes.items() if pixels in seen]:
            more = f" and {len(both) - 1} more" if both[1:] else ""
            line = f"{both[0]}{more} of {dataset.split} also trains: its score is too high"
            print(f"rflw: {dataset.name}: {line}", file=sys.stderr)
        seen |= {*hashes.values()}
    line, senseless = unmeant(datasets[0].name, datasets[0].labels.classes, *numbers)
    if senseless:
        raise InputError(line)
    if line:
        print(f"rflw: {line}", file=sys.stderr)


def smoothed(mask: np.ndarray) -> bool:
    """Whether a mask looks as if it was smoothed: at many edges a pixel has a label between those
    of its neighbours, and not always the same. True classes do not lie in this way."""
    triples, edges = [], 0
    for lines in (mask.astype(int), mask.T.astype(int)):
        left, here, right = lines[:, :-2], lines[:, 1:-1], lines[:, 2:]
        between = (here - left) * (right - here) > 0
        between &= (left != VOID) & (right != VOID)
        triples.append(np.stack([left, right, here])[:, between])
        edges += (left != here).sum()
    kinds, numbers = np.unique(np.concatenate(triples, 1), axis=1, return_counts=True)
    if numbers.sum() < max(10, edges / 5):
        return False
    return np.unique(kinds[:2], axis=1).shape[1] < kinds.shape[1] or len({*kinds[2]}) > 2


def _read(dataset, faults: list[str], progress: bool = False) -> tuple:
    """Read a split -> each mask's pixels of each label (N, 256), the SHA-256 of all, and that of
    each image; adds to faults."""
    title, digest = f"{dataset.name}/{dataset.split}", hashlib.sha256()
    numbers, hashes = np.zeros((len(dataset), 256), int), {}
    files = getattr(dataset, "dataset", dataset)  # of `Cached`
    bar = tqdm(dataset.ids, title, file=sys.stderr, disable=not progress or None)
    for i, key in enumerate(bar):
        try:
            image, mask = dataset[i]
        except InputError as e:
            for read in (files.image, files.mask):  # both may be wrong
                try:
                    read(i)
                except InputError as one:
                    faults.append(str(one))
            faults += [str(e)] if str(e) not in faults else []
            continue
        numbers[i] = np.bincount(mask.ravel(), minlength=256)
        if is_folder(dataset.name):
            faults += _strange(dataset, key, mask)
        add_item(digest, key, image, mask)
        hashes[key] = hashlib.sha256(image.tobytes()).digest()
    return numbers, digest.hexdigest(), hashes


def _strange(dataset, key: str, mask: np.ndarray) -> Iterator[str]:
    """What an image and mask of one's own, though sound, cannot be used for."""
    if dataset.split != "train" and min(mask.shape) < SMALLEST:
        size = f"{mask.shape[1]}x{mask.shape[0]}"
        yield f"{key}: {size}; networks take {SMALLEST}x{SMALLEST} and up"
    if smoothed(mask):
        yield (
            f"{key}: between its labels lie others, as after smoothing or scaling; scale masks by "
            "the nearest pixel, or let `rflw data convert --nearest --map` keep the labels that "
            "are meant"
        )


def _changed(folder: Path) -> Iterator[str]:
    """A line for each file that SHA256SUMS lists and that is missing or has another sum."""
    sums = folder / "SHA256SUMS"
    for line in sums.read_text().splitlines():
        path = Path(line.partition("  ")[2])
        if path.is_absolute() or ".." in path.parts:
            yield f"{sums}: {path} leads out of the folder"
        elif not (folder / path).is_file():
            yield f"{folder / path}: missing"
        elif sum_line(folder, path) != f"{line}\n":
            yield f"{folder / path}: not the file that was prepared"

"""From official files to one layout: `images/`, `masks/`, `splits/`, sums and a manifest.

A mask is an 8-bit palette PNG of class indices in the order of `labels.py`, 255 is void. All is
written to a hidden folder beside the target, which becomes the target when it is whole. No torch.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
import hashlib
import json
import os
from pathlib import Path
import shutil
import signal
import sys

import numpy as np
from PIL import Image
from tqdm import tqdm

from rflw.data.images import read_image, read_mask
from rflw.data.labels import COUNTS, LABELS, VOC_CLASSES, VOID
from rflw.data.readers import FRAME, INSIDE, read_json, read_manifest, sum_line
from rflw.errors import InputError, choose, reading
from rflw.records import writing


@dataclass(frozen=True)
class Item:
    """One image and its mask.

    `image`: the file to take over, or what makes the (H, W, 3) uint8 array; `mask` makes the (H, W)
    uint8 array.
    """

    id: str
    image: Path | Callable[[], np.ndarray]
    mask: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """What a data set consists of.

    Images with fewer than `labelled` pixels of classes other than background are left out.
    """

    splits: dict[str, list[Item]]
    statements: list[str] = field(default_factory=list)
    labelled: int = 0


def prepare(
    name: str, raw: str | Path, out: str | Path, workers: int = 0, progress: bool = False
) -> dict:
    """Convert the official files of a data set to `<out>/<name>/`. A finished folder is left alone.

    Args:
        name: a data set of the paper, a key of `PLANS`.
        raw: folder with the official files, unpacked or in their archives.
        workers: processes that convert images; 0 for this one alone.
        progress: show bars on a terminal.

    Returns:
        dict: The manifest, with classes, images and SHA-256 by split, raw files with their sizes in
        bytes, statements, and under "unexpected" the counts that are not the official ones.

    Raises:
        InputError: for an unknown name, for raw files that are missing, damaged or do not fit
            together, and where `out` cannot be written.
    """
    choose("data set of the paper", name, PLANS)
    raw, folder = Path(raw), Path(out) / name
    unfinished = folder.with_name(f".{name}.partial")
    if (folder / "manifest.json").exists():
        return read_manifest(folder)
    if not raw.is_dir():
        raise InputError(f"{raw}: no such folder of raw files")
    with writing(folder):
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: not from rflw data prepare; choose another --out")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        try:
            for part in ("images", "masks", "splits", "raw"):
                (unfinished / part).mkdir(parents=True)
            files = RawFiles(raw.resolve(), unfinished / "raw", progress)
            manifest = _write(name, _plan(name, files), files, unfinished, workers, progress)
            shutil.rmtree(unfinished / "raw")
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def _plan(name: str, files: "RawFiles") -> Plan:
    """The plan of a data set: each split has images, and no image is in it twice."""
    plan = PLANS[name](files)
    for split, items in plan.splits.items():
        if not items:
            raise InputError(f"{name}: no images for {split} in {files.folder}")
    numbers = Counter(item.id for items in plan.splits.values() for item in items)
    twice = next((key for key, number in numbers.items() if number > 1), None)
    if twice is not None:
        raise InputError(f"{name}: id {twice} twice")
    return plan


def _write(
    name: str, plan: Plan, files: "RawFiles", folder: Path, workers: int, progress: bool
) -> dict:
    """Write all of a prepared data set to `folder` -> its manifest."""
    manifest = {"name": name, "classes": len(LABELS[name].classes), "splits": {}, "sha256": {}}
    sums = ""
    for split, items in plan.splits.items():
        work = partial(convert, folder=folder, name=name, labelled=plan.labelled)
        converted = _map(work, items, workers, f"{name} {split}" if progress else None)
        kept = [(item.id, lines) for item, lines in zip(items, converted) if lines]
        lines = "".join(lines for _, lines in kept)
        sums += lines
        (folder / "splits" / f"{split}.txt").write_text("".join(f"{key}\n" for key, _ in kept))
        manifest["splits"][split] = len(kept)
        manifest["sha256"][split] = hashlib.sha256(lines.encode()).hexdigest()
    manifest |= {
        "raw": files.used(),
        "statements": plan.statements,
        "unexpected": {
            split: {"official": official, "found": manifest["splits"].get(split, 0)}
            for split, official in COUNTS[name].items()
            if manifest["splits"].get(split, 0) != official
        },
    }
    (folder / "SHA256SUMS").write_text(sums)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _map(work: Callable, items: list[Item], workers: int, title: str | None) -> list:
    """`work` of every item, in order, with a progress bar where there is a title and a terminal."""
    bar = partial(tqdm, total=len(items), desc=title, unit="image", disable=title is None or None)
    if not workers:
        return list(bar(map(work, items)))
    ignore_ctrl_c = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with ProcessPoolExecutor(workers, **ignore_ctrl_c) as pool:
        chunk = max(1, min(32, len(items) // (4 * workers)))
        return list(bar(pool.map(work, items, chunksize=chunk)))


def convert(item: Item, folder: Path, name: str, labelled: int) -> str | None:
    """Write image and mask of an item -> their lines of SHA256SUMS; None with too few labels."""
    is_file = isinstance(item.image, Path)
    image = Path("images", item.id + (item.image.suffix.lower() if is_file else ".png"))
    mask = Path("masks", f"{item.id}.png")
    labels = item.mask()
    if np.count_nonzero((labels != 0) & (labels != VOID)) < labelled:
        return None
    pixels = read_image(item.image) if is_file else item.image()  # all of it: it may be damaged
    if labels.shape != pixels.shape[:2]:
        (height, width), (rows, columns) = pixels.shape[:2], labels.shape
        raise InputError(
            f"{name} {item.id}: mask of {columns}x{rows}, its image is {width}x{height}"
        )
    if is_file:
        try:  # a link costs no space, where the file system has them
            os.link(item.image.resolve(), folder / image)
        except OSError:
            shutil.copyfile(item.image, folder / image)
    else:
        Image.fromarray(pixels).save(folder / image)
    indexed = Image.fromarray(labels)
    indexed.putpalette(LABELS[name].palette())
    indexed.save(folder / mask)
    return sum_line(folder, image) + sum_line(folder, mask)


# Raw files


@dataclass(frozen=True)
class Source:
    """A raw file or folder by the end of its path, the page that has it, and its archive."""

    path: str
    page: str
    archive: str | None = None
    also: str | None = None  # another name that copies give it


VOC_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc{}/"
VOC = {
    2010: Source("VOC2010/JPEGImages", VOC_PAGE.format(2010), "VOCtrainval_03-May-2010.tar"),
    2012: Source(
        "VOC2012/JPEGImages",
        VOC_PAGE.format(2012),
        "VOCtrainval_11-May-2012.tar",
        also="VOC2012_train_val/JPEGImages",  # on Kaggle
    ),
}
NYU = Source("nyu_depth_v2_labeled.mat", "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html")
NYU_SPLITS = Source("splits.mat", "https://cs.nyu.edu/~fergus/datasets/indoor_seg_sup.html")
NYU_CLASSES = Source("classMapping40.mat", "https://github.com/ankurhanda/nyuv2-meta-data")
PARTS = Source(
    "Annotations_Part", "https://roozbehm.info/pascal-parts/pascal-parts.html", "trainval.tar.gz"
)
CONTEXT = Source("trainval", "https://cs.stanford.edu/~roozbeh/pascal-context/", "trainval.tar.gz")
DETAIL = Source("trainval_merged.json", f"{CONTEXT.page}, as is the folder trainval of .mat files")
SBD = Source(
    "dataset/cls",
    "http://home.bharathh.info/pubs/codes/SBD/download.html, or as a folder SegmentationClassAug "
    "of PNG masks beside VOC's JPEGImages, as copies of VOC 2012 have it",
    "benchmark.tgz",
)
SBD_PNGS = Source("SegmentationClassAug", SBD.page, "SegmentationClassAug.zip")
CITYSCAPES = "https://www.cityscapes-dataset.com/downloads/"
FINE = Source("gtFine", CITYSCAPES, "gtFine_trainvaltest.zip")
LEFT = Source("leftImg8bit", CITYSCAPES, "leftImg8bit_trainvaltest.zip")
COCO = "https://cocodataset.org/#download"


class RawFiles:
    """Raw files up to three folders below `folder`; needed archives are unpacked to `store`."""

    def __init__(self, folder: Path, store: Path, progress: bool = False):
        self.folder, self.store, self.progress = folder, store, progress
        self.unpacked, self._used = [], set()

    def search(self, path: str, base: Path | None = None) -> list[Path]:
        """Files and folders whose path ends so; hidden folders are not searched."""
        base = base or self.folder
        parts = path.split("/")
        root = base.parents[parts.index(base.name)] if base.name in parts else base
        matches = [match for depth in range(4) for match in sorted(root.glob("*/" * depth + path))]
        return [match for match in matches if "/." not in str(match.relative_to(root.parent))]

    def look(self, source: Source) -> Path | None:
        """Where a source is, after unpacking its archive if need be; None if it is not there."""
        for path in filter(None, (source.path, source.also)):
            for match in self.search(path):
                return self.use(match)
        for archive in self.search(source.archive) if source.archive else ():
            if archive not in self.unpacked:
                if self.progress:
                    print(f"rflw: unpacking {archive.name}", file=sys.stderr)
                unpack(archive, self.store)
                self.unpacked.append(archive)
            for match in self.search(source.path, self.store):
                self.use(archive)
                return match
        return None

    def find(self, source: Source) -> Path:
        """The same. Raises InputError if it is not there."""
        match = self.look(source)
        if match is None:
            names = " nor ".join(filter(None, (source.path, source.archive)))
            raise InputError(f"{self.folder}: no {names}; it is on {source.page}")
        return match

    def use(self, path: Path) -> Path:
        """Note a raw file or folder as used."""
        self._used.add(path)
        return path

    def used(self) -> list[dict]:
        """Name, from the folder on, and bytes of all that was used."""

        def size(path: Path) -> int:
            return sum(map(size, path.iterdir())) if path.is_dir() else path.stat().st_size

        names = {Path(os.path.relpath(path, self.folder)).as_posix(): path for path in self._used}
        return [{"file": name, "bytes": size(path)} for name, path in sorted(names.items())]


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .zip or .tar, also compressed, into `target`; nothing is written outside of it."""
    safe = {} if archive.suffix == ".zip" else {"filter": "data"}  # names in a zip cannot lead out
    with reading(archive):
        shutil.unpack_archive(archive, target, **safe)


def _mat(path: Path, *keys: str):
    """A variable of a MATLAB 5 file, by the names of its fields."""
    from scipy.io import loadmat  # only here: it takes time to load

    with reading(path):
        value = loadmat(path, simplify_cells=True)
        for key in keys:
            value = value[key]
        return value


def _ids(path: Path) -> list[str]:
    """A split list: one id a line, the first word of it."""
    with reading(path):
        return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _item(image: Path, mask: Path, decode: Callable[[Path], np.ndarray]) -> Item:
    """An image file and the file that `decode` makes its mask of."""
    return Item(image.stem.removesuffix("_leftImg8bit"), image, partial(decode, mask))


def remap(labels: np.ndarray, table: np.ndarray, where: str | Path) -> np.ndarray:
    """Raw labels (H, W) -> uint8 classes: label i becomes table[i], -1 where i is not a label."""
    with reading(where):
        known = np.isin(labels, np.flatnonzero(table >= 0))
        if not known.all():
            y, x = np.argwhere(~known)[0]
            raise InputError(
                f"{where}: label {labels[y, x]} at row {y}, column {x} is out of range"
            )
        return table[labels].astype(np.uint8)


# Data sets


def _voc(files: RawFiles) -> Plan:
    folder = files.find(VOC[2012]).parent
    masks, decode = folder / "SegmentationClass", partial(read_mask, num_classes=len(VOC_CLASSES))
    splits = _split_by_voc(folder, "Segmentation", masks, ".png", decode)
    return Plan(splits, ["void: the rim that VOC 2012 draws around objects"])


def _split_by_voc(
    folder: Path, lists: str, masks: Path, suffix: str, decode: Callable[[Path], np.ndarray]
) -> dict[str, list[Item]]:
    """The images of a year of VOC, split by one of its folders of lists."""
    return {
        split: [
            _item(folder / "JPEGImages" / f"{key}.jpg", masks / f"{key}{suffix}", decode)
            for key in _ids(folder / "ImageSets" / lists / f"{split}.txt")
        ]
        for split in ("train", "val")
    }


def _sbd(files: RawFiles) -> Plan:
    """Of two forms of masks the first of: .mat files as published, PNGs as they are handed round."""
    voc, mats = _voc(files).splits, files.look(SBD)
    pngs = None if mats else files.look(SBD_PNGS)
    val = {item.id for item in voc["val"]}
    train = _sbd_pngs(files, pngs) if pngs else _sbd_mats(files.find(SBD).parent)
    train = {item.id: item for item in (*train, *voc["train"])}
    splits = {"train": [train[key] for key in sorted(train.keys() - val)], "val": voc["val"]}
    statement = (
        "train: SBD train and val and VOC 2012 train, without any image of VOC 2012 val; "
        "VOC's own mask where both have one. val: VOC 2012 val"
    )
    how = ["SBD's masks are the PNG files of SegmentationClassAug"] if pngs else []
    return Plan(splits, [statement, *how])


def _sbd_mats(folder: Path) -> list[Item]:
    keys = {key for split in ("train", "val") for key in _ids(folder / f"{split}.txt")}
    return [
        _item(folder / "img" / f"{key}.jpg", folder / "cls" / f"{key}.mat", _sbd_mask)
        for key in keys
    ]


def _sbd_pngs(files: RawFiles, folder: Path) -> list[Item]:
    images = files.find(VOC[2012])
    decode = partial(read_mask, num_classes=len(VOC_CLASSES))
    return [_item(images / f"{mask.stem}.jpg", mask, decode) for mask in folder.glob("[!.]*.png")]


def _sbd_mask(path: Path) -> np.ndarray:
    table = np.full(256, -1)
    table[: len(VOC_CLASSES)], table[VOID] = range(len(VOC_CLASSES)), VOID
    return remap(_mat(path, "GTcls", "Segmentation"), table, path)


PERSON_PARTS = {  # a bare neck is of the head in the masks that the paper's authors published
    "head": "head, leye, reye, lear, rear, lebrow, rebrow, nose, mouth, hair, neck",
    "torso": "torso",
    "upper arms": "luarm, ruarm",
    "lower arms": "llarm, rlarm, lhand, rhand",
    "upper legs": "luleg, ruleg",
    "lower legs": "llleg, rlleg, lfoot, rfoot",
}


def _person(files: RawFiles) -> Plan:
    folder, masks = files.find(VOC[2010]).parent, files.find(PARTS)
    splits = _split_by_voc(folder, "Main", masks, ".mat", _person_mask)
    first = "images with at least one labelled part of a person, split as VOC 2010"
    merged = [f"{name}: {parts}" for name, parts in PERSON_PARTS.items()]
    return Plan(splits, [first, *merged], labelled=1)


def _person_mask(path: Path) -> np.ndarray:
    """Body parts; what is no part of a person is background. Later parts lie over earlier ones."""
    class_of = {
        part: LABELS["person"].classes.index(name)
        for name, parts in PERSON_PARTS.items()
        for part in parts.split(", ")
    }
    mask = np.zeros((0, 0), np.uint8)  # without objects the image is left out
    with reading(path):
        for thing in np.atleast_1d(_mat(path, "anno", "objects")):
            if not mask.size:
                mask = np.zeros(thing["mask"].shape, np.uint8)
            for part in np.atleast_1d(thing["parts"]) if thing["class"] == "person" else ():
                mask[part["mask"] != 0] = class_of[part["part_name"]]
    return mask


# Numbers of the 59 classes, in our order, among the 459 labels, which all official forms use.
# fmt: off
CONTEXT_IDS = (
    2, 23, 25, 31, 34, 45, 59, 65, 72, 98, 397, 113, 207, 258, 284, 308, 347, 368, 416, 427, 9,
    18, 22, 33, 44, 46, 68, 80, 85, 104, 115, 144, 158, 159, 162, 187, 189, 220, 232, 259, 260,
    105, 296, 355, 295, 324, 326, 349, 354, 360, 366, 19, 415, 420, 424, 440, 445, 454, 458,
)
# fmt: on


def _context(files: RawFiles) -> Plan:
    """Of two forms of masks the first of: .mat, JSON of the Detail API."""
    folder, mats = files.find(VOC[2010]).parent, files.look(CONTEXT)
    if mats:
        form, splits = ".mat files", _split_by_voc(folder, "Main", mats, ".mat", _context_mat)
    else:
        form = "trainval_merged.json, later regions over earlier ones"
        splits = _detail_splits(files.find(DETAIL), folder)
    others = "labels other than the 59 are background"
    return Plan(splits, [f"masks from {form}", others, "split as VOC 2010"])


def _context_table() -> np.ndarray:
    table = np.zeros(460, int)
    table[[*CONTEXT_IDS]] = range(1, len(LABELS["context"].classes))
    return table


def _context_mat(path: Path) -> np.ndarray:
    return remap(_mat(path, "LabelMap"), _context_table(), path)


def _detail_splits(path: Path, folder: Path) -> dict[str, list[Item]]:
    """From trainval_merged.json: images with a phase, regions as run lengths or polygons."""
    content, table = read_json(path), _context_table()
    with reading(path):
        layers = {entry["image_id"]: [] for entry in content["images"]}
        for region in content["annos_segmentation"]:
            label = int(table[region["category_id"]])
            layers[region["image_id"]].append((label, region["segmentation"]))
        return {
            split: [
                _painted(path, folder / "JPEGImages", entry, layers[entry["image_id"]])
                for entry in content["images"]
                if entry["phase"] == split
            ]
            for split in ("train", "val")
        }


COCO_NAMES = {  # of VOC's classes that COCO calls otherwise
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tv monitor": "tv",
}


def _coco(files: RawFiles) -> Plan:
    path = files.find(Source("instances_train2017.json", COCO, "annotations_trainval2017.zip"))
    folder, content = files.find(Source("train2017", COCO, "train2017.zip")), read_json(path)
    layers = defaultdict(list)
    with reading(path):
        numbers = {entry["name"]: entry["id"] for entry in content["categories"]}
        named = [numbers[COCO_NAMES.get(name, name)] for name in VOC_CLASSES[1:]]
        class_of = {number: label for label, number in enumerate(named, 1)}
        # crowds lie lowest and small things over large ones; of equal areas the later one is above
        for region in sorted(content["annotations"], key=lambda r: (not r["iscrowd"], -r["area"])):
            if region["category_id"] in class_of:
                label = VOID if region["iscrowd"] else class_of[region["category_id"]]
                layers[region["image_id"]].append((label, region["segmentation"]))
        items = [
            _painted(path, folder, entry, layers[entry["id"]])
            for entry in sorted(content["images"], key=lambda entry: entry["file_name"])
            if entry["id"] in layers
        ]
    merged = ", ".join(f"{theirs} -> {name}" for name, theirs in COCO_NAMES.items())
    statements = [
        f"VOC's 20 classes ({merged}; the others by the same name); "
        "all other categories, trucks among them, are background",
        "regions of crowds are void; where things overlap the smaller one lies above; "
        "images with more than 1,000 pixels of the 20 classes",
    ]
    return Plan({"train": items}, statements, labelled=1001)


def _painted(path: Path, folder: Path, entry: dict, layers: list) -> Item:
    """An image of a JSON file `path`, with its (class, region) from the lowest up."""
    image = folder / Path(entry["file_name"]).name
    size = entry["height"], entry["width"]
    return Item(image.stem, image, partial(_paint, path, image.stem, size, layers))


def _paint(path: Path, key: str, size: tuple[int, int], layers: list) -> np.ndarray:
    """Lay (class, polygons or run lengths) over each other, from the first -> (H, W) uint8."""
    try:
        from pycocotools import mask as coco
    except ImportError as e:
        raise InputError(
            'pycocotools is missing, which COCO needs: pip install "rflw[data]"'
        ) from e

    mask = np.zeros(size, np.uint8)
    with reading(f"{path}, image {key}"):
        for label, region in layers:
            if isinstance(region, list):  # fewer than three corners have no area
                polygons = [polygon for polygon in region if len(polygon) >= 6]
                region = coco.merge(coco.frPyObjects(polygons, *size)) if polygons else None
            elif not isinstance(region["counts"], str):
                region = coco.frPyObjects(region, *region["size"])
            if region:
                mask[coco.decode(region) > 0] = label
    return mask


def _cityscapes(files: RawFiles) -> Plan:
    fine, left = files.find(FINE), files.find(LEFT)
    splits = {"train": [], "val": []}
    for split, items in splits.items():
        images = (left / split).glob("*/*_leftImg8bit.png")
        for image in sorted(images, key=lambda path: path.name):
            mask = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
            items.append(_item(image, fine / split / image.parent.name / mask, _cityscapes_mask))
    return Plan(splits, ["the 19 classes of the benchmark, all other labels are void"])


def _cityscapes_mask(path: Path) -> np.ndarray:
    table = np.full(256, -1)
    table[:34], table[VOID] = VOID, VOID  # there are labels 0 to 33
    table[list(LABELS["cityscapes"].ids)] = range(len(LABELS["cityscapes"].ids))
    return remap(read_mask(path, 256), table, path)


def _nyu(files: RawFiles) -> Plan:
    path, splits, classes = (files.find(source) for source in (NYU, NYU_SPLITS, NYU_CLASSES))
    numbers = _numbers(classes, "mapClass")
    if len(numbers) != 894 or numbers.min() < 1 or numbers.max() > 40:
        raise InputError(f"{classes}: mapClass is not 894 numbers in 1..40")
    table = np.concatenate([[VOID], numbers - 1])
    with _hdf5(path) as file:
        images = file["images"]
        count = len(images)
        if not count or images.shape[1:] != (3, *FRAME[::-1]) or images.dtype != np.uint8:
            raise InputError(f"{path}: not {FRAME[1]}x{FRAME[0]} images of 8 bits")
    plan = {}
    for split, key in (("train", "trainNdxs"), ("val", "testNdxs")):
        numbers = _numbers(splits, key)
        if ((numbers < 1) | (numbers > count)).any():
            raise InputError(f"{splits}: {key} is not within 1..{count}, the images of {path.name}")
        plan[split] = [
            Item(f"{n:06}", partial(_nyu_image, path, n), partial(_nyu_mask, path, n, table))
            for n in sorted(numbers.tolist())
        ]
    rows, columns = (f"{part.start} to {part.stop - 1}" for part in INSIDE)
    statements = [
        f"rows {rows} and columns {columns}, from 0, are kept, as in the paper's authors' masks",
        "val: the 654 images that the authors of the data call test; training code looks for val",
        "ids are the images' numbers, from 1; label 0 is void",
    ]
    return Plan(plan, statements)


def _numbers(path: Path, key: str) -> np.ndarray:
    """A variable of a MATLAB 5 file that is a row or a column of whole numbers."""
    with reading(path):
        return np.ravel(_mat(path, key)).astype(int)


@contextmanager
def _hdf5(path: Path):
    """An open MATLAB 7.3 file, which is HDF5: its arrays have the axes in reverse order."""
    import h5py  # only here: it takes time to load

    with reading(path), h5py.File(path) as file:
        yield file


def _nyu_image(path: Path, number: int) -> np.ndarray:
    with _hdf5(path) as file:
        return np.ascontiguousarray(file["images"][number - 1].transpose(2, 1, 0)[INSIDE])


def _nyu_mask(path: Path, number: int, table: np.ndarray) -> np.ndarray:
    with _hdf5(path) as file:
        return remap(file["labels"][number - 1].T, table, f"{path}, image {number}")[INSIDE]


PLANS = {"voc": _voc, "sbd": _sbd, "person": _person, "context": _context, "coco": _coco}
PLANS |= {"cityscapes": _cityscapes, "nyu": _nyu}

"""From the official raw files to one layout for every data set: `images/`, `masks/`, `splits/`, sums and a manifest.

A mask is an 8-bit palette PNG of class indices in the order of `labels.py`, 255 is void. Every file is written whole or
not at all, the manifest last: what is there can be kept when a run is repeated, and a folder with a manifest is finished.
No torch.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
import filecmp
from functools import partial
import hashlib
import json
import os
from pathlib import Path, PurePosixPath
import shutil
import signal
import stat
import tarfile
import zipfile

import numpy as np
from PIL import Image
from tqdm import tqdm

from rflw.data.images import open_picture, read_image, read_mask
from rflw.data.labels import COUNTS, LABELS, VOC_CLASSES, VOID
from rflw.data.readers import CROPPED, FRAME, read_json, read_manifest, sum_line
from rflw.errors import InputError
from rflw.records import make_folder, write_whole
from rflw_study import matlab


@dataclass(frozen=True)
class Item:
    """One image and its mask. `image`: the file to take over, or what makes the (H, W, 3) uint8 array; `mask` makes the
    (H, W) uint8 array."""

    id: str
    image: Path | Callable[[], np.ndarray]
    mask: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """What a data set consists of. An image with fewer than `labelled` pixels of classes other than background is left out."""

    splits: dict[str, list[Item]]
    statements: list[str] = field(default_factory=list)
    labelled: int = 0


def prepare(name: str, raw: Path, out: Path, workers: int = 0, progress: bool = False) -> dict:
    """Convert the raw files of data set `name` under `raw`, folders or official archives, to `<out>/<name>/`.

    workers: processes, 0 for none but this one. An interrupted run goes on where it was; a finished folder is left alone.
    Returns its manifest: classes, images and SHA-256 by split, raw files with their sizes in bytes, statements, and under
    "unexpected" the counts that are not the official ones. Raises InputError for an unknown name, for raw files that are
    missing, damaged or do not fit together, and where `out` cannot be written.
    """
    if name not in PLANS:
        raise InputError(f"cannot prepare {name!r}: one of {', '.join(PLANS)}")
    if workers < 0:
        raise InputError(f"{workers} workers: 0 or more")
    raw, out = Path(raw), Path(out)
    folder, store = out / name, out / f".raw-{name}"
    if (folder / "manifest.json").exists():
        return read_manifest(folder)
    files = RawFiles(raw, store, folder, progress)
    plan = _plan(name, files)
    _start_over_unless(folder / "raw.json", files.used())
    for part in ("images", "masks", "splits"):
        make_folder(folder / part)

    sums, manifest = (
        [],
        {"name": name, "classes": len(LABELS[name].classes), "splits": {}, "sha256": {}},
    )
    for split, items in plan.splits.items():
        found = list(
            _converted(
                items, folder, name, plan.labelled, workers, f"{name} {split}" if progress else None
            )
        )
        kept = [(item.id, lines) for item, lines in zip(items, found) if lines]
        lines = "".join(lines for _, lines in kept)
        sums.append(lines)
        _write_text(folder / "splits" / f"{split}.txt", "".join(f"{key}\n" for key, _ in kept))
        manifest["splits"][split] = len(kept)
        manifest["sha256"][split] = hashlib.sha256(lines.encode()).hexdigest()
    _write_text(folder / "SHA256SUMS", "".join(sums))
    manifest |= {
        "raw": files.used(),
        "statements": plan.statements,
        "unexpected": {
            split: {"official": official, "found": manifest["splits"].get(split, 0)}
            for split, official in COUNTS[name].items()
            if manifest["splits"].get(split, 0) != official
        },
    }
    _write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    (folder / "raw.json").unlink()
    shutil.rmtree(store, ignore_errors=True)  # what archives held is in its place now
    return manifest


def _plan(name: str, files: "RawFiles") -> Plan:
    plan = PLANS[name](files)
    _check_ids(name, [item.id for items in plan.splits.values() for item in items])
    empty = next((split for split, items in plan.splits.items() if not items), None)
    if empty:
        raise InputError(f"{name}: no images for {empty} in {files.folder}")
    return plan


def _start_over_unless(marker: Path, used: list[dict]) -> None:
    """Take away what an interrupted run made of other raw files than these; note these. What no run made stays, and is refused."""
    parts = [marker.parent / part for part in ("images", "masks")]
    foreign = next((part for part in parts if part.exists()), None)
    if foreign and not marker.exists():
        raise InputError(
            f"{foreign}: is there already, and not from rflw data prepare; choose another folder with --out"
        )
    if not marker.exists() or read_json(marker) != used:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
        make_folder(marker.parent)
        _write_text(marker, json.dumps(used))


def _converted(
    items: list[Item], folder: Path, name: str, labelled: int, workers: int, bar: str | None
) -> Iterator[str | None]:
    """`convert` over items, in their order; `bar`: the title of a progress bar, which a terminal alone shows."""
    work = partial(convert, folder=folder, name=name, labelled=labelled)
    show = partial(
        tqdm, total=len(items), desc=bar, unit="image", disable=True if bar is None else None
    )
    if not workers:
        yield from show(map(work, items))
        return
    try:
        with ProcessPoolExecutor(
            workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        ) as pool:  # Ctrl+C is ours
            yield from show(
                pool.map(work, items, chunksize=max(1, min(32, len(items) // (4 * workers))))
            )
    except BrokenProcessPool as e:
        raise InputError(
            f"{name}: a worker process was killed, perhaps for want of memory: repeat it with fewer workers"
        ) from e


def convert(item: Item, folder: Path, name: str, labelled: int = 0) -> str | None:
    """Write image and mask of an item unless they are there -> their lines for SHA256SUMS; None if too little is labelled."""
    suffix = item.image.suffix.lower() if isinstance(item.image, Path) else ".png"
    image, mask = Path("images", item.id + suffix), Path("masks", f"{item.id}.png")
    if not _whole(item, folder / image, folder / mask, name):
        array = item.mask()
        if labelled and np.count_nonzero((array != 0) & (array != VOID)) < labelled:
            return None
        pixels = (
            read_image(item.image) if isinstance(item.image, Path) else item.image()
        )  # all of it: a file may have been cut
        height, width = pixels.shape[:2]
        if array.shape != (height, width):
            raise InputError(
                f"{name} {item.id}: mask of {array.shape[1]}x{array.shape[0]}, its image is {width}x{height}"
            )
        if isinstance(item.image, Path):
            _take_over(item.image, folder / image)
        else:
            _write_png(folder / image, Image.fromarray(pixels))
        indexed = Image.fromarray(array)
        indexed.putpalette(LABELS[name].palette())
        _write_png(folder / mask, indexed)
    return sum_line(folder, image) + sum_line(folder, mask)


def _whole(item: Item, image: Path, mask: Path, name: str) -> bool:
    """Whether an earlier run wrote the pair, and no power cut left less of it."""
    try:
        if isinstance(item.image, Path) and not (
            image.samefile(item.image) or filecmp.cmp(image, item.image, shallow=False)
        ):
            return False
        read_mask(mask, len(LABELS[name].classes), size=read_image(image).shape[:2])
        return True
    except (OSError, InputError):
        return False


def _take_over(source: Path, target: Path) -> None:
    """Link where the file system can, which costs no space; else copy."""
    target.unlink(missing_ok=True)  # a part of it
    try:
        os.link(source.resolve(), target)
    except OSError:
        write_whole(target, lambda partial: shutil.copyfile(source, partial))


def _write_png(path: Path, image: Image.Image) -> None:
    write_whole(path, lambda partial: image.save(partial, format="PNG"))


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda partial: Path(partial).write_text(text))


def _check_ids(where: str | Path, ids: list[str]) -> None:
    """Ids become names of files and lines of lists: each once, without blanks, and none that leads elsewhere."""
    seen = set()
    for key in ids:
        if key in seen:
            raise InputError(f"{where}: id {key} twice")
        if key != Path(key).name or key.startswith(".") or key.split() != [key]:
            raise InputError(f"{where}: id {key!r} cannot name a file")
        seen.add(key)


def _reason(e: Exception) -> str:
    return next(iter(str(e).splitlines()), "") or type(e).__name__


# Raw files


@dataclass(frozen=True)
class Source:
    """A raw file or folder by the end of its path, the archives that hold it and the page that has them."""

    path: str
    page: str
    archives: tuple[str, ...] = ()


VOC = {
    year: Source(
        f"VOC{year}/JPEGImages", f"http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/", (archive,)
    )
    for year, archive in (
        (2010, "VOCtrainval_03-May-2010.tar"),
        (2012, "VOCtrainval_11-May-2012.tar"),
    )
}
NYU = Source("nyu_depth_v2_labeled.mat", "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html")
NYU_SPLITS = Source("splits.mat", "https://cs.nyu.edu/~fergus/datasets/indoor_seg_sup.html")
NYU_CLASSES = Source("classMapping40.mat", "https://github.com/ankurhanda/nyuv2-meta-data")
PARTS = Source(
    "Annotations_Part", "https://roozbehm.info/pascal-parts/pascal-parts.html", ("trainval.tar.gz",)
)
CONTEXT = Source(
    "trainval", "https://cs.stanford.edu/~roozbeh/pascal-context/", ("trainval.tar.gz",)
)
SBD = Source(
    "dataset/cls", "http://home.bharathh.info/pubs/codes/SBD/download.html", ("benchmark.tgz",)
)
CITYSCAPES = "https://www.cityscapes-dataset.com/downloads/"
FINE = Source("gtFine", CITYSCAPES, ("gtFine_trainvaltest.zip",))
LEFT = Source("leftImg8bit", CITYSCAPES, ("leftImg8bit_trainvaltest.zip",))


class RawFiles:
    """Raw files under a folder, found by name. Archives are unpacked into `store`, if there is one, when something in them is
    asked for. What lies in `target` is no raw file."""

    def __init__(
        self,
        folder: Path,
        store: Path | None = None,
        target: Path | None = None,
        progress: bool = False,
    ):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of raw files")
        self.folder, self.store, self.target = (
            folder.resolve(),
            store and store.resolve(),
            target and target.resolve(),
        )
        self.progress, self._used, self._unpacked = progress, {}, {}
        self._names = defaultdict(list)
        self._names[self.folder.name].append(self.folder.parent)
        self._index(self.folder)

    def _index(self, root: Path) -> None:
        """Note every name below `root` with the folders that have it, but for hidden ones; links are followed, once."""
        seen = set()
        for parent, folders, files in os.walk(root, followlinks=True):
            here = Path(parent).resolve()
            made = here.parent == self.target and here.name in ("images", "masks", "splits")
            if (
                here in seen or made or {"SHA256SUMS", "manifest.json"} <= {*files}
            ):  # prepared, not raw
                folders.clear()
                continue
            seen.add(here)
            folders[:] = [folder for folder in sorted(folders) if not folder.startswith(".")]
            for name in (*folders, *files):
                self._names[name].append(Path(parent))

    def search(self, path: str) -> list[Path]:
        """All files or folders whose path ends so."""
        *above, name = PurePosixPath(path).parts
        return sorted(
            parent / name
            for parent in self._names.get(name, ())
            if [*parent.parts[len(parent.parts) - len(above) :]] == above
        )

    def look(self, source: Source) -> Path | None:
        """Where a source is, after unpacking an archive if need be; None if it is not there."""
        found = self.search(source.path)
        for archive in (path for name in source.archives for path in self.search(name)):
            if found or not self.store:
                break
            state = archive.stat()  # another file of the same name is unpacked anew
            target = self.store / "_".join(
                (
                    *archive.relative_to(self.folder).parts,
                    f"{state.st_size:x}",
                    f"{state.st_mtime_ns:x}",
                )
            )
            if target not in self._unpacked:
                unpack(archive, target, self.progress)
                self._index(target)
                self._unpacked[target] = archive
            found = self.search(source.path)
        return self.use(found[0]) if found else None

    def find(self, source: Source) -> Path:
        """The same. Raises InputError if it is not there."""
        found = self.look(source)
        if not found:
            raise InputError(
                f"{self.folder}: no {' nor '.join((source.path, *source.archives))}; it is on {source.page}"
                + "".join(f"; {archive} does not hold it" for archive in self._unpacked.values())
            )
        return found

    def use(self, path: Path) -> Path:
        """Note a file or folder as used; of what came from an archive, the archive."""
        origin = next(
            (archive for target, archive in self._unpacked.items() if target in path.parents), path
        )
        self._used[Path(os.path.relpath(origin, self.folder)).as_posix()] = origin
        return path

    def used(self) -> list[dict]:
        """Name, from the folder on, and bytes of all that was used."""

        def size(path: Path) -> int:
            return sum(map(size, path.iterdir())) if path.is_dir() else path.stat().st_size

        return [{"file": name, "bytes": size(path)} for name, path in sorted(self._used.items())]


def unpack(archive: Path, target: Path, progress: bool = False) -> None:
    """Unpack a .zip or .tar, also compressed, to the new folder `target`, whole or not at all; one that is there is kept.

    Raises InputError for a damaged archive and for a member that would lie, or leads, outside of `target`.
    """
    if target.is_dir():
        return
    partial_folder = target.with_name(
        f"{target.name}.partial"
    )  # one of an interrupted run is of no use
    shutil.rmtree(partial_folder, ignore_errors=True)
    make_folder(partial_folder)
    show = partial(
        tqdm, desc=f"unpacking {archive.name}", unit="file", disable=None if progress else True
    )
    try:
        (_unzip if archive.suffix == ".zip" else _untar)(archive, partial_folder, show)
        partial_folder.rename(target)
    except InputError:
        raise
    except Exception as e:  # damaged archives raise errors of many kinds; one with a number is the system's: a full disk
        raise InputError(
            f"{archive}: cannot be unpacked{'' if getattr(e, 'errno', None) else ', is it whole?'} ({_reason(e)})"
        ) from e
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def _inside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return (
        not (path.is_absolute() or ".." in path.parts or ":" in path.parts[0])
        if path.parts
        else True
    )


def _check_room(archive: Path, target: Path, size: int, missing: int | None = None) -> None:
    """Raises InputError for an archive of `size` bytes of files, of which `missing` are still packed, that is a bomb or does not fit
    on the disk."""
    packed = archive.stat().st_size
    if size > max(1 << 30, 200 * packed):
        raise InputError(
            f"{archive}: would unpack to {size / 1e9:.1f} GB, {size / packed:.0f} times its size: it is not one of ours"
        )
    free = shutil.disk_usage(target).free
    if (size if missing is None else missing) > free:
        raise InputError(
            f"{archive}: would unpack to {size / 1e9:.1f} GB; {target} has room for {free / 1e9:.1f}"
        )


class _Member(tarfile.TarInfo):
    """What is in a tar. tarfile reads long names and other attributes into memory: they are short."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if (
            member.type
            in (
                tarfile.XHDTYPE,
                tarfile.XGLTYPE,
                tarfile.SOLARIS_XHDTYPE,
                tarfile.GNUTYPE_LONGNAME,
                tarfile.GNUTYPE_LONGLINK,
            )
            and member.size > 1 << 20
        ):
            raise tarfile.ReadError(f"attributes of {member.size} bytes")
        return member


def _unzip(archive: Path, target: Path, show: Callable) -> None:
    with zipfile.ZipFile(archive) as members:
        _check_room(archive, target, sum(member.file_size for member in members.infolist()))
        for member in show(members.infolist()):
            if not _inside(member.filename) or stat.S_ISLNK(member.external_attr >> 16):
                raise InputError(f"{archive}: member {member.filename!r} leads outside of it")
            members.extract(member, target)


def _untar(archive: Path, target: Path, show: Callable) -> None:
    with tarfile.open(archive, tarinfo=_Member) as members:
        size = 0
        for member in show(members):
            size += member.size
            if member.isreg():
                _check_room(archive, target, size, member.size)
            try:
                if not _inside(member.name):
                    raise tarfile.OutsideDestinationError(member, str(target))
                tarfile.data_filter(
                    member, str(target)
                )  # refuses devices and links that lead outside
            except tarfile.FilterError as e:
                raise InputError(
                    f"{archive}: member {member.name!r} leads outside of it or is no plain file"
                ) from e
            if (
                member.isreg() or member.isdir()
            ):  # links within are left out: nothing can be written through one
                members.extract(member, target, filter="data")
        members.fileobj.seek(
            members.offset
        )  # tarfile takes a file that was cut, or is damaged, between two members for a whole one
        if members.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end of archive")
        while members.fileobj.read(1 << 20):  # the end of a compressed file holds its sum
            pass


# Reading


def _mat(path: Path, *keys: str):
    """A variable of a MATLAB 5 file, by the names of its fields."""
    try:
        value = matlab.read(path)
    except Exception as e:  # damaged files raise errors of many kinds
        raise InputError(f"{path}: cannot be read as a MATLAB 5 file ({_reason(e)})") from e
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise InputError(f"{path}: no field {'.'.join(keys)}")
        value = value[key]
    return value


def _ids(path: Path) -> list[str]:
    """A split list: one id a line, what follows a space is not part of it."""
    try:
        ids = [
            line.split()[0]
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: the list of ids cannot be read ({_reason(e)})") from e
    _check_ids(path, ids)
    if not ids:
        raise InputError(f"{path}: an empty list")
    return ids


def _pair(image: Path, mask: Path) -> tuple[Path, Path]:
    if not image.is_file():
        raise InputError(f"{image} is missing, the image of mask {mask}")
    if not mask.is_file():
        raise InputError(f"{mask} is missing, the mask of image {image}")
    return image, mask


def remap(labels: np.ndarray, table: np.ndarray, where: str | Path) -> np.ndarray:
    """Raw labels (H, W) of any integer type -> uint8 classes: label i becomes table[i], which is -1 where i is no label.

    Raises InputError for a label beyond the table or not in it, with its row and column.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{where}: labels are an array (H, W) of integers, not {labels.dtype} {labels.shape}"
        )
    known = (labels >= 0) & (labels < len(table))
    out = np.where(known, table[np.where(known, labels, 0)], -1)
    if (out < 0).any():
        y, x = np.argwhere(out < 0)[0]
        raise InputError(f"{where}: label {labels[y, x]} at row {y}, column {x} is beyond range")
    return out.astype(np.uint8)


def decode_colours(rgb: np.ndarray, colours, where: str | Path = "mask") -> np.ndarray:
    """(H, W, 3) uint8 of nothing but `colours`, an RGB triple for each class -> (H, W) uint8 classes.

    Raises InputError for any other colour, with its row and column in the file `where`.
    """
    weights = np.array([1 << 16, 1 << 8, 1])
    codes, known = rgb @ weights, np.asarray(colours) @ weights
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known, codes, sorter=order), len(known) - 1)]
    wrong = known[place] != codes
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise InputError(
            f"{where}: colour {tuple(rgb[y, x].tolist())} at row {y}, column {x} is of no class"
        )
    return place.astype(np.uint8)


# Data sets


def _voc_folder(files: RawFiles, year: int) -> Path:
    images = files.look(VOC[year])
    if images:
        return images.parent
    others = [path for path in files.search("JPEGImages") if path.parent.name.startswith("VOC")]
    others += [
        path
        for other, source in VOC.items()
        if other != year
        for path in files.search(source.archives[0])
    ]
    if others:
        raise InputError(
            f"{others[0]}: VOC {year} is needed, this is another year; it is on {VOC[year].page}"
        )
    return files.find(VOC[year]).parent


def _voc_item(folder: Path, key: str) -> Item:
    image, mask = _pair(
        folder / "JPEGImages" / f"{key}.jpg", folder / "SegmentationClass" / f"{key}.png"
    )
    return Item(key, image, partial(_voc_mask, mask))


def _voc_mask(path: Path) -> np.ndarray:
    """(H, W) indices of a PNG. Raises InputError if its palette gives them other colours than VOC's: they mean something else."""
    mask = read_mask(path, len(VOC_CLASSES))
    with open_picture(path) as image:
        palette = image.getpalette()
    for label in np.unique(mask[mask != VOID]).tolist() if palette else ():
        colour = tuple(palette[3 * label : 3 * label + 3])
        if colour != LABELS["voc"].colours[label]:
            raise InputError(
                f"{path}: label {label} has the colour {colour} in its palette, in VOC's {LABELS['voc'].colours[label]}"
            )
    return mask


def _voc(files: RawFiles) -> Plan:
    folder = _voc_folder(files, 2012)
    return Plan(
        {
            split: [
                _voc_item(folder, key)
                for key in _ids(folder / "ImageSets" / "Segmentation" / f"{split}.txt")
            ]
            for split in ("train", "val")
        },
        ["void: the rim that VOC 2012 draws around objects"],
    )


def _sbd(files: RawFiles) -> Plan:
    folder, sbd = _voc_folder(files, 2012), files.find(SBD).parent
    train, val = (
        _ids(folder / "ImageSets" / "Segmentation" / f"{split}.txt") for split in ("train", "val")
    )
    more = {key for split in ("train", "val") for key in _ids(sbd / f"{split}.txt")} - set(train)
    items = {key: _voc_item(folder, key) for key in (*train, *val)}
    for key in more - set(val):
        image, mask = _pair(sbd / "img" / f"{key}.jpg", sbd / "cls" / f"{key}.mat")
        items[key] = Item(key, image, partial(_sbd_mask, mask))
    return Plan(
        {
            "train": [items[key] for key in sorted({*train, *more} - set(val))],
            "val": [items[key] for key in val],
        },
        [
            "train: SBD train and val and VOC 2012 train, without any image of VOC 2012 val; VOC's own mask where both have "
            "one. val: VOC 2012 val"
        ],
    )


def _sbd_mask(path: Path) -> np.ndarray:
    table = np.full(256, -1)
    table[: len(VOC_CLASSES)], table[VOID] = range(len(VOC_CLASSES)), VOID
    return remap(_mat(path, "GTcls", "Segmentation"), table, path)


PERSON_PARTS = {  # a bare neck is of the head in the masks that the paper's authors published
    "head": (
        "head",
        "leye",
        "reye",
        "lear",
        "rear",
        "lebrow",
        "rebrow",
        "nose",
        "mouth",
        "hair",
        "neck",
    ),
    "torso": ("torso",),
    "upper arms": ("luarm", "ruarm"),
    "lower arms": ("llarm", "rlarm", "lhand", "rhand"),
    "upper legs": ("luleg", "ruleg"),
    "lower legs": ("llleg", "rlleg", "lfoot", "rfoot"),
}


def _split_by_voc_2010(
    folder: Path, masks: Path, suffix: str, decode: Callable[[Path], np.ndarray]
) -> dict[str, list[Item]]:
    splits = {"train": [], "val": []}
    for split, items in splits.items():
        for key in _ids(folder / "ImageSets" / "Main" / f"{split}.txt"):
            image, mask = _pair(folder / "JPEGImages" / f"{key}.jpg", masks / f"{key}{suffix}")
            items.append(Item(key, image, partial(decode, mask)))
    return splits


def _person(files: RawFiles) -> Plan:
    return Plan(
        _split_by_voc_2010(_voc_folder(files, 2010), files.find(PARTS), ".mat", _person_mask),
        [
            "images with at least one labelled part of a person, split as VOC 2010",
            *(f"{name}: {', '.join(merged)}" for name, merged in PERSON_PARTS.items()),
        ],
        labelled=1,
    )


def _person_mask(path: Path) -> np.ndarray:
    """(H, W) classes of body parts; what is no part of a person is background. Later parts lie over earlier ones."""
    class_of = {
        part: LABELS["person"].classes.index(name)
        for name, merged in PERSON_PARTS.items()
        for part in merged
    }
    mask = None
    try:
        for thing in _entries(_mat(path, "anno", "objects")):
            if mask is None:
                mask = np.zeros(thing["mask"].shape, np.uint8)
            for part in _entries(thing["parts"]) if thing["class"] == "person" else ():
                mask[part["mask"] != 0] = class_of[part["part_name"]]
    except KeyError as e:
        raise InputError(
            f"{path}: {_reason(e)} is no field or no part of a person that is known"
        ) from e
    except (TypeError, AttributeError, IndexError, ValueError) as e:
        raise InputError(f"{path}: not an annotation of PASCAL-Part ({_reason(e)})") from e
    return np.zeros((0, 0), np.uint8) if mask is None else mask  # without objects it is left out


def _entries(structs) -> list[dict]:
    """SciPy gives a struct array of one entry as the entry."""
    return [structs] if isinstance(structs, dict) else list(structs)


# ids of the 59 among the 459 labels, which both official forms use: no need of labels.txt
CONTEXT_IDS = {
    "aeroplane": 2,
    "bag": 9,
    "bed": 18,
    "bedclothes": 19,
    "bench": 22,
    "bicycle": 23,
    "bird": 25,
    "boat": 31,
    "book": 33,
    "bottle": 34,
    "building": 44,
    "bus": 45,
    "cabinet": 46,
    "car": 59,
    "cat": 65,
    "ceiling": 68,
    "chair": 72,
    "cloth": 80,
    "computer": 85,
    "cow": 98,
    "cup": 104,
    "curtain": 105,
    "dog": 113,
    "door": 115,
    "fence": 144,
    "floor": 158,
    "flower": 159,
    "food": 162,
    "grass": 187,
    "ground": 189,
    "horse": 207,
    "keyboard": 220,
    "light": 232,
    "motorbike": 258,
    "mountain": 259,
    "mouse": 260,
    "person": 284,
    "plate": 295,
    "platform": 296,
    "potted plant": 308,
    "road": 324,
    "rock": 326,
    "sheep": 347,
    "shelves": 349,
    "sidewalk": 354,
    "sign": 355,
    "sky": 360,
    "snow": 366,
    "sofa": 368,
    "table": 397,
    "track": 415,
    "train": 416,
    "tree": 420,
    "truck": 424,
    "tv monitor": 427,
    "wall": 440,
    "water": 445,
    "window": 454,
    "wood": 458,
}


def _context(files: RawFiles) -> Plan:
    """Of the three forms of masks the first that is there: .mat, the JSON file of the Detail API, colour-coded PNG."""
    folder, mats = _voc_folder(files, 2010), files.look(CONTEXT)
    others = ["labels other than the 59 are background", "split as VOC 2010"]
    if mats:
        return Plan(
            _split_by_voc_2010(folder, mats, ".mat", _context_mat),
            ["masks from .mat files", *others],
        )
    for merged in files.search("trainval_merged.json"):
        return Plan(
            _detail_splits(files.use(merged), folder),
            ["masks from trainval_merged.json, later regions over earlier ones", *others],
        )
    first = _ids(folder / "ImageSets" / "Main" / "train.txt")[0]
    for mask in files.search(f"{first}.png"):
        if mask.parent.name not in ("SegmentationClass", "SegmentationObject"):  # VOC's own
            return Plan(
                _split_by_voc_2010(folder, files.use(mask.parent), ".png", _context_coloured),
                ["masks from colour-coded PNG files", *others],
            )
    raise InputError(
        f"{files.folder}: neither a folder trainval of .mat files, nor {CONTEXT.archives[0]}, nor trainval_merged.json, "
        f"nor colour-coded masks such as {first}.png; they are on {CONTEXT.page}"
    )


def _context_table() -> np.ndarray:
    table = np.zeros(460, int)
    for name, number in CONTEXT_IDS.items():
        table[number] = LABELS["context"].classes.index(name)
    return table


def _context_mat(path: Path) -> np.ndarray:
    return remap(_mat(path, "LabelMap"), _context_table(), path)


def _context_coloured(path: Path) -> np.ndarray:
    return decode_colours(read_image(path), LABELS["context"].colours, path)


def _detail_splits(path: Path, folder: Path) -> dict[str, list[Item]]:
    """From trainval_merged.json: images with a phase, and a region of run lengths or polygons for each annotation."""
    paint, table, content = _paint_with_coco(), _context_table(), read_json(path)
    splits, layers = {"train": [], "val": []}, defaultdict(list)
    try:
        for region in content["annos_segmentation"]:
            if not 0 <= region["category_id"] < len(table):
                raise InputError(
                    f"{path}: category {region['category_id']} of image {region['image_id']} is beyond range"
                )
            layers[region["image_id"]].append(
                (int(table[region["category_id"]]), region["segmentation"])
            )
        _check_regions(path, [entry["image_id"] for entry in content["images"]], layers)
        for entry in content["images"]:
            if entry["phase"] in splits:
                if entry["image_id"] not in layers:
                    raise InputError(
                        f"{path}: no region of image {entry['image_id']}, {entry['file_name']}"
                    )
                image = folder / "JPEGImages" / Path(entry["file_name"]).name
                splits[entry["phase"]].append(
                    _painted(paint, path, image, entry, layers[entry["image_id"]])
                )
    except (LookupError, TypeError) as e:
        raise InputError(f"{path}: not a file of the Detail API (no {_reason(e)})") from e
    return splits


COCO_CLASSES = {
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "couch": "sofa",
    "potted plant": "potted plant",
    "dining table": "dining table",
    "tv": "tv monitor",
} | {
    name: name
    for name in (
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "dog",
        "horse",
        "person",
        "sheep",
        "train",
    )
}


def _coco(files: RawFiles) -> Plan:
    paint = _paint_with_coco()
    years = [
        Source(
            f"instances_train{year}.json",
            "https://cocodataset.org/#download",
            (f"annotations_trainval{year}.zip",),
        )
        for year in (2017, 2014)
    ]
    path = next(filter(None, map(files.look, years)), None) or files.find(years[0])
    part = path.stem.removeprefix("instances_")
    folder, content = files.find(Source(part, years[0].page, (f"{part}.zip",))), read_json(path)
    try:
        numbers = {entry["name"]: entry["id"] for entry in content["categories"]}
        class_of = {numbers[name]: VOC_CLASSES.index(ours) for name, ours in COCO_CLASSES.items()}
        regions = defaultdict(list)
        for region in content["annotations"]:
            if region["category_id"] in class_of:
                regions[region["image_id"]].append(region)
        _check_regions(path, [entry["id"] for entry in content["images"]], regions)
        items = []
        for entry in sorted(content["images"], key=lambda entry: entry["file_name"]):
            # crowds lie lowest and small things over large ones; where areas are equal the file's order stays
            layers = [
                (
                    VOID if region["iscrowd"] else class_of[region["category_id"]],
                    region["segmentation"],
                )
                for region in sorted(
                    regions[entry["id"]],
                    key=lambda region: (not region["iscrowd"], -region["area"]),
                )
            ]
            if layers:
                items.append(
                    _painted(paint, path, folder / Path(entry["file_name"]).name, entry, layers)
                )
    except (KeyError, TypeError) as e:
        raise InputError(f"{path}: not a file of COCO's instances (no {_reason(e)})") from e
    merged = ", ".join(f"{name} -> {ours}" for name, ours in COCO_CLASSES.items() if name != ours)
    return Plan(
        {"train": items},
        [
            f"VOC's 20 classes ({merged}; the others by the same name); all other categories, trucks among them, are background",
            "regions of crowds are void; where things overlap the smaller one lies above; images with more than 1,000 pixels of the "
            "20 classes",
        ],
        labelled=1001,
    )


def _check_regions(path: Path, images: list, regions: dict) -> None:
    """Every image is there once, and every region is of one of them."""
    _check_ids(path, list(map(str, images)))
    for key in regions.keys() - {*images}:
        raise InputError(f"{path}: a region of image {key}, which is not among the images")


def _painted(paint: Callable, path: Path, image: Path, entry: dict, layers: list) -> Item:
    if not image.is_file():
        raise InputError(f"{image} is missing, the image of an entry in {path}")
    return Item(
        image.stem,
        image,
        partial(paint, path, image.stem, (entry["height"], entry["width"]), layers),
    )


def _paint_with_coco() -> Callable:
    """`_paint`, if what it needs is there: better to know before an hour of reading."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as e:
        raise InputError(
            'polygons and run lengths need pycocotools, which the extra "data" brings: pip install "rflw[data]"'
        ) from e
    return _paint


def _paint(
    path: Path, key: str, size: tuple[int, int], shapes: list[tuple[int, list | dict]]
) -> np.ndarray:
    """Lay (class, polygons or run lengths) over each other, from the first -> (H, W) uint8."""
    from pycocotools import mask as coco

    try:
        if (
            not all(isinstance(side, int) and 0 < side < 1 << 15 for side in size)
            or size[0] * size[1] > Image.MAX_IMAGE_PIXELS
        ):
            raise ValueError(f"in an image of {size[1]}x{size[0]}")
        out = np.zeros(size, np.uint8)
        for label, shape in shapes:
            if isinstance(shape, list):
                polygons = [
                    polygon for polygon in shape if len(polygon) >= 6
                ]  # fewer than three corners have no area
                if not all(
                    abs(place) <= 4 * max(size) for polygon in polygons for place in polygon
                ):  # NaN, too, is not
                    raise ValueError("a corner far outside of it")
                lengths = coco.frPyObjects(polygons, *size) if polygons else []
            else:
                if list(shape["size"]) != list(size):  # the decoder believes it
                    raise ValueError(f"a region of another size than {size[1]}x{size[0]}")
                counts = (
                    shape["counts"]
                    if isinstance(shape["counts"], list)
                    else _run_lengths(shape["counts"])
                )
                if (
                    min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]
                ):  # would read beyond, or leave pixels open
                    raise ValueError(f"run lengths of an image other than {size[1]}x{size[0]}")
                lengths = [
                    coco.frPyObjects(shape, *size) if isinstance(shape["counts"], list) else shape
                ]
            if lengths:
                out[coco.decode(lengths).any(-1)] = label
    except Exception as e:  # pycocotools raises errors of many kinds
        raise InputError(f"{path}: a region of image {key} cannot be decoded ({_reason(e)})") from e
    return out


def _run_lengths(text: str | bytes) -> list[int]:
    """The numbers in COCO's compressed run lengths: 5 bits a character from the lowest, each the difference to the last but one."""
    lengths, value, shift = [], 0, 0
    for code in text.encode() if isinstance(text, str) else text:
        code -= 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:  # the last character of a number; its fifth bit is the sign
            value -= (code & 16) and 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths that are cut off")
    return lengths


def _cityscapes(files: RawFiles) -> Plan:
    fine, left = files.find(FINE), files.find(LEFT)
    ends = "_gtFine_labelIds.png", "_leftImg8bit.png"
    splits = {}
    for split in ("train", "val"):
        splits[split] = []
        keys = {
            path.name.removesuffix(end)
            for root, end in zip((fine, left), ends)
            for path in (root / split).glob(f"*/*{end}")
        }
        for key in sorted(keys):
            city = key.split("_")[0]
            image, mask = _pair(
                left / split / city / (key + ends[1]), fine / split / city / (key + ends[0])
            )
            splits[split].append(Item(key, image, partial(_cityscapes_mask, mask)))
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
        count = len(file["images"]) if file["images"].ndim else 0
        if (
            not count
            or file["images"].shape[1:] != (3, *FRAME[::-1])
            or file["labels"].shape != (count, *FRAME[::-1])
            or file["images"].dtype != np.uint8
        ):
            raise InputError(
                f"{path}: not {FRAME[1]}x{FRAME[0]} images of 8 bits and labels of the same number"
            )
        box, how = _border(file["images"])
    plan = {}
    for split, key in (("train", "trainNdxs"), ("val", "testNdxs")):
        numbers = _numbers(splits, key)
        if ((numbers < 1) | (numbers > count)).any():
            raise InputError(f"{splits}: {key} is not within 1..{count}, the images of {path.name}")
        plan[split] = [
            Item(
                f"{number:06}",
                partial(_nyu_image, path, number, box),
                partial(_nyu_mask, path, number, box, table),
            )
            for number in sorted(numbers.tolist())
        ]
    return Plan(
        plan,
        [
            how,
            "val: the 654 images that the authors of the data call test; training code looks for val",
            "ids are the images' numbers, from 1; label 0 is void",
        ],
    )


def _numbers(path: Path, key: str) -> np.ndarray:
    """A variable of a MATLAB 5 file that is a row or a column of whole numbers."""
    values = np.ravel(_mat(path, key))
    if values.dtype.kind not in "iuf" or (values % 1).any():
        raise InputError(f"{path}: {key} is not a list of whole numbers")
    return values.astype(int)


@contextmanager
def _hdf5(path: Path):
    """An open MATLAB 7.3 file, which is HDF5: its arrays have the axes in reverse order."""
    import h5py  # only here: it takes time to load

    try:
        with h5py.File(path) as file:
            yield file
    except (OSError, KeyError, RuntimeError, AttributeError, TypeError, IndexError) as e:
        raise InputError(f"{path}: cannot be read as a MATLAB 7.3 file ({_reason(e)})") from e


def _border(images) -> tuple[tuple[slice, slice], str]:
    """Rows and columns within the white border around NYU's frames, and how they were found.

    The paper's frames are 625x468, without saying of which pixels. The rows, and the columns, that hold most of what is not
    white in frames from everywhere in the set are taken, from the middle where several hold as much: no single pixel decides.
    """
    seen = sum(
        (images[int(i)].min(0) < 255).astype(int)
        for i in np.unique(np.linspace(0, len(images) - 1, 32).astype(int))
    )
    box = ()
    for axis, length in enumerate(CROPPED):
        held = np.convolve(seen.sum(axis), np.ones(length, int), "valid")
        best = np.flatnonzero(held == held.max())
        start = int(best[len(best) // 2])
        box += (slice(start, start + length),)
    share = seen.T[box].sum() / max(seen.sum(), 1)
    return box, (
        f"rows {box[0].start} to {box[0].stop - 1} and columns {box[1].start} to {box[1].stop - 1}, from 0, are kept: they "
        f"hold {100 * share:.2f} % of what is not white"
    )


def _nyu_image(path: Path, number: int, box: tuple[slice, slice]) -> np.ndarray:
    with _hdf5(path) as file:
        return np.ascontiguousarray(file["images"][number - 1].transpose(2, 1, 0)[box])


def _nyu_mask(path: Path, number: int, box: tuple[slice, slice], table: np.ndarray) -> np.ndarray:
    with _hdf5(path) as file:
        return remap(file["labels"][number - 1].T, table, f"{path}, image {number}")[box]


PLANS = {
    "voc": _voc,
    "sbd": _sbd,
    "person": _person,
    "context": _context,
    "coco": _coco,
    "cityscapes": _cityscapes,
    "nyu": _nyu,
}

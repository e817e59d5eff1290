"""Every parser of files that come from elsewhere, with whole files to spoil."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
import io
import json
import math
from pathlib import Path
import shutil
import tarfile
import zipfile

from hypothesis import strategies as st
import numpy as np
from PIL import Image
import torch
from torch import nn
import yaml

from rflw import build, evaluation, records, training
from rflw import checkpoint as checkpoint_
from rflw.config import Recipe
from rflw.data import readers
from rflw.data.images import read_image, read_mask
from rflw.errors import InputError
from rflw.nn.refinenet import MIN_SIZE
from rflw.recipes import RECIPES
from rflw_study import campaign, claims, paper, prepare, studies

from .spoil import changed, damaged, json_files, lines_files, mat_files

H, W = 3, 4
MASK = np.array([[0, 1, 1, 20], [0, 15, 15, 255], [7, 7, 0, 255]], np.uint8)


@dataclass(frozen=True)
class Target:
    """A parser: `parse(folder)` reads what was put at `file` in a folder that `furnish` has filled."""

    name: str
    file: str
    strategy: Callable[[], object]
    parse: Callable[[Path], object]
    furnish: Callable[[Path], None] = lambda folder: None

    def prepare(self, folder: Path) -> Path:
        """Make and fill the folder -> where what is to be read goes."""
        folder.mkdir()
        self.furnish(folder)
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def photo(path: Path, size=(W, H)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 100, 50)).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


# ---------------------------------------------------------------- images


def pictures():
    ramp = Image.fromarray((np.arange(24 * 32 * 3) % 251).astype(np.uint8).reshape(24, 32, 3))
    grey16 = Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80)
    exif = Image.Exif()
    exif[0x0112] = 6
    return damaged(
        [
            saved(ramp, "PNG"),
            saved(ramp, "JPEG", exif=exif),
            saved(ramp, "BMP"),
            saved(ramp.convert("P"), "GIF"),
            saved(ramp, "TIFF"),
            saved(ramp, "TIFF", compression="tiff_lzw"),
            saved(ramp, "WEBP"),
            saved(grey16, "PNG"),
            saved(ramp.convert("RGBA"), "PNG"),
            saved(ramp.convert("CMYK"), "JPEG"),
            saved(ramp, "PPM"),
            saved(grey16, "TIFF"),
        ]
    )


def mask_files():
    indexed = Image.fromarray(np.tile(MASK % 21, (8, 8)))
    palette = indexed.copy()
    palette.putpalette(list(range(256)) * 3)
    return damaged(
        [
            saved(indexed, "PNG"),
            saved(palette, "PNG"),
            saved(palette, "PNG", bits=8, transparency=0),
            saved(indexed, "TIFF"),
        ]
    )


# ---------------------------------------------------------------- raw data sets


def all_masks(plan: prepare.Plan) -> None:
    """What `rflw data prepare` does with the items: one that is refused does not hide the next."""
    for items in plan.splits.values():
        for item in items:
            item.mask()


def voc_2010(folder: Path) -> None:
    for key, split in (("a", "train"), ("b", "val")):
        photo(folder / f"VOC2010/JPEGImages/{key}.jpg")
        text(folder / f"VOC2010/ImageSets/Main/{split}.txt", f"{key}\n")


COCO = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "height": H, "width": W},
        {"id": 2, "file_name": "b.jpg", "height": H, "width": W},
    ],
    "categories": [{"id": i, "name": name} for i, name in enumerate(prepare.COCO_CLASSES, 1)],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 0,
            "area": 6,
            "segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]],
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 2,
            "iscrowd": 1,
            "area": 3,
            "segmentation": {"size": [H, W], "counts": [0, 3, 9]},
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 3,
            "iscrowd": 1,
            "area": 2,
            "segmentation": {"size": [H, W], "counts": "0<"},
        },
    ],
}
DETAIL = {
    "images": [
        {"image_id": 1, "file_name": "a.jpg", "phase": "train", "height": H, "width": W},
        {"image_id": 2, "file_name": "b.jpg", "phase": "val", "height": H, "width": W},
    ],
    "annos_segmentation": [
        {"image_id": 1, "category_id": 284, "segmentation": {"size": [H, W], "counts": [0, 3, 9]}},
        {"image_id": 2, "category_id": 2, "segmentation": [[0, 0, 3, 0, 3, 2]]},
    ],
}


def coco_images(folder: Path) -> None:
    photo(folder / "train2017/a.jpg")
    photo(folder / "train2017/b.jpg")


def person(folder: Path) -> None:
    prepare._person_mask(folder / "x.mat")


PERSON = {
    "anno": {
        "objects": [
            {
                "class": "person",
                "mask": np.ones((H, W), np.uint8),
                "parts": [
                    {"part_name": "head", "mask": np.eye(H, W, dtype=np.uint8)},
                    {"part_name": "torso", "mask": np.ones((H, W), np.uint8)},
                ],
            }
        ]
    }
}


def nyu_file() -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as out:
        out.create_dataset(
            "images",
            data=np.zeros((1, 3, 640, 480), np.uint8),
            compression="gzip",
            chunks=(1, 3, 640, 480),
        )
        out.create_dataset(
            "labels",
            data=np.zeros((1, 640, 480), np.uint16),
            compression="gzip",
            chunks=(1, 640, 480),
        )
    return file.getvalue()


def nyu_splits(folder: Path) -> None:
    from scipy.io import savemat

    savemat(folder / "splits.mat", {"trainNdxs": np.array([[1]]), "testNdxs": np.array([[1]])})
    savemat(folder / "classMapping40.mat", {"mapClass": np.ones((1, 894))})


def nyu_whole(folder: Path) -> None:
    nyu_splits(folder)
    (folder / "nyu_depth_v2_labeled.mat").write_bytes(nyu_file())


def nyu(folder: Path) -> None:
    plan = prepare._nyu(prepare.RawFiles(folder))
    for item in plan.splits["train"][:2]:
        item.image()
        item.mask()


# ---------------------------------------------------------------- lists, prepared folders, archives


def own_data(folder: Path) -> None:
    text(folder / "classes.txt", "a\nb\n")
    for key in ("a", "b"):
        photo(folder / f"images/{key}.png")
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((H, W), np.uint8)).save(folder / f"masks/{key}.png")


def own(folder: Path) -> None:
    dataset = readers.Own(folder, "train")
    for i in range(len(dataset)):
        dataset[i]


def prepared_data(folder: Path) -> None:
    photo(folder / "images/a.png")
    text(folder / "splits/train.txt", "a\n")
    text(folder / "SHA256SUMS", f"{'0' * 64}  images/a.png\n")
    text(folder / "manifest.json", json.dumps(MANIFEST))


MANIFEST = {
    "name": "voc",
    "classes": 21,
    "splits": {"train": 1},
    "sha256": {"train": "0" * 64},
    "raw": [],
    "statements": ["a"],
    "unexpected": {},
}


def archives(form: str):
    def content() -> list[bytes]:
        found = []
        for mode in (
            ("w", "w:gz", "w:bz2", "w:xz")
            if form == "tar"
            else (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        ):
            file = io.BytesIO()
            if form == "tar":
                with tarfile.open(fileobj=file, mode=mode) as out:
                    for name in ("a/b.txt", "a/" + "c" * 120):
                        member = tarfile.TarInfo(name)
                        member.size = 600
                        out.addfile(member, io.BytesIO(b"x" * 600))
                    link = tarfile.TarInfo("a/link")
                    link.type, link.linkname = tarfile.SYMTYPE, "b.txt"
                    out.addfile(link)
            else:
                with zipfile.ZipFile(file, "w", mode) as out:
                    out.writestr("a/b.txt", "x" * 600)
                    out.writestr("a/c.txt", "y")
            found.append(file.getvalue())
        return found

    return lambda: damaged(content())


def unpack(folder: Path) -> None:
    archive = next(path for path in folder.iterdir() if path.is_file())
    target = folder / "unpacked"
    shutil.rmtree(target, ignore_errors=True)
    prepare.unpack(archive, target)


# ---------------------------------------------------------------- recipes, records, claims, tables


def recipe(folder: Path) -> None:
    try:
        tree = json.loads((folder / "x.json").read_text())
    except (ValueError, RecursionError) as e:  # records read it, see there
        raise InputError("not JSON") from e
    found = Recipe.of(tree)
    found.hash()
    found.on("own")


def plain_recipes() -> list[dict]:
    from dataclasses import asdict

    small = [r for r in RECIPES.values() if r.model.endswith("efficientnet_lite0")][:3]
    return [json.loads(json.dumps(asdict(r))) for r in small]


def recipe_files():
    return changed(plain_recipes()).map(lambda tree: json.dumps(tree, default=str).encode())


def record_files():
    kept = records.read_all()
    kinds = {}
    for record in sorted(kept, key=lambda r: len(json.dumps(r))):
        kinds.setdefault(record["kind"], {k: v for k, v in record.items() if k != "sha256"})

    def sealed(tree):
        if isinstance(tree, dict):
            try:
                return tree | {"sha256": records.digest(tree)}
            except (TypeError, ValueError):
                return tree
        return tree

    trees = list(kinds.values())
    return json_files(trees) | changed(trees).map(sealed).map(
        lambda tree: json.dumps(tree, default=str).encode()
    )


ledger = cache(claims.load)


def record(folder: Path) -> None:
    found = records.read(folder / "x.json")
    claims.check(found)
    for claim in ledger():
        claims.judge(claim, [found])
    campaign.runs("cpu", folder, folder)
    records.differences(found, found)


def claim_files():
    tree = yaml.safe_load(claims.FILE.read_text())
    whole = claims.FILE.read_bytes()

    def dumped(tree):
        try:
            return yaml.safe_dump(tree).encode("utf-8", "surrogatepass")
        except yaml.YAMLError:
            return b""

    return damaged([whole]) | changed([tree]).map(dumped)


def table(folder: Path) -> None:
    before = paper.FOLDER
    paper.FOLDER = folder
    try:
        paper.table(3)
    finally:
        paper.FOLDER = before


def statements(folder: Path) -> None:
    before = paper.FOLDER
    paper.FOLDER = folder
    try:
        paper.statements()
    finally:
        paper.FOLDER = before


# ---------------------------------------------------------------- checkpoints


def safetensors_files():
    from safetensors.torch import save

    small = {
        "encoder.conv1.weight": torch.zeros(4, 3, 3, 3),
        "decoder.classifier.bias": torch.zeros(2),
    }
    header = {
        "model": "refinenet-lw-mobilenet_v2",
        "classes": ["a", "b"],
        "data": "voc",
        "recipe": "own",
        "seed": 0,
        "short_side": 96,
    }

    def built(tree, key="decoder.classifier.bias", kind=torch.float32, value=0.0) -> bytes:
        odd = torch.full(small[key].shape, value, dtype=torch.float64 if value == 1e300 else kind)
        return save(small | {key: odd}, {"rflw": json.dumps(tree, default=str)})

    return (
        damaged([built(header)])
        | changed([header]).map(built)
        | st.builds(
            built,
            st.just(header),
            st.sampled_from(sorted(small)),
            st.sampled_from((torch.float16, torch.bfloat16, torch.complex64)),
            st.sampled_from((0.0, 1.0, math.nan, math.inf, 1e300)),
        )
    )


class Small(nn.Module):
    """A network of two tensors, for files of any length."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.conv1, self.decoder.classifier = nn.Conv2d(3, 4, 3, bias=False), nn.Module()
        self.decoder.classifier.bias = nn.Parameter(torch.zeros(2))


def checkpoint(folder: Path) -> None:
    """Read, and its card used as commands use it."""

    def small(name: str, classes: int) -> nn.Module:
        with torch.device("meta"):
            build(name, classes)
        return Small(name)

    before, checkpoint_.build = checkpoint_.build, small
    try:
        model = checkpoint_.load(folder / "x.safetensors")
    finally:
        checkpoint_.build = before
    assert all(value.isfinite().all() for value in model.state_dict().values())
    records.write_whole(folder / f"probe-{studies.title(model)}.json", lambda partial: None)
    assert (model.card.get("short_side") or MIN_SIZE) in range(MIN_SIZE, checkpoint_.MAX_SIDE + 1)
    readers.labels_of(model.card["data"])


def theirs() -> dict:
    return {
        "segmenter": {
            "module.conv1.weight": torch.zeros(8, 3, 7, 7),
            "module.bn1.running_mean": torch.zeros(8),
            "module.clf_conv.weight": torch.zeros(2, 4, 3, 3),
            "module.layer1.0.conv1.weight": torch.zeros(8, 8, 1, 1),
        },
        "epoch": 3,
        "best": np.float64(0.5),
    }


def pth_files():
    def built(tree, zipped: bool) -> bytes:
        file = io.BytesIO()
        try:
            torch.save(tree, file, _use_new_zipfile_serialization=zipped)
        except Exception:  # what cannot be saved is no file
            return b""
        return file.getvalue()

    whole = [built(theirs(), zipped) for zipped in (True, False)]
    return (
        damaged(whole) | damaged(whole, 2) | changed([theirs()]).map(lambda tree: built(tree, True))
    )


def run_files():
    file = io.BytesIO()
    torch.save(RUN | run_state().saved(), file)
    content = file.getvalue()

    def built(tree) -> bytes:
        out = io.BytesIO()
        try:
            torch.save(tree, out)
        except Exception:
            return b""
        return out.getvalue()

    return damaged([content]) | changed([torch.load(io.BytesIO(content), weights_only=True)]).map(
        built
    )


RUN = {"identity": {"recipe": "0" * 12, "seed": 0}}


class Scaler:
    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def run_state() -> training.State:
    torch.manual_seed(0)
    model = nn.Conv2d(1, 2, 3)
    state = training.State(model, torch.optim.AdamW(model.parameters(), lr=0.1), Scaler(), None)
    go_on(state)
    state.averaged = {key: value.clone() for key, value in model.state_dict().items()}
    state.losses, state.curve = (
        [0.5],
        [{"stage": 0, "epoch": 1, "loss": 0.5, "images_per_s": 3.5, "miou": None}],
    )
    return state


def go_on(state: training.State) -> None:
    state.optimiser.zero_grad()
    state.model(torch.ones(1, 1, 3, 3)).sum().backward()
    state.optimiser.step()


def resume(folder: Path) -> None:
    """A state is read, and a step of the run made."""
    saved = training._open_run(folder, True, torch.device("cpu"))
    if saved is not None:
        state = run_state()
        if saved["identity"] != RUN["identity"]:
            return
        state.restore(saved, [4, 8])
        assert all(
            value.isfinite().all()
            for part in (state.model.state_dict(), state.averaged)
            for value in part.values()
        )
        go_on(state)
        state.average(0.9)
        assert math.isfinite(state.best + state.wall_s + sum(state.losses)) and state.step in range(
            [4, 8][state.stage] + 1
        )
        training._write_log(folder / "log.csv", state.curve)


def official(folder: Path) -> None:
    checkpoint.weights_of(folder / "x.pth")


def sitting(folder: Path) -> None:
    evaluation.Sitting(3, 2, 1, folder / "x.kept", "same")


def sitting_files():
    from safetensors.torch import save

    parts = {
        "matrices": torch.zeros(3, 2, 2, dtype=torch.int64),
        "done": torch.zeros(3, dtype=torch.bool),
        "numbers": torch.zeros(3, 1, dtype=torch.float64),
        "seconds": torch.zeros(1, dtype=torch.float64),
    }
    return damaged(
        [
            save(parts, {"evaluation": "same"}),
            save({"done": torch.zeros(1)}, {"evaluation": "same"}),
        ]
    )


TARGETS = {
    target.name: target
    for target in (
        Target("image", "x.img", pictures, lambda folder: read_image(folder / "x.img")),
        Target(
            "mask",
            "x.png",
            mask_files,
            lambda folder: read_mask(folder / "x.png", 21, size=(24, 32)),
        ),
        Target(
            "mat-sbd",
            "x.mat",
            lambda: mat_files([{"GTcls": {"Segmentation": MASK}}]),
            lambda folder: prepare._sbd_mask(folder / "x.mat"),
        ),
        Target("mat-person", "x.mat", lambda: mat_files([PERSON]), person),
        Target(
            "mat-context",
            "x.mat",
            lambda: mat_files([{"LabelMap": MASK.astype(np.uint16)}]),
            lambda folder: prepare._context_mat(folder / "x.mat"),
        ),
        Target(
            "mat-nyu", "nyu_depth_v2_labeled.mat", lambda: damaged([nyu_file()]), nyu, nyu_splits
        ),
        Target(
            "mat-splits",
            "splits.mat",
            lambda: mat_files([{"trainNdxs": np.array([[1]]), "testNdxs": np.array([[1]])}]),
            nyu,
            nyu_whole,
        ),
        Target(
            "coco",
            "instances_train2017.json",
            lambda: json_files([COCO]),
            lambda folder: all_masks(prepare._coco(prepare.RawFiles(folder))),
            coco_images,
        ),
        Target(
            "detail",
            "trainval_merged.json",
            lambda: json_files([DETAIL]),
            lambda folder: all_masks(prepare._context(prepare.RawFiles(folder))),
            voc_2010,
        ),
        Target(
            "ids",
            "x.txt",
            lambda: lines_files([b"2007_000001\n2007_000002 1\n"]),
            lambda folder: prepare._ids(folder / "x.txt"),
        ),
        Target("own-classes", "classes.txt", lambda: lines_files([b"a\nb\n"]), own, own_data),
        Target("own-split", "splits/train.txt", lambda: lines_files([b"a\nb\n"]), own, own_data),
        Target(
            "manifest",
            "manifest.json",
            lambda: json_files([MANIFEST]),
            lambda folder: readers.Prepared(folder, "voc"),
            prepared_data,
        ),
        Target(
            "sums",
            "SHA256SUMS",
            lambda: lines_files([b"0" * 64 + b"  images/a.png\n"]),
            lambda folder: readers.Prepared(folder, "voc"),
            prepared_data,
        ),
        Target("tar", "x.tar", archives("tar"), unpack),
        Target("zip", "x.zip", archives("zip"), unpack),
        Target("recipe", "x.json", recipe_files, recipe),
        Target(
            "record",
            "x.json",
            record_files,
            record,
            lambda folder: campaign.runs("cpu", folder, folder),
        ),  # counts work once
        Target("claims", "x.yaml", claim_files, lambda folder: claims.load(folder / "x.yaml")),
        Target(
            "table",
            "table3.csv",
            lambda: damaged([(paper.FOLDER / "table3.csv").read_bytes()]),
            table,
        ),
        Target(
            "text",
            "text.csv",
            lambda: damaged([(paper.FOLDER / "text.csv").read_bytes()]),
            statements,
        ),
        Target("checkpoint", "x.safetensors", safetensors_files, checkpoint),
        Target("official", "x.pth", pth_files, official),
        Target("run", "last.pt", run_files, resume),
        Target("evaluation", "x.kept", sitting_files, sitting),
    )
}

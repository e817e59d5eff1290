"""The contract: what other people's scripts, records and checkpoints rely on, as it was when it was
frozen. Only the public face is used: the command `rflw`, `import rflw`, and files.

`tests/contract/*.json` were written by

    python -m tests.contract [PART ...]

and are to be written anew only where the contract is meant to change.
"""

from contextlib import redirect_stderr, redirect_stdout
import hashlib
from importlib.metadata import entry_points
import io
import json
import os
from pathlib import Path
import shlex
import sys
from unittest.mock import patch

import numpy as np
from PIL import Image
from safetensors import safe_open
import torch
import typer

import rflw as package
from rflw.config import Recipe  # the only inner name: it is to become `rflw.Recipe`

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RECORDS = ROOT / "data" / "results"
CHECKPOINTS = ROOT / "data" / "checkpoints"


def rflw(*words) -> tuple[int, str, str]:
    """Run the command line in this process -> exit code, stdout, stderr."""
    (entry,) = entry_points(group="console_scripts", name="rflw")
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with (
        patch.object(sys, "argv", ["rflw", *map(str, words)]),
        patch.object(os, "_exit", sys.exit),  # a command may end its process, but not this one
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = entry.load()()
        except SystemExit as end:
            code = end.code
    out.flush()
    return code or 0, out.buffer.getvalue().decode(), err.getvalue()


def parsed(*words):
    """Parse a command line, executing nothing -> the context of its last command."""
    contexts = []
    with patch.object(
        typer.core.TyperCommand, "invoke", lambda _, context: contexts.append(context)
    ):
        code, _, err = rflw(*words)
    assert contexts, f"rflw {shlex.join(map(str, words))}: exit code {code}, {err}"
    return contexts[0]


# ------------------------------------------------------------ commands and names


def commands() -> dict[str, dict]:
    """{command: {"arguments": in order, "options": sorted, all spellings}}"""
    context = parsed("models").find_root()
    tree, left = {}, [("", context.command)]
    for name, command in left:
        if hasattr(command, "list_commands"):
            names = command.list_commands(context)
            left += [(f"{name} {n}".strip(), command.get_command(context, n)) for n in names]
            continue
        given = [p for p in command.params if p.param_type_name == "option"]
        tree[name] = {
            "arguments": [p.name for p in command.params if p.param_type_name == "argument"],
            "options": sorted(s for p in given for s in (*p.opts, *p.secondary_opts)),
        }
    return dict(sorted(tree.items()))


def public_names() -> list[str]:
    return sorted(package.__all__)


# ------------------------------------------------------------ recipes


def records() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]


def shipped_recipes() -> dict[str, str]:
    """{name: hash} of what `rflw recipes` lists, but for the recipes that are about to change."""
    rows = json.loads(rflw("recipes", "--json")[1])
    return {row["name"]: Recipe.of(row).hash() for row in rows if row["name"] not in CHANGING}


CHANGING = ("camvid-tune-adamw", "camvid-tune-batch-adamw", "camvid-long-lw-efficientnet_lite2")


def recorded_recipes() -> list[list]:
    """[hash, settings] of every recipe that a record holds, each once. Settings that are frozen
    here keep their hash even when a record is replaced."""
    configs = [record["config"] for record in records() if record["config_hash"]]
    return [
        [Recipe.of(config).hash(), config]
        for i, config in enumerate(configs)
        if config not in configs[:i]
    ]


# ------------------------------------------------------------ networks and checkpoints


def layout(shapes: dict) -> dict:
    """How many tensors there are, and a hash over names and shapes."""
    rows = [[key, list(shape)] for key, shape in sorted(shapes.items())]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {"tensors": len(rows), "sha256": digest[:16]}


def network(name: str) -> dict:
    """Layout of a network with 21 classes."""
    with torch.device("meta"):
        model = package.build(name, 21)
    return layout({key: value.shape for key, value in model.state_dict().items()})


def checkpoint(name: str) -> dict:
    """Layout and metadata keys of a shipped file."""
    with safe_open(CHECKPOINTS / f"{name}.safetensors", "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
        return layout(shapes) | {"metadata": sorted(file.metadata())}


def networks() -> dict:
    names = package.list_models(ablations=True)
    return {
        "networks": {name: network(name) for name in names},
        "checkpoints": {name: checkpoint(name) for name in ("camvid", "embedded")},
    }


# ------------------------------------------------------------ inputs


CLASSES = ("ground", "disc", "bar", "beacon", "red twin", "blue twin")


def scene(shift: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene like those of the synthetic set -> image (96, 128, 3) and mask (96, 128), uint8."""
    y, x = np.mgrid[:96, :128]
    x = x - shift
    image = np.full((96, 128, 3), (96, 104, 88))
    mask = np.zeros((96, 128), np.uint8)
    stripes = 16 * ((x + y) // 3 % 2)[..., None]
    for index, colour, inside in (
        (1, (152, 152, 84), (y - 26) ** 2 + (x - 26) ** 2 <= 15**2),
        (2, (56, 60, 52), (abs(y - 76) <= 4) & (abs(x - 86) <= 26)),
        (4, np.array((136, 132, 140)) + stripes, abs(y - 66) + abs(x - 30) <= 16),
        (3, (216, 48, 40), (abs(y - 22) <= 11) & (abs(x - 98) <= 11)),
    ):
        image[inside] = np.broadcast_to(colour, image.shape)[inside]
        mask[inside] = index
    image = image + np.random.RandomState(shift).randint(-18, 19, image.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def make_inputs(folder: Path) -> None:
    """own/: ten photos with masks; raw/: two photos in the layout of VOC 2012; damaged files."""
    voc = folder / "raw" / "VOCdevkit" / "VOC2012"
    parts = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    for path in (folder / "own/images", folder / "own/masks", *(voc / part for part in parts)):
        path.mkdir(parents=True)
    for i in range(10):
        image, mask = scene(i)
        Image.fromarray(image).save(folder / f"own/images/{i}.png")
        Image.fromarray(mask).save(folder / f"own/masks/{i}.png")
    (folder / "own/classes.txt").write_text("\n".join(CLASSES))
    palette = [value for i in range(256) for value in voc_colour(i)]
    for i, split in enumerate(("train", "val")):
        image, mask = scene(i)
        Image.fromarray(image).save(voc / f"JPEGImages/{i}.jpg")
        picture = Image.fromarray(mask)
        picture.putpalette(palette)
        picture.save(voc / f"SegmentationClass/{i}.png")
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text(f"{i}\n")
    (folder / "empty").mkdir()
    for name in ("text.jpg", "text.mp4", "text.safetensors", "record.json"):
        (folder / name).write_text("hello")
    (folder / "damaged.safetensors").write_bytes(
        (CHECKPOINTS / "embedded.safetensors").read_bytes()[:9999]
    )
    Image.fromarray(scene(0)[0][:8, :8]).save(folder / "tiny.png")


def voc_colour(index: int) -> list[int]:
    """Colour of a class of PASCAL VOC: bits of the index, spread over the channels."""
    return [
        sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3)
    ]


# ------------------------------------------------------------ what commands print


# {what: (kind, command)}. Kinds: "numbers" are compared within a tolerance, "rough" ones within ten
# times that (intervals over two images); of "form" only keys and types count; "rows" may become
# more and get more keys.
ON_OWN = "embedded --data {tmp}/own --split val --device cpu --json"
ANSWERS = {
    "complexity": ("numbers", "complexity refinenet-lw-mobilenet_v2 --size 65 97 --json"),
    "train-dry-run": ("numbers", "train paper-voc-lw-mobilenet_v2 --dry-run --json"),
    "data-check": ("numbers", "data check embedded --json"),
    "eval": ("numbers", "eval embedded --precision fp32 --device cpu --json"),
    "eval-scales-flip": ("numbers", f"eval {ON_OWN} --scales 0.5 1 --flip --precision fp32"),
    "saturation": ("rough", f"saturation {ON_OWN} --images 2"),
    "pictures": ("rough", f"pictures {ON_OWN} -o {{tmp}}/worst.png --number 1"),
    "erf": ("rough", f"erf {ON_OWN} --layer decoder.stages.0.crp --images 2 --units 2 --top 2"),
    "erf-activation": ("form", f"erf {ON_OWN} --method activation --images 2"),
    "probe": ("form", f"probe {ON_OWN} --images 8 --head linear --seeds 1"),
    "train": (
        "form",
        "train own --data {tmp}/own --init embedded --epochs 1 --out {tmp}/run --json",
    ),
    "export": ("form", "export embedded --format torch-export -o {tmp}/network.pt2 --json"),
    "bench-network": (
        "form",
        "bench network refinenet-lw-mobilenet_v2 --modes eager-fp32 fold-fp32 --size 33 33 "
        "--passes 2 --device cpu --json",
    ),
    "data-check-own": ("form", "data check {tmp}/own --json"),
    "data-prepare": (
        "form",
        "data prepare voc --raw {tmp}/raw --out {tmp}/root --workers 0 --json",
    ),
    "data-list": ("rows", "data list --root {tmp}/empty --json"),
    "recipes": ("rows", "recipes --json"),
    "records": ("rows", "records --json"),
    "claims": ("rows", "claims --json"),
    "campaign-list": ("rows", "campaign list --json"),
    "campaign-status": ("rows", "campaign status --json"),
}
# what these hold is not frozen
OPEN = ("config", "metrics", "versions", "hardware", "data", "files")


def answer(words: str, folder: Path):
    """What a command prints as JSON; `{tmp}` in its words is a folder of `make_inputs`."""
    code, out, err = rflw(*shlex.split(words.format(tmp=folder)))
    assert code in (0, 1), err
    return json.loads(out.replace(str(folder), "{tmp}"))


def form(value, path: str = "") -> dict[str, list[str]]:
    """{path: the types that are found there}, such as {"[].miou": ["null", "number"]}."""
    kind = kind_of(value)
    found = {path: {kind}}
    if kind == "object" and path.rpartition(".")[2] not in OPEN:
        parts = [form(part, f"{path}.{key}") for key, part in value.items()]
    else:
        parts = [form(part, f"{path}[]") for part in value] if kind == "list" else []
    for part in parts:
        for key, kinds in part.items():
            found.setdefault(key, set()).update(kinds)
    return {key: sorted(kinds) for key, kinds in found.items()}


def kind_of(value) -> str:
    kinds = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "text"}
    return kinds.get(type(value)) or {dict: "object", list: "list"}[type(value)]


def answers(folder: Path, only=()) -> dict:
    """{what: its numbers or its form}"""
    chosen = {what: case for what, case in ANSWERS.items() if not only or what in only}
    found = {what: (kind, answer(words, folder)) for what, (kind, words) in chosen.items()}
    return {
        what: value if kind in ("numbers", "rough") else form(value)
        for what, (kind, value) in found.items()
    }


def prediction(folder: Path) -> np.ndarray:
    """What `rflw predict` makes of a scene: the index mask."""
    photo, out = folder / "own/images/0.png", folder / "out"
    options = ("--precision", "fp32", "--device", "cpu", "-o", out)
    code, _, err = rflw("predict", photo, "--checkpoint", "embedded", *options)
    assert code == 0, err
    with Image.open(out / "0_mask.png") as picture:
        return np.array(picture)


def runs_of(mask: np.ndarray) -> list[list[int]]:
    """[class, how many pixels in a row] over a mask, read line by line."""
    flat = mask.ravel().astype(int)
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    return np.c_[flat[starts], np.diff(np.r_[starts, len(flat)])].tolist()

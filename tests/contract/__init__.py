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
from pathlib import Path
import shlex
import sys
from unittest.mock import patch

from PIL import Image
from safetensors import safe_open
import torch
import typer

import rflw as package
from rflw.data.labels import LABELS
from rflw.data.synthetic import scene

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RECORDS = ROOT / "data" / "results"
CHECKPOINTS = ROOT / "data" / "checkpoints"


def rflw(words: str) -> tuple[int, str, str]:
    """Run the command line in this process -> exit code, stdout, stderr."""
    (entry,) = entry_points(group="console_scripts", name="rflw")
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with (
        patch.object(sys, "argv", ["rflw", *shlex.split(words)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = entry.load()()
        except SystemExit as end:
            code = end.code
    out.flush()
    return code or 0, out.buffer.getvalue().decode(), err.getvalue()


def parsed(words: str):
    """Parse a command line, executing nothing -> the context of its last command."""
    contexts = []
    take = lambda _, context: contexts.append(context)
    with patch.object(typer.core.TyperCommand, "invoke", take):
        code, _, err = rflw(words)
    assert contexts, f"rflw {words}: exit code {code}, {err}"
    return contexts[0]


# ------------------------------------------------------------ commands, recipes and networks


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


def records() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]


def shipped_recipes() -> dict[str, str]:
    """{name: hash} of what `rflw recipes` lists, but for the recipes that are about to change."""
    rows = json.loads(rflw("recipes --json")[1])
    return {r["name"]: package.Recipe.of(r).hash() for r in rows if r["name"] not in CHANGING}


CHANGING = ("camvid-tune-adamw", "camvid-tune-batch-adamw", "camvid-long-lw-efficientnet_lite2")


def recorded_recipes() -> list[list]:
    """[hash, settings] of every recipe that a record holds, each once. Settings that are frozen
    here keep their hash even when a record is replaced."""
    configs = []
    for record in records():
        if record["config_hash"] and record["config"] not in configs:
            configs.append(record["config"])
    return [[package.Recipe.of(config).hash(), config] for config in configs]


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


# ------------------------------------------------------------ what commands print


def make_inputs(folder: Path) -> None:
    """own/: ten photos with masks; raw/: two photos in the layout of VOC 2012; empty/, and files
    that are damaged or of another kind."""
    voc = folder / "raw/VOCdevkit/VOC2012"
    parts = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    for path in (folder / "own/images", folder / "own/masks", *(voc / part for part in parts)):
        path.mkdir(parents=True)
    for i in range(10):  # every fifth is for validation: all classes are in these two
        for part, pixels in zip(("images", "masks"), scene("val", i + 2)):
            Image.fromarray(pixels).save(folder / f"own/{part}/{i}.png")
    (folder / "own/classes.txt").write_text("\n".join(LABELS["embedded"].classes))
    for i, split in enumerate(("train", "val")):
        image, mask = map(Image.fromarray, scene("val", i))
        image.save(voc / f"JPEGImages/{i}.jpg")
        mask.putpalette(LABELS["voc"].palette())
        mask.save(voc / f"SegmentationClass/{i}.png")
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text(f"{i}\n")
    (folder / "empty").mkdir()
    for name in ("text.jpg", "text.mp4", "record.json"):
        (folder / name).write_text("hello")
    whole = (CHECKPOINTS / "embedded.safetensors").read_bytes()
    (folder / "damaged.safetensors").write_bytes(whole[:9999])
    Image.new("RGB", (8, 8)).save(folder / "tiny.png")


# {what: (kind, command)}. Kinds: "numbers" are compared within a tolerance, "rough" ones within ten
# times that (intervals over two images); of "form" only keys and types count; "rows" may become
# more and get more keys.
ON_OWN = "embedded --data {tmp}/own --split val --device cpu --json"
TWO = "--images 2"
TIMED = "refinenet-lw-mobilenet_v2 --modes eager-fp32 fold-fp32 --size 33 33 --passes 2"
ANSWERS = {
    "complexity": ("numbers", "complexity refinenet-lw-mobilenet_v2 --size 65 97 --json"),
    "train-dry-run": ("numbers", "train paper-voc-lw-mobilenet_v2 --dry-run --json"),
    "eval": ("numbers", f"eval {ON_OWN} --precision fp32"),
    "eval-scales-flip": ("numbers", f"eval {ON_OWN} --scales 0.5 1 --flip --precision fp32"),
    "saturation": ("rough", f"saturation {ON_OWN} {TWO}"),
    "pictures": ("rough", f"pictures {ON_OWN} -o {{tmp}}/worst.png --number 1"),
    "erf": ("rough", f"erf {ON_OWN} --layer decoder.stages.0.crp {TWO} --units 2 --top 2"),
    "probe": ("form", f"probe {ON_OWN} --images 8 --head linear --seeds 1"),
    "train": (
        "form",
        "train own --data {tmp}/own --init embedded --epochs 1 --out {tmp}/run --json",
    ),
    "export": ("form", "export embedded --format torch-export -o {tmp}/network.pt2 --json"),
    "bench-network": ("form", f"bench network {TIMED} --device cpu --json"),
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


def answer(what: str, folder: Path):
    """What a command prints as JSON, or its form; `{tmp}` is a folder of `make_inputs`."""
    kind, words = ANSWERS[what]
    code, out, err = rflw(words.format(tmp=folder))
    assert code in (0, 1), err
    value = json.loads(out.replace(str(folder), "{tmp}"))
    return value if kind in ("numbers", "rough") else form(value)


def form(value, path: str = "") -> dict[str, list[str]]:
    """{path: the types that are found there}, such as {"[].miou": ["null", "number"]}."""
    kinds = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "text"}
    kind = kinds.get(type(value)) or {dict: "object", list: "list"}[type(value)]
    found = {path: {kind}}
    if kind == "object" and path.rpartition(".")[2] not in OPEN:
        parts = [form(part, f"{path}.{key}") for key, part in value.items()]
    else:
        parts = [form(part, f"{path}[]") for part in value] if kind == "list" else []
    for part in parts:
        for key, kinds in part.items():
            found.setdefault(key, set()).update(kinds)
    return {key: sorted(kinds) for key, kinds in found.items()}

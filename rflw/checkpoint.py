"""Checkpoints, ours and the authors'."""

from collections.abc import Callable
from functools import cache
import json
from pathlib import Path
from typing import Annotated

import torch

from rflw import records
from rflw.errors import InputError, about, reading
from rflw.nn import official
from rflw.nn.refinenet import MAX_CLASSES, RefineNet, build

SHIPPED = records.REPOSITORY / "data" / "checkpoints"


@cache
def _card_of() -> Callable[[str], dict]:
    """What reads a checkpoint's header, and refuses what it must not say; it may say more."""
    try:
        from pydantic import Field, create_model
    except ModuleNotFoundError:  # a bare GPU machine
        return json.loads
    card = create_model(
        "Card",
        __config__={"strict": True, "extra": "allow"},
        model=str,
        classes=Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES)],
        data=str,
        short_side=(int | None, None),
    )
    return lambda text: card.model_validate_json(text).model_dump(exclude_unset=True)


def save(
    model: RefineNet, path: str | Path, card: dict, dtype: torch.dtype = torch.float16
) -> None:
    """Write a network's weights as safetensors, whole or not at all.

    Args:
        model: the network.
        path: the file.
        card: what the header says beside the model's name; must have `classes` and `data`.
        dtype: of the weights; a tensor that it cannot hold without infinities keeps its own.

    Raises:
        InputError: if the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {}
    for key, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        small = tensor.to(dtype) if tensor.is_floating_point() else tensor
        tensors[key] = (small if small.isfinite().all() else tensor).contiguous()

    def write(partial: str) -> None:
        try:
            header = json.dumps({"model": model.name, **card})
            save_file(tensors, partial, metadata={"rflw": header})
        except SafetensorError as e:
            raise OSError(str(e)) from e  # a full disk

    records.write_whole(Path(path), write)


def checkpoint_file(path: str | Path) -> Path:
    """The file of a checkpoint, which may be given by the name of a shipped one."""
    shipped = SHIPPED / f"{path}.safetensors"
    return shipped if shipped.exists() else Path(path)


def load(path: str | Path) -> RefineNet:
    """A network from a checkpoint of ours.

    Args:
        path: a safetensors file, or the name of a shipped checkpoint, e.g. "camvid".

    Returns:
        The network in evaluation mode, on the CPU; its `card` is what `save` was given.

    Raises:
        InputError: that names a file that is missing, damaged or foreign, and the first key at
            fault.
    """
    with reading(path):
        file = checkpoint_file(path)
        if not file.exists():
            shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors")))
            raise InputError(f"{path}: no such checkpoint; choose from: {shipped}, or a file")
    state, header = official.load_safetensors(file)
    if "rflw" not in header:
        raise InputError(f"{file}: not a checkpoint of rflw: its header names no model")
    with reading(file), about(file):
        card = _card_of()(header["rflw"])
        model = build(card["model"], len(card["classes"]))
        official.load_into(model, state)
    model.card = card
    return model.eval().to(memory_format=torch.channels_last)


def load_official(path: str | Path, num_classes: int | None = None) -> RefineNet:
    """A network from a checkpoint of the authors; nothing pickled in the file is executed.

    Recognises RefineNet-LW-50/101/152, RefineNet-LW-MobileNet-v2 and RefineNet-50/101/152 by their
    keys. A state dict may be bare or under a usual name (`segmenter`, `state_dict`, ...), with or
    without `module.` prefixes.

    Args:
        path: the file.
        num_classes: K that its classifier must have; None: any.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        InputError: that names the file and the first key at fault.
    """
    loaded = official.load_tensors(path, "cpu")
    with about(path):
        name, classes, state, modules = official.recognise(official.unwrap(loaded))
        model = build(name, num_classes or classes)
        official.load_into(model, state, modules)
    return model.eval()


def title(model: RefineNet) -> str:
    """The run of a trained network, "RECIPE-sSEED", or its name where its card has no recipe."""
    if {"recipe", "seed"} <= model.card.keys():
        return f"{model.card['recipe']}-s{model.card['seed']}"
    return model.name


def load_any(path: str | Path) -> RefineNet:
    """A network from a checkpoint, ours by file or name or the authors', which has no `card`."""
    theirs = Path(path).suffix.lower() in (".pth", ".tar", ".pt", ".ckpt", ".bin")
    return load_official(path) if theirs else load(path)

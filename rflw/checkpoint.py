"""Checkpoints, ours and the authors'."""

from collections.abc import Callable
from functools import cache
import json
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from rflw import records
from rflw.errors import InputError, reading
from rflw.nn import official
from rflw.nn.refinenet import MAX_CLASSES, MIN_SIZE, RefineNet, build

SHIPPED = records.REPOSITORY / "data" / "checkpoints"
MAX_SIDE = 4096  # pixels that a checkpoint may ask for; a user may ask for more


@cache
def _card_of() -> Callable[[str], dict]:
    """What reads a checkpoint's header, and refuses what it must not say; it may say more."""
    try:
        from pydantic import Field, create_model
    except ModuleNotFoundError:  # a bare GPU machine
        return json.loads
    short_side = Literal[0] | Annotated[int, Field(ge=MIN_SIZE, le=MAX_SIDE)] | None
    card = create_model(
        "Card",
        __config__={"strict": True, "extra": "allow"},
        model=str,
        classes=Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES)],
        data=str,
        short_side=(short_side, None),
        recipe=(Annotated[str, Field(pattern=r"^[^/\p{C}]*$")], ""),  # files are named after it
        seed=(int, 0),
    )
    return lambda text: card.model_validate_json(text).model_dump(exclude_unset=True)


# ---------------------------------------------------------------- ours


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
    with reading(file):
        card = _card_of()(header["rflw"])
    try:
        model = without_memory(card["model"], len(card["classes"]))
        fault = official.first_fault(state, model.state_dict())
        fault = fault or official.first_not_numbers(state)
        if fault:
            raise InputError(fault)
    except InputError as e:
        raise InputError(f"{file}: {e}") from e
    model = with_weights(model, state)
    model.card = card
    return model.to(memory_format=torch.channels_last)


def without_memory(name: str, num_classes: int) -> RefineNet:
    """A network whose tensors have shapes only: a small file may name a network of gigabytes."""
    with torch.device("meta"):
        return build(name, num_classes)


def with_weights(model: RefineNet, state: dict[str, Tensor]) -> RefineNet:
    """The network of `without_memory`, in evaluation mode, with tensors that fit.

    Counters of batches may be missing.
    """
    if "-timm:" in model.name:  # some hold tensors that are in no state dict
        model = build(model.name, model.num_classes)
    ours = model.state_dict()
    counters = {k: torch.zeros_like(old, device="cpu") for k, old in ours.items() if k not in state}
    weights = {k: tensor.to(ours[k].dtype).contiguous() for k, tensor in (state | counters).items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


# ---------------------------------------------------------------- the authors'


def load_official(path: str | Path, num_classes: int) -> RefineNet:
    """A network from a checkpoint of the authors; nothing pickled in the file is executed.

    Recognises RefineNet-LW-50/101/152, RefineNet-LW-MobileNet-v2 and RefineNet-50/101/152 by their
    keys. A state dict may be bare or under a usual name (`segmenter`, `state_dict`, ...), with or
    without `module.` prefixes.

    Args:
        path: the file.
        num_classes: K of its classifier.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        InputError: that names the file and the first key at fault.
    """
    return with_weights(*read_official(path, num_classes))


def read_official(path: str | Path, num_classes: int | None = None) -> tuple[RefineNet, dict]:
    """The network of a checkpoint of the authors, without memory, and its tensors under our keys.

    `num_classes` None: as many as the file has.
    """
    loaded = official.load_tensors(path, "cpu")
    try:
        name, classes, state, modules = official.recognise(official.unwrap(loaded))
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    num_classes = num_classes or classes
    model = without_memory(name, num_classes)
    fault = official.first_fault(state, model.state_dict(), modules)
    fault = fault or official.first_not_numbers(
        {official.to_theirs(key, modules): value for key, value in state.items()}
    )
    if fault:
        asked = "" if classes == num_classes else f" of {classes} classes, {num_classes} asked for"
        raise InputError(f"{path}: {fault} (as a {name}{asked})")
    return model, state


def weights_of(path: str | Path) -> tuple[str, dict, tuple[str, ...] | None]:
    """A checkpoint, ours by file or name or the authors', to begin a training with.

    Returns:
        Model name, tensors under our keys, and class names; None for the authors', whose files have
        none.

    Raises:
        InputError: for a file that is neither.
    """
    if Path(path).suffix in (".pth", ".tar", ".pt", ".ckpt"):
        model, state = read_official(path)
        return model.name, state, None
    model = load(path)
    return model.name, model.state_dict(), tuple(model.card["classes"])

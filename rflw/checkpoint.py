"""Checkpoints, ours and the authors'."""

import json
from pathlib import Path

import numpy as np
import torch

from rflw import records
from rflw.errors import InputError, no_pipe
from rflw.nn import official
from rflw.nn.official import load_tensors
from rflw.nn.refinenet import MIN_SIZE, RefineNet, build
from rflw.records import write_whole

SHIPPED = records.REPOSITORY / "data" / "checkpoints"
MAX_SIDE = 4096  # pixels that a checkpoint may ask for; a user may ask for more


def load_official(path: str | Path, num_classes: int) -> RefineNet:
    """A checkpoint of the authors -> the network in evaluation mode, on the CPU.

    Recognises RefineNet-LW-50/101/152, RefineNet-LW-MobileNet-v2 and RefineNet-50/101/152 by their keys; a state dict
    may be bare or under `segmenter`, with or without `module.` prefixes. Nothing pickled in the file is executed.
    Raises InputError that names the file and the first key at fault.
    """
    name, classes, renamed, modules = _read_official(path)
    model = build(name, num_classes)
    fault = official.first_fault(renamed, model.state_dict(), modules)
    if fault:
        about = (
            f"a {name} of {classes} classes, {num_classes} asked for"
            if classes != num_classes
            else f"as a {name}"
        )
        raise InputError(f"{path}: {fault} ({about})")
    model.load_state_dict(renamed, strict=False)  # only counters of batches can be missing
    return model.eval()


def _read_official(path: str | Path) -> tuple[str, int, dict, dict]:
    """What `recognise` makes of a checkpoint file of the authors."""
    try:
        with torch.serialization.safe_globals(_numbers()):
            loaded = load_tensors(path, "cpu")
    except FileNotFoundError as e:
        raise InputError(f"{path}: no such file") from e
    except InputError:
        raise
    except (
        Exception
    ) as e:  # torch raises many types for files that are cut off, foreign or hold code
        raise InputError(f"{path}: {official.unreadable(path, e)}") from e
    try:
        return official.recognise(official.unwrap(loaded))
    except InputError as e:
        raise InputError(f"{path}: {e}") from e


def weights_of(path: str | Path) -> tuple[str, dict, tuple[str, ...] | None]:
    """A checkpoint, ours by file or name or the authors', to begin a training with -> (model name, tensors under our keys, class
    names; None for the authors', whose files have none). Raises InputError for a file that is neither."""
    if Path(path).suffix in (".pth", ".tar", ".pt", ".ckpt"):
        name, classes, renamed, modules = _read_official(path)
        with torch.device("meta"):  # a classifier of many classes may have no weights
            fault = official.first_fault(renamed, build(name, classes).state_dict(), modules)
        if fault:
            raise InputError(f"{path}: {fault} (as a {name})")
        return name, renamed, None
    model = load(path)
    return model.name, model.state_dict(), tuple(model.card["classes"])


def _numbers() -> list:
    """What NumPy's numbers are unpickled with: the authors' script keeps its best score as one, beside the weights."""
    scalar, dtype = np.float64(0).__reduce__()[0], type(np.dtype("float64"))
    return [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        dtype,
    ]


def save(
    model: RefineNet, path: str | Path, card: dict, dtype: torch.dtype = torch.float16
) -> None:
    """Weights as safetensors, with `card` (must have `classes`, `data`) and the model's name in the header; atomic.

    A tensor that `dtype` cannot hold without infinities keeps its own.
    """
    tensors = {}
    for key, tensor in model.state_dict().items():
        small = (
            tensor.detach().to("cpu", dtype)
            if tensor.is_floating_point()
            else tensor.detach().cpu()
        )
        tensors[key] = (small if small.isfinite().all() else tensor.detach().cpu()).contiguous()
    _write_tensors(Path(path), tensors, {"rflw": json.dumps({"model": model.name, **card})})


def _write_tensors(path: Path, tensors: dict, header: dict) -> None:
    """As safetensors, atomic. Raises InputError if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(partial: str) -> None:
        try:
            save_file(tensors, partial, metadata=header)
        except SafetensorError as e:
            raise OSError(str(e)) from e  # a full disk

    write_whole(path, write)


def checkpoint_file(path: str | Path) -> Path:
    """The file of a checkpoint that may be given by the name of a shipped one."""
    shipped = SHIPPED / f"{path}.safetensors"
    return shipped if shipped.exists() else Path(path)


def load(path: str | Path) -> RefineNet:
    """A checkpoint of ours, or the name of a shipped one ("camvid") -> the network in evaluation mode, on the CPU.

    Its `card` attribute is what `save` was given. Raises InputError for a file that is missing, cut off or foreign.
    """
    from safetensors import SafetensorError, safe_open

    file = checkpoint_file(path)
    no_pipe(file)
    if file.is_dir():
        raise InputError(f"{file}: a folder, not a checkpoint")
    try:
        with safe_open(file, "pt") as tensors:
            header = (tensors.metadata() or {}).get("rflw")
            if header is None:
                raise InputError(f"{file}: not a checkpoint of rflw: its header names no model")
            state = {key: tensors.get_tensor(key) for key in tensors.keys()}
    except FileNotFoundError as e:
        shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors"))) or "none"
        raise InputError(f"{path}: no such checkpoint; shipped ones: {shipped}") from e
    except (SafetensorError, OSError) as e:
        raise InputError(f"{file}: not a whole safetensors file ({e})") from e
    try:
        card = _card(json.loads(header))
        if (
            "timm:" in card["model"] or len(card["classes"]) > 256
        ):  # a small file may name a network of gigabytes
            with torch.device("meta"):
                fault = official.first_fault(
                    state, build(card["model"], len(card["classes"])).state_dict()
                )
            if fault:
                raise InputError(f"{file}: {fault}")
        model = build(card["model"], len(card["classes"]))
    except InputError as e:
        raise (
            e
            if str(e).startswith(f"{file}: ")
            else InputError(f"{file}: its header describes no model ({e})")
        ) from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise InputError(f"{file}: its header describes no model ({e})") from e
    fault = official.first_fault(state, model.state_dict()) or official.first_not_numbers(state)
    if fault:
        raise InputError(f"{file}: {fault}")
    model.load_state_dict(state)
    model.card = card
    return model.eval().to(memory_format=torch.channels_last)


def _card(card) -> dict:
    """The card in a header, of which no entry that is used is of another type. Raises TypeError or KeyError."""
    side, recipe = card.get("short_side"), card.get("recipe", "")
    if not (
        isinstance(card["model"], str)
        and isinstance(card["classes"], list)
        and all(isinstance(c, str) for c in card["classes"])
    ):
        raise TypeError("its model is a name, its classes a list of names")
    if not isinstance(card["data"], str):
        raise TypeError("its data are a name")
    if not (side is None or type(side) is int and (side == 0 or MIN_SIZE <= side <= MAX_SIDE)):
        raise TypeError(f"its short_side is none, 0, or {MIN_SIZE} to {MAX_SIDE} pixels")
    named = (
        isinstance(recipe, str)
        and recipe.isprintable()
        and "/" not in recipe
        and type(card.get("seed", 0)) is int
    )
    if not named:  # files of records are named after them
        raise TypeError("its recipe is a name, its seed a whole number")
    return card

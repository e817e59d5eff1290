"""Keys of the authors' published checkpoints, mapped to ours; files of tensors run no code."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
import re

import numpy as np
import torch
from torch import Tensor, nn

from rflw.errors import InputError, reading


def _resnet_modules() -> dict[str, str]:
    """The authors' name of every decoder module of their ResNet networks -> ours.

    Their 1 is the coarsest level, our 0.
    """
    names = {"clf_conv": "decoder.classifier"}
    for n in range(1, 5):
        stage = f"decoder.stages.{n - 1}"
        names[f"p_ims1d2_outl{n}_dimred"] = f"{stage}.reduce.0"
        names[f"adapt_stage{n}_b2_joint_varout_dimred"] = f"{stage}.adapt"
        names[f"mflow_conv_g{n}_b3_joint_varout_dimred"] = f"{stage}.fuse"
        for i in range(1, 5):
            names[f"mflow_conv_g{n}_pool.0.{i}_outvar_dimred"] = f"{stage}.crp.convs.{i - 1}"
        for theirs, ours, blocks in (("adapt_stage", "rcu_in", 2), ("mflow_conv_g", "rcu_out", 3)):
            for i in range(1, blocks + 1):
                unit = f"{theirs}{n}_b.0.{i}_conv"
                names[unit] = f"{stage}.{ours}.{i - 1}.conv1"
                names[f"{unit}_relu_varout_dimred"] = f"{stage}.{ours}.{i - 1}.conv2"
    return names


def _mobile_modules() -> dict[str, str]:
    """The same for all modules of their MobileNet-v2 network.

    Their layer n is our stage n - 2; their crp4, conv_adapt4 and conv7 with conv8 belong to the
    coarsest level.
    """
    names = {"layer1.0": "encoder.stem.conv", "layer1.1": "encoder.stem.bn"}
    names["segm"] = "decoder.classifier"
    for layer, blocks in zip(range(2, 9), (1, 2, 3, 4, 3, 3, 1)):
        for i in range(blocks):
            for part, step in enumerate(("expand", "depthwise", "project")):
                for leaf, kind in enumerate(("conv", "bn")):
                    ours = f"encoder.stages.{layer - 2}.{i}.{step}.{kind}"
                    names[f"layer{layer}.{i}.output.{part}.{leaf}"] = ours
    for layer, (stage, tap) in enumerate(((3, 0), (2, 0), (1, 0), (1, 1), (0, 0), (0, 1)), start=3):
        names[f"conv{layer}"] = f"decoder.stages.{stage}.reduce.{tap}"
    for n in range(1, 5):
        if n > 1:
            names[f"conv_adapt{n}"] = f"decoder.stages.{4 - n}.fuse"
        for i in range(1, 5):
            names[f"crp{n}.0.{i}_outvar_dimred"] = f"decoder.stages.{4 - n}.crp.convs.{i - 1}"
    return names


RESNET, MOBILE = _resnet_modules(), _mobile_modules()
RESNETS = {(4, 6): 50, (4, 23): 101, (8, 36): 152}  # blocks in layers 2 and 3


def to_ours(key: str, modules: dict[str, str]) -> str | None:
    """Our name of their tensor, or None if no published network has it.

    ResNet encoders are named alike.
    """
    module, _, leaf = key.rpartition(".")
    if modules is RESNET and re.match(r"(conv1|bn1|layer[1-4]\.\d+\..+)$", module):
        return f"encoder.{key}"
    return f"{modules[module]}.{leaf}" if module in modules else None


def to_theirs(key: str, modules: dict[str, str] | None) -> str:
    """The authors' name of a tensor of ours; our own name without a map."""
    module, _, leaf = key.rpartition(".")
    if modules is None:
        return key
    theirs = next((theirs for theirs, ours in modules.items() if ours == module), None)
    return f"{theirs}.{leaf}" if theirs else key.removeprefix("encoder.")


# ---------------------------------------------------------------- files

# The authors' script keeps its best score, a number of NumPy's, beside the weights; the module has
# two names.
SCALAR, DTYPE = np.float64(0).__reduce__()[0], type(np.dtype("float64"))
NUMPY = [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
WRAPPERS = ("segmenter", "state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = r"^((module|_orig_mod|model|segmenter|net|network)\.)+"  # no published key begins so


def load_tensors(path: str | Path, device) -> dict:
    """What a file of `torch.save` holds. Raises InputError for more than tensors and values."""
    with reading(path), torch.serialization.safe_globals([*NUMPY, np.dtype, DTYPE, Namespace]):
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except UnpicklingError as e:
            words = "damaged, or holds more than tensors and plain values, which is never executed"
            raise InputError(f"{path}: {words}") from e


def load_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its header. Raises InputError for any other file."""
    from safetensors import safe_open

    with reading(path), safe_open(path, "pt") as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys()}, tensors.metadata() or {}


def unwrap(loaded) -> dict[str, Tensor]:
    """The state dict in what a file holds: bare or under usual names, without prefixes of wrappers.

    Raises InputError for the first entry that is no tensor; it says where there are some instead.
    """
    number, place = max(places(loaded), default=(0, ""))
    hint = f"; its weights may be under {place}" if number else ""
    while name := next(
        (n for n in WRAPPERS if isinstance(loaded, dict) and isinstance(loaded.get(n), dict)), None
    ):
        loaded = loaded[name]
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(f"holds a {type(loaded).__name__}, not a dict of named tensors{hint}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{key}: a {type(value).__name__}, not a named tensor{hint}")
    return {re.sub(PREFIXES, "", key): value for key, value in loaded.items()}


def places(loaded, path: str = "") -> Iterator[tuple[int, str]]:
    """(number of tensors, place as one would index it) of each dict of tensors in what a file holds."""
    if isinstance(loaded, dict) and path:
        yield sum(isinstance(value, Tensor) for value in loaded.values()), path
    if isinstance(loaded, dict | list | tuple) and len(path) < 200:  # may hold itself
        entries = loaded.items() if isinstance(loaded, dict) else enumerate(loaded)
        for key, value in entries:
            yield from places(value, f"{path}[{key!r}]")


# ---------------------------------------------------------------- state dicts


def recognise(state: dict) -> tuple[str, int, dict, dict]:
    """The authors' state dict -> (our model name, classes, tensors under our keys, map of modules).

    Raises InputError that names the first key that no published network has, or that is missing to
    tell which network it is.
    """
    mobile = "segm.weight" in state or "layer8.0.output.0.0.weight" in state
    modules, classifier = (MOBILE, "segm.weight") if mobile else (RESNET, "clf_conv.weight")
    renamed = {to_ours(key, modules): value for key, value in state.items()}
    if None in renamed:
        key = next(key for key in state if to_ours(key, modules) is None)
        raise InputError(f"{key}: no published Light-Weight RefineNet or RefineNet has this key")
    blocks = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"layer{layer}.")})
        for layer in (2, 3)
    )
    reduce = classifier if mobile else "p_ims1d2_outl1_dimred.weight"
    for key in (classifier, reduce):
        if key not in state:
            raise InputError(f"{key}: missing")
        if state[key].ndim != 4:
            raise InputError(f"{key}: shape {tuple(state[key].shape)}, not of a convolution")
    if mobile:
        name = "refinenet-lw-mobilenet_v2"
    elif blocks in RESNETS:
        form = "refinenet" if state[reduce].shape[-1] == 3 else "refinenet-lw"
        name = f"{form}-resnet{RESNETS[blocks]}"
    else:
        raise InputError(
            f"layer3.{blocks[1]}.conv1.weight: missing, or layer2 is not whole: {blocks[0]} and "
            f"{blocks[1]} blocks fit no ResNet of 50, 101 or 152 layers"
        )
    return name, len(state[classifier]), renamed, modules


def load_into(
    model: nn.Module, state: dict[str, Tensor], modules: dict[str, str] | None = None
) -> None:
    """Load tensors under our keys. Counters of batches may be absent, as in files of early PyTorch.

    Raises InputError for the first key that is missing, unknown, of another shape or not finite,
    under the name that it has in the published `modules`.
    """
    ours = model.state_dict()
    for key in (*ours, *state):
        fault = None
        if key not in ours:
            fault = "not part of this network"
        elif key not in state:
            fault = None if key.endswith("num_batches_tracked") else "missing"
        elif state[key].shape != ours[key].shape:
            fault = f"shape {tuple(state[key].shape)}, {tuple(ours[key].shape)} expected"
        if fault:
            raise InputError(f"{to_theirs(key, modules)}: {fault}")
    check_numbers({to_theirs(key, modules): value for key, value in state.items()})
    model.load_state_dict(state, strict=False)


def check_numbers(state: dict[str, Tensor]) -> None:
    """Raises InputError for the first tensor that is not dense or not of finite real numbers."""
    for key, value in state.items():
        if value.layout != torch.strided or value.is_complex() or value.is_quantized:
            raise InputError(f"{key}: not a dense tensor of real numbers")
        if not value.float().isfinite().all():  # as networks compute: 1e300 is infinite for them
            raise InputError(f"{key}: holds infinities or NaN")

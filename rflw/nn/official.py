"""Keys of the authors' published checkpoints, mapped to ours, and how files of tensors are read: no
code in them is run.
"""

from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
import re

import numpy as np
import torch
from torch import Tensor

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
        for theirs, ours, blocks in (
            (f"adapt_stage{n}_b", "rcu_in", 2),
            (f"mflow_conv_g{n}_b", "rcu_out", 3),
        ):
            for i in range(1, blocks + 1):
                names[f"{theirs}.0.{i}_conv"] = f"{stage}.{ours}.{i - 1}.conv1"
                names[f"{theirs}.0.{i}_conv_relu_varout_dimred"] = f"{stage}.{ours}.{i - 1}.conv2"
    return names


def _mobile_modules() -> dict[str, str]:
    """The same for all modules of their MobileNet-v2 network.

    Their layer n is our stage n - 2; their crp4, conv_adapt4 and conv7 with conv8 belong to the
    coarsest level.
    """
    names = {
        "layer1.0": "encoder.stem.conv",
        "layer1.1": "encoder.stem.bn",
        "segm": "decoder.classifier",
    }
    for layer, blocks in zip(range(2, 9), (1, 2, 3, 4, 3, 3, 1)):
        for i in range(blocks):
            for part, step in enumerate(("expand", "depthwise", "project")):
                for leaf, kind in enumerate(("conv", "bn")):
                    names[f"layer{layer}.{i}.output.{part}.{leaf}"] = (
                        f"encoder.stages.{layer - 2}.{i}.{step}.{kind}"
                    )
    for layer, tap in zip(
        range(3, 9),
        ("3.reduce.0", "2.reduce.0", "1.reduce.0", "1.reduce.1", "0.reduce.0", "0.reduce.1"),
    ):
        names[f"conv{layer}"] = f"decoder.stages.{tap}"
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


def to_theirs(key: str, modules: dict[str, str]) -> str:
    """The authors' name of a tensor of ours."""
    module, _, leaf = key.rpartition(".")
    back = {ours: theirs for theirs, ours in modules.items()}
    return f"{back[module]}.{leaf}" if module in back else key.removeprefix("encoder.")


# ---------------------------------------------------------------- files

# The authors' script keeps its best score, a number of NumPy's, beside the weights; the module has
# two names.
SCALAR, DTYPE = np.float64(0).__reduce__()[0], type(np.dtype("float64"))
NUMPY = [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
WRAPPERS = ("segmenter", "state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = r"^((module|_orig_mod|model|segmenter|net|network)\.)+"  # no published key begins so


def load_tensors(path: str | Path, device) -> dict:
    """What a file of `torch.save` holds, of tensors and plain values only.

    Raises:
        InputError: that names a file that is missing, damaged or holds anything else.
    """
    with reading(path), torch.serialization.safe_globals([*NUMPY, np.dtype, DTYPE]):
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except UnpicklingError as e:
            raise InputError(
                f"{path}: damaged, or holds more than tensors and plain values, which is never executed"
            ) from e


def load_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its header. Raises InputError for any other file."""
    from safetensors import safe_open

    with reading(path), safe_open(path, "pt") as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys()}, tensors.metadata() or {}


def unwrap(loaded) -> dict[str, Tensor]:
    """The state dict in what a file holds: bare or under usual names, without prefixes of wrappers.

    Raises:
        InputError: that names the first entry that is no tensor, and where there are some instead.
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


def first_not_numbers(state: dict) -> str | None:
    """The first entry that is not a dense tensor of finite real numbers, and why; None without one."""
    for key, value in state.items():
        if (
            not isinstance(value, Tensor)
            or value.layout != torch.strided
            or value.is_complex()
            or value.is_quantized
        ):
            return f"{key}: a {type(value).__name__}, not a dense tensor of real numbers"
        if not value.float().isfinite().all():  # as networks compute: 1e300 is infinite for them
            return f"{key}: holds infinities or NaN"
    return None


# ---------------------------------------------------------------- state dicts


def recognise(state: dict) -> tuple[str, int, dict, dict]:
    """The authors' state dict -> (our model name, its number of classes, the same tensors under our
    keys, modules).

    The last is the map of modules that `first_fault` needs. Raises InputError that names the first
    key that no published network has, or that is missing to tell which network it is.
    """
    mobile = "segm.weight" in state or "layer8.0.output.0.0.weight" in state
    modules, classifier = (MOBILE, "segm.weight") if mobile else (RESNET, "clf_conv.weight")
    renamed = {}
    for key, value in state.items():
        name = to_ours(key, modules)
        if name is None:
            raise InputError(
                f"{key}: no published Light-Weight RefineNet or RefineNet has this key"
            )
        renamed[name] = value
    if classifier not in state:
        raise InputError(f"{classifier}: missing")
    if len(state[classifier].shape) != 4:
        raise InputError(
            f"{classifier}: shape {tuple(state[classifier].shape)}, that of a convolution expected"
        )
    classes = state[classifier].shape[0]
    if mobile:
        return "refinenet-lw-mobilenet_v2", classes, renamed, modules
    blocks = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"layer{layer}.")})
        for layer in (2, 3)
    )
    depth = RESNETS.get(blocks)
    if depth is None:
        raise InputError(
            f"layer3.{blocks[1]}.conv1.weight: missing, or layer2 is not whole: {blocks[0]} and {blocks[1]} "
            "blocks in layers 2 and 3 fit no ResNet of 50, 101 or 152 layers"
        )
    reduce = state.get("p_ims1d2_outl1_dimred.weight")
    if reduce is None:
        raise InputError("p_ims1d2_outl1_dimred.weight: missing")
    form = "refinenet" if tuple(reduce.shape[-2:]) == (3, 3) else "refinenet-lw"
    return f"{form}-resnet{depth}", classes, renamed, modules


def first_fault(state: dict, ours: dict, modules: dict[str, str] | None = None) -> str | None:
    """What is wrong with `state`, under our keys, as the weights of a network whose state is
    `ours`, or None.

    Keys are named as the file has them: by the authors' names if `modules` is given. Counters of
    batches may be absent: files of early PyTorch have none.
    """

    def named(key):
        return key if modules is None else to_theirs(key, modules)

    for key, tensor in ours.items():
        if key not in state:
            if not key.endswith("num_batches_tracked"):
                return f"{named(key)}: missing"
        elif tuple(state[key].shape) != tuple(tensor.shape):
            return f"{named(key)}: shape {tuple(state[key].shape)}, {tuple(tensor.shape)} expected"
    extra = next((key for key in state if key not in ours), None)
    return extra and f"{named(extra)}: not part of this network"

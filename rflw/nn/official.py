"""Keys of the authors' published checkpoints, mapped to ours: pure functions on dicts; and how files of tensors are read with care."""

from collections import OrderedDict
import io
import json
from pathlib import Path
import pickle
import pickletools
import re
import struct
import zipfile

import torch

from rflw.errors import InputError, no_pipe


def _resnet_modules() -> dict[str, str]:
    """The authors' name of every decoder module of their ResNet networks -> ours. Their 1 is the coarsest level, our 0."""
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
    """The same for all modules of their MobileNet-v2 network. Their layer n is our stage n - 2; their crp4, conv_adapt4
    and conv7 with conv8 belong to the coarsest level."""
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
    """Our name of their tensor, or None if no published network has it. ResNet encoders are named alike."""
    module, _, leaf = key.rpartition(".")
    if modules is RESNET and re.match(r"(conv1|bn1|layer[1-4]\.\d+\..+)$", module):
        return f"encoder.{key}"
    return f"{modules[module]}.{leaf}" if module in modules else None


def to_theirs(key: str, modules: dict[str, str]) -> str:
    """The authors' name of a tensor of ours."""
    module, _, leaf = key.rpartition(".")
    back = {ours: theirs for theirs, ours in modules.items()}
    return f"{back[module]}.{leaf}" if module in back else key.removeprefix("encoder.")


def unwrap(loaded) -> dict:
    """The state dict in what a file holds: bare, or under `segmenter` or `state_dict`, each key with or without `module.`.

    Raises InputError if there is none.
    """
    state = _inner(loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state:
        raise InputError(f"holds a {type(loaded).__name__}, not a dict of named tensors")
    for key in state:
        if not isinstance(key, str):
            raise InputError(f"{key!r}: a {type(key).__name__}, not the name of a tensor")
    fault = first_not_numbers(state)
    if fault:
        raise InputError(fault)
    return {key.removeprefix("module."): value for key, value in state.items()}


def _inner(loaded: dict):
    return loaded.get("segmenter", loaded.get("state_dict", loaded))


def first_not_numbers(state: dict) -> str | None:
    """The first entry of `state` that is no dense tensor of finite real numbers, and why, or None."""
    for key, value in state.items():
        if not is_dense(value):
            return f"{key}: a {type(value).__name__} that is no dense tensor of real numbers"
        if not value.float().isfinite().all():  # as networks compute: 1e300 is an infinity to them
            return f"{key}: holds infinities or what is not a number"
    return None


REAL = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


def is_dense(value) -> bool:
    """Whether it is a tensor of real numbers with memory for each of them: one number may stand for any quantity of them, and a few
    bytes of a file so for gigabytes."""
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in REAL
        and value.layout == torch.strided
        and not value.is_nested
        and not value.is_meta
        and value.nbytes <= value.untyped_storage().nbytes()
        and all(stride or size < 2 for size, stride in zip(value.shape, value.stride()))
    )


def recognise(state: dict) -> tuple[str, int, dict, dict]:
    """The authors' state dict -> (our model name, its number of classes, the same tensors under our keys, modules).

    The last is the map of modules that `first_fault` needs. Raises InputError that names the first key that no
    published network has, or that is missing to tell which network it is.
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
    """What is wrong with `state`, under our keys, as the weights of a network whose state is `ours`, or None.

    Keys are named as the file has them: by the authors' names if `modules` is given. Counters of batches may be
    absent: files of early PyTorch have none.
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


# ---------------------------------------------------------------- files


def load_tensors(path: str | Path, device):
    """torch.load, of tensors and plain values only. Raises InputError for a zip file that would unpack to more than it is: PyTorch
    compresses nothing; else what torch.load raises."""
    no_pipe(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except Exception:  # no zip file, or a broken one: torch.load says so; zipfile raises many types
        size = 0
    if size > Path(path).stat().st_size:
        raise InputError(
            f"{path}: would unpack to {size / 1e9:.1f} GB, more than the file; PyTorch writes no such files"
        )
    return torch.load(path, map_location=device, weights_only=True)


def unreadable(path, error: Exception) -> str:
    """Why a file of tensors could not be read, in one line."""
    text = str(error)
    cut = first_cut(Path(path).read_bytes()) if Path(path).is_file() else None
    if cut:
        return f"{cut}: cut off, the file ends before this tensor does"
    if "Unsupported" in text or "weights_only" in text or "Weights only" in text:
        what = next(
            (line for line in text.splitlines() if "GLOBAL" in line or "Unsupported" in line),
            "code",
        )
        return f"holds more than tensors, which is never executed: {what.strip()}"
    kind = "safetensors file" if str(path).endswith(".safetensors") else "PyTorch checkpoint"
    return f"not a whole {kind} ({text.splitlines()[0] if text else type(error).__name__})"


BYTES = {
    "DoubleStorage": 8,
    "LongStorage": 8,
    "FloatStorage": 4,
    "IntStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "ShortStorage": 2,
    "ByteStorage": 1,
    "CharStorage": 1,
    "BoolStorage": 1,
}


class _Names(pickle.Unpickler):
    """Reads which tensor of a PyTorch file lies in which storage. Every global that a pickle names is replaced by a class
    that does nothing, so nothing of the file is executed."""

    class Nothing:
        def __new__(cls, *args, **kwargs):
            return (
                args[0]
                if args and isinstance(args[0], tuple) and args[0][:1] == ("stored",)
                else object.__new__(cls)
            )

        def __init__(self, *args, **kwargs):
            pass

        def __setstate__(self, state):
            pass

    def find_class(self, module, name):
        return (
            OrderedDict
            if (module, name) == ("collections", "OrderedDict")
            else type(name, (self.Nothing,), {})
        )

    def persistent_load(self, pid):
        return "stored", str(pid[2]), pid[4] * BYTES[pid[1].__name__]


def _listed(file: io.BytesIO):
    """What `_Names` reads next, after a look at its instructions: Python's reader takes as much memory as they claim, not as there is.
    Raises ValueError."""
    start, size = file.tell(), len(file.getbuffer())
    for instruction, argument, _ in pickletools.genops(
        file
    ):  # which refuses what is longer than the file
        if "PUT" in instruction.name and argument > size:
            raise ValueError(f"the {argument}th thing to be remembered of a file of {size} bytes")
    file.seek(start)
    return _Names(file).load()


def first_cut(data: bytes) -> str | None:
    """The name of the first tensor that a cut-off PyTorch or safetensors file, given as its bytes, does not hold whole; None if
    that cannot be told, e.g. because the file ends before its list of tensors does."""
    file = io.BytesIO(data)
    try:
        if (
            data[8:9] == b"{"
        ):  # safetensors: the length of the list of tensors, that list as JSON, and the tensors
            start = 8 + int.from_bytes(data[:8], "little")
            listed = json.loads(data[8:start])
            ends = {
                name: entry["data_offsets"][1]
                for name, entry in listed.items()
                if name != "__metadata__"
            }
            return next(
                (name for name in sorted(ends, key=ends.get) if start + ends[name] > len(data)),
                None,
            )
        if (
            data[:4] == b"PK\3\4"
        ):  # a zip archive: the list of tensors first, then one member for each storage
            file.seek(_content(data, 0)[1])
            state = unwrap_names(_listed(file))
            position = file.tell()
            for name, (_, storage, size) in state.items():
                start = None
                while start is None and (position := data.find(b"PK\3\4", position)) >= 0:
                    member, content = _content(data, position)
                    start = content if member.endswith(f"/data/{storage}") else None
                    position += 4
                if start is None or start + size > len(data):
                    return name
                position = start + size
        else:  # three headers, the list of tensors, the order of the storages, and each with its length before it
            for _ in range(3):
                _listed(file)
            state, order = unwrap_names(_listed(file)), _listed(file)
            ends, position = {}, file.tell()
            sizes = {storage: size for _, storage, size in state.values()}
            for storage in map(str, order):
                position += 8 + sizes[storage]
                ends[storage] = position
            return next(
                (name for name, (_, storage, _) in state.items() if ends[storage] > len(data)), None
            )
    except Exception:  # whatever a damaged or hostile file makes the reader stumble over
        return None
    return None


def unwrap_names(loaded) -> dict:
    """As `unwrap`, of what `_Names` gives."""
    state = _inner(loaded)
    return {
        key.removeprefix("module."): value
        for key, value in state.items()
        if isinstance(value, tuple)
    }


def _content(data: bytes, header: int) -> tuple[str, int]:
    """Name and first byte of a zip member from the position of its local header."""
    name, extra = struct.unpack_from("<HH", data, header + 26)
    return data[header + 30 : header + 30 + name].decode(
        errors="replace"
    ), header + 30 + name + extra

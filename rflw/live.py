"""The share of a decoder's units that are alive.

The decoder has no normalisation: one large first step can leave a ReLU with zeros for every image.
"""

import torch
from torch import Tensor, nn

from rflw.nn.blocks import RCU, BottleneckRCU

IMAGES = 6  # validation images that a share is counted on, evenly spread


def relus(decoder: nn.Module) -> dict[str, tuple[nn.Module, bool]]:
    """Every ReLU of a decoder by name -> (module, whether the ReLU's output goes into the module).

    The ReLU of a stage is a module, and its output comes out of it; an RCU's ReLUs are functions,
    and their outputs go into the RCU's convolutions.
    """
    places = {}
    for name, module in decoder.named_modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            places[name] = module, False
        elif isinstance(module, RCU | BottleneckRCU):
            places |= {f"{name}.{part}": (conv, True) for part, conv in module.named_children()}
    return places


def live_units(model: nn.Module, forward, images) -> dict[str, float]:
    """The share of channels after each ReLU of the decoder that exceed zero anywhere in any image.

    `forward` is called with each of a few `images`, and runs the network. Returns {name of the ReLU:
    share, 0..1}, from the coarsest stage to the finest; all of stage N passes `stages.N.act`.
    """
    dead = dead_units(model, forward, images)
    return {name: round(1 - units.float().mean().item(), 4) for name, units in dead.items()}


@torch.inference_mode()
def dead_units(model: nn.Module, forward, images) -> dict[str, Tensor]:
    """{name of the ReLU: (C,), whether each channel never exceeds zero}, as `live_units` has them."""
    alive: dict[str, Tensor] = {}

    def watch(name: str, inwards: bool):
        def look(_, inputs, output=None):
            maps = inputs[0] if inwards else output  # (B, C, H, W)
            alive[name] = alive.get(name, False) | (maps.amax((0, 2, 3)) > 0).cpu()

        return look

    hooks = []
    for name, (module, inwards) in relus(model.decoder).items():
        register = module.register_forward_pre_hook if inwards else module.register_forward_hook
        hooks.append(register(watch(name, inwards)))
    try:
        for image in images:
            forward(image)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: ~units for name, units in alive.items()}


def of_stages(shares: dict[str, float]) -> dict[str, float]:
    """The shares of the ReLUs through which all of a stage's signal passes -> {stage: share}."""
    return {
        name.removesuffix(".act"): share for name, share in shares.items() if name.endswith(".act")
    }

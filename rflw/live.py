"""Which units of a decoder are alive: without normalisation, a large first step can leave a ReLU with nothing but zeros."""

import torch
from torch import Tensor, nn

from rflw.nn.blocks import RCU, BottleneckRCU

IMAGES = 6  # validation images that tell, evenly spread


def relus(decoder: nn.Module) -> dict[str, tuple[nn.Module, bool]]:
    """Every ReLU of a decoder by name -> (module, whether the ReLU's output is what goes into the module instead of out of it).

    The ReLU of a stage is a module of its own; those of RCUs stand before their convolutions.
    """
    found = {}
    for name, module in decoder.named_modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            found[name] = module, False
        elif isinstance(module, RCU | BottleneckRCU):
            found |= {f"{name}.{part}": (conv, True) for part, conv in module.named_children()}
    return found


@torch.inference_mode()
def live_units(model: nn.Module, forward, images) -> dict[str, float]:
    """The share of channels after each ReLU of the decoder that are above zero anywhere in any of the images.

    Args:
        model: a network with a `decoder`.
        forward: called with each of `images`; runs the network.
        images: a few images, in whatever form `forward` takes.

    Returns:
        {name of the ReLU: share, 0..1}, from the coarsest stage to the finest; `stages.N.act` is the one that all of a stage passes.
    """
    alive: dict[str, Tensor] = {}

    def watch(name: str, inwards: bool):
        def look(_, inputs, output=None):
            maps = inputs[0] if inwards else output
            above = (maps.amax((0, 2, 3)) > 0).cpu()
            alive[name] = alive.get(name, False) | above

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
    return {name: round(units.float().mean().item(), 4) for name, units in alive.items()}


def of_stages(live: dict[str, float]) -> dict[str, float]:
    """Of all ReLUs, those that everything in a stage passes -> {stage: share}."""
    return {
        name.removesuffix(".act"): share for name, share in live.items() if name.endswith(".act")
    }

"""Parameters and multiply-adds (MACs) of any network, split by kind of layer.

fvcore traces the network once and counts each operation from its shapes; the handlers below add
what it leaves out. Conventions, for one image (a multiplication with its addition is one MAC)::

  conv        kernel area x input channels / groups for each output value; matrix products
              likewise; biases are free
  pool        kernel area for each output value; adaptive average pooling: one for each input value
  norm        batch norm in evaluation: one for each value; layer and group norm: fvcore's rule
  activation  one for each value
  resize      bilinear: four for each output value; nearest: none

Sums, concatenations and copies count nothing; `uncounted` in the result names those operations.
"""

from collections import Counter
from copy import deepcopy
from math import prod
import warnings

import torch
from torch import nn

from rflw.errors import InputError, why

ACTIVATIONS = (
    *("relu", "relu6", "hardtanh", "silu", "sigmoid", "hardswish", "hardsigmoid", "gelu"),
    *("elu", "selu", "leaky_relu", "prelu", "mish", "softplus", "tanh"),
)
POOLS = ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d")
KINDS = ("conv", "pool", "norm", "activation", "resize")
# the kind of each operation; all others that fvcore counts are products, which are "conv"
KIND_OF = {
    **{f"{name}{inplace}": "activation" for name in ACTIVATIONS for inplace in ("", "_")},
    **dict.fromkeys((*POOLS, "adaptive_avg_pool2d"), "pool"),
    **dict.fromkeys(("batch_norm", "layer_norm", "group_norm", "instance_norm"), "norm"),
    **dict.fromkeys(("upsample_bilinear2d", "upsample_nearest2d", "grid_sampler"), "resize"),
}


def _pool(inputs, outputs) -> int:
    kernel = [number.toIValue() for number in inputs[1].node().inputs()]  # constants of the trace
    return prod(kernel * 2 if len(kernel) == 1 else kernel) * prod(outputs[0].type().sizes())


def _handlers() -> dict:
    """Handlers for fvcore of operations that it leaves out, or counts by another convention."""
    from fvcore.nn.jit_handles import elementwise_flop_counter

    one_for_each_value = elementwise_flop_counter(0, 1)
    activations = (name for name, kind in KIND_OF.items() if kind == "activation")
    return {
        **{f"aten::{name}": one_for_each_value for name in (*activations, "batch_norm")},
        **{f"aten::{name}": _pool for name in POOLS},
        "aten::upsample_nearest2d": elementwise_flop_counter(0, 0),
    }


@torch.no_grad()
def analyse(model: nn.Module, size: tuple[int, int]):
    """fvcore's FlopCountAnalysis of a network, with the handlers of this module.

    Raises InputError for a `size` (H, W) that the network does not take.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit, which fvcore traces with, is deprecated
        from fvcore.nn import FlopCountAnalysis

        try:
            analysis = FlopCountAnalysis(deepcopy(model).eval(), torch.zeros(1, 3, *size))
            analysis.set_op_handle(**_handlers()).tracer_warnings("none")
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            analysis.total()  # traces the network; later calls use the same trace
        except (RuntimeError, AssertionError, MemoryError) as e:
            words = f"the network cannot be traced with it ({why(e)})"
            raise InputError(f"size {'x'.join(map(str, size))}: {words}") from e
    return analysis


def split(by_operator: Counter) -> dict[str, int]:
    """fvcore's counts by operator -> MACs of each of KINDS, and their total."""
    macs = dict.fromkeys(KINDS, 0)
    for operator, number in by_operator.items():
        macs[KIND_OF.get(operator, "conv")] += int(number)
    return macs | {"total": sum(macs.values())}


def parameters(model: nn.Module) -> int:
    """Number of trained values; running statistics of batch norm are not among them."""
    return sum(p.numel() for p in model.parameters())


def kernels(model: nn.Module) -> dict[str, int]:
    """How many 2D convolutions of each kernel size: {"1x1": 26, "3x3": 1}."""
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return dict(sorted(Counter("x".join(map(str, m.kernel_size)) for m in convolutions).items()))


def count(model: nn.Module, size: tuple[int, int]) -> dict:
    """Count parameters and multiply-adds of a network and of its children.

    Args:
        model: A network that takes (1, 3, H, W) images.
        size: H and W of the image, in pixels.

    Returns:
        dict: {"params": int, "macs": {kind: int, "total": int}, "uncounted": {operation: times},
        "parts": {child: {"params", "macs", "kernels"}}}, kinds as in KINDS.

    Raises:
        InputError: The network does not take images of this size.
    """
    analysis = analyse(model, size)
    inner = analysis.by_module_and_operator()
    return {
        "params": parameters(model),
        "macs": split(analysis.by_operator()),
        "uncounted": dict(sorted(analysis.unsupported_ops().items())),
        "parts": {
            name: {
                "params": parameters(child),
                "macs": split(inner[name]),
                "kernels": kernels(child),
            }
            for name, child in model.named_children()
        },
    }


def by_module(model: nn.Module, size: tuple[int, int]) -> list[dict]:
    """Count each module of a network, outer ones first; a row contains those of its children.

    Returns:
        list: [{"module": name, "params": int, "macs": as in `count`}]; the name of the whole
        network is "".
    """
    counts = analyse(model, size).by_module_and_operator()
    return [
        {"module": name, "params": parameters(module), "macs": split(counts[name])}
        for name, module in model.named_modules()
        if name in counts
    ]

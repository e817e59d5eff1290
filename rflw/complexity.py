"""Parameters and multiply-adds (MACs) of any network, split by kind of layer.

fvcore traces the network once and counts each operation from its shapes; the handlers below add what it leaves out.
Conventions, for one image (a multiplication with its addition is one MAC):

  conv        kernel area x input channels / groups for each output value; matrix products likewise; biases are free
  pool        kernel area for each output value; adaptive average pooling: one for each input value
  norm        batch norm in evaluation: one for each value; layer and group norm: as fvcore counts them
  activation  one for each value
  resize      bilinear: four for each output value; nearest: none

Sums, concatenations and copies count nothing; `uncounted` in the result says which operations those were.
"""

from collections import Counter
from math import prod
import warnings

import torch
from torch import nn

from rflw.errors import InputError

MAX_PIXELS = (
    2**26
)  # 8192 x 8192: the trace computes the network, and more would not fit into memory
KINDS = ("conv", "pool", "norm", "activation", "resize")
ACTIVATIONS = tuple(
    name + inplace
    for inplace in ("", "_")
    for name in (
        "relu",
        "relu6",
        "hardtanh",
        "silu",
        "sigmoid",
        "hardswish",
        "hardsigmoid",
        "gelu",
        "elu",
        "selu",
        "leaky_relu",
        "prelu",
        "mish",
        "softplus",
        "tanh",
    )
)


def _shape(value) -> list[int]:
    return value.type().sizes()


def _pool(inputs, outputs) -> int:
    kernel = [
        number.toIValue() for number in inputs[1].node().inputs()
    ]  # a list of constants in the graph
    return prod(kernel * 2 if len(kernel) == 1 else kernel) * prod(_shape(outputs[0]))


def _adaptive_pool(inputs, outputs) -> int:
    return prod(_shape(inputs[0]))


def _batch_norm(inputs, outputs) -> int:
    return prod(_shape(outputs[0]))


def _activation(inputs, outputs) -> int:
    return prod(_shape(outputs[0]))


def _bilinear(inputs, outputs) -> int:
    return 4 * prod(_shape(outputs[0]))


def _nothing(inputs, outputs) -> int:
    return 0


HANDLERS = {
    **{f"aten::{name}": ("activation", _activation) for name in ACTIVATIONS},
    "aten::max_pool2d": ("pool", _pool),
    "aten::max_pool2d_with_indices": ("pool", _pool),
    "aten::avg_pool2d": ("pool", _pool),
    "aten::adaptive_avg_pool2d": ("pool", _adaptive_pool),
    "aten::batch_norm": ("norm", _batch_norm),
    "aten::upsample_bilinear2d": ("resize", _bilinear),
    "aten::upsample_nearest2d": ("resize", _nothing),
}
# fvcore's own names for what it counts by itself; all else that it counts are products, which go with the convolutions
FVCORE_KINDS = {
    "layer_norm": "norm",
    "group_norm": "norm",
    "instance_norm": "norm",
    "grid_sampler": "resize",
}


@torch.no_grad()
def analyse(model: nn.Module, size: tuple[int, int]):
    """A network and an input of (rows, columns) -> fvcore's FlopCountAnalysis with our handlers, traced.

    Raises InputError for a size that is not two numbers above 0, or that the network does not take.
    """
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size {tuple(size)}: rows and columns, both above 0")
    if prod(size) > MAX_PIXELS:
        raise InputError(
            f"size {size[0]}x{size[1]}: more than {MAX_PIXELS} pixels; counts of sizes that 32 divides grow with the area"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit, which fvcore traces with, is deprecated
        from fvcore.nn import FlopCountAnalysis

        training = model.training
        analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, 3, *size))
        analysis.set_op_handle(**{op: handler for op, (_, handler) in HANDLERS.items()})
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings(
            "none"
        )
        try:
            analysis.total()  # traced now and kept
        except (RuntimeError, AssertionError, MemoryError) as e:
            raise InputError(
                f"size {size[0]}x{size[1]}: the network cannot be traced with it ({' '.join(str(e).split())[:200]})"
            ) from e
        model.train(training)
    return analysis


def split(by_operator: Counter) -> dict[str, int]:
    """fvcore's counts by operator -> MACs of each of KINDS, and their total."""
    kinds = {op.removeprefix("aten::"): kind for op, (kind, _) in HANDLERS.items()} | FVCORE_KINDS
    macs = dict.fromkeys(KINDS, 0)
    for operator, number in by_operator.items():
        macs[kinds.get(operator, "conv")] += int(number)
    return macs | {"total": sum(macs.values())}


def parameters(model: nn.Module) -> int:
    """Number of trained values; running statistics of batch norm are none."""
    return sum(p.numel() for p in model.parameters())


def kernels(model: nn.Module) -> dict[str, int]:
    """How many 2D convolutions of each kernel size: {"1x1": 26, "3x3": 1}."""
    found = Counter(
        "x".join(map(str, m.kernel_size)) for m in model.modules() if isinstance(m, nn.Conv2d)
    )
    return dict(sorted(found.items()))


def count(model: nn.Module, size: tuple[int, int]) -> dict:
    """-> {"params": int, "macs": {conv, pool, norm, activation, resize, total}, "uncounted": {operation: times}, "parts": {child:
    {"params", "macs", "kernels"}}}, with `kernels` as the function of that name gives them.

    Raises InputError as `analyse` does.
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
    """One row for each module, outer ones first: {"module", "params", "macs" (as in `count`)}; a row contains the
    rows of the modules inside it. The whole network is the row named ""."""
    counts = analyse(model, size).by_module_and_operator()
    return [
        {"module": name, "params": parameters(module), "macs": split(counts[name])}
        for name, module in model.named_modules()
        if name in counts
    ]

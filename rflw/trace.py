"""What a network does, as plain rows: every operation of one forward pass, with inputs and shape.

Forward hooks say which module is at work; a function mode sees each operation that it calls, also
those without a module of their own (sums, pooling, ReLU, resizing). The tensors themselves show
which operation feeds which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rflw.prediction import evaluating


@dataclass(frozen=True)
class Step:
    """One operation of a forward pass."""

    op: str  # "conv2d", "batch_norm", "relu", "max_pool2d", "interpolate", "add", ...
    module: str  # dotted name of the innermost module at work; "" is the network itself
    inputs: tuple[int, ...]  # the steps whose results it takes; below 0: from outside
    shape: tuple[int, ...]  # of its result
    kernel: int | None = None  # of a convolution or pooling
    channels: tuple[int, int] | None = None  # of a convolution: in, out
    params: int = 0  # trained values that it uses


def tensors(values) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts, in order."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def kernel_of(op: str, args: tuple, kwargs: dict) -> int | None:
    if op.startswith("conv"):
        return args[1].shape[-1]
    if "pool" in op and "adaptive" not in op:
        size = kwargs.get("kernel_size", args[1] if len(args) > 1 else None)
        return size[-1] if isinstance(size, (list, tuple)) else size
    return None


class Recorder(TorchFunctionMode):
    def __init__(self, inputs: list[Tensor]):
        super().__init__()
        self.steps: list[Step] = []
        self.modules = [""]  # those at work, innermost last
        self.made = {id(x): -1 - i for i, x in enumerate(inputs)}  # which step made a tensor
        self.kept = [inputs]  # an id is a tensor's only while the tensor lives

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tensors((args, kwargs))
        versions = {id(x): x._version for x in given}
        result = func(*args, **kwargs)
        # dropout in evaluation hands back its input untouched
        out = [x for x in tensors(result) if versions.get(id(x)) != x._version]
        known = [self.made[id(x)] for x in given if id(x) in self.made]
        if out and known:
            op = func.__name__.strip("_")  # in place or not
            kernel, shape = kernel_of(op, args, kwargs), tuple(out[0].shape)
            channels = (args[0].shape[1], shape[1]) if op.startswith("conv") else None
            params = sum(x.numel() for x in given if isinstance(x, nn.Parameter))
            row = Step(op, self.modules[-1], tuple(known), shape, kernel, channels, params)
            self.steps.append(row)
            self.made.update((id(x), len(self.steps) - 1) for x in out)
        self.kept.append(out)
        return result


@torch.no_grad()
def record(model: nn.Module, *inputs) -> list[Step]:
    """Every operation of `model(*inputs)` in evaluation mode, in the order in which they ran.

    Inputs are tensors, also in lists and dicts; input -1 of a step is the first of them, -2 the
    second. Operations that hand back their input untouched are left out. On the meta device nothing
    is computed but shapes.
    """
    recorder = Recorder(tensors(inputs))
    hooks = []

    def leave(*_) -> None:  # a hook that returned something would replace the module's output
        recorder.modules.pop()

    for name, module in model.named_modules():
        enter = lambda *_, name=name: recorder.modules.append(name)
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        with evaluating(model), recorder:
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.steps


def cut(steps: Sequence[Step], keep: Callable[[Step], bool]) -> list[Step]:
    """The steps that `keep` chooses, numbered anew; inputs from others become -1, -2, ..."""
    numbers, outside = {}, {}
    chosen = []
    for i, step in enumerate(steps):
        if keep(step):
            inputs = tuple(
                numbers[j] if j in numbers else outside.setdefault(j, -1 - len(outside))
                for j in step.inputs
            )
            numbers[i] = len(chosen)
            chosen.append(replace(step, inputs=inputs))
    return chosen


def collapse(steps: Sequence[Step], key: Callable[[Step], str]) -> list[Step]:
    """One step for all steps of a key, in the order in which they end.

    Its op is the key, its shape that of its last operation, its params the sum; its inputs are
    those from outside of it.
    """
    keys = [key(step) for step in steps]
    ends = list(dict.fromkeys(reversed(keys)))[::-1]
    blocks = []
    for end in ends:
        own = [step for step, k in zip(steps, keys) if k == end]
        sources = dict.fromkeys(
            ends.index(keys[j]) if j >= 0 else j for step in own for j in step.inputs
        )
        inputs = tuple(i for i in sources if i != len(blocks))
        params = sum(step.params for step in own)
        blocks.append(Step(end, "", inputs, own[-1].shape, params=params))
    return blocks

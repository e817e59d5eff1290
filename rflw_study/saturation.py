"""How much the terms of residual blocks add to what they are added to, and what a network is worth without them.

A residual block computes y = x + t, or y = x + t1 + t2 + ...; each t is a term: the branch of an RCU, or a stage of CRP.
"""

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rflw_study.layers import evaluating, find


@dataclass(frozen=True)
class Term:
    """One summand of a residual block, by dotted names."""

    name: str
    source: str  # the convolution whose output it is
    block: str  # takes x, gives y


@torch.no_grad()
def norms(model: nn.Module, terms: Sequence[Term], batches: Iterable[Tensor]) -> dict[str, dict]:
    """{term: {"ratio": |t| / |x| of every image, Euclidean norms over the whole map, (N,); "silent": share of the source's input
    channels that are nowhere above nought in any image: hidden units of an RCU that its ReLU has shut for good; "weight": root of
    the mean square of the source's weights}}, all from the same passes."""
    found = {term.name: {"ratio": [], "lively": False} for term in terms}
    at = {}  # what the last pass brought

    def norm(x: Tensor) -> Tensor:
        return x.flatten(1).double().norm(dim=1)

    def enter(name, x):
        at["x", name] = norm(x)

    def leave(term, x, out):
        at["t", term.name] = norm(out)
        found[term.name]["lively"] = (x > 0).any(3).any(2).any(0) | found[term.name]["lively"]

    hooks = [
        find(model, block)[0].register_forward_pre_hook(
            lambda _, args, block=block: enter(block, args[0])
        )
        for block in {term.block for term in terms}
    ]
    hooks += [
        find(model, term.source)[0].register_forward_hook(
            lambda _, args, out, term=term: leave(term, args[0], out)
        )
        for term in terms
    ]
    try:
        with evaluating(model):
            for images in batches:
                model(images)
                for term in terms:
                    found[term.name]["ratio"].append(at["t", term.name] / at["x", term.block])
    finally:
        for hook in hooks:
            hook.remove()
    return {
        term.name: {
            "ratio": torch.cat(found[term.name]["ratio"]),
            "silent": 1 - found[term.name]["lively"].double().mean().item(),
            "weight": find(model, term.source)[0].weight.double().square().mean().sqrt().item(),
        }
        for term in terms
    }


@contextmanager
def without(model: nn.Module, terms: Sequence[Term]):
    """Within it, blocks give their sum without these terms. A chain goes on: a stage of CRP that is left out of the sum still feeds
    the next one."""
    made, hooks = {}, []

    def keep(name, out):
        made[name] = out

    def take_off(names, out):
        for name in names:
            out = out - made.pop(name)
        return out

    for block in dict.fromkeys(term.block for term in terms):
        own = [term for term in terms if term.block == block]
        hooks += [
            find(model, term.source)[0].register_forward_hook(
                lambda _, args, out, name=term.name: keep(name, out)
            )
            for term in own
        ]
        hooks.append(
            find(model, block)[0].register_forward_hook(
                lambda _, args, out, names=tuple(term.name for term in own): take_off(names, out)
            )
        )
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()

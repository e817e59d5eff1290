"""How much residual terms add to their input, and the network's score without them.

The paper's section 3.3 says that the light-weight RCUs are saturated. A residual block computes
y = x + t, or y = x + t1 + t2 + ...; each t is a term: the branch of an RCU, or a stage of CRP.
"""

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from rflw import evaluation, prediction
from rflw.data.readers import spread
from rflw.errors import InputError
from rflw.nn.blocks import CRP, RCU, BottleneckRCU
from rflw.nn.refinenet import RefineNet, build, init_decoder
from rflw.prediction import evaluating
from rflw.recipes import OWN, RECIPES
from rflw.steps import derive
from rflw_study.layers import find, hooked
from rflw_study.statistics import mean_interval


@dataclass(frozen=True)
class Term:
    """One summand of a residual block, by dotted names."""

    name: str
    source: str  # the convolution whose output it is
    block: str  # takes x, gives y


def terms(model: nn.Module) -> list[Term]:
    """The branch of every RCU and the stages of every CRP."""
    result = []
    for name, module in model.named_modules():
        if isinstance(module, RCU | BottleneckRCU):
            last = "conv2" if isinstance(module, RCU) else "expand"
            result.append(Term(name, f"{name}.{last}", name))
        elif isinstance(module, CRP):
            stages = [f"{name}.convs.{i}" for i in range(len(module.convs))]
            result += [Term(stage, stage, name) for stage in stages]
    return result


@torch.no_grad()
def norms(model: nn.Module, terms: Sequence[Term], batches: Iterable[Tensor]) -> dict[str, dict]:
    """Norms of terms against what they are added to, all from the same passes.

    Args:
        batches: Images as the network takes them, (B, 3, H, W) each.

    Returns:
        dict: {term: {"ratio": `|t| / |x|` of every image, Euclidean norms over the whole map, (N,);
        "silent": share of the source's input channels that are never above zero: hidden units
        of an RCU that its ReLU has shut}}.
    """
    ratios, lively, inputs = {t.name: [] for t in terms}, {}, {}

    def norm(x: Tensor) -> Tensor:
        return x.flatten(1).cpu().double().norm(dim=1)  # not all devices have float64

    def before(block):
        def hook(_, args):
            inputs[block] = norm(args[0])

        return find(model, block)[0].register_forward_pre_hook(hook)

    def after(term):
        def hook(_, args, out):
            ratios[term.name].append(norm(out) / inputs[term.block])
            above = (args[0] > 0).any(3).any(2).any(0)
            lively[term.name] = above | lively.get(term.name, False)

        return find(model, term.source)[0].register_forward_hook(hook)

    blocks = {term.block for term in terms}
    with hooked([*map(before, blocks), *map(after, terms)]), evaluating(model):
        for images in batches:
            model(images)
    return {
        term.name: {
            "ratio": torch.cat(ratios[term.name]),
            "silent": 1 - lively[term.name].cpu().double().mean().item(),
        }
        for term in terms
    }


@contextmanager
def without(model: nn.Module, terms: Sequence[Term]):
    """A context in which blocks give their sum without these terms.

    A stage of CRP that is left out of the sum still feeds the next one.
    """
    values = {}

    def keep(term):
        def hook(_, args, out):
            values[term] = out

        return find(model, term.source)[0].register_forward_hook(hook)

    def subtract(block):
        def hook(_, args, out):
            for term in terms:
                out = out - values.pop(term) if term.block == block else out
            return out

        return find(model, block)[0].register_forward_hook(hook)

    blocks = dict.fromkeys(term.block for term in terms)
    with hooked([*map(keep, terms), *map(subtract, blocks)]):
        yield model


def untrained(model: RefineNet) -> RefineNet:
    """The same encoder, and the decoder as its training drew it (one with `--init`: would draw)."""
    card = getattr(model, "card", None) or {}
    recipe = RECIPES.get(card.get("recipe"), OWN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("init", card.get("seed", 0)))
        fresh = build(model.name, model.num_classes)
        init_decoder(fresh.decoder, recipe.decoder_init)
    fresh.encoder.load_state_dict(model.encoder.state_dict())
    return fresh.eval().to(next(model.parameters()).device)


def moved(model: nn.Module, first: nn.Module, term: Term) -> float:
    """How far training moved the weights of a term's source, over their norm at first."""
    now, then = (find(net, term.source)[0].weight.detach().cpu().double() for net in (model, first))
    return ((now - then).norm() / then.norm()).item()


def groups_of(terms: Sequence[Term]) -> dict[str, list[Term]]:
    """All RCUs, all CRP, and each block of a stage of the decoder, as "decoder.stages.0.crp"."""
    groups = {
        "all RCU": [term for term in terms if ".crp." not in term.name],
        "all CRP": [term for term in terms if ".crp." in term.name],
    }
    for term in terms:
        groups.setdefault(".".join(term.name.split(".")[:4]), []).append(term)
    return {name: group for name, group in groups.items() if group}


def saturate(model: RefineNet, dataset, images: int | None = None, progress: bool = False) -> dict:
    """Norms of terms, trained and untrained, and mIoU without each, each block, and each kind.

    Args:
        images: How many images of the data set, evenly spread; None for all.

    Returns:
        dict: {"images", "miou", "terms": {name: {"ratio": interval over images of `|t| / |x|`,
        "silent" (see `norms`), `"untrained_..."`: the same of an untrained decoder, "moved",
        "miou_without"}}, "groups": {see `groups_of`: {"terms": how many, "miou_without"}}}.

    Raises:
        InputError: For a network with neither RCUs nor CRP.
    """
    every = terms(model)
    if not every:
        raise InputError(f"{model.name}: has neither RCUs nor CRP")
    part = Subset(dataset, range(len(dataset)) if images is None else spread(images, len(dataset)))
    groups = groups_of(every)
    device, scales = next(model.parameters()).device, (prediction.own_scale(model),)
    bar = tqdm(total=1 + len(every) + len(groups), desc="without", disable=not progress or None)

    def measured(net) -> dict[str, dict]:
        inputs = (prediction.as_seen(part[i][0], net, device) for i in range(len(part)))
        rows = norms(net, every, inputs)
        return {
            name: row | {"ratio": mean_interval(row["ratio"].tolist()).row()}
            for name, row in rows.items()
        }

    def score(left_out: Sequence[Term] = ()) -> float | None:
        with without(model, left_out):
            matrices = evaluation.evaluate(model, part, scales=scales)
        bar.update()
        return evaluation.summary(matrices, dataset.labels.classes)["miou"]

    first = untrained(model)
    rows, drawn = measured(model), measured(first)
    base = score()
    for term in every:
        rows[term.name] |= {f"untrained_{key}": value for key, value in drawn[term.name].items()}
        rows[term.name] |= {"moved": moved(model, first, term), "miou_without": score([term])}
    without_groups = {
        name: {"terms": len(group), "miou_without": score(group)} for name, group in groups.items()
    }
    bar.close()
    return {"images": len(part), "miou": base, "terms": rows, "groups": without_groups}

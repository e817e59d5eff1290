"""The shipped recipes: the paper's, the authors' scripts, and those of this study. No torch."""

from dataclasses import dataclass, replace

from rflw.config import Recipe, Stage
from rflw.errors import InputError

LITE0 = "efficientnet_lite0"
WARMUP = 100  # steps; without, AdamW at a decoder rate of 1e-3 can kill the stride-32 stage


def short(form: str) -> str:
    """A form of the network as names of recipes have it: "original", "lw", "lw-rcu", ..."""
    return form.removeprefix("refinenet").removeprefix("-") or "original"


def _name(data: str, form: str, encoder: str) -> str:
    return f"{data}-{short(form)}-{encoder}"


# What the paper does not say, in one place. Batch, crop, scales and their least side, flip,
# momentum and decay: those of the authors' NYUDv2 script of 2018. Gradients are not clipped there.
# Initial weights: PyTorch's, as in both scripts (their README says N(0, 0.01) instead:
# `decoder_init="normal"`). The best validation epoch is kept beside the last one.
UNSAID = {
    "crop": (500, 500),
    "batch": 6,
    "scale": (0.5, 2.0),
    "min_side": 350,
    "clip": 0.0,
    "val_every": 10,
}
# The decoder's rate over the encoder's: ten in the authors' script for ResNets. The mobile networks
# begin at 1e-3, and ten times that diverges, since the decoder has no normalisation; five times is
# the ResNets' own decoder rate.
RATES = {"resnet": (5e-4, 5e-3), "mobile": (1e-3, 5e-3)}


def _halved(
    data: str, epochs: int, encoder: str, milestones: tuple[int, ...] = (), halvings: int = 0
) -> Stage:
    """A stage at the paper's rate (section 4), halved so many times before and at milestones."""
    first = RATES["resnet" if encoder.startswith("resnet") else "mobile"]
    schedule = "halve" if milestones else "constant"
    rates = (rate / 2**halvings for rate in first)
    return Stage(data, epochs, *rates, schedule=schedule, milestones=milestones)


def _paper(data: str, encoder: str, form: str = "refinenet-lw") -> Recipe:
    """The paper's own training. NYUDv2 and Person-Part: 300 epochs, halved after 100 and 200.

    Context and Cityscapes: 200, halved after 50 and 100 (supplement). VOC: "we reduce the learning
    rate by half after 20 epochs of COCO training and after 50 epochs of the BSD training, and keep
    training until 200 total epochs", which we read as 20 of COCO, 50 of SBD with VOC and 130 of
    VOC. The paper does not say whether the 200 count all three, or the optimiser restarts.
    """
    if data == "voc":
        stages = (
            _halved("coco", 20, encoder),
            _halved("sbd", 50, encoder, halvings=1),
            _halved("voc", 130, encoder, halvings=2),
        )
    elif data in ("nyu", "person"):
        stages = (_halved(data, 300, encoder, (100, 200)),)
    else:
        stages = (_halved(data, 200, encoder, (50, 100)),)
    changes = {}
    if encoder == "nasnet_mobile":
        reason = (
            "no package ships this encoder's ImageNet weights for PyTorch: "
            "it starts from random ones"
        )
        changes = {"weights": None, "frozen_bn": False, "note": reason}
    name = _name(f"paper-{data}", form, encoder)
    return Recipe(name, f"{form}-{encoder}", stages, **UNSAID, **changes)


def _authors_2018(encoder: str) -> Recipe:
    """The authors' script for NYUDv2: three stages of 100 epochs, each with a new optimiser.

    The third multiplies the rates by 0.4, not by one half.
    """
    stages = tuple(Stage("nyu", 100, rate, 10 * rate) for rate in (5e-4, 2.5e-4, 1e-4))
    name, model = f"authors-2018-nyu-lw-{encoder}", f"refinenet-lw-{encoder}"
    return Recipe(name, model, stages, **UNSAID, restart=True)


def _authors_2020(data: str, encoder: str, schedule: str) -> Recipe:
    """The authors' second script: one optimiser, rates that fall by halves or polynomially.

    Where the steps are is taken from the paper. "sbd" is SBD's images with those of VOC 2012.
    """
    epochs, steps = (300, (100, 200)) if data == "nyu" else (200, (50, 100))
    stage = replace(_halved(data, epochs, encoder, steps), schedule="multistep")
    if schedule == "poly":
        stage = replace(stage, schedule="poly", milestones=())
    name = f"authors-2020-{data}-lw-{encoder}-{schedule}"
    return Recipe(name, f"refinenet-lw-{encoder}", (stage,), **UNSAID)


# How a network is optimised: with the encoder's and the decoder's rate.
OPTIMISED = {
    "sgd": {"optimiser": "sgd", "rates": (1e-3, 5e-3)},
    "fast-sgd": {"optimiser": "sgd", "rates": (2e-3, 1e-2)},
    "adamw": {"optimiser": "adamw", "rates": (2e-4, 1e-3), "weight_decay": 0.01},
    "slow-adamw": {"optimiser": "adamw", "rates": (1e-4, 5e-4), "weight_decay": 0.01},
    "slower-adamw": {"optimiser": "adamw", "rates": (5e-5, 2.5e-4), "weight_decay": 0.01},
}
ADAMW = OPTIMISED["adamw"] | {"warmup": WARMUP}


def _camvid(
    form: str,
    encoder: str,
    epochs: int = 20,
    kind: str = "camvid",
    split: str = "train",
    rates: tuple[float, float] = RATES["mobile"],
    warmup: int = 0,
    **changes,
) -> Recipe:
    """The paper's rates of the mobile networks. Poly, since the schedule is short.

    A decoder's rate above 1e-2 diverges: the decoder has no normalisation. Frames are never
    halved: poles would be thinner than a pixel. Rare classes weigh more: a pedestrian or a sign
    has one pixel in a hundred.
    """
    stage = Stage("camvid", epochs, *rates, split=split, schedule="poly", warmup=warmup)
    settings = {"crop": (256, 352), "scale": (0.75, 2.0), "balance": 0.5, "ema": 0.99} | changes
    return Recipe(_name(kind, form, encoder), f"{form}-{encoder}", (stage,), **settings)


def _camvid_tune(what: str, encoder: str = LITE0, **changes) -> Recipe:
    """Settings are chosen on the last fifth of each training sequence; validation stays unseen."""
    parts = {"split": "fit", "validation": "holdout", "val_every": 4}
    tuned = _camvid("refinenet-lw", encoder, 8, **parts, **changes)
    return replace(tuned, name=f"camvid-tune-{what}")


def _camvid_long(encoder: str, epochs: int) -> Recipe:
    """The best network that CPUs train in hours: `camvid-tune-batch-adamw` was best; longer."""
    settings = ADAMW | {"batch": 4, "val_every": 10, "test": "test"}
    return _camvid("refinenet-lw", encoder, epochs, "camvid-long", **settings)


def _camvid_revived(how: str, **changes) -> Recipe:
    """A long run goes on, at low rates, after its dead units were revived."""
    settings = {"batch": 4, "val_every": 8, "test": "test"} | changes
    return _camvid("refinenet-lw", "efficientnet_lite2", 8, f"camvid-revived{how}", **settings)


def _camvid_short(form: str) -> Recipe:
    """What the original's decoder, 19 times the light-weight one's work, allows on a CPU."""
    small = {"crop": (192, 256), "scale": (0.5, 1.5), "val_every": 4}
    return _camvid(form, LITE0, 12, "camvid-short", **small)


# The grid that every form is tuned on: how it is optimised, and what its decoder's weights are at
# first (PyTorch's, as in the authors' scripts, or N(0, 0.01), as in their README).
GRID = tuple((how, init) for how in ("sgd", "fast-sgd", "adamw") for init in ("default", "normal"))
FORMS = (
    "refinenet",
    "refinenet-norcu",
    "refinenet-lw-rcu",
    "refinenet-lw",
    "refinenet-lw-nocrp",
    "refinenet-lw-top2",
)
COMPARED = FORMS[:5]


@dataclass(frozen=True)
class Comparison:
    """How the forms are trained to be compared on a data set.

    The original is 19 times the work, so photos are at half size, in training and in scoring.
    """

    encoder: str
    epochs: int
    settings: dict
    cells: tuple[tuple[str, str], ...] = ()  # of its own grid
    grid_epochs: int = 0
    fit: str = "fit"  # split that the grid trains on; "holdout" is drawn beside it
    more: tuple[str, ...] = ()  # forms beyond `COMPARED`, in no comparison of the protocol


BALANCED = {"balance": 0.5, "batch": 4}
DRAWN = BALANCED | {"crop": (96, 128), "scale": (1.0, 1.0)}
CAMVID = {"crop": (128, 176), "scale": (0.375, 1.0), "val_scale": 0.5, "test": "test"}
NYU = {"crop": (160, 208), "scale": (0.25, 0.75), "val_scale": 0.5}
FEWER = tuple((how, "default") for how in ("fast-sgd", "adamw", "slow-adamw"))
COMPARED_ON = {
    "camvid": Comparison(LITE0, 20, BALANCED | CAMVID, GRID, grid_epochs=5),
    "clutter": Comparison(
        LITE0, 8, DRAWN, FEWER, grid_epochs=4, fit="train", more=("refinenet-lw-top2",)
    ),
    # which part of CRP works: its convolutions or its pools
    "clutter-large": Comparison(
        LITE0, 1, DRAWN, more=("refinenet-lw-crp-convs", "refinenet-lw-crp-pools")
    ),
    "nyu": Comparison("mobilenet_v2", 15, NYU, GRID, grid_epochs=3),
}


def compared(data: str) -> tuple[str, ...]:
    """The forms that are trained alike on a data set."""
    return COMPARED + COMPARED_ON[data].more


def cells(data: str, form: str) -> list[tuple[str, str]]:
    """The cells of a form's grid; the protocol says why some of them are left out."""
    every = COMPARED_ON[data].cells
    return [(how, init) for how, init in every if init == "default" or "-lw" in form]


# What the grid chose for each form by the score on the hold-out; on clutter-large, which has none,
# what the protocol says. Forms that are not here yet are
# not trained to be compared.
CHOSEN: dict[tuple[str, str], tuple[str, str]] = {
    ("camvid", "refinenet-lw"): ("adamw", "default"),
    ("camvid", "refinenet-lw-nocrp"): ("adamw", "default"),
    ("camvid", "refinenet-lw-rcu"): ("adamw", "default"),
    ("clutter", "refinenet-lw"): ("adamw", "default"),
    ("clutter", "refinenet-lw-nocrp"): ("adamw", "default"),
    ("clutter", "refinenet-lw-rcu"): ("adamw", "default"),
    ("clutter", "refinenet-lw-top2"): ("adamw", "default"),
    ("clutter", "refinenet"): ("slow-adamw", "default"),
    ("clutter", "refinenet-norcu"): ("slow-adamw", "default"),
}
CHOSEN |= {
    ("clutter-large", form): ("adamw" if "-lw" in form else "slower-adamw", "default")
    for form in compared("clutter-large")
}


def _compared(
    data: str, form: str, how: str, init: str, kind: str, epochs: int, **changes
) -> Recipe:
    """The warm-up is for all forms and optimisers alike.

    Test frames are scored once, with the last weights.
    """
    on, how = COMPARED_ON[data], dict(OPTIMISED[how])
    rates, split = how.pop("rates"), changes.pop("split", "train")
    stage = Stage(data, epochs, *rates, split=split, schedule="poly", warmup=WARMUP)
    settings = {"ema": 0.99, "decoder_init": init, "val_every": epochs}
    settings |= on.settings | how | changes
    return Recipe(_name(kind, form, on.encoder), f"{form}-{on.encoder}", (stage,), **settings)


def _grid(data: str, form: str, how: str, init: str) -> Recipe:
    """A cell of the grid: a few epochs, on held-out training data."""
    on, kind = COMPARED_ON[data], f"{data}-grid-{how}-{init}"
    parts = {"split": on.fit, "validation": "holdout", "test": ""}
    return _compared(data, form, how, init, kind, on.grid_epochs, **parts)


def _nyu_to_use(kind: str, encoder: str, epochs: int, rates=ADAMW["rates"], **changes) -> Recipe:
    """The network for NYUDv2 to use: AdamW's rates, a longer warm-up for safety."""
    stage = Stage("nyu", epochs, *rates, schedule="poly", warmup=200)
    settings = {"optimiser": "adamw", "weight_decay": 0.01, "ema": 0.99, "val_every": epochs}
    settings |= {"crop": (320, 320), "scale": (0.5, 1.5)} | changes
    name, model = _name(kind, "refinenet-lw", encoder), f"refinenet-lw-{encoder}"
    return Recipe(name, model, (stage,), **settings)


def _embedded(form: str) -> Recipe:
    """Whole scenes, unscaled: a scene cut off from its beacon has no right answer."""
    stage = Stage("embedded", 4, encoder_lr=5e-3, decoder_lr=5e-3, schedule="poly")
    whole = {"crop": (96, 128), "scale": (1.0, 1.0)}
    name, model = _name("embedded", form, LITE0), f"{form}-{LITE0}"
    return Recipe(name, model, (stage,), **whole, batch=16, val_every=1)


# Anybody's own data, in the folder that `rflw train own --data` names. Crops that fit most photos.
OWN = Recipe(
    "own",
    f"refinenet-lw-{LITE0}",
    (Stage("own", 50, *RATES["mobile"], schedule="poly"),),
    crop=(352, 352),
    scale=(0.75, 2.0),
    balance=0.5,
    ema=0.99,
)
RESNETS = ("resnet50", "resnet101", "resnet152")
PAPER = (
    *((data, encoder) for data in ("nyu", "person") for encoder in RESNETS),  # Table 2
    *(("voc", encoder) for encoder in (*RESNETS, "mobilenet_v2", "nasnet_mobile")),  # Table 3
    *(("voc", "resnet101", form) for form in FORMS[:3]),  # section 3.3
    *(("context", encoder) for encoder in ("resnet101", "resnet152")),  # Table 5
    ("cityscapes", "resnet101"),  # supplement
)
TUNED = {
    "plain": {"balance": 0.0},
    "balance": {},
    "strong-balance": {"balance": 1.0},
    "rates": {"rates": (2e-3, 1e-2)},
    "adamw": ADAMW,
    "batch": {"batch": 4},
    "batch-adamw": {"batch": 4, **ADAMW},
    "scale": {"batch": 4, "scale": (0.5, 1.5)},
    "crop": {"crop": (320, 448)},
    "lite2": {"encoder": "efficientnet_lite2"},
}
RECIPES = {
    recipe.name: recipe
    for recipe in (
        *(_paper(*settings) for settings in PAPER),
        *(_authors_2018(encoder) for encoder in RESNETS),
        *(
            _authors_2020(data, encoder, schedule)
            for data in ("nyu", "sbd")
            for encoder in ("resnet50", "mobilenet_v2")
            for schedule in ("steps", "poly")
        ),
        *(_camvid(form, LITE0) for form in FORMS),
        *(_camvid("refinenet-lw", f"efficientnet_lite{n}") for n in (1, 2)),
        *(_camvid_tune(what, **changes) for what, changes in TUNED.items()),
        _camvid_long("efficientnet_lite2", 64),
        _camvid_revived("", **ADAMW | {"rates": (1e-4, 2.5e-4)}),
        _camvid_revived("-sgd", warmup=WARMUP),
        _nyu_to_use("nyu-long", "mobilenet_v2", 60),
        _nyu_to_use(  # a quarter of the pixels, where whole frames take too long
            "nyu-half", "mobilenet_v2", 24, crop=(160, 208), scale=(0.25, 0.75), val_scale=0.5
        ),
        # from `nyu-half`: the full rates kill units of a network that is trained already
        _nyu_to_use("nyu-full", "mobilenet_v2", 12, (1e-4, 2.5e-4), batch=4, balance=0.5),
        *(
            _grid(data, form, *cell)
            for data in COMPARED_ON
            for form in compared(data)
            for cell in cells(data, form)
        ),
        *(
            _compared(data, form, *cell, f"{data}-tuned", COMPARED_ON[data].epochs)
            for (data, form), cell in CHOSEN.items()
        ),
        *(_camvid_short(form) for form in FORMS[:4]),
        replace(
            _compared("camvid", "refinenet-lw", "sgd", "default", "camvid", 20, test=""),
            name="camvid-lw-resnet50",
            model="refinenet-lw-resnet50",
            weights=None,
            frozen_bn=False,
            note="another family of encoders, from random weights; AdamW kills its stage at stride 32",
        ),
        *(_embedded(form) for form in FORMS),
    )
}


def recipe(name: str) -> Recipe:
    """A shipped recipe by name, or "own". Raises InputError that lists them."""
    if name == OWN.name:
        return OWN
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; choose from: {', '.join(RECIPES)}, own")
    return RECIPES[name]

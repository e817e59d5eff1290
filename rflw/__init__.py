"""rflw: Light-Weight RefineNet, rebuilt, counted, trained and measured.

The names below are loaded when first used: `import rflw` costs no import of PyTorch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {  # public name: module and name there
    "InputError": ("errors", "InputError"),
    "Recipe": ("config", "Recipe"),
    "build": ("nn.refinenet", "build"),
    "count_macs": ("complexity", "count"),
    "evaluate": ("evaluation", "evaluate"),
    "export": ("deploy", "export"),
    "list_models": ("nn.refinenet", "list_models"),
    "load": ("checkpoint", "load"),
    "load_official": ("checkpoint", "load_official"),
    "open_dataset": ("data.readers", "open_dataset"),
    "optimise": ("deploy", "optimise"),
    "predict": ("prediction", "predict"),
    "recipe": ("recipes", "recipe"),
    "save": ("checkpoint", "save"),
    "train": ("training", "fit"),
}
_ROOMS = ("deploy",)  # modules that are used under their own name: rflw.deploy.optimise
__all__ = sorted([*_HOME, *_ROOMS])


def __getattr__(name: str):
    if name in _ROOMS:
        return import_module(f"rflw.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'rflw' has no attribute {name!r}")
    module, own = _HOME[name]
    value = globals()[name] = getattr(import_module(f"rflw.{module}"), own)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""rflw: Light-Weight RefineNet, rebuilt, counted, trained and measured.

The names below are loaded when first used: `import rflw` costs no import of PyTorch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "list_models": "rflw.nn.refinenet",
    "build": "rflw.nn.refinenet",
    "load_official": "rflw.checkpoint",
    "load": "rflw.checkpoint",
    "predict": "rflw.prediction",
    "InputError": "rflw.errors",
}
_ROOMS = ("deploy",)  # modules that are used under their own name: rflw.deploy.optimise
__all__ = sorted([*_HOME, *_ROOMS])


def __getattr__(name: str):
    if name in _ROOMS:
        return import_module(f"rflw.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'rflw' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

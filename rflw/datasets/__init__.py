"""Deprecated: `rflw.data` under the name that it had until November 2026. The same modules."""

from importlib import import_module
import sys

for _name in ("check", "images", "labels", "on_device", "readers", "synthetic", "transforms"):
    sys.modules[f"{__name__}.{_name}"] = globals()[_name] = import_module(f"rflw.data.{_name}")

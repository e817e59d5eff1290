"""Devices and precisions by name."""

from contextlib import nullcontext
import ctypes
import warnings

import torch

from rflw.errors import InputError, choose, why

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")  # ROCm's cards are "cuda", too
PRECISIONS = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is the accelerator that PyTorch finds, else the CPU.

    The process keeps freed memory from then on, see `keep_freed_memory`.

    Raises:
        InputError: for an unknown name, a device that is not here, or one that cannot compute.
    """
    keep_freed_memory()
    if name == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=name != "auto") as said:  # a driver that is too old
        here = torch.accelerator.current_accelerator(check_available=True)
    unlisted = () if here is None or here.type in DEVICES else (here.type,)
    choose("device", name, (*DEVICES, *unlisted))
    if name == "auto" and here is None:
        return torch.device("cpu")
    if here is None or name not in ("auto", here.type):
        reason = f" ({why(said[-1].message)})" if said else ""
        raise InputError(f"no {name} device here{reason}: use --device cpu")
    try:
        torch.ones(1, device=here).add(1).item()
    except RuntimeError as e:  # built for other cards than an old one
        raise InputError(f"{here.type}: does not compute ({why(e)}): use --device cpu") from e
    return here


def pick_precision(name: str, device: torch.device) -> str:
    """A precision by name; "auto" is bf16 if the device computes in it, else fp32.

    Raises:
        InputError: for an unknown name.
    """
    choose("precision", name, PRECISIONS)
    if name != "auto":
        return name
    return "bf16" if computes_in_bf16(device) else "fp32"


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 by itself; others imitate it, slowly."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    asks = getattr(torch.get_device_module(device), "is_bf16_supported", None)  # CUDA, XPU
    return bool(asks and asks(including_emulation=False))


def card(device: torch.device) -> str:
    """The name of an accelerator, as records tell it."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return name(device) if name else device.type


def autocast(precision: str, device: torch.device):
    """A context in which the network computes in a precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def keep_freed_memory(keep: bool = True) -> None:
    """Have the C library keep what tensors free for the next ones, where it has such a setting.

    Without this setting the C library gives large blocks back to the system, and every page of the
    next block costs a page fault. False restores the values that glibc sets once it has seen
    large blocks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4  # of glibc's malloc.h
    mallopt(m_mmap_max, 0 if keep else 65536)
    mallopt(m_mmap_threshold, 2**25)
    mallopt(m_trim_threshold, 2**31 - 1 if keep else 2**26)

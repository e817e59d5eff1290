"""Devices and precisions by name."""

from contextlib import nullcontext
import ctypes

import torch

from rflw.errors import InputError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is CUDA if there is a device, else the CPU.

    Raises:
        InputError: for an unknown name, or CUDA without a device.
    """
    if name not in DEVICES:
        raise InputError(f"unknown device {name!r}: choose from: {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here: use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(name: str, device: torch.device) -> str:
    """A precision by name; "auto" is bf16 if the device computes in it, else fp32.

    Raises:
        InputError: for an unknown name.
    """
    if name not in PRECISIONS:
        raise InputError(f"unknown precision {name!r}: choose from: {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    return "bf16" if computes_in_bf16(device) else "fp32"


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 by itself; others imitate it, slowly."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported()


def autocast(precision: str, device: torch.device):
    """A context in which the network computes in a precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def keep_freed_memory(keep: bool = True) -> None:
    """Have the C library keep what tensors free for the next ones, where it has such a setting.

    By itself it gives large blocks back to the system, which costs a fault for each page of the
    next one. False: the values that glibc comes to by itself once it has seen large blocks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4  # of glibc's malloc.h
    mallopt(m_mmap_max, 0 if keep else 65536)
    mallopt(m_mmap_threshold, 2**25)
    mallopt(m_trim_threshold, 2**31 - 1 if keep else 2**26)

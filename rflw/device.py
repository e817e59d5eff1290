"""Devices and precisions."""

from contextlib import nullcontext
import ctypes

import torch

from rflw.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" is CUDA where there is a device, else the CPU. Raises InputError for a device that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {name!r}: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here: use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(name: str, device: torch.device) -> str:
    """ "auto" is bf16 where the device computes in it, else fp32."""
    if name not in ("auto", "fp32", "bf16", "fp16"):
        raise InputError(f"unknown precision {name!r}: auto, fp32, bf16 or fp16")
    if name != "auto":
        return name
    return "bf16" if computes_in_bf16(device) else "fp32"


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 by itself; others imitate it, slowly."""
    return (
        torch.cuda.is_bf16_supported()
        if device.type == "cuda"
        else torch.cpu._is_avx512_bf16_supported()
    )


def autocast(precision: str, device: torch.device):
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def keep_freed_memory(keep: bool = True) -> None:
    """Have the C library keep what tensors free, for the next ones. It would give large blocks back to the system and fault
    each page in again. False: as it is by itself, once it has seen large blocks. Where there is no such setting, nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    m_trim_threshold, m_mmap_threshold, m_mmap_max = (
        -1,
        -3,
        -4,
    )  # of glibc's malloc.h, as the values are that it comes to by itself
    mallopt(m_mmap_max, 0 if keep else 65536)
    mallopt(m_mmap_threshold, 2**25)
    mallopt(m_trim_threshold, 2**31 - 1 if keep else 2**26)

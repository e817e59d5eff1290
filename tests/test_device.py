"""Devices and precisions by name."""

import pytest
import torch

from rflw import InputError, device

CPU = torch.device("cpu")


def test_devices():
    assert device.pick_device("cpu") == CPU
    assert device.pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="'tpu': choose from: auto, cpu, cuda"):
        device.pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            device.pick_device("cuda")


@pytest.mark.parametrize("bf16", [True, False])
def test_the_fastest_precision_is_one_that_the_device_computes_in(monkeypatch, bf16):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert device.pick_precision("auto", CPU) == ("bf16" if bf16 else "fp32")
    assert device.pick_precision("fp16", CPU) == "fp16"
    with pytest.raises(InputError, match="'int3': choose from: auto, fp32, bf16, fp16"):
        device.pick_precision("int3", CPU)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_autocast_computes_in_the_precision(precision, dtype):
    with device.autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    calls = []

    class Library:
        mallopt = staticmethod(lambda *setting: calls.append(setting))

    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: Library)
    m_mmap_max = -4  # of glibc's malloc.h
    device.keep_freed_memory()
    assert (m_mmap_max, 0) in calls
    device.keep_freed_memory(False)
    assert (m_mmap_max, 65536) in calls
    before = len(calls)
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: object())  # a C library without it
    device.keep_freed_memory()
    assert len(calls) == before

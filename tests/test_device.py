"""Devices and precisions by name; what code asks of CUDA, answered by fakes."""

import sys
from types import SimpleNamespace
import warnings

import pytest
import torch

from rflw import InputError, build, cli, deploy, device, steps, training
from rflw.nn import pooling
from rflw_study import speed
from tests import standin

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


@pytest.mark.parametrize("bf16", [True, False])
def test_the_fastest_precision_is_one_that_the_device_computes_in(monkeypatch, bf16):
    fastest = "bf16" if bf16 else "fp32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert device.pick_precision("auto", CPU) == fastest
    imitates = lambda including_emulation=True: including_emulation or bf16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", imitates)
    assert device.pick_precision("auto", CUDA) == fastest
    assert device.pick_precision("auto", MPS) == "fp32"
    assert device.pick_precision("fp16", CPU) == "fp16"
    with pytest.raises(InputError, match="'int3'; choose from: auto, fp32, bf16, fp16"):
        device.pick_precision("int3", CPU)
    with device.autocast(fastest, CPU):
        dtype = torch.bfloat16 if bf16 else torch.float32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    calls = []
    library = SimpleNamespace(mallopt=lambda *setting: calls.append(setting))
    for found in (library, object()):  # a C library without it
        monkeypatch.setattr(device.ctypes, "CDLL", lambda _, found=found: found)
        assert device.pick_device("cpu") == CPU
    assert (-4, 0) in calls and len(calls) == 3  # M_MMAP_MAX of glibc's malloc.h


def find(monkeypatch, here):
    """Has PyTorch find an accelerator."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: here)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))


@pytest.mark.parametrize("where", [CUDA, MPS, torch.device("xpu")])
def test_any_accelerator_is_taken(monkeypatch, where):
    find(monkeypatch, where)
    assert device.pick_device() == device.pick_device(where.type) == where
    assert device.pick_device("cpu") == CPU
    other = "xpu" if where == MPS else "mps"
    with pytest.raises(InputError, match=f"no {other} device here: use --device cpu"):
        device.pick_device(other)
    with pytest.raises(InputError, match="'tpu'; choose from: auto, cpu, cuda, mps, xpu"):
        device.pick_device("tpu")


def test_an_old_card_and_an_old_driver_are_one_line(monkeypatch):
    def no_code(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available\nCUDA kernel errors might")

    find(monkeypatch, CUDA)
    monkeypatch.setattr(torch, "ones", no_code)
    message = r"cuda: does not compute \(.*no kernel image is available\): use --device cpu$"
    with pytest.raises(InputError, match=message):
        device.pick_device()

    def old_driver(**_):
        warnings.warn("The NVIDIA driver on your system is too old (found 11040).", stacklevel=2)

    monkeypatch.setattr(torch.accelerator, "current_accelerator", old_driver)
    with pytest.raises(InputError, match=r"no cuda device here \(The NVIDIA driver .* too old"):
        device.pick_device("cuda")
    with pytest.warns(UserWarning, match="too old"):
        assert device.pick_device() == CPU


TOO_LITTLE = "too little memory: --tile, a smaller batch or --device cpu takes less"
MEDIAN = "The operator 'aten::median' is not currently implemented for the MPS device"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), TOO_LITTLE),
        (RuntimeError("MPS backend out of memory"), TOO_LITTLE),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cubl"), TOO_LITTLE),
        (None, TOO_LITTLE),  # what a CPU says
        (NotImplementedError(f"{MEDIAN}. If you want this"), f"{MEDIAN}: use --device cpu"),
    ],
)
def test_what_a_device_lacks_is_one_line(error, line, monkeypatch, capsys):
    def fails(**_):
        if error is None:
            torch.empty(2**50)
        raise error

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit, match="2"):
        cli.run()
    assert capsys.readouterr().err == f"rflw: {line}\n"


def test_what_only_some_devices_have_is_refused_or_left_out_on_others(monkeypatch):
    deploy._check_precision("fp16", CUDA, None)
    for precision, where in (("fp16", MPS), ("fp16", CPU), ("bf16", MPS), ("int8", CUDA)):
        with pytest.raises(InputError, match=precision):
            deploy._check_precision(precision, where, [])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes: on CUDA devices and CPUs only, not on mps"):
        steps.make_fabric(MPS, "fp32")
    standin.install()
    monkeypatch.setattr(pooling, "can_compile", lambda: True)
    fast = deploy.optimise(build("refinenet-lw-mobilenet_v2", 2).to(standin.NAME), pools=False)
    assert fast.left_out == {"graphs": "on CUDA devices only"} and "graphs" not in fast.steps


def test_what_cuda_counts_is_taken_from_it(monkeypatch):
    memory = iter((5 * 2**20, 9 * 2**20))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda where: next(memory))
    assert training.peak_memory_mb(CUDA) == 5
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda where: None)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda where: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda where: 2**20)
    assert speed.working_mb(lambda: None, CUDA) == 8 * 2**20 / 1e6

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        record = staticmethod(lambda: None)
        elapsed_time = staticmethod(lambda end: 7.5)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert speed._milliseconds(lambda: None, CUDA) == 7.5
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda card: 5000,  # millijoules
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert speed._energy_counter(CUDA)() == 5

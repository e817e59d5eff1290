"""A device that is not the CPU on machines that have no other: arrays on the CPU under another name.

Operations compute on the arrays as CPUs do, so that results are the CPU's to the last bit. A tensor
that was left on the CPU is refused as a card refuses it: all tensors of an operation must be on the
stand-in, but for numbers (no dimensions), copies, and indices.
"""

import torch
from torch import library
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "standin"
COPIES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from"}
INDEXING = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"}
state = {"there": False}  # other tests of the process see no accelerator


class OnStandIn(torch.Tensor):
    """A tensor on the stand-in; `array` is on the CPU."""

    @staticmethod
    def __new__(cls, array: torch.Tensor):
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            array.shape,
            array.stride(),
            array.storage_offset(),
            dtype=array.dtype,
            device=f"{NAME}:0",
        )
        self.array = array
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, tensors = (
            func.name(),
            [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)],
        )
        left = [t for t in tensors if not isinstance(t, OnStandIn) and t.ndim]
        if left and name not in COPIES | INDEXING or name in INDEXING and tensors[0] in left:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {name} got {NAME} and cpu"
            )
        place = kwargs.get("device")
        stays = place is None or torch.device(place).type == NAME
        if place is not None:
            kwargs["device"] = torch.device("cpu")
        owners = {id(t.array): t for t in tensors if isinstance(t, OnStandIn)}
        args, kwargs = tree_map_only(OnStandIn, lambda t: t.array, (args, kwargs))
        if name == "aten::_to_copy" and not stays:
            kwargs.pop("pin_memory", None)
        out = func(*args, **kwargs)
        if not stays or name == "aten::copy_" and not isinstance(tensors[0], OnStandIn):
            return out

        def wrapped(t):
            if t.dtype == torch.float64:  # as on MPS
                raise TypeError(f"{NAME} has no float64")
            return owners[id(t)] if id(t) in owners else OnStandIn(t)

        return tree_map_only(torch.Tensor, wrapped, out)

    def tolist(self):
        return self.array.tolist()

    def __reduce_ex__(self, protocol):
        return self.array.detach().clone().__reduce_ex__(protocol)  # files hold arrays

    def __repr__(self):
        return f"OnStandIn({self.array})"


class Hook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return state["there"]


class Module(backend_registration._DummyBackendModule):
    """`torch.standin`."""

    def is_available(self) -> bool:
        return state["there"]

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def install() -> None:
    """Make the device known to PyTorch; once a process."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module(), Hook())
    # what a file holds for the device stays on the CPU, so that it must be put in its place
    torch.serialization.register_package(
        0, lambda storage: None, lambda storage, at: storage if at.startswith(NAME) else None
    )
    kernels = library.Library("aten", "IMPL")

    def empty(size, **options):
        return OnStandIn(torch.empty(size, dtype=options.get("dtype"), device="cpu"))

    def empty_strided(size, stride, **options):
        return OnStandIn(torch.empty_strided(size, stride, dtype=options.get("dtype")))

    def copy_from(source, target, non_blocking=False):  # `torch.tensor` goes past the class
        arrays = [getattr(t, "array", t) for t in (source, target)]
        arrays[1].copy_(arrays[0])
        return target

    kernels.impl("_copy_from", copy_from, "PrivateUse1")
    kernels.impl("empty.memory_format", empty, "PrivateUse1")
    kernels.impl("empty_strided", empty_strided, "PrivateUse1")
    state["kernels"] = kernels


def attach(monkeypatch) -> None:
    """Have PyTorch find the device during a test."""
    install()
    monkeypatch.setitem(state, "there", True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device=None: None)

"""Fast inference and export: the same network with less work.

Folding batch norm and merging successive linear maps is exact algebra; the layout, the pools' form and compiling change only the
order of sums; precisions below fp32 change the numbers, which is for the caller to weigh. What the paper calls runtime begins here.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stdout
from copy import deepcopy
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from pathlib import Path
import tempfile
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from rflw.device import computes_in_bf16, keep_freed_memory
from rflw.errors import InputError
from rflw.nn import pooling
from rflw.nn.blocks import POOLED
from rflw.nn.refinenet import MIN_SIZE, RefineNet
from rflw.prediction import normalise, upsample
from rflw.records import write_whole
from rflw.trace import record

SIZES = 8  # that are compiled; torch.compile makes no more by itself
PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,
}

# ---------------------------------------------------------------- exact algebra, in place


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> int:
    """Put every batch norm that follows a convolution into its weights and bias, in evaluation mode -> how many.

    Which follows which is seen in a pass over a small image, so that it works for any network, whatever its modules are called.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    device = next(model.parameters()).device
    steps = record(model, torch.zeros(1, 3, 64, 64, device=device))
    modules = dict(model.named_modules())
    uses = Counter(step.module for step in steps if step.op in ("conv2d", "batch_norm"))
    readers = Counter(i for step in steps for i in step.inputs)
    folded = 0
    for step in steps:
        if step.op != "batch_norm" or step.inputs[0] < 0 or steps[step.inputs[0]].op != "conv2d":
            continue
        before = steps[step.inputs[0]]
        conv, norm = modules[before.module], modules[step.module]
        alone = max(readers[step.inputs[0]], uses[before.module], uses[step.module]) == 1
        if (
            alone
            and isinstance(conv, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
            and norm.running_var is not None
        ):
            _replace(model, before.module, fuse_conv_bn_eval(conv, norm))
            _replace(
                model,
                step.module,
                nn.Sequential(*norm.children()) if len(list(norm.children())) else nn.Identity(),
            )
            folded += 1
    return folded


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


@torch.no_grad()
def merge_linear(model: nn.Module) -> int:
    """Multiply the decoder's two successive 1x1 convolutions, reduce and adapt, into one -> in how many stages. Nothing lies
    between them in the light-weight form without RCU."""
    merged = 0
    for stage in model.decoder.stages if isinstance(model, RefineNet) else ():
        maps = [*stage.reduce, stage.adapt]
        if len(stage.rcu_in) or not all(
            isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.bias is None for m in maps
        ):
            continue
        adapt = stage.adapt.weight.flatten(1).double()
        for reduce in stage.reduce:
            reduce.weight.copy_((adapt @ reduce.weight.flatten(1).double())[:, :, None, None])
        stage.adapt = nn.Identity()
        merged += 1
    return merged


# ---------------------------------------------------------------- one network, made fast


class Deployed(nn.Module):
    """A network made fast: (B, 3, H, W) float32, normalised -> float32 logits, as the network that it was made of.

    steps: what was done, in order; left_out: what was not, and why. `rflw.predict` and `rflw.evaluation.evaluate` take it.
    """

    def __init__(
        self,
        net: nn.Module,
        like: nn.Module,
        precision: str,
        layout: torch.memory_format,
        steps: list[str],
        left_out: dict[str, str],
    ):
        super().__init__()
        self.net, self.precision, self.layout, self.steps, self.left_out = (
            net,
            precision,
            layout,
            tuple(steps),
            left_out,
        )
        for name in ("name", "num_classes", "mean", "std", "card"):
            if hasattr(like, name):
                setattr(self, name, getattr(like, name))
        self.compiled, self.copies, self.seen = None, False, set()
        self.dtype = PRECISIONS[precision]
        self.device = next(like.parameters()).device

    def compile(self, graphs: bool) -> None:
        """Have torch.compile make code at the first image of each size, of the first few sizes; later ones go uncompiled. (Code for
        any size takes it many minutes to make.) graphs: replay it as a CUDA graph, whose output the next pass overwrites."""
        pooling.keep_code_private()
        # not as an attribute, which would list all modules twice
        self.__dict__["compiled"] = torch.compile(
            self.net, dynamic=False, mode="reduce-overhead" if graphs else None
        )
        self.copies = graphs

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype, memory_format=self.layout)
        if self.compiled is None or x.shape not in self.seen and len(self.seen) == SIZES:
            return self.net(x).float()
        if x.shape in self.seen:
            logits = self.compiled(x)
        else:  # weights become constants, laid out as each kernel reads them; among torch.compile's options, this comes too late
            from torch._inductor import config

            self.seen.add(x.shape)
            with config.patch(freezing=True):
                logits = self.compiled(x)
        return logits.clone() if self.copies and logits.dtype == torch.float32 else logits.float()


def optimise(
    model: nn.Module,
    precision: str = "fp32",
    *,
    fold: bool = True,
    merge: bool = True,
    channels_last: bool = True,
    pools: bool = True,
    compiled: bool | None = None,
    graphs: bool | None = None,
    calibration: Iterable[np.ndarray] | None = None,
) -> Deployed:
    """A network -> the same for inference only, faster; the given one stays as it is.

    fold, merge: exact algebra, see above. channels_last: the layout in which convolutions and the pools are fast. pools: the 5x5
    max-pools in the form that is fastest: as maxima that the compiler joins with what is around them; else, not compiled, what wins a
    short race of PyTorch's own and one over rows, then columns. compiled: by torch.compile; None: where that works. graphs: CUDA
    graphs; None: on CUDA, where compiled. On CPUs, freed memory is kept for the next pass, in the whole process.
    precision: "fp32"; "bf16", "fp16": weights and values; "int8": convolutions, after training, with the ranges that `calibration`,
    some (H, W, 3) uint8 images, shows (CPUs only).
    Raises InputError for a precision that the device does not compute in, or int8 without calibration.
    """
    device = next(model.parameters()).device
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: one of {', '.join(PRECISIONS)}")
    if precision == "bf16" and not computes_in_bf16(device):
        raise InputError("bf16: this device does not compute in it; fp32 is there")
    if precision == "fp16" and device.type != "cuda":
        raise InputError("fp16: CUDA devices only; bf16 or fp32 on a CPU")
    if precision == "int8" and (device.type != "cpu" or calibration is None):
        raise InputError("int8: on CPUs, with images to calibrate it")
    net, steps, left_out = deepcopy(model).eval().requires_grad_(False), [], {}
    compiled = compiled is not False
    if compiled and not (device.type == "cuda" or pooling.can_compile()):
        compiled, left_out["compile"] = False, "needs a C++ compiler"
    elif device.type == "cuda" and graphs is False:
        left_out["graphs"] = "not asked for"
    if fold and fold_batch_norm(net):
        steps.append("fold")
    if merge and merge_linear(net):
        steps.append("merge")
    if pools and (form := _pools(net, device, compiled)):
        steps.append(f"pools: {form}")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(PRECISIONS[precision], memory_format=layout)
    if channels_last:
        steps.append("channels-last")
    if device.type == "cpu":
        keep_freed_memory()
    if precision == "int8":
        net = _quantise(
            net, [normalise(image, model, device).to(memory_format=layout) for image in calibration]
        )
    if precision != "fp32":
        steps.append(precision)
    deployed = Deployed(net, model, precision, layout, steps, left_out).eval()
    if compiled:
        graphs = device.type == "cuda" and graphs is not False
        deployed.compile(graphs)
        deployed.steps += ("compile", "graphs")[: 1 + graphs]
    return deployed


def _pools(net: nn.Module, device: torch.device, compiled: bool) -> str | None:
    """Give the decoder's pools their fastest form -> its name, None where there are none."""
    chains = [module for module in net.modules() if isinstance(module, POOLED)]
    if not chains:
        return None
    form = "maxima" if compiled else pooling.fastest(device)
    for chain in chains:
        chain.pool = pooling.FORMS[form]
    return form


def _quantise(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """int8 weights and values of the convolutions, from what the batches show; static, symmetric weights a channel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization.pt2e import (
                allow_exported_model_train_eval,
                move_exported_model_to_eval,
            )
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError as e:
        raise InputError("int8 needs torchao: pip install 'rflw[deploy]'") from e
    if not batches:
        raise InputError("int8: no images to calibrate it")
    sizes = {
        2: torch.export.Dim("height", min=MIN_SIZE),
        3: torch.export.Dim("width", min=MIN_SIZE),
    }
    exported = torch.export.export(net, (batches[0],), dynamic_shapes=(sizes,)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what stays in fp32
        quantiser = x86.X86InductorQuantizer().set_global(
            x86.get_default_x86_inductor_quantization_config()
        )
        prepared = prepare_pt2e(exported, quantiser)
        for batch in batches:
            prepared(batch)
        quantised = convert_pt2e(prepared)
    if not any("quantize_per_tensor" in str(node.target) for node in quantised.graph.nodes):
        # PyTorch 2.10 and 2.11: https://github.com/pytorch/ao/issues/3914
        raise InputError(
            f"int8: torchao {version('torchao')} finds nothing to quantise with PyTorch {torch.__version__}: "
            "take a newer PyTorch"
        )
    return allow_exported_model_train_eval(
        move_exported_model_to_eval(quantised)
    )  # later calls of eval() do nothing


# ---------------------------------------------------------------- export

FORMATS = ("onnx", "torch-export")
ODD = ((97, 131), (33, 50), (160, 96))  # sizes on which an export is compared with the network


class Whole(nn.Module):
    """A network with what goes before and after it: (H, W, 3) uint8 image -> (H, W) uint8 class map, as `rflw.predict`."""

    def __init__(self, model: RefineNet):
        super().__init__()
        self.net = model
        self.register_buffer("mean", torch.tensor(model.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = (image.permute(2, 0, 1)[None].float() / 255 - self.mean) / self.std
        return upsample(self.net(x), image.shape[:2]).argmax(1)[0].to(torch.uint8)


def export(
    model: RefineNet,
    path: str | Path,
    form: str = "onnx",
    whole: bool = False,
    opset: int | None = None,
    calibration: list[np.ndarray] | None = None,
) -> dict:
    """Write a network that takes images of any height and width -> {"file", "mb", "input", "output", "error", "agreement"}.

    form: "onnx", or "torch-export" (of torch.export, read by torch.export.load). Input "image": (1, 3, H, W) float32,
    normalised; output "logits". whole: (H, W, 3) uint8 in, "classes", (H, W) uint8, out. Batch norm is folded and linear maps
    are merged before. calibration: (H, W, 3) uint8 images with whose ranges onnxruntime makes an int8 file ("onnx" only).
    What is written was run, by onnxruntime or PyTorch, on images of odd sizes (int8: on three that calibrated it). error: largest
    difference of logits, over the largest logit; None with `whole` or int8. agreement: share of pixels of the same class.
    Raises InputError for what cannot be exported, or does not compute what the network does; then nothing is written.
    """
    if form not in FORMATS:
        raise InputError(f"unknown format {form!r}: one of {', '.join(FORMATS)}")
    if calibration is not None and (form != "onnx" or not calibration):
        raise InputError("int8: for onnx, with images to calibrate it")
    plain = (
        deepcopy(model)
        .cpu()
        .float()
        .eval()
        .requires_grad_(False)
        .to(memory_format=torch.contiguous_format)
    )
    net = deepcopy(plain)
    fold_batch_norm(net)
    merge_linear(net)
    for chain in net.modules():
        if isinstance(chain, POOLED):
            chain.pool = pooling.in_two
    net, plain = (Whole(net), Whole(plain)) if whole else (net, plain)
    example = torch.zeros(*ODD[0], 3, dtype=torch.uint8) if whole else torch.zeros(1, 3, *ODD[0])
    sizes = [torch.export.Dim(name, min=MIN_SIZE, max=2**14) for name in ("height", "width")]
    program = torch.export.export(
        net, (example,), dynamic_shapes=(dict(enumerate(sizes, 0 if whole else 2)),)
    )
    names = {"input": "image", "output": "classes" if whole else "logits"}

    def finish(partial) -> None:
        if form == "torch-export":
            with open(partial, "wb") as file:
                torch.export.save(program, file)
            with open(partial, "rb") as file:
                run = torch.export.load(file).module()
        else:
            _write_onnx(program, partial, names, opset, model, whole, calibration)
            session = _onnxruntime().InferenceSession(partial, providers=["CPUExecutionProvider"])

            def run(x):
                return torch.from_numpy(session.run(None, {names["input"]: x.numpy()})[0])

        facts.update(_compare(plain, run, model, whole, calibration))

    facts = {}
    write_whole(Path(path), finish)
    return {"file": str(path), "mb": Path(path).stat().st_size / 1e6, **names, **facts}


def _onnxruntime():
    try:
        return [import_module(name) for name in ("onnx", "onnxscript", "onnxruntime")][-1]
    except ImportError as e:
        raise InputError(
            "ONNX needs onnx, onnxscript and onnxruntime: pip install 'rflw[deploy]'"
        ) from e


def _write_onnx(
    program, path: str, names: dict, opset: int | None, model: RefineNet, whole: bool, calibration
) -> None:
    """An exported program as an ONNX file, int8 if there are images to calibrate it."""
    _onnxruntime()
    import onnx

    try:
        with redirect_stdout(StringIO()):  # it tells of its progress there
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[names["input"]],
                output_names=[names["output"]],
            ).model_proto
    except Exception as e:  # torch.onnx raises many types for what an operator set lacks
        raise InputError(
            f"operator set {opset}: ONNX cannot be written ({' '.join(str(e).split())[:200]})"
        ) from e
    version = written.opset_import[0].version
    if opset is not None and version != opset:
        raise InputError(
            f"operator set {opset}: this network cannot be written in it, but in {version}"
        )
    facts = {
        "model": model.name,
        "classes": ", ".join(getattr(model, "card", {}).get("classes", ())),
        "mean": str(model.mean),
        "std": str(model.std),
    }
    onnx.helper.set_model_props(written, facts)
    onnx.save(written, path)
    if calibration is None:
        return
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Images(CalibrationDataReader):
        def __init__(self):
            self.left = iter(calibration)

        def get_next(self):
            image = next(self.left, None)
            if image is None:
                return None
            return {
                names["input"]: image
                if whole
                else normalise(image, model, torch.device("cpu")).contiguous().numpy()
            }

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(written, f"{folder}/fp32.onnx")
        quantize_static(
            f"{folder}/fp32.onnx",
            path,
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
        )


class InONNXRuntime(nn.Module):
    """A network as onnxruntime runs its exported file, on a CPU: (B, 3, H, W) float32, normalised -> float32 logits."""

    def __init__(self, model: RefineNet, calibration: list[np.ndarray] | None = None):
        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            export(model, f"{folder}/net.onnx", calibration=calibration)
            self.session = _onnxruntime().InferenceSession(
                f"{folder}/net.onnx", providers=["CPUExecutionProvider"]
            )
        self.name, self.num_classes, self.mean, self.std = (
            model.name,
            model.num_classes,
            model.mean,
            model.std,
        )

    def forward(self, x: Tensor) -> Tensor:
        images = x.contiguous().numpy()
        return torch.from_numpy(
            np.concatenate([self.session.run(None, {"image": image[None]})[0] for image in images])
        )


def _compare(net: nn.Module, run, model: RefineNet, whole: bool, calibration) -> dict:
    """What was written beside the network, on patches of noise of odd sizes -> {"error", "agreement"}. Raises InputError where they
    differ by more than rounding. int8: on images that calibrated it, and only reported."""
    images = [torch.from_numpy(image) for image in (calibration or _noise())[: len(ODD)]]
    errors, same, pixels = [], 0, 0
    for image in images:
        x = image if whole else normalise(image.numpy(), model, torch.device("cpu"))
        expected, got = net(x), run(x)
        if got.shape != expected.shape:
            raise InputError(
                f"the exported file gives {tuple(got.shape)} for {tuple(x.shape)}, {tuple(expected.shape)} expected"
            )
        if not whole:
            errors.append(((got - expected).abs().max() / expected.abs().max()).item())
            got, expected = got.argmax(1), expected.argmax(1)
        same, pixels = same + (got == expected).sum().item(), pixels + expected.numel()
    error = max(errors) if errors and calibration is None else None
    if calibration is None and (same / pixels < 0.999 or (error or 0) > 1e-4):
        raise InputError(
            f"the exported file does not compute what the network does: {100 * same / pixels:.2f} % of the pixels agree"
        )
    return {"error": error, "agreement": same / pixels}


def _noise() -> list[np.ndarray]:
    """Images of ODD sizes: squares of random colours."""
    random = np.random.RandomState(0)
    return [
        random.randint(0, 256, (20, 20, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)[:h, :w]
        for h, w in ODD
    ]

"""Fast inference and export: the same network with less work.

Folding batch norm and merging successive linear maps is exact algebra; the layout, the form of the
pools and compiling change only the order of sums; precisions below fp32 change the numbers: the
caller decides whether that is acceptable.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stdout
from copy import deepcopy
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
import warnings

import numpy as np
import torch
from torch import Tensor, nn
import torch.nn.functional as F

from rflw.device import computes_in_bf16, keep_freed_memory
from rflw.errors import InputError, choose, why
from rflw.nn import pooling
from rflw.nn.blocks import CRP
from rflw.nn.refinenet import MIN_SIZE, RefineNet
from rflw.prediction import as_seen, normalise, seen_size, short_side_of, upsample
from rflw.records import write_whole
from rflw.trace import record

PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,  # what stays outside of convolutions
}
FORMATS = ("onnx", "torch-export")
OPSET = 18  # of ONNX: the first for whose operators PyTorch's exporter is written
ODD = ((97, 131), (33, 50), (160, 96))  # sizes on which an export is compared with the network

# ---------------------------------------------------------------- exact algebra, in place


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> int:
    """Put each batch norm that follows a convolution into the convolution's weights and bias.

    A recorded pass over a small image shows which layer follows which, so that it works for any
    network. A pair is folded only if nothing else uses the convolution, its output or the norm.
    The network is changed in place, in evaluation mode. Returns how many batch norms were folded.
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
        before = steps[step.inputs[0]].module
        conv, norm = modules[before], modules[step.module]
        if (
            max(readers[step.inputs[0]], uses[before], uses[step.module]) == 1
            and isinstance(conv, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
            and norm.running_var is not None
        ):
            model.set_submodule(before, fuse_conv_bn_eval(conv, norm))
            # timm's batch norms hold their activation; of others nothing stays
            model.set_submodule(step.module, nn.Sequential(*norm.children()))
            folded += 1
    return folded


@torch.no_grad()
def merge_linear(model: nn.Module) -> int:
    """Multiply the decoder's successive 1x1 convolutions, reduce and adapt, into one.

    Nothing lies between them in the light-weight form without RCU. A RefineNet is changed in place;
    other networks stay as they are. Returns in how many stages of the decoder they were merged.
    """
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
    """A network made fast; `rflw.predict` and `rflw.evaluate` take it as any other.

    Takes (B, 3, H, W) float32, normalised; returns float32 logits. steps: what was done, in order;
    left_out: what was not done, and why.
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
        self.net, self.precision, self.layout = net, precision, layout
        self.steps, self.left_out = tuple(steps), left_out
        for name in ("name", "num_classes", "mean", "std", "card"):
            if hasattr(like, name):
                setattr(self, name, getattr(like, name))
        self.compiled, self.copies, self.sizes = None, False, set()
        self.dtype = PRECISIONS[precision]
        self.device = next(like.parameters()).device

    def compile(self, graphs: bool) -> None:
        """Have torch.compile make code for the first eight image sizes, at the first image of each.

        Images of other sizes are computed without compiled code. (Code for any size takes many
        minutes to make.)
        graphs: replay the code as a CUDA graph, whose output the next pass overwrites.
        """
        # not as an attribute, which would list all modules twice
        self.__dict__["compiled"] = torch.compile(
            self.net, dynamic=False, mode="reduce-overhead" if graphs else None
        )
        self.copies = graphs

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype, memory_format=self.layout)
        if self.compiled is None:
            return self.net(x).float()
        from torch._inductor import config

        # weights become constants; as an option of torch.compile this comes too late
        is_new = x.shape not in self.sizes  # later passes must not pay for the setting
        self.sizes.add(x.shape)
        with config.patch(freezing=True) if is_new else nullcontext():
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
    """Make a network fast, for inference only. On CPUs, the process keeps freed memory from now on.

    Args:
        model: The network, on its device; it stays as it is.
        precision: "fp32"; "bf16" or "fp16": weights and values; "int8": convolutions, on CPUs.
        fold: Fold batch norm (exact).
        merge: Merge successive linear maps (exact).
        channels_last: Use the layout in which convolutions and pools are fast.
        pools: Compute 5x5 max-pools as maxima of neighbours, which the compiler joins with the
            operations around them; not compiled, over rows and then over columns.
        compiled: Use torch.compile; None: where it works.
        graphs: Use CUDA graphs; None: on CUDA, where compiled.
        calibration: (H, W, 3) uint8 images that show the ranges of values for int8.

    Raises:
        InputError: The device does not compute in `precision`, or int8 has no calibration.
    """
    device = next(model.parameters()).device
    _check_precision(precision, device, calibration)
    net, left_out = deepcopy(model).eval().requires_grad_(False), {}
    compiled, graphs = compiled is not False, device.type == "cuda" and graphs is not False
    if compiled and not (device.type == "cuda" or pooling.can_compile()):
        compiled, left_out["compile"] = False, "needs a C++ compiler"
    elif compiled and device.type not in ("cpu", "cuda"):
        left_out["graphs"] = "on CUDA devices only"
    steps = _simplify(net, fold, merge, pools, "maxima" if compiled else "rows and columns")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(PRECISIONS[precision], memory_format=layout)
    if channels_last:
        steps.append("channels-last")
    if device.type == "cpu":
        keep_freed_memory()
    if precision == "int8":
        images = (as_seen(image, model, device) for image in calibration)
        net = _quantise(net, [image.to(memory_format=layout) for image in images])
    if precision != "fp32":
        steps.append(precision)
    deployed = Deployed(net, model, precision, layout, steps, left_out).eval()
    if compiled:
        deployed.compile(graphs)
        deployed.steps += ("compile", "graphs")[: 1 + graphs]
    return deployed


def _check_precision(precision: str, device: torch.device, calibration) -> None:
    choose("precision", precision, PRECISIONS)
    if precision == "bf16" and not computes_in_bf16(device):
        raise InputError("bf16: this device does not compute in it; take fp32")
    if precision == "fp16" and device.type != "cuda":
        raise InputError("fp16: CUDA devices only; take bf16 or fp32 on a CPU")
    if precision == "int8" and (device.type != "cpu" or calibration is None):
        raise InputError("int8: on CPUs, with images to calibrate it")


def _simplify(net: nn.Module, fold: bool, merge: bool, pools: bool, form: str) -> list[str]:
    """Do with less what changes no answer; form: of the pools."""
    steps = ["fold"] if fold and fold_batch_norm(net) else []
    steps += ["merge"] if merge and merge_linear(net) else []
    chains = [module for module in net.modules() if isinstance(module, CRP) and module.pool]
    if pools and chains:
        for chain in chains:
            chain.pool = pooling.FORMS[form]
        steps.append(f"pools: {form}")
    return steps


def _early(net: nn.Module) -> list[str]:
    """The encoder's convolutions at strides up to 8: in `nyu`, quantising them loses nearly all of
    the accuracy that int8 loses.
    """
    steps = record(net, torch.zeros(1, 3, 64, 64))
    fine = (step for step in steps if step.op == "conv2d" and step.shape[-1] >= 64 // 8)
    names = dict.fromkeys(step.module for step in fine)
    return [name for name in names if name.startswith("encoder.")]


def _quantise(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """int8 weights and values of the convolutions, from what the batches show.

    Ranges are static, weights symmetric with a scale for each channel. What `_early` names stays
    as it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchao.quantization.pt2e as pt2e
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError as e:
        raise InputError("int8 needs torchao: pip install 'rflw[deploy]'") from e
    if not batches:
        raise InputError("int8: no images to calibrate it")
    sizes = dict(enumerate((torch.export.Dim(n, min=MIN_SIZE) for n in ("height", "width")), 2))
    exported = torch.export.export(net, (batches[0],), dynamic_shapes=(sizes,)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what stays in fp32
        narrow = not torch.cpu._is_vnni_supported()  # there, sums of products overflow 16 bits
        ranges = x86.get_default_x86_inductor_quantization_config(reduce_range=narrow)
        quantiser = x86.X86InductorQuantizer().set_global(ranges)
        for name in _early(net):
            quantiser.set_module_name_qconfig(name, None)
        prepared = prepare_pt2e(exported, quantiser)
        for batch in batches:
            prepared(batch)
        quantised = convert_pt2e(prepared)
    if not any("quantize_per_tensor" in str(node.target) for node in quantised.graph.nodes):
        # PyTorch 2.10 and 2.11: https://github.com/pytorch/ao/issues/3914
        raise InputError(
            f"int8: torchao {version('torchao')} finds nothing to quantise "
            f"with PyTorch {torch.__version__}: take a newer PyTorch"
        )
    # later calls of eval() do nothing
    return pt2e.allow_exported_model_train_eval(pt2e.move_exported_model_to_eval(quantised))


# ---------------------------------------------------------------- export


class Whole(nn.Module):
    """A network with what `rflw.predict` does before and after it.

    Takes an (H, W, 3) uint8 image; returns its (H, W) uint8 class map.
    """

    def __init__(self, model: RefineNet):
        super().__init__()
        self.net, self.short_side = model, short_side_of(model)
        self.register_buffer("mean", torch.tensor(model.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = (image.permute(2, 0, 1)[None].float() / 255 - self.mean) / self.std
        h, w = image.shape[:2]
        if self.short_side:
            size = seen_size(h, w, torch.sym_min(h, w), self.short_side)
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        return upsample(self.net(x), (h, w)).argmax(1)[0].to(torch.uint8)


def export(
    model: RefineNet,
    path: str | Path,
    form: str = "onnx",
    whole: bool = False,
    opset: int | None = None,
    calibration: list[np.ndarray] | None = None,
) -> dict:
    """Write a network for images of any height and width to a file that other programs run.

    Batch norm is folded and linear maps are merged. The file is run, by onnxruntime or PyTorch, on
    images of odd sizes (int8: on three that calibrated it) and compared with the network.

    Args:
        model: The network; it stays as it is.
        path: The file. "image" goes in, (B, 3, H, W) float32, normalised; "logits" come out.
        form: "onnx", or "torch-export", which torch.export.load reads.
        whole: The file takes an (H, W, 3) uint8 image and gives "classes", (H, W) uint8: those of
            `predict` at the checkpoint's short side.
        opset: ONNX's operator set; None: PyTorch's choice.
        calibration: (H, W, 3) uint8 images with whose ranges onnxruntime makes an int8 file.

    Returns:
        dict: {"file", "mb", "input", "output", "error", "agreement"}. error is the largest
        difference of logits divided by the largest logit, None with `whole` or int8. agreement is
        the share of pixels that get the same class.

    Raises:
        InputError: The network cannot be exported, or the file computes something else. Then
            nothing is written.
    """
    choose("format", form, FORMATS)
    if calibration is not None and (form != "onnx" or not calibration):
        raise InputError("int8: for onnx, with images to calibrate it")
    if form == "onnx":
        _check_opset(opset)
    plain = deepcopy(model).cpu().float().eval().requires_grad_(False)
    plain = plain.to(memory_format=torch.contiguous_format)
    program = _program(plain, whole)
    names = {"input": "image", "output": "classes" if whole else "logits"}
    facts = {}

    def finish(partial) -> None:
        if form == "torch-export":
            with open(partial, "wb") as file:
                torch.export.save(program, file)
            with open(partial, "rb") as file:
                run = torch.export.load(file).module()
        else:
            _write_onnx(program, partial, names, opset, model)
            if calibration:
                _quantise_onnx(partial, model, whole, calibration)
            run = onnx_runner(partial)
        reference = Whole(plain) if whole else plain
        facts.update(_compare(reference, run, model, whole, calibration))

    write_whole(Path(path), finish)
    return {"file": str(path), "mb": Path(path).stat().st_size / 1e6, **names, **facts}


def _program(plain: RefineNet, whole: bool):
    """The network, folded and merged, as torch.export sees it, for images of any size and number."""
    net = deepcopy(plain)
    _simplify(net, fold=True, merge=True, pools=True, form="rows and columns")
    height, width = (torch.export.Dim(n, min=MIN_SIZE, max=2**14) for n in ("height", "width"))
    if whole:
        net, shape, dtype = Whole(net), (*ODD[0], 3), torch.uint8
        dynamic = {0: height, 1: width}
    else:  # a batch of one would be taken for what it always is
        shape, dtype = (2, 3, *ODD[0]), torch.float32
        dynamic = {0: torch.export.Dim("batch"), 2: height, 3: width}
    return torch.export.export(net, (torch.zeros(shape, dtype=dtype),), dynamic_shapes=(dynamic,))


def _onnx_modules() -> list:
    try:
        return [import_module(name) for name in ("onnx", "onnxscript", "onnxruntime")]
    except ImportError as e:
        raise InputError(f"ONNX needs {e.name or e}: pip install 'rflw[deploy]'") from e


def onnx_runner(path: str) -> Callable[[Tensor], Tensor]:
    """A function that runs an ONNX file of one input and one output on a CPU."""
    onnxruntime = _onnx_modules()[-1]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {image.name: x.numpy()})[0])


def _check_opset(opset: int | None) -> None:
    """Refuse an operator set before any work."""
    last = _onnx_modules()[0].defs.onnx_opset_version()
    if opset is not None and not OPSET <= opset <= last:
        raise InputError(f"operator set {opset}: PyTorch writes those from {OPSET} to {last}")


def _write_onnx(program, path: str, names: dict, opset: int | None, model: RefineNet) -> None:
    onnx = _onnx_modules()[0]
    ends = {"input_names": [names["input"]], "output_names": [names["output"]]}
    try:
        with redirect_stdout(StringIO()):  # it prints its progress
            made = torch.onnx.export(program, dynamo=True, opset_version=opset, **ends)
            written = made.model_proto
    except Exception as e:  # torch.onnx raises many types for what an operator set lacks
        raise InputError(f"operator set {opset}: ONNX cannot be written ({why(e)})") from e
    version = written.opset_import[0].version
    if opset not in (None, version):
        raise InputError(f"operator set {opset}: this network can be written in {version} only")
    facts = {
        "model": model.name,
        "classes": ", ".join(getattr(model, "card", {}).get("classes", ())),
        "mean": str(model.mean),
        "std": str(model.std),
    }
    onnx.helper.set_model_props(written, facts)
    onnx.save(written, path)


def _quantise_onnx(path: str, model: RefineNet, whole: bool, images: list[np.ndarray]) -> None:
    """Replace an ONNX file by one with int8 convolutions, with the ranges that the images show."""
    from onnxruntime.quantization import QuantType, quantize_static

    nodes = _onnx_modules()[0].load(path).graph.node
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    arrays = images if whole else (_as_input(image, model).numpy() for image in images)
    feeds = ({"image": array} for array in arrays)
    quantize_static(
        path,
        path,
        SimpleNamespace(get_next=lambda: next(feeds, None)),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=convolutions[: len(_early(model))],  # they come first
    )


def _as_input(image: np.ndarray, model: RefineNet) -> Tensor:
    return normalise(image, model, torch.device("cpu")).contiguous()


def _compare(net, run, model: RefineNet, whole: bool, calibration) -> dict:
    """Compare an exported file with the network -> {"error", "agreement"}.

    Raises InputError where they differ by more than rounding; int8 is only reported.
    """
    errors, same, pixels = [], 0, 0
    for image in (calibration or _noise())[: len(ODD)]:
        x = torch.from_numpy(image) if whole else _as_input(image, model)
        expected, got = net(x), run(x)
        if not whole:
            errors.append(((got - expected).abs().max() / expected.abs().max()).item())
            got, expected = got.argmax(1), expected.argmax(1)
        same, pixels = same + (got == expected).sum().item(), pixels + expected.numel()
    error = max(errors) if errors and calibration is None else None
    if calibration is None and (same / pixels < 0.999 or (error or 0) > 1e-4):
        raise InputError(
            "the exported file does not compute what the network does: "
            f"{100 * same / pixels:.2f} % of the pixels agree"
        )
    return {"error": error, "agreement": same / pixels}


def _noise() -> list[np.ndarray]:
    """Images of ODD sizes: squares of random colours."""
    squares = np.random.RandomState(0).randint(0, 256, (len(ODD), 20, 20, 3), np.uint8)
    return [image.repeat(8, 0).repeat(8, 1)[:h, :w] for image, (h, w) in zip(squares, ODD)]

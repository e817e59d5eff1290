"""Devices, checkpoints, prediction and evaluation: plain functions over a network."""

from collections.abc import Iterable
from contextlib import nullcontext
import ctypes
import json
import math
from pathlib import Path
import sys
import time

import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F
from tqdm import tqdm

from rflw import metrics, records, tiles
from rflw.data.images import read_image
from rflw.errors import InputError, no_pipe
from rflw.nn import checkpoints
from rflw.nn.blocks import Window
from rflw.nn.checkpoints import load_tensors
from rflw.nn.refinenet import MIN_SIZE, RefineNet, build
from rflw.records import write_whole

SHIPPED = records.REPOSITORY / "data" / "checkpoints"
MAX_SIDE = 4096  # pixels that a checkpoint may ask for; a user may ask for more

# ---------------------------------------------------------------- devices


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


# ---------------------------------------------------------------- checkpoints


def load_official(path: str | Path, num_classes: int) -> RefineNet:
    """A checkpoint of the authors -> the network in evaluation mode, on the CPU.

    Recognises RefineNet-LW-50/101/152, RefineNet-LW-MobileNet-v2 and RefineNet-50/101/152 by their keys; a state dict
    may be bare or under `segmenter`, with or without `module.` prefixes. Nothing pickled in the file is executed.
    Raises InputError that names the file and the first key at fault.
    """
    name, classes, renamed, modules = _read_official(path)
    model = build(name, num_classes)
    fault = checkpoints.first_fault(renamed, model.state_dict(), modules)
    if fault:
        about = (
            f"a {name} of {classes} classes, {num_classes} asked for"
            if classes != num_classes
            else f"as a {name}"
        )
        raise InputError(f"{path}: {fault} ({about})")
    model.load_state_dict(renamed, strict=False)  # only counters of batches can be missing
    return model.eval()


def _read_official(path: str | Path) -> tuple[str, int, dict, dict]:
    """What `recognise` makes of a checkpoint file of the authors."""
    try:
        with torch.serialization.safe_globals(_numbers()):
            loaded = load_tensors(path, "cpu")
    except FileNotFoundError as e:
        raise InputError(f"{path}: no such file") from e
    except InputError:
        raise
    except (
        Exception
    ) as e:  # torch raises many types for files that are cut off, foreign or hold code
        raise InputError(f"{path}: {checkpoints.unreadable(path, e)}") from e
    try:
        return checkpoints.recognise(checkpoints.unwrap(loaded))
    except InputError as e:
        raise InputError(f"{path}: {e}") from e


def weights_of(path: str | Path) -> tuple[str, dict, tuple[str, ...] | None]:
    """A checkpoint, ours by file or name or the authors', to begin a training with -> (model name, tensors under our keys, class
    names; None for the authors', whose files have none). Raises InputError for a file that is neither."""
    if Path(path).suffix in (".pth", ".tar", ".pt", ".ckpt"):
        name, classes, renamed, modules = _read_official(path)
        with torch.device("meta"):  # a classifier of many classes may have no weights
            fault = checkpoints.first_fault(renamed, build(name, classes).state_dict(), modules)
        if fault:
            raise InputError(f"{path}: {fault} (as a {name})")
        return name, renamed, None
    model = load(path)
    return model.name, model.state_dict(), tuple(model.card["classes"])


def _numbers() -> list:
    """What NumPy's numbers are unpickled with: the authors' script keeps its best score as one, beside the weights."""
    scalar, dtype = np.float64(0).__reduce__()[0], type(np.dtype("float64"))
    return [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        dtype,
    ]


def save(
    model: RefineNet, path: str | Path, card: dict, dtype: torch.dtype = torch.float16
) -> None:
    """Weights as safetensors, with `card` (must have `classes`, `data`) and the model's name in the header; atomic.

    A tensor that `dtype` cannot hold without infinities keeps its own.
    """
    tensors = {}
    for key, tensor in model.state_dict().items():
        small = (
            tensor.detach().to("cpu", dtype)
            if tensor.is_floating_point()
            else tensor.detach().cpu()
        )
        tensors[key] = (small if small.isfinite().all() else tensor.detach().cpu()).contiguous()
    _write_tensors(Path(path), tensors, {"rflw": json.dumps({"model": model.name, **card})})


def _write_tensors(path: Path, tensors: dict, header: dict) -> None:
    """As safetensors, atomic. Raises InputError if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(partial: str) -> None:
        try:
            save_file(tensors, partial, metadata=header)
        except SafetensorError as e:
            raise OSError(str(e)) from e  # a full disk

    write_whole(path, write)


def checkpoint_file(path: str | Path) -> Path:
    """The file of a checkpoint that may be given by the name of a shipped one."""
    shipped = SHIPPED / f"{path}.safetensors"
    return shipped if shipped.exists() else Path(path)


def load(path: str | Path) -> RefineNet:
    """A checkpoint of ours, or the name of a shipped one ("camvid") -> the network in evaluation mode, on the CPU.

    Its `card` attribute is what `save` was given. Raises InputError for a file that is missing, cut off or foreign.
    """
    from safetensors import SafetensorError, safe_open

    file = checkpoint_file(path)
    no_pipe(file)
    if file.is_dir():
        raise InputError(f"{file}: a folder, not a checkpoint")
    try:
        with safe_open(file, "pt") as tensors:
            header = (tensors.metadata() or {}).get("rflw")
            if header is None:
                raise InputError(f"{file}: not a checkpoint of rflw: its header names no model")
            state = {key: tensors.get_tensor(key) for key in tensors.keys()}
    except FileNotFoundError as e:
        shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors"))) or "none"
        raise InputError(f"{path}: no such checkpoint; shipped ones: {shipped}") from e
    except (SafetensorError, OSError) as e:
        raise InputError(f"{file}: not a whole safetensors file ({e})") from e
    try:
        card = _card(json.loads(header))
        if (
            "timm:" in card["model"] or len(card["classes"]) > 256
        ):  # a small file may name a network of gigabytes
            with torch.device("meta"):
                fault = checkpoints.first_fault(
                    state, build(card["model"], len(card["classes"])).state_dict()
                )
            if fault:
                raise InputError(f"{file}: {fault}")
        model = build(card["model"], len(card["classes"]))
    except InputError as e:
        raise (
            e
            if str(e).startswith(f"{file}: ")
            else InputError(f"{file}: its header describes no model ({e})")
        ) from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise InputError(f"{file}: its header describes no model ({e})") from e
    fault = checkpoints.first_fault(state, model.state_dict()) or checkpoints.first_not_numbers(
        state
    )
    if fault:
        raise InputError(f"{file}: {fault}")
    model.load_state_dict(state)
    model.card = card
    return model.eval().to(memory_format=torch.channels_last)


def _card(card) -> dict:
    """The card in a header, of which no entry that is used is of another type. Raises TypeError or KeyError."""
    side, recipe = card.get("short_side"), card.get("recipe", "")
    if not (
        isinstance(card["model"], str)
        and isinstance(card["classes"], list)
        and all(isinstance(c, str) for c in card["classes"])
    ):
        raise TypeError("its model is a name, its classes a list of names")
    if not isinstance(card["data"], str):
        raise TypeError("its data are a name")
    if not (side is None or type(side) is int and (side == 0 or MIN_SIZE <= side <= MAX_SIDE)):
        raise TypeError(f"its short_side is none, 0, or {MIN_SIZE} to {MAX_SIDE} pixels")
    named = (
        isinstance(recipe, str)
        and recipe.isprintable()
        and "/" not in recipe
        and type(card.get("seed", 0)) is int
    )
    if not named:  # files of records are named after them
        raise TypeError("its recipe is a name, its seed a whole number")
    return card


# ---------------------------------------------------------------- prediction


def normalise(images, model: RefineNet, device: torch.device) -> Tensor:
    """(H, W, 3) or (B, H, W, 3) uint8 array -> (B, 3, H, W) float32 as the network wants it, channels last."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    x = (x if x.ndim == 4 else x[None]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (model.mean, model.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def predict(
    model: RefineNet,
    image,
    short_side: int | None = None,
    precision: str = "fp32",
    tile: int | None = None,
):
    """An image (path, PIL image or (H, W, 3) uint8 array) -> its class map, (H, W) uint8 array, at its own size.

    The logits are resized to the image, bilinearly, before the best class is taken. short_side: let the network see
    the image resized so that its shorter side has so many pixels; the result keeps the image's size. precision: "fp32",
    "bf16", "fp16" or "auto", the device's fastest. tile: pixels of the side of the overlapping tiles that the network sees
    a large image in, 0 for never; None: 2048 for images of more pixels than such a tile (`rflw.tiles`).
    Raises InputError for what is no image or too small.
    """
    rgb = (
        image
        if hasattr(image, "__array_interface__") and not hasattr(image, "mode")
        else read_image(image)
    )
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != "uint8":
        raise InputError(
            f"image: an array of {rgb.dtype} and shape {rgb.shape}; (height, width, 3) of uint8 is needed"
        )
    try:
        return class_maps(model, rgb[None], short_side, precision, tile)[0]
    except InputError as e:
        raise InputError(
            f"{'image' if rgb is image or hasattr(image, 'mode') else image}: {e}"
        ) from e


@torch.inference_mode()
def class_maps(
    model: RefineNet,
    images,
    short_side: int | None = None,
    precision: str = "fp32",
    tile: int | None = None,
):
    """(B, H, W, 3) uint8 array -> (B, H, W) uint8 array, as `predict`. Raises InputError for images, or a shorter side, too small."""
    if short_side and short_side < MIN_SIZE:
        raise InputError(
            f"a shorter side of {short_side} pixels: {MIN_SIZE} is the least, 0 keeps the image's own"
        )
    if min(images.shape[1:3]) < MIN_SIZE:
        raise InputError(
            f"{images.shape[2]}x{images.shape[1]} pixels; the networks take {MIN_SIZE}x{MIN_SIZE} and up"
        )
    if model.num_classes > 256:
        raise InputError(f"{model.num_classes} classes do not fit into 8 bits")
    h, w = images.shape[1:3]
    ratio = short_side / min(h, w) if short_side else 1
    training = model.training
    logits = logits_of(
        model.eval(), images, (round(h * ratio), round(w * ratio)), precision, tile=tile
    )
    model.train(training)
    return best([logits], (h, w)).to(torch.uint8).cpu().numpy()


def logits_of(
    model: RefineNet,
    images,
    size: tuple[int, int],
    precision: str,
    flip: bool = False,
    tile: int | None = None,
) -> Tensor:
    """(B, H, W, 3) uint8 array, which the network sees at another size -> logits (B, K, ceil(h/4), ceil(w/4)), on its device. flip: of
    the mirrored image, mirrored back. tile: as `predict`."""
    device, w = next(model.parameters()).device, size[1]
    resized = tuple(size) != tuple(images.shape[1:3])
    side = tiles.side(tile, size)
    if side and not getattr(model, "takes_windows", False):
        if tile:
            raise InputError(
                f"{getattr(model, 'name', type(model).__name__)}: in this form it takes images whole, not in tiles"
            )
        side = 0
    whole = (
        None if side and not resized else normalise(images, model, device)
    )  # tiles are cut out of bytes where they can be
    if resized:
        whole = F.interpolate(whole, size=tuple(size), mode="bilinear", antialias=True)

    def part(window: Window | None = None) -> Tensor:
        x = whole
        if window is not None:
            (top, left), (height, width) = window.start, window.size
            left = w - left - width if flip else left
            rows, columns = slice(top, top + height), slice(left, left + width)
            x = (
                normalise(images[:, rows, columns], model, device)
                if whole is None
                else whole[:, :, rows, columns]
            )
        with autocast(pick_precision(precision, device), device):
            return model(x.flip(3) if flip else x, *([] if window is None else [window]))

    logits = tiles.joined(part, size, side) if side else part()
    return logits.flip(3) if flip else logits


def upsample(logits: Tensor, size) -> Tensor:
    """Logits (B, K, h, w) -> float32 (B, K, *size), bilinear."""
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


def combined(resized: Iterable[Tensor], number: int) -> Tensor:
    """Logits as they are, of several the mean of their softmaxes."""
    total = None
    for logits in resized:
        if number == 1:
            return logits
        total = logits.softmax(1) if total is None else total.add_(logits.softmax(1))
    return total / number


def best(logits: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The best class of every pixel of (H, W), from the logits of several views of an image -> (B, H, W) int64; uint8 where
    full logits would take much memory and are made a few rows at a time."""
    if size[0] * size[1] <= tiles.BAND:
        return combined((upsample(x, size) for x in logits), len(logits)).argmax(1)
    found = torch.empty(
        len(logits[0]),
        *size,
        dtype=torch.uint8 if logits[0].shape[1] <= 256 else torch.int64,
        device=logits[0].device,
    )
    for top, rows in tiles.bands(logits, size):
        found[:, top : top + rows[0].shape[2]] = combined(rows, len(rows)).argmax(1)
    return found


# ---------------------------------------------------------------- evaluation


@torch.inference_mode()
def views(
    model: RefineNet,
    image,
    precision: str = "auto",
    scales=(1.0,),
    flip: bool = False,
    tile: int | None = None,
) -> list[Tensor]:
    """(H, W, 3) uint8 array -> the logits, at stride 4, of the image at each scale and, with flip, of its mirror image, mirrored back."""
    sizes = [
        tuple(n if scale == 1 else max(MIN_SIZE, round(n * scale)) for n in image.shape[:2])
        for scale in scales
    ]
    return [
        logits_of(model, image[None], size, precision, mirrored, tile)
        for size in sizes
        for mirrored in (False, True)[: 1 + flip]
    ]


@torch.inference_mode()
def scores(
    model: RefineNet,
    image,
    size: tuple[int, int],
    precision: str = "auto",
    scales=(1.0,),
    flip: bool = False,
) -> Tensor:
    """(H, W, 3) uint8 array -> (1, K, *size) scores whose best is the class, on the model's device.

    With one scale and no flip these are the logits. Else they are softmaxes, averaged over the image at each scale and,
    with flip, its mirror image (multi-scale evaluation, `msc` in the paper's tables).
    """
    seen = views(model, image, precision, scales, flip)
    return combined((upsample(logits, size) for logits in seen), len(seen))


class Sitting:
    """What an evaluation has measured so far: matrices (N, K, K) int64, one an image; whether each is done, (N,); what `each`
    returned, (N, numbers) float64; and the seconds that it took, (1,) float64.

    file: where it is kept, whole at every moment, so that the same evaluation goes on with it after an interruption; identity says what
    is the same. Raises InputError for a file that is no such thing, or of another evaluation.
    """

    def __init__(
        self,
        images: int,
        classes: int,
        numbers: int = 0,
        file: Path | None = None,
        identity: str = "",
        every: float = 30.0,
    ):
        self.file, self.identity, self.every, self.since = file, identity, every, time.monotonic()
        self.matrices = torch.zeros(images, classes, classes, dtype=torch.int64)
        self.done = torch.zeros(images, dtype=torch.bool)
        self.numbers = torch.zeros(images, numbers, dtype=torch.float64)
        self.seconds = torch.zeros(1, dtype=torch.float64)
        if file is not None and file.exists():
            self._read()

    PARTS = ("matrices", "done", "numbers", "seconds")

    def _read(self) -> None:
        from safetensors import SafetensorError, safe_open

        no_pipe(self.file)
        try:
            with safe_open(self.file, "pt") as kept:
                theirs = (kept.metadata() or {}).get("evaluation")
                if theirs is None:
                    raise InputError(f"{self.file}: not an evaluation that was begun")
                if theirs != self.identity:
                    raise InputError(
                        f"{self.file}: of another evaluation (of another network, data, split or with other options)"
                    )
                found = {name: kept.get_tensor(name) for name in self.PARTS}
        except (SafetensorError, OSError) as e:
            raise InputError(f"{self.file}: not an evaluation that was begun ({e})") from e
        for name, tensor in found.items():
            own = getattr(self, name)
            if (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
                raise InputError(
                    f"{self.file}: {name} of {tuple(tensor.shape)} {tensor.dtype}, {tuple(own.shape)} {own.dtype} expected"
                )
            setattr(self, name, tensor)

    def write(self, soon: bool = True) -> None:
        """soon: now; else if the last time is long enough ago."""
        now = time.monotonic()
        if self.file is None or not soon and now - self.since < self.every:
            return
        self.seconds, self.since = self.seconds + now - self.since, now
        _write_tensors(
            self.file,
            {name: getattr(self, name) for name in self.PARTS},
            {"evaluation": self.identity},
        )


@torch.inference_mode()
def evaluate(
    model: RefineNet,
    dataset,
    precision: str = "auto",
    scales=(1.0,),
    flip: bool = False,
    each=None,
    progress: bool = False,
    rank: int = 0,
    world: int = 1,
    tile: int | None = None,
    sitting: Sitting | None = None,
) -> Tensor:
    """Confusion matrices of whole images, scores resized to the labels: (N, K, K) int64, on the CPU.

    scales, flip: as `scores`; tile: as `predict`. each: called with (index, predicted classes (H, W), labels (H, W)) of every image.
    rank, world: of several processes, each takes its share of the images and leaves the others' matrices zero. sitting: what
    was measured before, and is not again; what `each` returns goes there, too.
    """
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    model.eval().to(memory_format=torch.channels_last)
    sitting = sitting or Sitting(len(dataset), model.num_classes)
    todo = [i for i in range(rank, len(dataset), world) if not sitting.done[i]]
    try:
        for i in tqdm(todo, desc="evaluate", file=sys.stderr, disable=not progress or None):
            image, mask = dataset[i]
            mask = torch.from_numpy(mask).to(device)
            try:
                prediction = best(views(model, image, precision, scales, flip, tile), mask.shape)[0]
            except InputError as e:
                raise InputError(f"{dataset.ids[i]}: {e}") from e
            numbers = each(i, prediction, mask) if each else None
            sitting.matrices[i] = metrics.confusion_matrix(prediction, mask, model.num_classes)
            if sitting.numbers.shape[1]:
                sitting.numbers[i] = torch.tensor(numbers, dtype=torch.float64)
            sitting.done[i] = True
            sitting.write(soon=False)
    finally:  # of Ctrl-C, too: the image that it came in is not marked
        sitting.write()
    for module, mode in modes.items():  # batch norm may be frozen while the rest trains
        module.training = mode
    return sitting.matrices


def summary(matrices: Tensor, classes, blocks: list[int] | None = None) -> dict:
    """(N, K, K), one matrix an image -> {"miou", "pixel_accuracy", "iou": {class: value}, "miou_interval": [low, high] of
    95 % over images, "miou_absent_as_one", "frequency_weighted_iou"}, all in 0..1, None for what is not there to be
    measured. blocks: the number of each image's block, of images that tell of each other; the interval is over blocks then."""

    def known(value):
        return None if math.isnan(value) else value

    matrix = matrices.sum(0)
    if blocks:
        matrices = matrices.new_zeros(max(blocks) + 1, *matrix.shape).index_add_(
            0, torch.tensor(blocks), matrices
        )
    return {
        "miou": known(metrics.mean_iou(matrix)),
        "pixel_accuracy": known(metrics.pixel_accuracy(matrix)),
        "iou": dict(zip(classes, map(known, metrics.iou(matrix).tolist()))),
        "miou_interval": [known(value) for value in metrics.bootstrap_interval(matrices)],
        "miou_absent_as_one": metrics.mean_iou(matrix, absent="one"),
        "frequency_weighted_iou": known(metrics.frequency_weighted_iou(matrix)),
    }

"""Checkpoints, prediction, evaluation and training: plain functions over a network and a recipe."""
from contextlib import nullcontext
import csv
from dataclasses import asdict
import hashlib
import json
import logging
import math
import os
from pathlib import Path
import resource
import shutil
import signal
import sys
import threading
import time

import torch
from torch import Tensor, nn
import torch.nn.functional as F
from tqdm import tqdm

from rflw import metrics, records
from rflw.config import RECIPES, Recipe
from rflw.datasets.labels import LABELS, VOID
from rflw.datasets.readers import Resident, manifest_hash, open_dataset, read_image
from rflw.errors import InputError
from rflw.nn import checkpoints
from rflw.nn.refinenet import MIN_SIZE, RefineNet, build, init_decoder
from rflw.records import write_whole

SHIPPED = records.REPOSITORY / "data" / "checkpoints"

# ---------------------------------------------------------------- devices


def pick_device(name: str = "auto") -> torch.device:
    """"auto" is CUDA where there is a device, else the CPU. Raises InputError for a device that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {name!r}: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here: use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(name: str, device: torch.device) -> str:
    """"auto" is bf16 where the device computes in it, else fp32."""
    if name not in ("auto", "fp32", "bf16", "fp16"):
        raise InputError(f"unknown precision {name!r}: auto, fp32, bf16 or fp16")
    if name != "auto":
        return name
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


def autocast(precision: str, device: torch.device):
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


# ---------------------------------------------------------------- checkpoints


def load_official(path: str | Path, num_classes: int) -> RefineNet:
    """A checkpoint of the authors -> the network in evaluation mode, on the CPU.

    Recognises RefineNet-LW-50/101/152, RefineNet-LW-MobileNet-v2 and RefineNet-50/101/152 by their keys; a state dict
    may be bare or under `segmenter`, with or without `module.` prefixes. Nothing pickled in the file is executed.
    Raises InputError that names the file and the first key at fault.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as e:
        raise InputError(f"{path}: no such file") from e
    except Exception as e:  # torch raises many types for files that are cut off, foreign or hold code
        raise InputError(f"{path}: {_unreadable(path, e)}") from e
    try:
        state = checkpoints.unwrap(loaded)
        name, classes, renamed, modules = checkpoints.recognise(state)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    model = build(name, num_classes)
    fault = checkpoints.first_fault(renamed, model.state_dict(), modules)
    if fault:
        about = f"a {name} of {classes} classes, {num_classes} asked for" if classes != num_classes else f"as a {name}"
        raise InputError(f"{path}: {fault} ({about})")
    model.load_state_dict(renamed, strict=False)  # only counters of batches can be missing
    return model.eval()


def _unreadable(path, error: Exception) -> str:
    """Why torch could not read a checkpoint, in one line."""
    text = str(error)
    if "Unsupported" in text or "weights_only" in text or "Weights only" in text:
        what = next((line for line in text.splitlines() if "GLOBAL" in line or "Unsupported" in line), "code")
        return f"holds more than tensors, which is never executed: {what.strip()}"
    return f"not a whole PyTorch checkpoint ({text.splitlines()[0] if text else type(error).__name__})"


def save(model: RefineNet, path: str | Path, card: dict, dtype: torch.dtype = torch.float16) -> None:
    """Weights as safetensors, with `card` (must have `classes`, `data`) and the model's name in the header; atomic.

    A tensor that `dtype` cannot hold without infinities keeps its own.
    """
    from safetensors.torch import save_file
    tensors = {}
    for key, tensor in model.state_dict().items():
        small = tensor.detach().to("cpu", dtype) if tensor.is_floating_point() else tensor.detach().cpu()
        tensors[key] = (small if small.isfinite().all() else tensor.detach().cpu()).contiguous()
    header = {"rflw": json.dumps({"model": model.name, **card})}
    write_whole(Path(path), lambda partial: save_file(tensors, partial, metadata=header))


def load(path: str | Path) -> RefineNet:
    """A checkpoint of ours, or the name of a shipped one ("camvid") -> the network in evaluation mode, on the CPU.

    Its `card` attribute is what `save` was given. Raises InputError for a file that is missing, cut off or foreign.
    """
    from safetensors import SafetensorError, safe_open
    file = SHIPPED / f"{path}.safetensors" if (SHIPPED / f"{path}.safetensors").exists() else Path(path)
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
        card = json.loads(header)
        model = build(card["model"], len(card["classes"]))
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f"{file}: its header describes no model ({e})") from e
    fault = checkpoints.first_fault(state, model.state_dict())
    if fault:
        raise InputError(f"{file}: {fault}")
    model.load_state_dict(state)
    model.card = card
    return model.eval()


# ---------------------------------------------------------------- prediction


def normalise(image, model: RefineNet, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 array -> (1, 3, H, W) float32 as the network wants it, channels last."""
    x = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (model.mean, model.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict(model: RefineNet, image, short_side: int | None = None):
    """An image (path, PIL image or (H, W, 3) uint8 array) -> its class map, (H, W) uint8 array, at its own size.

    The logits are resized to the image, bilinearly, before the best class is taken. short_side: let the network see
    the image resized so that its shorter side has so many pixels; the result keeps the image's size.
    Raises InputError for what is no image or too small.
    """
    rgb = image if hasattr(image, "__array_interface__") and not hasattr(image, "mode") else read_image(image)
    h, w = rgb.shape[:2]
    if min(h, w) < MIN_SIZE:
        where = "image" if rgb is image or hasattr(image, "mode") else image
        raise InputError(f"{where}: {w}x{h} pixels; the networks take {MIN_SIZE}x{MIN_SIZE} and up")
    if model.num_classes > 256:
        raise InputError(f"{model.num_classes} classes do not fit into 8 bits")
    device = next(model.parameters()).device
    x = normalise(rgb, model, device)
    if short_side and short_side != min(h, w):
        ratio = max(short_side, MIN_SIZE) / min(h, w)
        x = F.interpolate(x, size=(round(h * ratio), round(w * ratio)), mode="bilinear", antialias=True)
    training = model.training
    logits = model.eval()(x)
    model.train(training)
    return _upsample(logits, (h, w)).argmax(1)[0].to(torch.uint8).cpu().numpy()


def _upsample(logits: Tensor, size) -> Tensor:
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


# ---------------------------------------------------------------- evaluation


@torch.inference_mode()
def scores(model: RefineNet, image, size: tuple[int, int], precision: str = "auto", scales=(1.0,), flip: bool = False) -> Tensor:
    """(H, W, 3) uint8 array -> (1, K, *size) scores whose best is the class; the device's and model's modes are left alone.

    With one scale and no flip these are the logits. Else they are softmaxes, averaged over the image at each scale and,
    with flip, its mirror image (multi-scale evaluation, `msc` in the paper's tables).
    """
    device = next(model.parameters()).device
    precision = pick_precision(precision, device)
    x, total = normalise(image, model, device), None
    for scale in scales:
        scaled = x if scale == 1 else F.interpolate(
            x, size=[max(MIN_SIZE, round(n * scale)) for n in x.shape[-2:]], mode="bilinear", antialias=True)
        for mirrored in (False, True)[: 1 + flip]:
            with autocast(precision, device):
                logits = model(scaled.flip(3) if mirrored else scaled)
            logits = _upsample(logits.flip(3) if mirrored else logits, size)
            if len(scales) == 1 and not flip:
                return logits
            total = logits.softmax(1) if total is None else total.add_(logits.softmax(1))
    return total / (len(scales) * (1 + flip))


@torch.inference_mode()
def evaluate(model: RefineNet, dataset, precision: str = "auto", scales=(1.0,), flip: bool = False, each=None,
             progress: bool = False, rank: int = 0, world: int = 1) -> Tensor:
    """Confusion matrices of whole images, scores resized to the labels: (N, K, K) int64, on the CPU.

    scales, flip: as `scores`. each: called with (index, predicted classes (H, W), labels (H, W)) of every image.
    rank, world: of several processes, each takes its share of the images and leaves the others' matrices zero.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval().to(memory_format=torch.channels_last)
    matrices = torch.zeros(len(dataset), model.num_classes, model.num_classes, dtype=torch.int64)
    for i in tqdm(range(rank, len(dataset), world), desc="evaluate", file=sys.stderr, disable=not progress or None):
        image, mask = dataset[i]
        mask = torch.from_numpy(mask).to(device)
        prediction = scores(model, image, mask.shape, precision, scales, flip).argmax(1)[0]
        matrices[i] = metrics.confusion_matrix(prediction, mask, model.num_classes)
        if each:
            each(i, prediction, mask)
    model.train(training)
    return matrices


def summary(matrices: Tensor, classes) -> dict:
    """(N, K, K) -> {"miou", "pixel_accuracy", "iou": {class: value, None where absent}, "miou_interval": [low, high],
    "miou_absent_as_one", "frequency_weighted_iou"}, all in 0..1."""
    matrix = matrices.sum(0)
    per_class = [None if math.isnan(v) else v for v in metrics.iou(matrix).tolist()]
    return {"miou": metrics.mean_iou(matrix), "pixel_accuracy": metrics.pixel_accuracy(matrix),
            "iou": dict(zip(classes, per_class)), "miou_interval": list(metrics.bootstrap_interval(matrices)),
            "miou_absent_as_one": metrics.mean_iou(matrix, absent="one"),
            "frequency_weighted_iou": metrics.frequency_weighted_iou(matrix)}


# ---------------------------------------------------------------- training


def derive(*parts) -> int:
    """A seed from what it is for: the same parts give the same seed, any other part another one."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())


def training_mode(model: nn.Module) -> None:
    """Train, with batch norm statistics frozen ("we keep batch norm statistics frozen", section 4)."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def make_optimiser(model: RefineNet, recipe: Recipe) -> torch.optim.SGD:
    """SGD with one group for the encoder and one for the decoder; `fit` sets their rates before each step."""
    groups = [{"params": list(model.encoder.parameters())}, {"params": list(model.decoder.parameters())}]
    return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def loss_of(logits: Tensor, masks: Tensor, pixels: Tensor | int) -> Tensor:
    """Cross-entropy on logits resized to the labels, summed over pixels that are not void and divided by `pixels`.

    pixels: how many are not void in the whole batch, of which this may be a part. Parts then add up to the mean over the
    batch, however it was cut; a batch of void gives 0.
    """
    total = F.cross_entropy(_upsample(logits, masks.shape[-2:]), masks.long(), ignore_index=VOID, reduction="sum")
    return total / pixels


def make_fabric(device: torch.device, precision: str):
    """Lightning Fabric: places the model, scales the loss where the precision needs it, and joins the processes that
    `torchrun` started (DDP: NCCL on CUDA, gloo on CPUs)."""
    from lightning.fabric import Fabric  # costs seconds: only training pays them
    logging.getLogger("lightning").setLevel(logging.WARNING)  # it announces the precision on stderr
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    fabric = Fabric(accelerator=device.type, devices=local, num_nodes=world // local, strategy="ddp" if world > 1 else "auto",
                    precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision])
    if world > 1:
        fabric.launch()
    return fabric


def make_loader(dataset, recipe: Recipe, model: RefineNet, keys: list, workers: int = 0, pin: bool = False):
    """Batches of augmented images and masks for the given keys, in their order."""
    from torch.utils.data import DataLoader

    from rflw.datasets.transforms import Augmented, training_transform
    transform = training_transform(recipe.crop, recipe.scale, recipe.min_side, recipe.flip, recipe.jitter,
                                   model.mean, model.std)
    return DataLoader(Augmented(dataset, transform), batch_sampler=keys, num_workers=workers, pin_memory=pin)


def train_step(fabric, model: nn.Module, optimiser, images: Tensor, masks: Tensor, clip: float, accumulate: int = 1) -> float:
    """Forward, backward, clip, step -> the loss of the whole batch over all processes. Where it is not finite, weights stay
    as they are. accumulate: parts that the batch is cut into, to save memory; the gradient is that of the whole."""
    pixels = fabric.all_reduce((masks != VOID).sum(), reduce_op="sum").clamp(min=1)
    optimiser.zero_grad()
    value = torch.zeros((), device=images.device)
    parts = list(zip(images.chunk(accumulate), masks.chunk(accumulate)))
    for i, (x, y) in enumerate(parts):
        with fabric.no_backward_sync(model, enabled=i + 1 < len(parts)):
            loss = loss_of(model(x), y, pixels)
            fabric.backward(loss * fabric.world_size)  # DDP takes the mean over processes; parts must add up
        value += loss.detach()
    value = fabric.all_reduce(value, reduce_op="sum").item()
    if clip:
        fabric.clip_gradients(model, optimiser, max_norm=clip, error_if_nonfinite=False)
    if math.isfinite(value):
        optimiser.step()
    return value


def batches(dataset, recipe: Recipe, stage: int, seed: int, first_step: int, steps_per_epoch: int, rank: int = 0, world: int = 1):
    """Keys of every batch of a stage from `first_step` on: (augmentation seed, index) of its items.

    Every epoch is a permutation of its own, drawn from the seed and the epoch alone; what is left over at its end,
    too little for a batch, is dropped. Of `world` processes each takes its share of every batch.
    """
    for step in range(first_step, recipe.stages[stage].epochs * steps_per_epoch):
        epoch, position = divmod(step, steps_per_epoch)
        generator = torch.Generator().manual_seed(derive("order", seed, stage, epoch))
        order = torch.randperm(len(dataset), generator=generator)[position * recipe.batch:][:recipe.batch].tolist()
        yield [(derive("augment", seed, stage, epoch, i), i) for i in order[rank::world]]


def fit(recipe: Recipe, out: str | Path, seed: int = 0, root=None, device: str = "auto", resume: bool = False,
        workers: int = 0, progress: bool = False, memory_format=torch.channels_last, accumulate: int = 1,
        compiled: bool = False, save_every: float = 300.0) -> tuple[RefineNet, dict]:
    """Train a network by a recipe -> (network in evaluation mode, record). Files go to the folder `out`: `log.csv`,
    `last.pt` (to resume from), `best.safetensors`, and at the end `model.safetensors` and `record.json`.

    accumulate: parts that a batch is cut into, to save memory. compiled: let torch.compile speed the network up.
    save_every: seconds between writes of `last.pt`, which is also written after each epoch and when the process is asked
    to stop. Under `torchrun` the processes share every batch, and the first of them writes.
    Raises InputError for missing data, a folder that holds another run, a loss that is not finite or too little memory.
    """
    out, started, clock = Path(out), records.now(), time.perf_counter()
    where = pick_device(device)
    precision = pick_precision(recipe.precision, where)
    labels = LABELS[recipe.data]
    sets = [Resident(open_dataset(stage.data, stage.split, root)) for stage in recipe.stages]
    validation = Resident(open_dataset(recipe.data, "val", root))
    for stage, data in zip(recipe.stages, sets):
        if len(data) < recipe.batch:
            raise InputError(f"{recipe.name}: a batch of {recipe.batch} from the {len(data)} images of {stage.data}")

    last, identity, saved = out / "last.pt", {"recipe": recipe.hash(), "seed": seed}, None
    if last.exists():
        if not resume:
            raise InputError(f"{out}: holds a run already; --resume goes on with it")
        saved = torch.load(last, map_location="cpu", weights_only=True)
        if saved["identity"] != identity:
            raise InputError(f"{out}: holds another run ({saved['identity']}), this is {identity}")

    fabric = make_fabric(where, precision)
    rank, world, where = fabric.global_rank, fabric.world_size, fabric.device
    if recipe.batch % (world * accumulate):
        raise InputError(f"{recipe.name}: a batch of {recipe.batch} is not shared evenly by {world} processes x {accumulate} parts")
    progress = progress and rank == 0
    torch.manual_seed(derive("init", seed))
    model = build(recipe.model, len(labels.classes), recipe.weights)
    init_decoder(model.decoder, recipe.decoder_init)
    model = model.to(where, memory_format=memory_format)
    averaged = {k: v.detach().clone() for k, v in model.state_dict().items()} if recipe.ema else None
    wrapped, optimiser = fabric.setup(torch.compile(model) if compiled else model, make_optimiser(model, recipe))
    place = {"stage": 0, "step": 0, "curve": [], "wall_s": 0.0, "losses": [], "best": 0.0}
    if saved:
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        averaged, place = saved["averaged"] and {k: v.to(where) for k, v in saved["averaged"].items()}, saved["place"]
    card = {"classes": labels.classes, "data": recipe.data, "recipe": recipe.name, "seed": seed,
            "commit": records.provenance()["commit"], "short_side": CARD_SIDE.get(recipe.data)}

    def checkpoint():
        state = {"identity": identity, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
                 "averaged": averaged, "place": place | {"wall_s": place["wall_s"] + time.perf_counter() - clock}}
        if rank == 0:
            write_whole(last, lambda partial: torch.save(state, partial))
        fabric.barrier()

    def validate() -> dict:
        with _weights(model, averaged):
            matrices = evaluate(model, validation, precision, rank=rank, world=world)
            result = summary(fabric.all_reduce(matrices, reduce_op="sum").cpu(), labels.classes)
            if result["miou"] > place["best"] and rank == 0:
                save(model, out / "best.safetensors", card)
        place["best"] = max(place["best"], result["miou"])
        training_mode(model)
        return result

    training_mode(model)
    with _Running(out if rank == 0 else None) as running:
        tensorboard = _tensorboard(out) if rank == 0 else None
        for number in range(place["stage"], len(recipe.stages)):
            stage, data = recipe.stages[number], sets[number]
            per_epoch = len(data) // recipe.batch
            if recipe.restart and place["step"] == 0:
                optimiser.state.clear()
            keys = list(batches(data, recipe, number, seed, place["step"], per_epoch, rank, world))
            loader = make_loader(data, recipe, model, keys, workers, pin=where.type == "cuda")
            bar = tqdm(total=stage.epochs * per_epoch, initial=place["step"], desc=f"{recipe.name} s{seed}", unit="step",
                       file=sys.stderr, disable=not progress or None)
            since, seen, written = time.perf_counter(), 0, time.perf_counter()
            for images, masks in loader:
                step = place["step"]
                factor = stage.lr_factor(step, per_epoch)
                for group, rate in zip(optimiser.param_groups, (stage.encoder_lr, stage.decoder_lr)):
                    group["lr"] = rate * factor
                torch.manual_seed(derive("dropout", seed, number, step, rank))  # so that resuming changes nothing
                images = images.to(where, memory_format=memory_format, non_blocking=True)
                masks = masks.to(where, non_blocking=True)
                try:
                    value = train_step(fabric, wrapped, optimiser, images, masks, recipe.clip, accumulate)
                except torch.OutOfMemoryError as e:
                    raise InputError(f"{recipe.name}: out of memory at a batch of {recipe.batch}; --accumulate "
                                     f"{2 * accumulate} computes the same in smaller parts") from e
                if not math.isfinite(value):
                    raise InputError(f"{recipe.name}: the loss is {value} at epoch {step // per_epoch + 1}, step {step} of "
                                     f"stage {number + 1}; the last good checkpoint is {last}; lower the learning rates")
                if averaged is not None:
                    _average(averaged, model, min(recipe.ema, (1 + step) / (10 + step)))
                place["losses"].append(value)
                place["step"], seen = step + 1, seen + recipe.batch
                bar.update()
                if progress and step % 10 == 0:
                    bar.set_postfix({"loss": f"{value:.3f}", "mIoU": f"{_last_miou(place['curve']):.3f}",
                                     "images/s": f"{seen / (time.perf_counter() - since):.1f}"})
                if place["step"] % per_epoch == 0:
                    epoch = place["step"] // per_epoch
                    row = {"stage": number, "epoch": epoch, "loss": sum(place["losses"]) / len(place["losses"]),
                           "images_per_s": seen / (time.perf_counter() - since)}
                    if epoch % recipe.val_every == 0 or epoch == stage.epochs:
                        row["miou"] = validate()["miou"]
                    place["curve"].append(row)
                    place["losses"] = []
                    if rank == 0:
                        _write_log(out / "log.csv", place["curve"])
                        if tensorboard:
                            tensorboard.log_metrics({k: v for k, v in row.items() if k not in ("stage", "epoch")}, len(place["curve"]))
                    since, seen = time.perf_counter(), 0
                if place["step"] % per_epoch == 0 or time.perf_counter() - written > save_every or running.asked_to_stop:
                    checkpoint()
                    written = time.perf_counter()
                if running.asked_to_stop:
                    raise KeyboardInterrupt
            bar.close()
            place |= {"stage": number + 1, "step": 0}
    if averaged is not None:
        model.load_state_dict(averaged)
    if tensorboard:
        tensorboard.finalize("success")

    record = {
        "name": f"{recipe.name}-s{seed}", "kind": "train", "command": _command(recipe, seed),
        "config": asdict(recipe), "config_hash": recipe.hash(), "seed": seed, **records.provenance(), "started": started,
        "wall_s": round(place["wall_s"] + time.perf_counter() - clock, 1), "status": "done", "precision": precision,
        "peak_memory_mb": peak_memory_mb(where), "data": {data.name + "/" + data.split: manifest_hash(data)
                                                          for data in [*sets, validation]},
        "curve": place["curve"],
    }
    if where.type == "cuda":
        record["hardware"]["gpu"] = torch.cuda.get_device_name(where)
    if rank == 0:
        save(model, out / "model.safetensors", card)
    fabric.barrier()
    model = load(out / "model.safetensors").to(where)  # what is kept is what is measured: float16 weights
    record["metrics"] = summary(evaluate(model, validation, precision), labels.classes)
    record["metrics"]["images"] = len(validation)
    if rank == 0:
        write_whole(out / "record.json", lambda partial: Path(partial).write_text(json.dumps(record)))
    return model, record


class _Running:
    """Within it, no other process can train in the folder `out`, which is made, and SIGTERM and Ctrl-C only raise a flag,
    so that a step and its checkpoint are finished first. Raises InputError if the folder is taken."""

    def __init__(self, out: Path | None):
        self.out, self.claim, self.before, self.asked_to_stop = out, None, {}, False

    def __enter__(self):
        if self.out is not None:
            import fcntl
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                self.claim = open(self.out / ".lock", "w")  # noqa: SIM115: held until the end, however it comes
            except OSError as e:
                raise InputError(f"{self.out}: cannot be written ({e.strerror})") from e
            try:
                fcntl.flock(self.claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                self.claim.close()
                raise InputError(f"{self.out}: another process is training in this folder") from e
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def ask(self, *_):
        self.asked_to_stop = True

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.claim:
            self.claim.close()


def _tensorboard(out: Path):
    """A logger for TensorBoard, or None where it is not installed."""
    from lightning.fabric.loggers import TensorBoardLogger
    try:
        return TensorBoardLogger(out, name="tensorboard", version="")
    except ModuleNotFoundError:
        return None


def _last_miou(curve: list[dict]) -> float:
    """The newest validation mIoU, nan before the first."""
    return next((row["miou"] for row in reversed(curve) if "miou" in row), math.nan)


def publish(run: str | Path, name: str, shipped: Path = SHIPPED, results: Path = records.FOLDER) -> list[Path]:
    """Ship a finished run: its network as `name` among the checkpoints, with a card, and its record -> the three files.

    Raises InputError if the run has no record, or its network is not the one that the record is of.
    """
    run, shipped = Path(run), Path(shipped)
    try:
        record = json.loads((run / "record.json").read_text())
    except (OSError, ValueError) as e:
        raise InputError(f"{run}: no record of a finished run ({e})") from e
    model = load(run / "model.safetensors")
    if (model.card["recipe"], model.card["seed"]) != (record["config"]["name"], record["seed"]):
        raise InputError(f"{run}: model.safetensors is not of the run in record.json")
    file = shipped / f"{name}.safetensors"
    write_whole(file, lambda partial: shutil.copyfile(run / "model.safetensors", partial))
    card, licence = shipped / f"{name}.md", LABELS[model.card["data"]].licence
    write_whole(card, lambda partial: Path(partial).write_text(records.card(record, file, licence)))
    return [file, card, records.write(record, results)]


def _command(recipe: Recipe, seed: int) -> str:
    """What repeats a run: with --epochs if the shipped recipe has another length."""
    shipped = RECIPES.get(recipe.name)
    epochs = f" --epochs {recipe.stages[-1].epochs}" if shipped and shipped.hash() != recipe.hash() else ""
    return f"rflw train {recipe.name} --seed {seed}{epochs}"


def training_speed(recipe: Recipe, root=None, device: str = "auto", steps: int = 4, rounds: int = 3) -> list[dict]:
    """Images a second of the training loop, augmentation included: plain (fp32, NCHW) against the recipe's precision
    with channels last. Modes take turns, so that a noisy machine is noisy to both; the median round counts.
    """
    where = pick_device(device)
    dataset = Resident(open_dataset(recipe.data, "train", root))
    keys = list(batches(dataset, recipe, 0, 0, 0, len(dataset) // recipe.batch))[:steps]
    for _, index in sum(keys, []):
        dataset[index]  # decoded before the clock starts
    modes = []
    for precision, memory_format, name in (
            ("fp32", torch.contiguous_format, "train-fp32-nchw"),
            (pick_precision(recipe.precision, where), torch.channels_last, "train-{}-channels-last")):
        fabric = make_fabric(where, precision)
        model = build(recipe.model, len(LABELS[recipe.data].classes)).to(where, memory_format=memory_format)
        training_mode(model)
        wrapped, optimiser = fabric.setup(model, make_optimiser(model, recipe))
        modes.append((name.format(precision), fabric, model, wrapped, optimiser, memory_format, []))
    for turn in range(rounds + 1):  # the first warms up
        for _, fabric, model, wrapped, optimiser, memory_format, rates in modes:
            start = time.perf_counter()
            for images, masks in make_loader(dataset, recipe, model, keys):
                train_step(fabric, wrapped, optimiser, images.to(where, memory_format=memory_format), masks.to(where),
                           recipe.clip)
            if turn:
                rates.append(len(keys) * recipe.batch / (time.perf_counter() - start))
    return [{"model": recipe.model, "mode": name, "device": where.type, "size": list(recipe.crop), "batch": recipe.batch,
             "images_per_s": sorted(rates)[len(rates) // 2]} for name, *_, rates in modes]


CARD_SIDE = {"camvid": 360, "embedded": 96}  # pixels of the shorter side of what a network was trained on


class _weights:
    """Within it, `model` has the averaged weights, if there are any."""

    def __init__(self, model: nn.Module, averaged: dict | None):
        self.model, self.averaged = model, averaged

    def __enter__(self):
        if self.averaged is not None:
            self.own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            self.model.load_state_dict(self.averaged)

    def __exit__(self, *exception):
        if self.averaged is not None:
            self.model.load_state_dict(self.own)


@torch.no_grad()
def _average(averaged: dict, model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            averaged[key].lerp_(value, 1 - decay)


def _write_log(path: Path, curve: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["stage", "epoch", "loss", "miou", "images_per_s"])
        writer.writeheader()
        writer.writerows(curve)


def peak_memory_mb(device: torch.device) -> int:
    """Peak of the device's memory on CUDA, of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

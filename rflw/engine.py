"""Checkpoints, prediction, evaluation and training: plain functions over a network and a recipe."""
from contextlib import nullcontext
import csv
from dataclasses import asdict
import hashlib
import json
import logging
import math
from pathlib import Path
import re
import resource
import shutil
import sys
import time

import numpy as np
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
        with torch.serialization.safe_globals(_numbers()):
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


def _numbers() -> list:
    """What NumPy's numbers are unpickled with: the authors' script keeps its best score as one, beside the weights."""
    scalar, dtype = np.float64(0).__reduce__()[0], type(np.dtype("float64"))
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, dtype]


def _unreadable(path, error: Exception) -> str:
    """Why torch could not read a checkpoint, in one line."""
    text = str(error)
    cut = checkpoints.first_cut(Path(path).read_bytes()) if Path(path).is_file() else None
    if cut:
        return f"{cut}: cut off, the file ends before this tensor does"
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
    x = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (model.mean, model.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict(model: RefineNet, image, short_side: int | None = None, precision: str = "fp32"):
    """An image (path, PIL image or (H, W, 3) uint8 array) -> its class map, (H, W) uint8 array, at its own size.

    The logits are resized to the image, bilinearly, before the best class is taken. short_side: let the network see
    the image resized so that its shorter side has so many pixels; the result keeps the image's size. precision: "fp32",
    "bf16", "fp16" or "auto", the device's fastest.
    Raises InputError for what is no image or too small.
    """
    rgb = image if hasattr(image, "__array_interface__") and not hasattr(image, "mode") else read_image(image)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != "uint8":
        raise InputError(f"image: an array of {rgb.dtype} and shape {rgb.shape}; (height, width, 3) of uint8 is needed")
    if short_side and short_side < MIN_SIZE:
        raise InputError(f"a shorter side of {short_side} pixels: {MIN_SIZE} is the least, 0 keeps the image's own")
    h, w = rgb.shape[:2]
    if min(h, w) < MIN_SIZE:
        where = "image" if rgb is image or hasattr(image, "mode") else image
        raise InputError(f"{where}: {w}x{h} pixels; the networks take {MIN_SIZE}x{MIN_SIZE} and up")
    if model.num_classes > 256:
        raise InputError(f"{model.num_classes} classes do not fit into 8 bits")
    device = next(model.parameters()).device
    x = normalise(rgb, model, device)
    if short_side and short_side != min(h, w):
        ratio = short_side / min(h, w)
        x = F.interpolate(x, size=(round(h * ratio), round(w * ratio)), mode="bilinear", antialias=True)
    training = model.training
    with autocast(pick_precision(precision, device), device):
        logits = model.eval().to(memory_format=torch.channels_last)(x)
    model.train(training)
    return _upsample(logits, (h, w)).argmax(1)[0].to(torch.uint8).cpu().numpy()


def _upsample(logits: Tensor, size) -> Tensor:
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


# ---------------------------------------------------------------- evaluation


@torch.inference_mode()
def evaluate(model: RefineNet, dataset, precision: str = "auto", progress: bool = False) -> Tensor:
    """Confusion matrices of whole images, single scale, logits resized to the labels: (N, K, K) int64, on the CPU."""
    device = next(model.parameters()).device
    precision = pick_precision(precision, device)
    training = model.training
    model.eval().to(memory_format=torch.channels_last)
    matrices = []
    for i in tqdm(range(len(dataset)), desc="evaluate", file=sys.stderr, disable=not progress or None):
        image, mask = dataset[i]
        with autocast(precision, device):
            logits = model(normalise(image, model, device))
        mask = torch.from_numpy(mask).to(device)
        matrices.append(metrics.confusion_matrix(_upsample(logits, mask.shape).argmax(1)[0], mask, model.num_classes))
    model.train(training)
    return torch.stack(matrices).cpu()


def summary(matrix: Tensor, classes) -> dict:
    """(K, K) -> {"miou", "pixel_accuracy", "iou": {class: value}}, all in 0..1, None for what is not there to be measured."""
    def known(value):
        return None if math.isnan(value) else value

    return {"miou": known(metrics.mean_iou(matrix)), "pixel_accuracy": known(metrics.pixel_accuracy(matrix)),
            "iou": dict(zip(classes, map(known, metrics.iou(matrix).tolist())))}


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


def loss_of(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy on logits resized to the labels, mean over pixels that are not void. A batch of void gives 0."""
    total = F.cross_entropy(_upsample(logits, masks.shape[-2:]), masks.long(), ignore_index=VOID, reduction="sum")
    return total / (masks != VOID).sum().clamp(min=1)


def make_fabric(device: torch.device, precision: str):
    """Lightning Fabric for one device: it places the model and scales the loss where the precision needs it."""
    from lightning.fabric import Fabric  # costs seconds: only training pays them
    logging.getLogger("lightning").setLevel(logging.WARNING)  # it announces the precision on stderr
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    return Fabric(accelerator=device.type, devices=1,
                  precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision])


def make_loader(dataset, recipe: Recipe, model: RefineNet, keys: list, workers: int = 0, pin: bool = False):
    """Batches of augmented images and masks for the given keys, in their order."""
    from torch.utils.data import DataLoader

    from rflw.datasets.transforms import Augmented, training_transform
    transform = training_transform(recipe.crop, recipe.scale, recipe.min_side, recipe.flip, recipe.jitter,
                                   model.mean, model.std)
    return DataLoader(Augmented(dataset, transform), batch_sampler=keys, num_workers=workers, pin_memory=pin)


def train_step(fabric, model: nn.Module, optimiser, images: Tensor, masks: Tensor, clip: float) -> float:
    """Forward, backward, clip, step -> the loss. Where the loss is not finite, weights stay as they are."""
    loss = loss_of(model(images), masks)
    optimiser.zero_grad()
    fabric.backward(loss)
    if clip:
        fabric.clip_gradients(model, optimiser, max_norm=clip, error_if_nonfinite=False)
    value = loss.item()
    if math.isfinite(value):
        optimiser.step()
    return value


def batches(dataset, recipe: Recipe, stage: int, seed: int, first_step: int, steps_per_epoch: int):
    """Keys of every batch of a stage from `first_step` on: (augmentation seed, index) of its items.

    Every epoch is a permutation of its own, drawn from the seed and the epoch alone; what is left over at its end,
    too little for a batch, is dropped.
    """
    for step in range(first_step, recipe.stages[stage].epochs * steps_per_epoch):
        epoch, position = divmod(step, steps_per_epoch)
        generator = torch.Generator().manual_seed(derive("order", seed, stage, epoch))
        order = torch.randperm(len(dataset), generator=generator)[position * recipe.batch:][:recipe.batch].tolist()
        yield [(derive("augment", seed, stage, epoch, i), i) for i in order]


def fit(recipe: Recipe, out: str | Path, seed: int = 0, root=None, device: str = "auto", resume: bool = False,
        workers: int = 0, progress: bool = False, memory_format=torch.channels_last) -> tuple[RefineNet, dict]:
    """Train a network by a recipe -> (network in evaluation mode, record). Files go to the folder `out`:
    `log.csv`, `last.pt` (to resume from), `model.safetensors` and `record.json` at the end.

    Raises InputError for missing data, a folder that holds another run, or a loss that is not finite.
    """
    out, started, clock = Path(out), records.now(), time.perf_counter()
    if workers < 0:
        raise InputError(f"{workers} workers: 0 or more")
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
        try:
            saved = torch.load(last, map_location=where, weights_only=True)
            theirs = saved["identity"]
        except Exception as e:  # torch raises many types for files that are cut off or foreign
            raise InputError(f"{last}: not a whole checkpoint of a run ({type(e).__name__})") from e
        if theirs != identity:
            raise InputError(f"{out}: holds another run ({theirs}), this is {identity}")
    # read before anything is trained or written, so that a damaged file or a wrong label shows now
    hashes = {f"{data.name}/{data.split}": manifest_hash(data) for data in [*sets, validation]}
    records.make_folder(out)

    fabric = make_fabric(where, precision)
    torch.manual_seed(derive("init", seed))
    model = build(recipe.model, len(labels.classes), recipe.weights)
    init_decoder(model.decoder, recipe.decoder_init)
    model = model.to(where, memory_format=memory_format)
    averaged = {k: v.detach().clone() for k, v in model.state_dict().items()} if recipe.ema else None
    wrapped, optimiser = fabric.setup(model, make_optimiser(model, recipe))
    place = {"stage": 0, "step": 0, "curve": [], "wall_s": 0.0}
    if saved:
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        averaged, place = saved["averaged"], saved["place"]

    def checkpoint():
        state = {"identity": identity, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
                 "averaged": averaged, "place": place | {"wall_s": place["wall_s"] + time.perf_counter() - clock}}
        write_whole(last, lambda partial: torch.save(state, partial))

    def validate() -> dict:
        with _weights(model, averaged):
            result = summary(evaluate(model, validation, precision).sum(0), labels.classes)
        training_mode(model)
        return result

    training_mode(model)
    for number in range(place["stage"], len(recipe.stages)):
        stage, data = recipe.stages[number], sets[number]
        per_epoch = len(data) // recipe.batch
        keys = list(batches(data, recipe, number, seed, place["step"], per_epoch))
        loader = make_loader(data, recipe, model, keys, workers, pin=where.type == "cuda")
        bar = tqdm(total=stage.epochs * per_epoch, initial=place["step"], desc=f"{recipe.name} s{seed}", unit="step",
                   file=sys.stderr, disable=not progress or None)
        losses, since, seen = [], time.perf_counter(), 0
        for images, masks in loader:
            step = place["step"]
            factor = stage.lr_factor(step, per_epoch)
            for group, rate in zip(optimiser.param_groups, (stage.encoder_lr, stage.decoder_lr)):
                group["lr"] = rate * factor
            torch.manual_seed(derive("dropout", seed, number, step))  # so that resuming changes nothing
            images = images.to(where, memory_format=memory_format, non_blocking=True)
            masks = masks.to(where, non_blocking=True)
            value = train_step(fabric, wrapped, optimiser, images, masks, recipe.clip)
            if not math.isfinite(value):
                kept = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
                raise InputError(f"{recipe.name}: the loss is {value} at epoch {step // per_epoch + 1}, step {step} of "
                                 f"stage {number + 1}; {kept}; lower the learning rates")
            if averaged is not None:
                _average(averaged, model, min(recipe.ema, (1 + step) / (10 + step)))
            losses.append(value)
            place["step"], seen = step + 1, seen + len(images)
            bar.update()
            if place["step"] % per_epoch == 0:
                epoch = place["step"] // per_epoch
                row = {"stage": number, "epoch": epoch, "loss": sum(losses) / len(losses),
                       "images_per_s": seen / (time.perf_counter() - since)}
                if epoch % recipe.val_every == 0 or epoch == stage.epochs:
                    row["miou"] = validate()["miou"]
                bar.set_postfix({k: f"{row[k]:.3f}" for k in ("loss", "miou", "images_per_s") if k in row})
                place["curve"].append(row)
                _write_log(out / "log.csv", place["curve"])
                checkpoint()
                losses, since, seen = [], time.perf_counter(), 0
        bar.close()
        place |= {"stage": number + 1, "step": 0}
    if averaged is not None:
        model.load_state_dict(averaged)

    config = asdict(recipe)
    record = {
        "name": f"{recipe.name}-s{seed}", "kind": "train", "command": _command(recipe, seed),
        "config": config, "config_hash": recipe.hash(), "seed": seed, **records.provenance(), "started": started,
        "wall_s": round(place["wall_s"] + time.perf_counter() - clock, 1), "status": "done", "precision": precision,
        "peak_memory_mb": peak_memory_mb(where), "data": hashes,
        "curve": place["curve"],
    }
    if where.type == "cuda":
        record["hardware"]["gpu"] = torch.cuda.get_device_name(where)
    card = {"classes": labels.classes, "data": recipe.data, "recipe": recipe.name, "seed": seed,
            "commit": record["commit"], "short_side": CARD_SIDE.get(recipe.data)}
    save(model, out / "model.safetensors", card)
    model = load(out / "model.safetensors").to(where)  # what is kept is what is measured: float16 weights
    record["metrics"] = summary(evaluate(model, validation, precision).sum(0), labels.classes)
    record["metrics"]["images"] = len(validation)
    records.write(record, out, "record")
    return model, record


def publish(run: str | Path, name: str, shipped: Path = SHIPPED, results: Path = records.FOLDER) -> list[Path]:
    """Ship a finished run: its network as `name` among the checkpoints, with a card, and its record -> the three files.

    Raises InputError, and ships nothing, if the run has no whole record or its network is not the one that it is of.
    """
    run, shipped = Path(run), Path(shipped)
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"{name!r}: a name of letters, digits, - and _")
    record = records.read(run / "record.json")
    model = load(run / "model.safetensors")
    if (model.card["recipe"], model.card["seed"]) != (record["config"].get("name"), record["seed"]):
        raise InputError(f"{run}: model.safetensors is not of the run in record.json")
    card = records.card(record, run / "model.safetensors", name, LABELS[model.card["data"]].licence)
    write_whole(shipped / f"{name}.safetensors", lambda partial: shutil.copyfile(run / "model.safetensors", partial))
    write_whole(shipped / f"{name}.md", lambda partial: Path(partial).write_text(card))
    return [shipped / f"{name}.safetensors", shipped / f"{name}.md", records.write(record, results)]


def _command(recipe: Recipe, seed: int) -> str:
    """What repeats a run: with --epochs if the shipped recipe has another length."""
    shipped = RECIPES.get(recipe.name)
    epochs = f" --epochs {recipe.stages[-1].epochs}" if shipped and shipped.hash() != recipe.hash() else ""
    return f"rflw train {recipe.name} --seed {seed}{epochs}"


def training_speed(recipe: Recipe, root=None, device: str = "auto", steps: int = 4, rounds: int = 3) -> list[dict]:
    """Images a second of the training loop, augmentation included: plain (fp32, NCHW) against the recipe's precision
    with channels last. Modes take turns, so that a noisy machine is noisy to both; the median round counts.
    """
    if steps < 1 or rounds < 1:
        raise InputError(f"{rounds} rounds of {steps} steps: one at least")
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

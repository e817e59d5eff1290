"""Training by a recipe: one run, from its seed to its record. A run that is killed resumes exactly.

`fit` works in these steps: settings, data, build, resume, loop, finish. A `Job` holds everything
that a run needs while it trains. Its `State` is the part that changes and is saved in last.pt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
import hashlib
import math
from pathlib import Path
import resource
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from rflw import live, records, steps
from rflw.checkpoint import checkpoint_file, load, load_any, save
from rflw.config import Recipe, Stage
from rflw.data import readers
from rflw.data.check import check_labels
from rflw.data.labels import LABELS, Labels
from rflw.data.on_device import OnDevice
from rflw.data.readers import open_dataset
from rflw.device import card as card_of
from rflw.device import pick_device, pick_precision
from rflw.errors import InputError, enough_memory, reading
from rflw.evaluation import evaluate, summary
from rflw.nn import pooling
from rflw.nn.official import load_tensors
from rflw.nn.refinenet import RefineNet, build, init_decoder
from rflw.prediction import SIDES, evaluating, views
from rflw.progress import asked_to_stop, progress_bar, show, tensorboard, write_log
from rflw.recipes import OWN, RECIPES
from rflw.records import write_whole
from rflw.steps import train_step, training_mode

WORTH_COMPILING = 200  # steps of a run from which on it saves more time than it costs


class Failed(InputError):
    """Training cannot continue: a loss that is not finite, or too little memory. See the record."""


class InUse(InputError):
    """Another process trains in the run's folder."""


@dataclass(frozen=True)
class Run:
    """The arguments of `fit`. The result depends on recipe, seed and resident."""

    recipe: Recipe
    out: Path
    seed: int = 0
    root: Path | None = None  # of the data sets
    device: str = "auto"
    resume: bool = False  # continue the run in the folder, if one is there
    workers: int = 0  # processes that read and augment images
    progress: bool = False
    accumulate: int = 1  # parts that a batch is cut into, to save memory
    compiled: bool | None = None  # by torch.compile; None: long runs on CPUs with a C++ compiler
    resident: bool | None = None  # see `rflw.data.on_device`; None: on CUDA, if the recipe allows
    save_every: float = 300.0  # seconds between writes of last.pt, also written after each epoch
    results: Path | None = None  # folder of records that gets this run's, too, unless it has it
    until: float = math.inf  # when to stop, on time.monotonic()'s clock
    clock: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Data:
    """The data sets of a run, with hashes of what is in them."""

    labels: Labels
    training: list  # one for each stage
    validation: object
    test: object | None
    hashes: dict[str, str]


@dataclass
class State:
    """How far a run is. Besides it, only the network, its running mean and the optimiser change."""

    stage: int = 0
    step: int = 0  # of the stage
    losses: list[float] = field(default_factory=list)  # of the epoch, so far
    curve: list[dict] = field(default_factory=list)  # a row for each epoch
    best: float = -1.0  # validation mIoU
    wall_s: float = 0.0  # before the run was resumed
    warned: bool = False  # that a stage is dying


@dataclass
class Job:
    """A run while it trains."""

    run: Run
    data: Data
    fabric: object
    precision: str
    compiled: bool
    origin: dict | None  # of the encoder's first weights
    identity: dict  # what last.pt must share to be resumed
    model: RefineNet
    wrapped: nn.Module  # the network as fabric runs it
    optimiser: torch.optim.Optimizer
    averaged: AveragedModel | None  # running mean of the weights
    begun: dict  # entries of its record
    state: State = field(default_factory=State)
    logger: object | None = None  # TensorBoard's
    weights: Tensor | None = None  # (K,) of the classes, in this stage

    @property
    def kept(self) -> RefineNet:
        """The network that is validated and kept."""
        return self.averaged.module if self.averaged else self.model

    @property
    def contents(self) -> dict:
        """Hashes of the data sets and names of the classes; a resumed run must find the same."""
        return {**self.data.hashes, "classes": [*self.data.labels.classes]}

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.fabric.global_rank == 0

    @property
    def stage(self) -> Stage:
        return self.run.recipe.stages[self.state.stage]

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch of this stage."""
        return len(self.data.training[self.state.stage]) // self.run.recipe.batch

    def parts(self) -> dict:
        """The parts of a job that change and have a state of their own."""
        scaler = self.fabric.strategy.precision  # it scales losses in fp16
        parts = {"model": self.model, "optimiser": self.optimiser, "scaler": scaler}
        return parts | ({"averaged": self.averaged} if self.averaged else {})


def fit(
    recipe: Recipe,
    out: str | Path,
    seed: int = 0,
    root=None,
    device: str = "auto",
    **options,
) -> tuple[RefineNet, dict]:
    """Train a network by a recipe. Under `torchrun` the processes share every batch.

    The folder `out` gets log.csv, last.pt (to resume from), best.safetensors (of the best
    validation so far), TensorBoard's files where it is installed, and at the end model.safetensors
    (the last weights), the matrices of all images and record.json.

    Args:
        recipe: what to train on what and how.
        out: folder of the run.
        options: other fields of `Run`.

    Returns:
        The network in evaluation mode, and the record.

    Raises:
        InputError: for missing data, or a folder that holds another run.
        InUse: if another process trains in the folder.
        Failed: with a record that says so, for a loss that is not finite or too little memory.
        TimeoutError: when the time is `until`; the current step ends first.
        KeyboardInterrupt: after SIGTERM or Ctrl-C; the current step ends first.
    """
    run = Run(recipe, Path(out), seed, root, device, **options)
    fabric, precision = settings(run)
    data = open_data(run)
    with claimed(run.out, fabric.global_rank):
        saved = read_last(run, fabric.device)
        job = make_job(run, data, fabric, precision, saved)
        if saved:
            restore(job, saved)
        try:
            loop(job)
            return finish(job)
        except Failed as e:
            raise recorded_failure(job, e) from e


def settings(run: Run):
    """Check what contradicts itself -> (fabric, precision)."""
    recipe, parts = run.recipe, run.accumulate
    if run.workers < 0 or parts < 1:
        raise InputError(f"{run.workers} workers, a batch in {parts} parts: at least 0 and 1")
    if run.resident and recipe.jitter:
        raise InputError(f"{recipe.name}: no jitter on the device; train with --no-resident")
    device = pick_device(run.device)
    precision = pick_precision(recipe.precision, device)
    if precision == "fp16" and device.type == "cpu":
        raise InputError(f"{recipe.name}: fp16 trains on CUDA devices only; bf16 or fp32 on a CPU")
    fabric = steps.make_fabric(device, precision)
    parts *= fabric.world_size
    if recipe.batch % parts:
        raise InputError(f"{recipe.name}: a batch of {recipe.batch} cannot be cut in {parts}")
    if parts > 1 and not recipe.frozen_bn:
        words = "batch norm learns from whole batches; train in one process, without --accumulate"
        raise InputError(f"{recipe.name}: {words}")
    return fabric, precision


def open_data(run: Run) -> Data:
    """Open and read every data set, so that a damaged file or a wrong label shows now."""
    recipe, opened = run.recipe, {}

    def get(name: str, split: str):
        if (name, split) not in opened:  # stages may share a data set
            opened[name, split] = readers.in_memory(open_dataset(name, split, run.root))
        return opened[name, split]

    training = [get(stage.data, stage.split) for stage in recipe.stages]
    validation = get(recipe.data, recipe.validation)
    test = get(recipe.data, recipe.test) if recipe.test else None
    labels = readers.labels_of(recipe.data)
    for stage, dataset in zip(recipe.stages, training):
        if len(dataset) < recipe.batch:
            few = f"a batch of {recipe.batch} from the {len(dataset)} images of {stage.data}"
            raise InputError(f"{recipe.name}: {few}")
        steps.check_classes(recipe, stage, labels)
        if readers.is_folder(stage.data):
            check_labels(dataset, *([validation] if stage.data == recipe.data else []))
    hashes = {f"{it.name}/{it.split}": readers.manifest_hash(it) for it in opened.values()}
    if recipe.init:
        hashes["init"] = hashlib.sha256(checkpoint_file(recipe.init).read_bytes()).hexdigest()
    return Data(labels, training, validation, test, hashes)


@contextmanager
def claimed(out: Path, rank: int):
    """Within it, no other process trains in the folder `out`. Raises InUse if one does."""
    from filelock import FileLock, Timeout

    if rank:  # the first process claims it for all
        yield
        return
    with records.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(out / ".lock").acquire(blocking=False)
        except Timeout as e:
            raise InUse(f"{out}: another process is training in this folder") from e
    with lock:
        yield


def read_last(run: Run, device: torch.device) -> dict | None:
    """What last.pt in the folder holds; None without one. Raises InputError without `resume`."""
    last = run.out / "last.pt"
    with reading(last):
        if not last.exists():
            return None
        if not run.resume:
            raise InputError(f"{run.out}: holds a run already; --resume continues it")
        saved = load_tensors(last, device)
        dict(saved["identity"], weights=saved["weights"])  # a foreign file has neither
        return saved


def can_be_held(recipe: Recipe, sets) -> bool:
    """Whether data sets can be held and augmented on the device, see `rflw.data.on_device`."""
    one_size = (isinstance(it, readers.Cached) and len({*readers.sizes(it)}) == 1 for it in sets)
    return not recipe.jitter and all(one_size)


def make_job(run: Run, data: Data, fabric, precision: str, saved: dict | None) -> Job:
    """The network with its first weights, its optimiser and all that stays the same in a run."""
    recipe, device = run.recipe, fabric.device
    resident, compiled = run.resident, run.compiled
    if resident is None:  # a run resumes as it began, on any kind of device
        fits = device.type == "cuda" and can_be_held(recipe, data.training)
        resident = bool(saved["identity"].get("resident")) if saved else fits
    if resident:
        with enough_memory(f"{recipe.name}: too little memory for its data set; try --no-resident"):
            held = {id(part): OnDevice(part, device) for part in data.training}
        data.training[:] = [held[id(part)] for part in data.training]
    torch.manual_seed(steps.derive("init", run.seed))
    model = first_network(run, data.labels, fabric.global_rank, bool(saved))
    model = model.to(device, memory_format=torch.channels_last)
    if compiled is None:
        long = sum(steps_of(run, data)) >= WORTH_COMPILING
        compiled = device.type == "cpu" and long and pooling.can_compile()
    network = steps.compiled_for(model, device) if compiled else model
    averaged = steps.averaging(model, recipe.ema) if recipe.ema else None
    wrapped, optimiser = fabric.setup(network, steps.make_optimiser(model, recipe))
    origin = saved["weights"] if saved else model.encoder.origin
    identity = {"recipe": recipe.hash(), "seed": run.seed}
    if resident:
        identity["resident"] = True
    title, command = f"{recipe.name}-s{run.seed}", _command(recipe, run.seed)
    begun = records.begin(title, command, "train", asdict(recipe), recipe.hash(), run.seed)
    fixed = (run, data, fabric, precision, compiled, origin, identity)
    return Job(*fixed, model, wrapped, optimiser, averaged, begun)


def steps_of(run: Run, data: Data) -> list[int]:
    """Steps of each stage."""
    epochs = (stage.epochs for stage in run.recipe.stages)
    return [n * (len(part) // run.recipe.batch) for n, part in zip(epochs, data.training)]


def first_network(run: Run, labels: Labels, rank: int, resumed: bool) -> RefineNet:
    """The network with its first weights; those of a resumed run are replaced later."""
    recipe = run.recipe
    weights = None if recipe.init or resumed else recipe.weights
    model = build(recipe.model, len(labels.classes), weights)
    init_decoder(model.decoder, recipe.decoder_init)
    if recipe.init and not resumed:
        same = begin_with(model, recipe.init, labels.classes)
        if run.progress and rank == 0:
            classifier = "too" if same else "made anew"
            tqdm.write(
                f"{recipe.name}: begins with {recipe.init}, its classifier {classifier}", sys.stderr
            )
    return model


def begin_with(model: RefineNet, path: str | Path, classes: tuple[str, ...]) -> bool:
    """Copy the weights of a checkpoint, ours or the authors' -> whether the classifier's, too.

    The classifier keeps its own weights if names or order of the checkpoint's classes differ from
    `classes`. The authors' files hold no names. With them it keeps its own weights if `classes`
    are of no data set of the paper, or if the number differs.
    """
    first = load_any(path)
    if first.name != model.name:
        raise InputError(f"{path}: a {first.name}, this is a {model.name}")
    if hasattr(first, "card"):
        same = first.card["classes"] == [*classes]
    else:
        known = any(tuple(classes) == labels.classes for labels in LABELS.values())
        same = known and first.num_classes == len(classes)
    if not same:
        first.decoder.classifier = model.decoder.classifier
    model.load_state_dict(first.state_dict())
    return same


def restore(job: Job, saved: dict) -> None:
    """Resume from last.pt. Raises InputError for another run's, or a damaged one."""
    out = job.run.out
    with reading(out / "last.pt"):
        if saved["identity"] != job.identity:
            other = f"{saved['identity']}, this is {job.identity}"
            raise InputError(f"{out}: holds another run: {other}")
        then, now = saved.get("data", job.contents), job.contents
        changed = [name for name in now if now[name] != then.get(name)]
        if changed:
            raise InputError(f"{out}: the run began with other data: {', '.join(changed)}")
        for name, part in job.parts().items():
            part.load_state_dict(saved[name])
        job.state = State(**{value.name: saved[value.name] for value in fields(State)})


def loop(job: Job) -> None:
    """Every step that is left; after each epoch a row of the curve."""
    run, state = job.run, job.state
    job.logger = tensorboard(run.out) if job.first else None
    training_mode(job.model, run.recipe.frozen_bn)
    with progress_bar(job, steps_of(run, job.data)) as bar, asked_to_stop() as asked:
        written = began = time.perf_counter()
        taken = 0  # steps of this epoch, since `began`
        for images, masks in remaining(job):
            state.losses.append(step(job, images, masks))
            state.step, taken = state.step + 1, taken + 1
            images_per_s = taken * run.recipe.batch / (time.perf_counter() - began)
            show(bar, state, images_per_s)
            epoch_ends = state.step % job.epoch_steps == 0
            if epoch_ends:
                end_epoch(job, images_per_s)
            stop = stop_reason(job, asked)
            if epoch_ends or stop or time.perf_counter() - written > run.save_every:
                save_last(job)
                written = time.perf_counter()
            if epoch_ends:
                began, taken = time.perf_counter(), 0
            if stop:
                raise stop


def remaining(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, masks) on the device for every step from where the run is to its end."""
    run, fabric, state = job.run, job.fabric, job.state
    rank, world, device = fabric.global_rank, fabric.world_size, fabric.device
    for stage in range(state.stage, len(run.recipe.stages)):
        begin_stage(job, stage)
        data, first = job.data.training[stage], state.step
        order = (stage, run.seed, first, job.epoch_steps, rank, world)
        keys, pin = steps.batches(data, run.recipe, *order), device.type == "cuda"
        loader = steps.make_loader(data, run.recipe, job.model, keys, run.workers, pin)
        for images, masks in loader:
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            yield images, masks.to(device, non_blocking=True)


def begin_stage(job: Job, stage: int) -> None:
    """Begin a stage, or resume in it."""
    recipe, state = job.run.recipe, job.state
    if stage != state.stage:
        state.stage, state.step = stage, 0
    if state.step == 0 and recipe.restart:
        job.optimiser.state.clear()
    if state.step == 0 and job.averaged:
        job.averaged.n_averaged.fill_(1)
    classes = len(job.data.labels.classes)
    weights = steps.class_weights(job.data.training[stage], classes, recipe.balance)
    job.weights = None if weights is None else weights.to(job.fabric.device)


def step(job: Job, images: Tensor, masks: Tensor) -> float:
    """One step of training -> its loss. Raises Failed for one that is not finite."""
    run, recipe, state = job.run, job.run.recipe, job.state
    steps.set_rates(job.optimiser, job.stage, state.step, job.epoch_steps)
    where = (state.stage, state.step, job.fabric.global_rank)
    torch.manual_seed(steps.derive("dropout", run.seed, *where))  # a resumed run draws the same
    advice = "--accumulate 2, 4, ..." if recipe.frozen_bn else "a smaller crop or batch"
    batch = (job.wrapped, job.optimiser, images, masks)
    with enough_memory(f"{recipe.name}: out of memory; {advice} takes less", Failed):
        loss = train_step(job.fabric, *batch, recipe.clip, run.accumulate, job.weights)
    if not math.isfinite(loss):
        epoch, stage = state.step // job.epoch_steps + 1, state.stage + 1
        place = f"epoch {epoch}, step {state.step} of stage {stage}"
        raise Failed(f"{recipe.name}: the loss is {loss} at {place}; lower the learning rates")
    if job.averaged:
        job.averaged.update_parameters(job.model)
    return loss


def end_epoch(job: Job, images_per_s: float) -> None:
    """Add a row to the curve, validate every few epochs and after the last, write the logs."""
    recipe, state = job.run.recipe, job.state
    epoch = state.step // job.epoch_steps
    row = {
        "stage": state.stage,
        "epoch": epoch,
        "loss": sum(state.losses) / len(state.losses),
        "images_per_s": images_per_s,
        "live": look(job),
    }
    if epoch % recipe.val_every == 0 or epoch == job.stage.epochs:
        row["miou"] = validate(job)
    state.curve.append(row)
    state.losses = []
    if job.first:
        write_log(job.run.out / "log.csv", state.curve)
    if job.logger:
        numbers = {k: row[k] for k in ("loss", "miou", "images_per_s") if row.get(k) is not None}
        shares = {f"live/{name}": share for name, share in row["live"].items()}
        job.logger.log_metrics(numbers | shares, len(state.curve))


def look(job: Job) -> dict[str, float]:
    """The share of live units after each ReLU; warns once where it is under one half in a stage."""
    recipe, state, images = job.run.recipe, job.state, job.data.validation
    run = lambda i: views(job.kept, images[i][0], job.precision, (recipe.val_scale,))
    with evaluating(job.kept):
        shares = live.live_units(job.kept, run, readers.spread(live.IMAGES, len(images)))
    stage, share = min(live.of_stages(shares).items(), key=lambda item: item[1])
    if share < 0.5 and not state.warned:
        state.warned = True
        if job.first:
            tqdm.write(
                f"{recipe.name}: only {100 * share:.0f} % of the units of decoder.{stage} are "
                "alive; the others are 0 for every image. A longer warm-up or lower rates help",
                file=sys.stderr,
            )
    return shares


def validate(job: Job) -> float | None:
    """mIoU of the validation images; the best network so far is kept in best.safetensors."""
    check_weights(job)
    matrices = measure(job, job.kept, job.data.validation)
    miou = summary(matrices, job.data.labels.classes)["miou"]
    if (miou or 0) > job.state.best:
        job.state.best = miou or 0
        if job.first:
            save(job.kept, job.run.out / "best.safetensors", card(job))
    return miou


def measure(job: Job, network: RefineNet, dataset) -> Tensor:
    """Confusion matrices of whole images, (N, K, K), from all processes."""
    name, scales, fabric = job.run.recipe.name, (job.run.recipe.val_scale,), job.fabric
    share = {"rank": fabric.global_rank, "world": fabric.world_size}
    with enough_memory(f"{name}: out of memory in validation; --device cpu continues", Failed):
        matrices = evaluate(network, dataset, job.precision, scales=scales, **share)
    return fabric.all_reduce(matrices, reduce_op="sum").cpu()


def check_weights(job: Job) -> None:
    """Raises Failed for weights that are not finite: they must not replace good ones in files."""
    if not all(value.isfinite().all() for value in job.model.state_dict().values()):
        place = f"after step {job.state.step - 1} of stage {job.state.stage + 1}"
        raise Failed(f"weights are not finite {place}; lower the learning rates")


def save_last(job: Job) -> None:
    """Write last.pt."""
    check_weights(job)
    state = job.state
    wall_s = state.wall_s + time.perf_counter() - job.run.clock
    content = {"identity": job.identity, "weights": job.origin, "data": job.contents}
    content |= asdict(replace(state, wall_s=wall_s))
    content |= {name: part.state_dict() for name, part in job.parts().items()}
    if job.first:
        write_whole(job.run.out / "last.pt", lambda partial: torch.save(content, partial))


def stop_reason(job: Job, asked: list) -> BaseException | None:
    """What to stop with, the same in all processes; None to continue."""
    reason = 2.0 if asked else 1.0 if time.monotonic() > job.run.until else 0.0
    if job.fabric.world_size > 1:
        reason = torch.tensor(reason, device=job.fabric.device)
        reason = job.fabric.all_reduce(reason, reduce_op="max").item()
    return {0.0: None, 1.0: TimeoutError("the time is spent"), 2.0: KeyboardInterrupt()}[reason]


def finish(job: Job) -> tuple[RefineNet, dict]:
    """Keep the network and measure what was kept, in float16 -> (network, record)."""
    run, data = job.run, job.data
    if job.first:
        save(job.kept, run.out / "model.safetensors", card(job))
    job.fabric.barrier()
    model = load(run.out / "model.safetensors").to(job.fabric.device)
    scores = score(job, model, data.validation, "validation")
    if data.test is not None:
        scores["test"] = score(job, model, data.test, "test")
    done = record(job, "done", metrics=scores)
    if job.first:
        file_record(job, done)
    if job.logger:
        job.logger.finalize("success")
    return model, done


def score(job: Job, model: RefineNet, dataset, part: str) -> dict:
    """The metrics of one split; the matrix of each image goes to a file."""
    matrices = measure(job, model, dataset)
    if job.first:
        file = job.run.out / f"{part}-matrices.npz"
        np.savez_compressed(file, matrices=matrices.numpy(), ids=dataset.ids)
    scores = summary(matrices, job.data.labels.classes, readers.blocks(dataset))
    return scores | {"images": len(dataset)}


def recorded_failure(job: Job, error: Failed) -> Failed:
    """The error with what was saved before it; it is on record, too."""
    last = job.run.out / "last.pt"
    if not job.first:
        return error
    saved = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
    error = Failed(f"{error}; {saved}")
    file_record(job, record(job, "failed", error=str(error)))
    return error


def file_record(job: Job, content: dict) -> None:
    """Write the record into the run's folder, and into that of all records."""
    new, folder = records.write(content, job.run.out, "record"), job.run.results
    if folder and not records.keep(content, folder):
        old = folder / f"{content['name']}.json"
        tqdm.write(f"rflw: {old} exists already and stays; the new one is {new}", sys.stderr)


def card(job: Job) -> dict:
    """What the header of the network's file says."""
    run, recipe = job.run, job.run.recipe
    side = SIDES.get(recipe.data)
    origin = {"encoder_weights": job.origin} if job.origin else {}
    return {
        "classes": job.data.labels.classes,
        "data": recipe.data,
        "recipe": recipe.name,
        "seed": run.seed,
        "commit": job.begun["commit"],
        "short_side": side and round(recipe.val_scale * side),
    } | origin


def record(job: Job, status: str, **more) -> dict:
    """The run's record, see `rflw.records`."""
    device = job.fabric.device
    if device.type != "cpu":
        job.begun["hardware"]["gpu"] = card_of(device)
    content = {
        **job.begun,
        "wall_s": round(job.state.wall_s + time.perf_counter() - job.run.clock, 1),
        "status": status,
        "precision": job.precision,
        "processes": job.fabric.world_size,
        "resident": "resident" in job.identity,
        "compiled": job.compiled,
        "peak_memory_mb": peak_memory_mb(device),
        "data": job.data.hashes,
        "curve": job.state.curve,
        "metrics": {},
    }
    return content | ({"weights": job.origin} if job.origin else {}) | more


def peak_memory_mb(device: torch.device) -> int:
    """Peak of the device's memory on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _command(recipe: Recipe, seed: int) -> str:
    """What repeats a run: with what differs from the shipped recipe."""
    shipped = OWN if recipe.name == OWN.name else RECIPES.get(recipe.name, recipe)
    given, plain = (
        {"data": it.data, "init": it.init, "epochs": it.stages[-1].epochs}
        for it in (recipe, shipped)
    )
    changed = {name: value for name, value in given.items() if value != plain[name]}
    return records.command_of("train", recipe.name, seed=seed, **changed)

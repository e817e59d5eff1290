"""The command line: each command is a few lines over the package, whose heavy parts it imports.

Bad input ends with one line on stderr and exit code 2.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import entry_points
from inspect import Signature, signature
import json
import os
from pathlib import Path
import re
import sys
import time
from typing import Annotated

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from rflw import records
from rflw.errors import InputError, about, choose, enough_memory, reading

app = typer.Typer(
    help="Light-Weight RefineNet: count, train, evaluate, predict.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# The base of Typer's usage errors; which package holds it depends on Typer's version.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run() -> None:
    """The entry point `rflw`: usage errors, `InputError` and errors of files become one line."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may not be valid text
    try:
        with enough_memory("too little memory: --tile, a smaller batch or --device cpu takes less"):
            code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except InputError as e:
        fail(str(e))
    except ClickException as e:
        fail(e.format_message())
    except NotImplementedError as e:  # an operator that a device lacks, in PyTorch's words
        if "operator" not in str(e):
            raise
        fail(f"{str(e).split('. ')[0]}: use --device cpu")
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as e:
        fail(f"{e.filename or 'file'}: {e.strerror or e}")
    except (typer.Abort, KeyboardInterrupt):
        fail("interrupted", 130)
    if code == 130:  # Typer's own way to end after Ctrl-C says nothing
        fail("interrupted", 130)
    raise SystemExit(code if isinstance(code, int) else 0)


def fail(message: str, code: int = 2) -> None:
    print("rflw:", *message.split(), file=sys.stderr)
    raise SystemExit(code)


class ListCommand(TyperCommand):
    """A command whose list options also take several values at once: `--scales 0.5 1`."""

    def parse_args(self, ctx, args):
        lists = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        words, option = [], None
        for word in args:
            if word.startswith("-"):
                option = word
            elif option in lists and words[-1] != option:
                words.append(option)  # a further value
            words.append(word)
        return super().parse_args(ctx, words)


def _writable_folder(path: Path | None) -> Path | None:
    """Refuse a folder that cannot be written in before anything is measured for it."""
    if path:
        records.must_take_files(path)
    return path


def _weights_folder(path: Path | None) -> Path | None:
    if path:
        os.environ["RFLW_WEIGHTS"] = str(path.absolute())  # processes that we start look there, too
    return path


PICTURES = (".png", ".webp", ".jpg", ".svg", ".pdf")  # grids of photos are smallest as .webp


def picture_file(path: Path | None) -> Path | None:
    """Refuse a picture's name before anything is measured for it."""
    if path:
        with about(path):
            choose("kind of picture", path.suffix, PICTURES)
        _writable_folder(path.parent)
    return path


Data = Annotated[str, Argument(help="A data set, see `rflw data list`, or a folder of one's own.")]
Checkpoint = Annotated[str | None, Argument(help="A shipped one's name, or a .safetensors file.")]
Named = Annotated[str | None, Option("--checkpoint", help="The same, as an option.")]
On = Annotated[str | None, Option(help="Data set; default: the checkpoint's.")]
Split = Annotated[str, Option(help="Which part of it.")]
Json = Annotated[bool, Option("--json", help="Print figures as JSON.")]
Root = Annotated[
    Path | None, Option(help="Folder of the data sets; else RFLW_DATA, else data/datasets.")
]
Device = Annotated[str, Option(help="auto, cpu, cuda, mps or xpu.")]
Precision = Annotated[str, Option(help="auto, fp32, bf16 or fp16.")]
Classes = Annotated[int, Option(help="Number of classes.")]
Size = Annotated[tuple[int, int], Option(help="Rows and columns of the input.")]
Tile = Annotated[
    int | None, Option(help="Side of tiles in pixels; 0: whole; default: 2048, for large images.")
]
Workers = Annotated[int, Option(help="Processes that augment images; 0: the training process.")]
Weights = Annotated[
    Path | None,
    Option(
        exists=True,
        file_okay=False,
        callback=_weights_folder,
        help="Folder of ENCODER-imagenet files; else RFLW_WEIGHTS.",
    ),
]
Record = Annotated[
    Path | None, Option(callback=_writable_folder, help="Also file a record in this folder.")
]
RecordFolder = Annotated[
    Path | None,
    Option(exists=True, file_okay=False, help="Folder of records; else data/results."),
]
PictureOutput = Annotated[
    Path, Option("-o", "--output", callback=picture_file, help="Picture to write.")
]


def print_json(value) -> None:
    print(json.dumps(value, indent=1))


def show(rows: Iterable, columns: Callable[..., dict], as_json=False, value=None) -> None:
    """Print a table without lines, or JSON.

    Args:
        rows: what the table shows.
        columns: a function from a row to {heading: cell}; columns of numbers stand on the right.
        as_json: JSON instead of the table.
        value: what JSON holds if not the rows.
    """
    if as_json:
        return print_json(rows if value is None else value)
    from rich.console import Console
    from rich.table import Table

    table, cells = Table(box=None, pad_edge=False, header_style=None), []
    for row in map(columns, rows):
        cells.append({heading: "" if cell is None else str(cell) for heading, cell in row.items()})
    for heading in cells[0] if cells else ():
        numbers = all(re.fullmatch(r"[-+.,%\de]*", row[heading]) for row in cells)
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*row.values())
    width = None if sys.stdout.isatty() else 10_000  # elsewhere a row is a line
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as text:
        console.print(table)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


def as_text(value: float | None, form: str) -> str:
    """A number as text; nothing for None."""
    return "" if value is None else format(value, form)


def recorded(name: str, words: tuple, options: dict, kind: str, config: dict, folder, **more):
    """`records.timed` for a command, given as `records.command_of` takes it."""
    command = records.command_of(*words, **options)
    return records.timed(name, command, kind, config, folder=folder, **more)


def draw(figure, path: Path, dpi: int = 120) -> None:
    records.write_whole(
        path, lambda partial: figure.savefig(partial, format=path.suffix[1:], dpi=dpi)
    )


def the_checkpoint(checkpoint: str | None, named: str | None) -> str:
    """The checkpoint of a command that takes one, by its position or by `--checkpoint`."""
    if (checkpoint is None) == (named is None):
        raise InputError("one checkpoint is needed: NAME or --checkpoint NAME")
    return checkpoint or named


def open_checkpoint(name: str, data: str | None, split: str, root: Path | None, device: str):
    """A trained network and a data set of its classes."""
    from rflw.checkpoint import load
    from rflw.data.readers import open_dataset
    from rflw.device import pick_device
    from rflw.evaluation import same_classes

    model = load(name).to(pick_device(device))
    dataset = open_dataset(data or model.card["data"], split, root)
    same_classes(model, dataset)
    return model, dataset


@dataclass
class Trained:
    """A trained network on a data set, as a command names them, and where its result goes."""

    checkpoint: str
    model: object
    data: str
    dataset: object
    root: Path | None
    device: str
    results: Path | None
    as_json: bool


def on_a_network(command: Callable) -> Callable:
    """A command that is given a `Trained` and its own options; it gets those that name all of it."""

    def run(
        checkpoint: Checkpoint = None,
        named: Named = None,
        data: On = None,
        split: Split = "val",
        results: Record = None,
        root: Root = None,
        device: Device = "auto",
        as_json: Json = False,
        **own,
    ):
        name = the_checkpoint(checkpoint, named)
        model, dataset = open_checkpoint(name, data, split, root, device)
        data = data or model.card["data"]
        return command(Trained(name, model, data, dataset, root, device, results, as_json), **own)

    shared, own = (list(signature(f).parameters.values()) for f in (run, command))
    run.__signature__ = Signature([*shared[:4], *own[1:], *shared[4:-1]])
    run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def optimised(model, precision: str, **options):
    """A network as `rflw.deploy` makes it; stderr names the steps that this machine lacks."""
    from rflw import deploy

    model = deploy.optimise(model, precision, **options)
    for step, why in model.left_out.items():
        print(f"rflw: without {step}: {why}", file=sys.stderr)
    return model


def calibration_images(data: str, root: Path | None, number: int = 32) -> list:
    """Training images, evenly spread, to calibrate int8 with."""
    from rflw.data.readers import open_dataset, spread

    dataset = open_dataset(data, "train", root)
    return [dataset[i][0] for i in spread(number, len(dataset))]


@app.command()
def models(
    ablations: Annotated[bool, Option(help="Also the ablated decoders.")] = False,
    as_json: Json = False,
):
    """List the networks that can be built by name.

    Example: rflw models
    """
    from rflw.nn.refinenet import list_models

    names = list_models(ablations)
    print_json(names) if as_json else print("\n".join(names))


@app.command()
def complexity(
    name: Annotated[str | None, Argument(help="A model, see `rflw models`.")] = None,
    classes: Classes = 21,
    size: Size = (512, 512),
    everything: Annotated[bool, Option("--all", help="Every network of a claim.")] = False,
    results: Record = None,
    as_json: Json = False,
):
    """Count parameters and multiply-adds by kind of layer.

    Example: rflw complexity refinenet-lw-resnet50 --classes 21 --size 512 512
    """
    from rflw.complexity import count
    from rflw.nn.refinenet import PAPER, build

    if everything == (name is not None):
        raise InputError("complexity: the name of a model, or --all")
    title = "complexity" if everything else f"complexity-{name.replace(':', '_')}"
    words = ("complexity", "--all" if everything else name)
    options = {"classes": classes, "size": size}
    rows = []
    with recorded(title, words, options, "complexity", {}, results) as record:
        for model in PAPER if everything else [name]:
            network = build(model, classes)
            taps = sum(map(len, network.encoder.channels))  # each has a convolution that reduces it
            row = {"model": model, "classes": classes, "size": list(size)}
            rows.append({**row, **count(network, size), "taps": taps})
        record["metrics"] = {"rows": rows}

    def columns(row):
        macs = {f"{kind}, G": f"{macs / 1e9:.3f}" for kind, macs in row["macs"].items()}
        return {"network": row["model"], "parameters, M": f"{row['params'] / 1e6:.3f}", **macs}

    show(rows, columns, as_json, rows if everything else rows[0])


@dataclass
class Tally:
    """What became of the inputs of a prediction."""

    frames: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def end(self, named: list[Path], summary: bool) -> None:
        """Print it. The exit code is 1 if a file that was named is skipped, 2 if all are."""
        if not self.frames and self.skipped.keys() == {*named}:
            raise InputError("; ".join(self.skipped.values()))
        for line in (*self.notes, *(f"skipped: {line}" for line in self.skipped.values())):
            print("rflw:", *line.split(), file=sys.stderr)
        seconds = time.perf_counter() - self.start
        if summary or self.skipped:
            print(
                f"{self.frames} frames in {seconds:.1f} s, {self.frames / seconds:.2f} frames/s "
                f"from file to file; {len(self.skipped)} skipped"
            )
        if not self.frames:
            raise InputError("nothing is labelled: none of the inputs can be read")
        if not self.skipped.keys().isdisjoint(named):
            raise typer.Exit(1)


@app.command()
def predict(
    images: Annotated[list[Path], Argument(help="Photos, folders of photos, videos.")],
    checkpoint: Annotated[str, Option(help="A shipped one's name, or a file.")] = "camvid",
    output: Annotated[Path, Option("-o", "--output", help="Folder for the results.")] = Path("."),
    short_side: Annotated[
        int | None, Option(help="Shorter side to resize to; 0: none; default: the checkpoint's.")
    ] = None,
    precision: Precision = "fp32",
    batch: Annotated[int, Option(min=1, help="Images of one size that are labelled at once.")] = 1,
    compiled: Annotated[bool, Option("--compile", help="Compile first, for videos.")] = False,
    tile: Tile = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace results of before.")] = False,
    max_pixels: Annotated[int | None, Option(min=1, help="Take photos of up to N pixels.")] = None,
    device: Device = "auto",
):
    """Label every pixel. Of a photo: NAME_mask.png (class indices) and NAME_overlay.png (picture
    with a legend); of a video: NAME_mask.mkv (class indices, lossless) and NAME_overlay.mp4. What
    cannot be read is skipped and counted; the exit code is 1 if it was named, 2 if it is all.

    Example: rflw predict street.jpg --checkpoint camvid -o out
    """
    from PIL import Image

    from rflw import tiles, video
    from rflw.nn.refinenet import MIN_SIZE

    tiles.side(tile, (1, 1))
    if short_side and short_side < MIN_SIZE:
        raise InputError(f"--short-side {short_side}: at least {MIN_SIZE} pixels, or 0")
    if max_pixels:
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # Pillow refuses twice as many
    tally = Tally()
    files = []
    for path in images:
        with reading(path):
            path.stat()
        files += video.files_of(path, tally.skipped) if path.is_dir() else [path]
    targets = targets_of(files, output, overwrite)
    label, labels = open_network(checkpoint, short_side, precision, compiled, tile, device)
    films = [file for file in files if video.is_video(file)]
    photos = video.read_photos([f for f in files if f not in films], tally.skipped, tally.notes)
    for path, image, mask in labelled(photos, label, batch, tally):
        write_photo(targets[path], image, mask, labels)
    for film in films:
        try:
            frames = labelled(video.read_video(film, tally.notes), label, batch, tally, film)
            write_video(film, frames, labels, targets[film])
        except InputError as e:
            tally.skipped[film] = str(e)
    tally.end(images, bool(films) or any(path.is_dir() for path in images))


def targets_of(files: list[Path], output: Path, overwrite: bool) -> dict[Path, list[Path]]:
    """The mask and the overlay of each file. Raises InputError for results that would replace an
    input, one another, or unasked a file.
    """
    from rflw import video

    inputs, seen, found = {file.resolve() for file in files}, set(), {}
    for file in files:
        endings = (".mkv", ".mp4") if video.is_video(file) else (".png", ".png")
        parts = zip(("mask", "overlay"), endings)
        targets = [output / f"{file.stem}_{part}{ending}" for part, ending in parts]
        for target in targets:
            if target in seen:
                raise InputError(f"two inputs are named {file.stem}: they would share {target}")
            if target.resolve() in inputs:
                raise InputError(f"{target}: would replace an input; choose another folder with -o")
            if target.is_dir() or target.exists() and not overwrite:
                raise InputError(f"{target}: exists already; --overwrite, or another folder by -o")
        found[file] = targets
        seen.update(targets)
    return found


def open_network(checkpoint, short_side, precision, compiled, tile, device):
    """A function from (B, H, W, 3) uint8 images to (B, H, W) class maps, and the labels."""
    from rflw.checkpoint import load
    from rflw.data.labels import LABELS, labels_for
    from rflw.device import pick_device, pick_precision
    from rflw.prediction import class_maps

    model = load(checkpoint).to(pick_device(device))
    labels = labels_for(model.card["classes"])
    official = LABELS.get(model.card["data"])
    if official and official.classes == labels.classes:
        labels = official  # with its own colours
    if compiled:
        model = optimised(model, pick_precision(precision, pick_device(device)), compiled=True)
        precision = "fp32"  # of its input and output
    label = partial(class_maps, model, short_side=short_side, precision=precision, tile=tile)
    return label, labels


def labelled(frames, label, batch: int, tally: Tally, film: Path | None = None) -> Iterator:
    """(photo or time, image, mask) of each frame. Where the network does not take photos, they are
    skipped; of a film, InputError is raised.
    """
    from rflw import video

    for keys, images in video.in_batches(video.read_ahead(frames), batch):
        try:
            masks = label(images)
        except InputError as e:
            if film:
                raise InputError(f"{film}: {e}") from e
            tally.skipped |= {key: f"{key}: {e}" for key in keys}
            continue
        tally.frames += len(keys)
        yield from zip(keys, images, masks)


def write_photo(targets: list[Path], image, mask, labels) -> None:
    from rflw import plots

    pictures = plots.index_image(mask, labels), plots.overlay(image, mask, labels)
    for target, picture in zip(targets, pictures):
        records.write_whole(target, partial(picture.save, format="PNG"))
        print(target)


def write_video(film: Path, frames: Iterator, labels, targets: list[Path]) -> None:
    """Two videos from (time, image, mask) triples; neither is left half-written."""
    import numpy as np

    from rflw import plots, video

    rate = video.frame_rate(film)

    def write(mask_file: str, overlay_file: str) -> None:
        writers = []
        for seconds, image, mask in frames:
            if not writers:
                masks = video.VideoWriter(mask_file, rate, mask.shape, lossless=True)
                writers = [masks, video.VideoWriter(overlay_file, rate, mask.shape)]
            writers[0].write(mask, seconds)
            writers[1].write(np.asarray(plots.overlay(image, mask, labels)), seconds)
        for writer in writers:
            writer.close()

    indices, overlays = targets
    records.write_whole(indices, lambda file: records.write_whole(overlays, partial(write, file)))
    print(indices, overlays, sep="\n")


@app.command()
def train(
    recipe: Annotated[str, Argument(help="A recipe's name; `rflw recipes` lists them.")],
    seed: Annotated[int, Option(help="Seed of initial weights, order and augmentation.")] = 0,
    out: Annotated[Path | None, Option(help="Run folder; default runs/RECIPE-sSEED.")] = None,
    epochs: Annotated[int | None, Option(help="Another length; milestones scale along.")] = None,
    data: Annotated[str | None, Option(help="Another data set, or one's own folder.")] = None,
    init: Annotated[str | None, Option(help="Checkpoint to begin with.")] = None,
    resume: Annotated[bool, Option(help="Resume the run in the folder.")] = False,
    workers: Workers = 0,
    accumulate: Annotated[int, Option(help="Parts of a batch, to save memory.")] = 1,
    compiled: Annotated[
        bool | None, Option("--compile/--no-compile", help="Default: in long runs on CPUs.")
    ] = None,
    resident: Annotated[
        bool | None, Option(help="Images on the device; default: on CUDA, for small sets.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only check the recipe.")] = False,
    results: Annotated[
        Path | None, Option(help="Folder of records; else data/results, for shipped recipes.")
    ] = None,
    weights: Weights = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
):
    """Train by a recipe; leaves log.csv, last.pt, best.safetensors, model.safetensors and
    record.json in the run folder.

    Several devices: torchrun --nproc-per-node 8 -m rflw train RECIPE.

    Example: rflw train camvid-lw-efficientnet_lite0 --root ~/datasets
    """
    plan, shipped = planned(recipe, data, init, epochs, root, dry_run)
    if dry_run:
        return rehearse(plan, as_json)
    from rflw import training

    out = out or Path("runs") / f"{plan.name}-s{seed}"
    options = {"workers": workers, "accumulate": accumulate, "compiled": compiled}
    options |= {"resident": resident, "resume": resume}
    options |= {"results": results or (records.FOLDER if shipped else None), "progress": True}
    try:
        _, record = training.fit(plan, out, seed, root, device, **options)
    except KeyboardInterrupt:
        fail(f"interrupted; --resume continues {out}", 130)
    if os.environ.get("RANK", "0") != "0":  # of several processes, one tells
        return
    if as_json:
        return print_json(record)
    measured, minutes = record["metrics"], record["wall_s"] / 60
    miou = as_text(measured["miou"], ".1%") or "unknown (all labels are void)"
    print(
        f"{record['name']}: mIoU {miou} on {measured['images']} validation images, "
        f"{minutes:.1f} min; {out / 'model.safetensors'}"
    )


def planned(recipe: str, data, init, epochs, root, dry_run: bool):
    """The recipe with the settings of the command, and whether it is as shipped."""
    from rflw.checkpoint import load_any
    from rflw.data.readers import open_dataset
    from rflw.recipes import recipe as find

    shipped = plan = find(recipe)
    own = plan.name == "own"
    if own and data is None:
        raise InputError("own: --data must name the folder with images/, masks/ and classes.txt")
    if data is not None:
        plan = plan.on(data)
        if own and not dry_run:  # few images make a small batch
            images = len(open_dataset(data, "train", root))
            plan = replace(plan, batch=max(1, min(plan.batch, images)))
    if init is not None:
        plan = replace(plan, init=init, model=load_any(init).name if own else plan.model)
    if epochs is not None:
        plan = plan.with_epochs(epochs)
    return plan, plan == shipped and not own


def rehearse(plan, as_json: bool) -> None:
    from rflw import steps

    facts = steps.rehearse(plan)
    if as_json:
        return print_json(facts)
    print(
        f"{plan.name}: {plan.model}, {facts['params'] / 1e6:.2f} M parameters, "
        f"batch {plan.batch} of {plan.crop[0]}x{plan.crop[1]}"
    )

    def columns(stage):
        row = {"data": stage["data"], "epochs": stage["epochs"]}
        for part in ("encoder", "decoder"):
            row[f"rates of the {part}"] = "{:.2g} to {:.2g}".format(*stage[f"{part}_lr"])
        return row

    show(facts["stages"], columns)


@app.command()
def recipes(as_json: Json = False):
    """List the recipes that `rflw train` knows.

    Example: rflw recipes
    """
    from dataclasses import asdict

    from rflw.recipes import RECIPES

    def columns(row):
        stages = [f"{stage['data']} {stage['epochs']} epochs" for stage in row["stages"]]
        return {"recipe": row["name"], "network": row["model"], "stages": " + ".join(stages)}

    show([asdict(recipe) for recipe in RECIPES.values()], columns, as_json)


@app.command(name="records")
def records_(
    names: Annotated[list[str] | None, Argument(help="Two are compared; default: all.")] = None,
    folder: RecordFolder = None,
    as_json: Json = False,
):
    """List the records of measurements, or compare two of them.

    Example: rflw records camvid-lw-efficientnet_lite0-s0 camvid-lw-rcu-efficientnet_lite0-s0
    """
    folder = folder or records.FOLDER
    rows = [records.read(name, folder) for name in names] if names else records.read_all(folder)
    if names and len(rows) == 2:
        changes, pairs = records.differences(*rows), lambda row: dict(zip(names, row[1]))
        return show(changes.items(), lambda row: {"entry": row[0], **pairs(row)}, as_json, changes)

    def columns(row):
        measured, hardware = row["metrics"], row["hardware"]
        return {
            "name": row["name"],
            "status": row["status"],
            "mIoU": as_text(measured.get("miou"), ".1%"),
            "95 % of images": interval(measured.get("miou_interval")),
            "minutes": f"{row['wall_s'] / 60:.1f}",
            "commit": (row["commit"] or "none")[:7] + "*" * bool(row["dirty"]),
            "device": hardware.get("gpu") or f"{hardware['cores']} x {hardware['cpu']}",
        }

    rows = [{key: value for key, value in row.items() if key != "curve"} for row in rows]
    show(rows, columns, as_json)


def interval(ends: list[float] | None) -> str:
    return "{:.1%} to {:.1%}".format(*ends) if ends else ""


data = typer.Typer(help="Data sets: from raw downloads to folders that training reads.")
app.add_typer(data, name="data")


@data.command(name="list")
def data_list(root: Root = None, as_json: Json = False):
    """Every data set: classes, training images, licence, source, and size of its official files.

    Example: rflw data list
    """
    from rflw.data.labels import LABELS
    from rflw.data.readers import open_dataset

    rows = []
    for name, labels in LABELS.items():
        try:
            images = len(open_dataset(name, "train", root))
        except InputError:  # it is not in the folder
            images = None
        facts = {"data": name, "classes": len(labels.classes), "training_images": images}
        facts |= {"size": labels.size, "source": labels.source or None, "licence": labels.licence}
        rows.append(facts)
    show(rows, lambda row: {key.replace("_", " "): row[key] for key in row}, as_json)


@data.command(name="check")
def data_check(name: Data, results: Record = None, root: Root = None, as_json: Json = False):
    """Read all of a data set: counts against the official ones, faults by name, labels, images that
    two splits share. The exit code is 1 if something is wrong.

    Example: rflw data check camvid --root ~/datasets
    """
    from rflw.data.check import check

    title, words = f"check-{Path(name).name}", ("data", "check", name)
    with recorded(title, words, {}, "check", {"data": name}, results) as record:
        result = record["metrics"] = check(name, root, progress=True)
    print_json(result) if as_json else print_check(result)
    raise typer.Exit(0 if result["clean"] else 1)


def print_check(result: dict) -> None:
    for split, facts in result["splits"].items():
        official = "" if facts["official"] is None else f" of {facts['official']}"
        print(
            f"{split}: {facts['images']}{official} images, {len(facts['faults'])} faults, "
            f"SHA-256 {facts['sha256']}"
        )
        print(*(f"  {fault}\n" for fault in facts["faults"]), sep="", end="")
        pixels = facts["pixels"] | {"void": facts["void"]}
        total = max(sum(pixels.values()), 1)
        shares = {label: f"{count / total:.3%}" for label, count in pixels.items()}
        show(shares.items(), lambda row: {"class": row[0], "pixels": row[1]})
    for a, first, b, second in result["shared"]:
        print(f"{a}/{first} and {b}/{second} are the same image")
    print(*(f"{line}\n" for line in result["changed"]), sep="", end="")
    print("clean" if result["clean"] else "not clean")


@data.command(name="convert", cls=ListCommand)
def data_convert(
    masks: Annotated[Path, Argument(help="Folder of masks, of which nothing is changed.")],
    output: Annotated[Path, Option("-o", "--output", help="New folder for index masks.")],
    colours: Annotated[
        str | None,
        Option(help="Read colours, by a list: line n has R G B of label n - 1."),
    ] = None,
    pairs: Annotated[
        list[str], Option("--map", help="NUMBER=LABEL or R,G,B=LABEL; 255 is void.")
    ] = (),
    first: Annotated[int, Option(help="Number of label 0 in the files; lower ones: void.")] = 0,
    nearest: Annotated[
        bool, Option("--nearest", help="The nearest of what is given, for lossy masks.")
    ] = False,
    as_json: Json = False,
):
    """Make index masks, as training reads them, from colours, from other numbers (16 bits, from 1),
    from grey as RGB or with alpha, from lossy files. Prints what became which label.

    Example: rflw data convert photos/masks -o photos/indices --map 255=1
    """
    from rflw.data.convert import convert

    table = {}
    for pair in pairs:
        found = re.fullmatch(r"(\d+)(?:,(\d+),(\d+))?=(\d+)", pair)
        if not found or int(found[4]) > 255:
            raise InputError(f"--map {pair}: NUMBER=LABEL or R,G,B=LABEL, a label up to 255")
        value = tuple(map(int, found.groups()[:3])) if found[2] else int(found[1])
        table[value] = int(found[4])
    rows = convert(masks, output, colours, table, first, nearest)
    show(rows.items(), lambda row: {"in the files": row[0], **row[1]}, as_json, rows)


@data.command(name="show")
def data_show(
    name: Data,
    output: PictureOutput = Path("grid.png"),
    split: Split = "val",
    number: Annotated[int, Option(help="How many images, evenly spread over the split.")] = 4,
    root: Root = None,
):
    """Draw images beside their masks.

    Example: rflw data show embedded -o grid.png
    """
    from rflw import plots
    from rflw.data.readers import open_dataset, spread

    dataset = open_dataset(name, split, root)
    if not 1 <= number <= len(dataset):
        raise InputError(f"--number {number}: {name}/{split} has {len(dataset)} images")
    chosen = spread(number, len(dataset))
    rows, notes = [dataset[i] for i in chosen], [dataset.ids[i] for i in chosen]
    draw(plots.prediction_grid(rows, dataset.labels, ("image", "labels"), notes, 6.0), output)
    print(output)


@app.command(name="eval", cls=ListCommand)
@on_a_network
def evaluate(
    at: Trained,
    scales: Annotated[
        list[float], Option(help="To average over: --scales 0.75 1 1.25; default: the network's.")
    ] = (),
    flip: Annotated[bool, Option("--flip", help="Average with the mirror image, too.")] = False,
    tile: Tile = None,
    precision: Precision = "auto",
    deployed: Annotated[
        str | None, Option(help="Measure it as deployed in fp32, bf16, fp16 or int8.")
    ] = None,
    save: Annotated[
        Path | None, Option(callback=_writable_folder, help="Folder for masks, to submit.")
    ] = None,
):
    """Measure whole images: IoU, accuracy, boundary F-score, and the interval of mIoU over images.

    Example: rflw eval camvid --root ~/datasets --scales 0.75 1 1.25 --flip --json
    """
    from rflw import tiles
    from rflw.checkpoint import title as title_of
    from rflw.device import pick_precision
    from rflw.prediction import own_scale

    if not all(0 < scale <= 4 for scale in scales):
        raise InputError(f"--scales {' '.join(map(str, scales))}: above 0, at most 4")
    tiles.side(tile, (1, 1))
    model, plain = at.model, None
    scales = tuple(scales) or (own_scale(model),)
    place = {"data": at.data, "split": at.dataset.split}
    views = {"scales": scales, "flip": flip}
    config = {"checkpoint": title_of(model), "model": model.name, **place, **views}
    if deployed:
        images = calibration_images(at.data, at.root) if deployed == "int8" else None
        plain, model = model, optimised(model, deployed, calibration=images)
        precision = "fp32"  # of its input and output
    else:
        config["precision"] = pick_precision(precision, next(model.parameters()).device)
    options = place | views | ({"deployed": deployed} if deployed else {"precision": precision})
    options |= {"tile": tile, "device": at.device}
    stem = Path(at.checkpoint).stem
    name = config["checkpoint"] if stem == "model" else stem  # every run's file is called that
    title, words = evaluation_name(name, options), ("eval", at.checkpoint)
    ways = (precision, scales, flip, tile)
    with recorded(title, words, options, "eval", config, at.results) as record:
        result = measure(model, at.dataset, ways, plain, save)
        if deployed:
            result |= {"deployed": deployed, "agreement": result.pop("agreement")}
            result["steps"] = list(model.steps)
        record["metrics"] = result = {**place, **result}
    print_json(result) if at.as_json else print_scores(result)


def evaluation_name(checkpoint: str, options: dict) -> str:
    """The name of an evaluation's record, which says how it differs from the plain one."""
    parts = ["eval", checkpoint, Path(options["data"]).name, options["split"]]
    if options["scales"] != (1.0,):
        parts += ["scales", *(f"{scale:g}" for scale in options["scales"])]
    if options["flip"]:
        parts.append("flip")
    if "deployed" in options:
        parts += ["deployed", options["deployed"]]
    elif options["precision"] != "auto":
        parts.append(options["precision"])
    if options["tile"] is not None:
        parts += ["tile", str(options["tile"])]
    return "-".join(parts)


def measure(model, dataset, ways: tuple, plain=None, save=None):
    """Evaluate a network on a data set.

    Args:
        ways: precision, scales, flip and tile, as `evaluation.evaluate` takes them.
        plain: the network before it was deployed, to count how many pixels stay the same.
        save: folder for the predictions.

    Returns:
        The metrics.
    """
    from rflw import evaluation, metrics, plots, prediction
    from rflw.data.readers import blocks

    precision, scales, flip, tile = ways
    boundaries, same = [], []

    def each(index, classes, mask):
        boundaries.append(metrics.boundary_f(classes, mask, model.num_classes).nanmean().item())
        if plain:
            views = prediction.views(plain, dataset[index][0], "fp32", scales, flip, tile)
            expected = prediction.best(views, mask.shape)[0]
            same.append(((classes == expected).sum().item(), mask.numel()))
        if save:
            picture = plots.submission(classes.byte().cpu().numpy(), dataset.labels)
            file = save / f"{dataset.ids[index]}.png"
            records.write_whole(file, partial(picture.save, format="PNG"))

    matrices = evaluation.evaluate(
        model, dataset, precision, scales, flip, each, progress=True, tile=tile
    )
    numbers = [value for value in boundaries if value == value]  # NaN: nothing has a boundary
    scores = evaluation.summary(matrices, dataset.labels.classes, blocks(dataset))
    result = {"images": len(dataset), **scores}
    result["boundary_f"] = sum(numbers) / len(numbers) if numbers else None
    result |= {"scales": list(scales), "flip": flip}
    if plain:
        agreeing, pixels = map(sum, zip(*same))
        result["agreement"] = agreeing / pixels
    return result


def print_scores(result: dict) -> None:
    show(result["iou"].items(), lambda row: {"class": row[0], "IoU": as_text(row[1], ".2%")})
    if result["miou"] is None:
        raise InputError(f"{result['data']}/{result['split']}: all pixels are void")
    names = {
        "miou": "mIoU",
        "miou_absent_as_one": "mIoU, absent as one",
        "frequency_weighted_iou": "frequency-weighted IoU",
        "pixel_accuracy": "pixel accuracy",
        "boundary_f": "boundary F-score",
        "agreement": "as the plain network",
    }

    def columns(key):
        ends = interval(result.get(f"{key}_interval"))
        return {"all classes": names[key], "score": f"{result[key]:.2%}", "95 % of images": ends}

    show([key for key in names if result.get(key) is not None], columns)


@app.command()
def export(
    output: Annotated[Path, Option("-o", "--output", help="File to write.")],
    checkpoint: Checkpoint = None,
    named: Named = None,
    form: Annotated[str, Option("--format", help="onnx or torch-export.")] = "onnx",
    whole: Annotated[bool, Option("--whole", help="From uint8 image to uint8 classes.")] = False,
    int8: Annotated[bool, Option("--int8", help="Quantise, with --calibrate's images.")] = False,
    calibrate: Annotated[str | None, Option(help="Data set; default: the checkpoint's.")] = None,
    opset: Annotated[int | None, Option(help="ONNX operator set; default: PyTorch's.")] = None,
    root: Root = None,
    as_json: Json = False,
):
    """Write a network for other runtimes, for images of any height and width, and check what was
    written against PyTorch.

    Example: rflw export camvid --format onnx --whole -o camvid.onnx
    """
    import logging
    import warnings

    from rflw import deploy
    from rflw.checkpoint import load

    logging.disable(logging.WARNING)  # what torch.onnx says of itself
    warnings.simplefilter("ignore")
    model = load(the_checkpoint(checkpoint, named))
    images = calibration_images(calibrate or model.card["data"], root) if int8 else None
    facts = deploy.export(model, output, form, whole, opset, images)
    if as_json:
        return print_json(facts)
    error = "" if facts["error"] is None else f", logits within {facts['error']:.1e}"
    print(
        f"{facts['file']}: {facts['mb']:.1f} MB, {facts['input']} -> {facts['output']}; "
        f"checked: {facts['agreement']:.2%} of pixels agree with PyTorch{error}"
    )


for commands in entry_points(group="rflw.commands"):  # other packages' commands: the study's
    commands.load()

"""The command line. Each command is a few lines over the package; heavy imports happen inside the command.

Bad input ends with one line on stderr and exit code 2.
"""

from importlib.metadata import entry_points
import json
from math import isnan
import os
from pathlib import Path
import sys
from typing import Annotated

import typer

from rflw.errors import InputError, enough_memory

app = typer.Typer(
    help="Light-Weight RefineNet: count, train, evaluate, predict.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Data = Annotated[
    str, typer.Argument(help="A data set, see `rflw data list`, or a folder of one's own.")
]
Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder that holds the data sets' folders; else RFLW_DATA, else data/datasets."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def _as_weights(folder: Path | None) -> Path | None:
    if folder:
        if not folder.is_dir():
            raise InputError(f"--weights {folder}: no such folder")
        os.environ["RFLW_WEIGHTS"] = str(
            folder.absolute()
        )  # processes that this one starts look there, too
    return folder


Weights = Annotated[
    Path | None,
    typer.Option(
        callback=_as_weights,
        help="Folder of encoders' files, ENCODER-imagenet.safetensors or .pth; else RFLW_WEIGHTS.",
    ),
]


def _as_folder(path: Path | None) -> Path | None:
    """Refuses a folder that cannot be written in before anything is measured for it."""
    from rflw import records

    if path:
        records.must_take_files(path)
    return path


def _as_file(path: Path | None) -> Path | None:
    if path:
        _as_folder(path.parent)
    return path


Record = Annotated[
    Path | None,
    typer.Option(callback=_as_folder, help="Also file a record here, e.g. data/results."),
]
Classes = Annotated[int, typer.Option(help="Number of classes.")]
Tile = Annotated[
    int | None,
    typer.Option(
        help="Pixels of the side of overlapping tiles that large images are seen in; 0: whole; default: "
        "2048, for images of more pixels than such a tile."
    ),
]
# The base of Typer's usage errors; which package holds it depends on Typer's version.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run() -> None:
    """Entry point of `rflw`. After a prediction the process ends at once: taking torch down again takes a while, and
    nothing is open any more."""
    try:
        main()
    except SystemExit as end:
        if sys.argv[1:2] != ["predict"]:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


def main() -> None:
    """The command line; usage errors and InputError become one line and exit code 2, and so does what the system says of a file."""
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        with enough_memory("too little memory: --tile, a smaller batch or --device cpu takes less"):
            code = app(args=_spread(sys.argv[1:]) or ["--help"], standalone_mode=False)
    except InputError as e:
        _fail(str(e))
    except ClickException as e:
        _fail(e.format_message())
    except OSError as e:
        if isinstance(e, BrokenPipeError):  # the reader of our output has gone
            sys.stderr.close()
            raise SystemExit(1) from None
        _fail(f"{e.filename or 'file'}: {e.strerror or e}")
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    if code == 130:  # Typer's own way to end after Ctrl-C says nothing
        _fail("interrupted", 130)
    raise SystemExit(code if isinstance(code, int) else 0)


def _spread(words: list[str], options=("--scales", "--modes")) -> list[str]:
    """`--scales 1 2` as `--scales 1 --scales 2`: the form that the parser takes."""
    spread = []
    for word in words:
        if len(spread) > 1 and spread[-2] in options and not word.startswith("-"):
            spread.append(spread[-2])  # a second value
        spread.append(word)
    return spread


def _fail(message: str, code: int = 2):
    words = " ".join(message.split())
    print(
        "rflw:", words if len(words) < 5000 else f"{words[:5000]} ...", file=sys.stderr
    )  # names from a file may be of any length
    raise SystemExit(code)


def print_json(value) -> None:
    print(json.dumps(value, indent=1))


FORMS = (
    ".png",
    ".webp",
    ".jpg",
    ".svg",
    ".pdf",
)  # of pictures; grids of photos are smallest as .webp


def as_picture(path: Path | None) -> Path | None:
    """Refuses a picture's name before anything is measured for it."""
    if path and path.suffix not in FORMS:
        raise InputError(f"{path}: a picture's name ends in one of {', '.join(FORMS)}")
    return _as_file(path)


def draw(figure, path: Path, dpi: int = 120) -> None:
    from rflw import records

    records.write_whole(
        path, lambda partial: figure.savefig(partial, format=path.suffix[1:], dpi=dpi)
    )


@app.command()
def models(
    ablations: Annotated[bool, typer.Option(help="Also the ablated decoders.")] = False,
    json: Json = False,
):
    """List the networks that can be built by name.

    Example: rflw models
    """
    from rflw.nn.refinenet import list_models

    names = list_models(ablations)
    if json:
        return print_json(names)
    print("\n".join(names))


@app.command()
def complexity(
    name: Annotated[str | None, typer.Argument(help="A model, see `rflw models`.")] = None,
    classes: Classes = 21,
    size: Annotated[tuple[int, int], typer.Option(help="Rows and columns of the input.")] = (
        512,
        512,
    ),
    everything: Annotated[
        bool, typer.Option("--all", help="Every network that a claim of the paper is about.")
    ] = False,
    results: Record = None,
    json: Json = False,
):
    """Count parameters and multiply-adds by kind of layer.

    Example: rflw complexity refinenet-lw-resnet50 --classes 21 --size 512 512
    """
    from rflw import records
    from rflw.complexity import count
    from rflw.nn.refinenet import PAPER, build

    if everything == (name is not None):
        raise InputError("complexity: the name of a model, or --all")
    rows, what = [], "--all" if everything else name
    with records.timed(
        "complexity" if everything else f"complexity-{name.replace(':', '_')}",
        f"rflw complexity {what} --classes {classes} --size {size[0]} {size[1]}",
        "complexity",
    ) as record:
        for model in PAPER if everything else [name]:
            network = build(model, classes)
            taps = sum(map(len, network.encoder.channels))  # each has a convolution that reduces it
            rows.append(
                {
                    "model": model,
                    "classes": classes,
                    "size": list(size),
                    **count(network, size),
                    "taps": taps,
                }
            )
        record["metrics"] = {"rows": rows}
    if results:
        records.write(record, results)
    if json:
        return print_json(rows if everything else rows[0])
    for row in rows:
        print(
            f"{row['model']}, {classes} classes, {size[0]}x{size[1]}\nparameters {row['params'] / 1e6:10.3f} M"
        )
        for kind, macs in row["macs"].items():
            print(f"{kind:10} {macs / 1e9:10.3f} G multiply-adds")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Photos, folders of photos, videos.")],
    checkpoint: Annotated[
        str, typer.Option(help="A shipped checkpoint's name, or a .safetensors file.")
    ] = "camvid",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path(
        "."
    ),
    short_side: Annotated[
        int | None,
        typer.Option(
            help="Pixels of the shorter side that the network sees; 0: the photo's own; default: the checkpoint's."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    batch: Annotated[
        int, typer.Option(help="Images of one size that go through the network at once.")
    ] = 1,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Let torch.compile make code for each size first, half a minute; "
            "pays off for videos.",
        ),
    ] = False,
    tile: Tile = None,
    device: Device = "auto",
):
    """Label every pixel. Of a photo: NAME_mask.png (class indices) and NAME_overlay.png (picture with a legend); of a video:
    NAME_mask.mkv (class indices, lossless) and NAME_overlay.mp4. In folders and videos, what cannot be read is skipped and counted.

    Example: rflw predict street.jpg --checkpoint camvid -o out
    """
    import gc

    gc.disable()  # while modules load: a tenth of the start of a command that people wait for
    import time

    from rflw import checkpoint, device, prediction, tiles, video
    from rflw.data.images import read_image
    from rflw.data.labels import LABELS, labels_for
    from rflw.nn.refinenet import MIN_SIZE

    gc.enable()
    if batch < 1:
        raise InputError(f"--batch {batch}: 1 at least")
    tiles.side(tile, (1, 1))
    folders = {path: video.photos(path) for path in images if path.is_dir()}
    videos = [path for path in images if path not in folders and video.is_video(path)]
    named = [path for path in images if path not in folders and path not in videos]
    if short_side and short_side < MIN_SIZE:
        raise InputError(
            f"--short-side {short_side} pixels: {MIN_SIZE} is the least, 0 keeps the photo's own"
        )
    single = [*named, *(path for found in folders.values() for path in found)]
    stems = [path.stem for path in (*single, *videos)]
    twice = (
        next((stem for stem in stems if stems.count(stem) > 1), None)
        if len(set(stems)) < len(stems)
        else None
    )
    if twice:
        raise InputError(f"two inputs are named {twice}: their results would overwrite each other")
    inputs = {path.resolve() for path in (*single, *videos)}
    for paths, endings in (
        (single, (".png", ".png")),
        (videos, (".mkv", ".mp4")),
    ):  # all is checked before anything is written
        for path in paths:
            for suffix, ending in zip(("mask", "overlay"), endings):
                _only_ours(output / f"{path.stem}_{suffix}{ending}", inputs)
    for path in named if len(named) > 1 else ():
        read_image(path)
    rates = {path: video.frame_rate(path) for path in videos}
    model = checkpoint.load(checkpoint).to(device.pick_device(device))
    labels = labels_for(model.card["classes"])
    if (known := LABELS.get(model.card["data"])) and known.classes == labels.classes:
        labels = known  # with colours of its own
    side = model.card.get("short_side") if short_side is None else short_side
    if compiled:
        from rflw import deploy

        precision = device.pick_precision(precision, device.pick_device(device))
        model, precision = (
            deploy.optimise(model, precision, compiled=True),
            "fp32",
        )  # its input and output
        for step, why in model.left_out.items():
            print(f"rflw: without {step}: {why}", file=sys.stderr)
    many, skipped, network_s, count = bool(folders or videos), [], 0.0, 0
    start = time.perf_counter()

    def labelled(frames, video=None):
        """(key, image, mask) of each photo of a folder, or frame of a video, with the time of the network taken."""
        nonlocal network_s, count
        for keys, stack in video.in_batches(video.read_ahead(frames), batch):
            began = time.perf_counter()
            try:
                masks = prediction.class_maps(model, stack, side, precision, tile)
            except InputError as e:
                if video:
                    raise InputError(f"{video}: {e}") from e
                skipped.extend(f"{key}: {e}" for key in keys)
                continue
            network_s, count = network_s + time.perf_counter() - began, count + len(keys)
            yield from zip(keys, stack, masks)

    for path in named:
        _write_photo(
            path,
            read_image(path),
            prediction.predict(model, path, side, precision, tile),
            labels,
            output,
        )
    for found in folders.values():
        for path, image, mask in labelled(video.read_photos(found, skipped)):
            _write_photo(path, image, mask, labels, output)
    for path in videos:
        _write_video(
            path, labelled(video.read_video(path, skipped), path), rates[path], labels, output
        )
    if many:
        for line in skipped[:10]:
            print(f"rflw: skipped: {line}", file=sys.stderr)
        print(
            f"{count} frames in {time.perf_counter() - start:.1f} s, {count / (time.perf_counter() - start):.2f} frames/s from file to "
            f"file; the network alone {count / max(network_s, 1e-9):.2f}; {len(skipped)} skipped"
        )


def _write_photo(path: Path, image, mask, labels, output: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    from rflw import plots, records

    mark = PngInfo()
    mark.add_text("Software", "rflw")
    pictures = {
        "mask": plots.index_image(mask, labels),
        "overlay": plots.overlay(image, mask, labels),
    }
    for suffix, picture in pictures.items():
        target = output / f"{path.stem}_{suffix}.png"
        records.write_whole(
            target, lambda partial, picture=picture: picture.save(partial, "PNG", pnginfo=mark)
        )
        print(target)


def _write_video(path: Path, frames, rate: float, labels, output: Path) -> None:
    """Two videos from (number, image, mask) triples; neither is left half-written."""
    import numpy as np

    from rflw import plots, records
    from rflw.video import VideoWriter

    targets = [output / f"{path.stem}_mask.mkv", output / f"{path.stem}_overlay.mp4"]

    def write(mask_file: str, overlay_file: str) -> None:
        writers = []
        for _, image, mask in frames:
            if not writers:
                writers = [
                    VideoWriter(mask_file, rate, mask.shape, lossless=True),
                    VideoWriter(overlay_file, rate, mask.shape),
                ]
            writers[0].write(mask)
            writers[1].write(np.asarray(plots.overlay(image, mask, labels)))
        for writer in writers:
            writer.close()

    records.write_whole(
        targets[0],
        lambda mask: records.write_whole(targets[1], lambda overlay: write(mask, overlay)),
    )
    for target in targets:
        print(target)


def _only_ours(target: Path, inputs: set[Path]) -> None:
    """Refuse to overwrite what is to be labelled, or a file that `rflw predict` has not written."""
    if not target.exists():
        return
    if target.resolve() in inputs:
        raise InputError(
            f"{target}: one of the photos would be overwritten; choose another folder with -o"
        )
    try:
        if target.suffix == ".png":
            from rflw.data.images import open_picture

            with open_picture(target) as picture:
                ours = picture.info.get("Software") == "rflw"
        else:
            from rflw.video import comment

            ours = comment(target) == "rflw"
    except (OSError, InputError):
        ours = False
    if not ours:
        raise InputError(
            f"{target}: is there already, and not from rflw predict; choose another folder with -o"
        )


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name; `rflw recipes` lists them.")],
    seed: Annotated[int, typer.Option(help="Seed of initial weights, order and augmentation.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/RECIPE-sSEED.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Other length than the recipe's; milestones scale along.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Train on another data set, or one's own: a folder with images/, masks/ and classes.txt."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint to begin with, ours or the authors'; a classifier for other classes is made anew."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    workers: Annotated[
        int, typer.Option(help="Processes that augment images; 0: the training process.")
    ] = 0,
    accumulate: Annotated[
        int, typer.Option(help="Parts that a batch is cut into, to save memory.")
    ] = 1,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Let torch.compile speed the network up; default: on CPUs, for long runs.",
        ),
    ] = None,
    resident: Annotated[
        bool | None,
        typer.Option(
            help="Hold the images on the device and augment them there; default: on CUDA, for small data sets."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the recipe: one step on no data.")
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a copy of the record; default data/results, none for a changed recipe. One that is there stays."
        ),
    ] = None,
    weights: Weights = None,
    root: Root = None,
    device: Device = "auto",
    json: Json = False,
):
    """Train by a recipe; leaves log.csv, last.pt, best.safetensors, model.safetensors and record.json in the run folder.

    Several devices: torchrun --nproc-per-node 8 -m rflw train RECIPE.

    Example: rflw train camvid-lw-efficientnet_lite0 --root ~/datasets
    """
    from dataclasses import replace

    from rflw import checkpoint, device, records, training
    from rflw.data.readers import open_dataset
    from rflw.recipes import recipe as find

    plan = find(recipe)
    if plan.name == "own" and data is None:
        raise InputError("own: --data must name the folder with images/, masks/ and classes.txt")
    if data is not None:
        plan = plan.on(data)
    if plan.name == "own" and not dry_run:  # few images make a small batch
        plan = replace(plan, batch=max(1, min(plan.batch, len(open_dataset(data, "train", root)))))
    if init is not None:  # one's own data are trained on with the checkpoint's network
        plan = replace(
            plan,
            init=init,
            **({"model": checkpoint.weights_of(init)[0]} if plan.name == "own" else {}),
        )
    if epochs is not None:
        plan = plan.with_epochs(epochs)
    if dry_run:
        facts = training.rehearse(plan)
        if json:
            return print_json(facts)
        print(
            f"{plan.name}: {plan.model}, {facts['params'] / 1e6:.2f} M parameters, batch {plan.batch} of {plan.crop[0]}x{plan.crop[1]}"
        )
        for stage in facts["stages"]:
            rates = ", ".join(
                f"{part} {stage[f'{part}_lr'][0]:.2g} to {stage[f'{part}_lr'][1]:.2g}"
                for part in ("encoder", "decoder")
            )
            print(f"{stage['data']:12} {stage['epochs']:4} epochs, rates: {rates}")
        return
    out = out or Path("runs") / f"{plan.name}-s{seed}"
    results = results or (records.FOLDER if plan == find(recipe) and recipe != "own" else None)

    def keep(record):
        if results and not records.keep(record, results):
            there = results / f"{record['name']}.json"
            print(
                f"rflw: {there} is there already and stays; the new one is {out / 'record.json'}",
                file=sys.stderr,
            )

    try:
        _, record = training.fit(
            plan,
            out,
            seed,
            root,
            device,
            resume,
            workers,
            progress=True,
            accumulate=accumulate,
            compiled=compiled,
            resident=resident,
        )
    except training.Failed:
        keep(records.read(out / "record.json"))
        raise
    except KeyboardInterrupt:
        _fail(f"interrupted; --resume goes on with {out}", 130)
    if os.environ.get("RANK", "0") != "0":  # of several processes, one speaks
        return
    keep(record)
    if json:
        return print_json(record)
    miou = record["metrics"]["miou"]
    score = "unknown (all labels are void)" if miou is None else f"{100 * miou:.1f} %"
    print(
        f"{record['name']}: mIoU {score} on {record['metrics']['images']} validation images, {record['wall_s'] / 60:.1f} min; "
        f"{out / 'model.safetensors'}"
    )


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    name: Annotated[str, typer.Argument(help="What the network will be called.")],
):
    """Ship a run: its network goes to data/checkpoints with a card, its record to data/results.

    Example: rflw publish runs/camvid-lw-efficientnet_lite0-s0 camvid
    """
    from rflw import training

    for path in training.publish(run, name):
        print(path)


def there(folder: Path | None) -> Path | None:
    """A folder to read records from. Raises InputError where it is none: an empty answer would say that there are no records."""
    if folder and not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return folder


@app.command(name="records")
def records_(
    names: Annotated[
        list[str] | None, typer.Argument(help="Two to compare, else any to list; default: all.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where they are; default data/results.")
    ] = None,
    json: Json = False,
):
    """List the records of measurements, or compare two of them.

    Example: rflw records camvid-lw-efficientnet_lite0-s0 camvid-lw-rcu-efficientnet_lite0-s0
    """
    from rflw import records

    folder = there(folder) or records.FOLDER
    found = [records.read(name, folder) for name in names] if names else records.read_all(folder)
    if len(found) == 2 and names:
        changes = records.differences(*found)
        if json:
            return print_json(changes)
        for key, (a, b) in changes.items():
            gap = (
                f"{b - a:+.4g}"
                if all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
                else ""
            )
            print(f"{key:36} {a!s:>28} {b!s:>28}  {gap}")
        return
    if json:
        return print_json([{k: v for k, v in record.items() if k != "curve"} for record in found])
    print(
        f"{'name':44} {'status':8} {'mIoU %':>7} {'95 % of images':>15} {'minutes':>8} {'commit':8}  device"
    )
    for record in found:
        measured = record["metrics"]
        miou = f"{100 * measured['miou']:.1f}" if measured.get("miou") is not None else ""
        interval = (
            "{:.1f} to {:.1f}".format(*(100 * v for v in measured["miou_interval"]))
            if measured.get("miou_interval")
            else ""
        )
        device = (
            record["hardware"].get("gpu")
            or f"{record['hardware']['cores']} x {record['hardware']['cpu']}"
        )
        print(
            f"{record['name']:44} {record['status']:8} {miou:>7} {interval:>15} {record['wall_s'] / 60:8.1f} "
            f"{(record['commit'] or 'none')[:7]}{'*' if record['dirty'] else ' '} {device}"
        )


@app.command()
def recipes(json: Json = False):
    """List the recipes that `rflw train` knows.

    Example: rflw recipes
    """
    from rflw.recipes import RECIPES

    if json:
        from dataclasses import asdict

        return print_json([asdict(r) for r in RECIPES.values()])
    for r in RECIPES.values():
        print(
            f"{r.name:40} {r.model:42} {' + '.join(f'{s.data} {s.epochs} epochs' for s in r.stages)}"
        )


data = typer.Typer(help="Data sets: from raw downloads to folders that training reads.")
app.add_typer(data, name="data")


@data.command(name="list")
def data_list(root: Root = None, json: Json = False):
    """Every data set: classes, whether it is there, licence, where it comes from, and how large its official files are.

    Example: rflw data list
    """
    from rflw.data.labels import LABELS
    from rflw.data.readers import open_dataset

    rows = []
    for name, labels in LABELS.items():
        try:
            there = len(open_dataset(name, "train", root))
        except InputError:
            there = None
        rows.append(
            {
                "data": name,
                "classes": len(labels.classes),
                "training_images": there,
                "licence": labels.licence,
                "source": labels.source or None,
                "size": labels.size,
            }
        )
    if json:
        return print_json(rows)
    for row in rows:
        there = (
            "not here"
            if row["training_images"] is None
            else f"{row['training_images']} training images"
        )
        print(
            f"{row['data']:11} {row['classes']:3} classes  {there:22} {row['size']:32} {row['source'] or ''}\n{'':12}{row['licence']}"
        )


@data.command(name="check")
def data_check(name: Data, results: Record = None, root: Root = None, json: Json = False):
    """Read all of a data set: counts against the official ones, faults by name, labels, images that two splits share.

    Example: rflw data check camvid --root ~/datasets
    """
    from rflw import records
    from rflw.data.check import check

    with records.timed(
        f"check-{Path(name).name}", f"rflw data check {name}", "check", {"data": name}
    ) as record:
        result = check(name, root, progress=True)
    if results:
        records.write(record | {"metrics": result}, results)
    if json:
        print_json(result)
    else:
        for split, found in result["splits"].items():
            official = "" if found["official"] is None else f" of {found['official']}"
            print(
                f"{split}: {found['images']}{official} images, {len(found['faults'])} faults, SHA-256 {found['sha256']}"
            )
            for fault in found["faults"]:
                print(f"  {fault}")
            total = max(sum(found["pixels"].values()) + found["void"], 1)
            for label, count in (*found["pixels"].items(), ("void", found["void"])):
                print(f"  {label:20} {100 * count / total:7.3f} % of the pixels")
        for a, one, b, other in result["shared"]:
            print(f"{a}/{one} and {b}/{other} are the same image")
        for line in result["changed"]:
            print(line)
        print("clean" if result["clean"] else "not clean")
    raise typer.Exit(0 if result["clean"] else 1)


@data.command(name="show")
def data_show(
    name: Data,
    output: Annotated[
        Path, typer.Option("-o", "--output", callback=as_picture, help="Picture to write.")
    ] = Path("grid.png"),
    split: Annotated[str, typer.Option(help="Which part of it.")] = "val",
    number: Annotated[int, typer.Option(help="How many images, evenly spread over the split.")] = 4,
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
    notes = [dataset.ids[i] for i in chosen]
    picture = plots.prediction_grid(
        [dataset[i] for i in chosen], dataset.labels, ("image", "labels"), notes, 6.0
    )
    draw(picture, output)
    print(output)


Checkpoint = Annotated[
    str, typer.Argument(help="A shipped checkpoint's name, or a .safetensors file.")
]
On = Annotated[str | None, typer.Option(help="Data set; default: the checkpoint's.")]
Split = Annotated[str, typer.Option(help="Which part of it.")]


def open_checkpoint(checkpoint: str, data: str | None, split: str, root: Path | None, device: str):
    """A trained network and a data set of its classes."""
    from rflw import checkpoint, device
    from rflw.data.readers import open_dataset

    model = checkpoint.load(checkpoint).to(device.pick_device(device))
    name = data or model.card["data"]
    dataset = open_dataset(name, split, root)
    if len(dataset.labels.classes) != model.num_classes:
        raise InputError(
            f"{checkpoint} has {model.num_classes} classes, {name} has {len(dataset.labels.classes)}"
        )
    return model, dataset


@app.command(name="eval")
def evaluate(
    checkpoint: Checkpoint,
    data: On = None,
    split: Split = "val",
    scales: Annotated[
        list[float],
        typer.Option(help="Scales of the image, averaged: --scales 0.5 0.75 1 1.25 1.5."),
    ] = (1.0,),
    flip: Annotated[
        bool, typer.Option("--flip", help="Average with the mirror image, too.")
    ] = False,
    tile: Tile = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    keep: Annotated[
        Path | None,
        typer.Option(
            callback=_as_file,
            help="File that keeps what is measured so far: after an interruption the same command goes on.",
        ),
    ] = None,
    deployed: Annotated[
        str | None,
        typer.Option(
            help="Measure the network as `rflw.deploy.optimise` makes it in this precision (fp32, bf16, fp16, int8), and how far it "
            "agrees with the plain one."
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            callback=_as_folder,
            help="Folder for the predictions, in the form that the benchmark takes: VOC palette, Cityscapes labelIds.",
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            callback=as_picture,
            help="Also draw five frames, from the worst to the best in equal steps, into this picture.",
        ),
    ] = None,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    json: Json = False,
):
    """Measure whole images: IoU, accuracy, boundary F-score, and the interval of mIoU over images.

    Example: rflw eval camvid --root ~/datasets --scales 0.75 1 1.25 --flip --json
    """
    from rflw import checkpoint, device, evaluation, metrics, plots, prediction, records, tiles

    if not all(0 < scale <= 4 for scale in scales):
        raise InputError(f"--scales {' '.join(map(str, scales))}: above 0, at most 4")
    tiles.side(tile, (1, 1))
    model, dataset = open_checkpoint(checkpoint, data, split, root, device)
    name, labels = data or model.card["data"], dataset.labels
    plain = model
    if deployed:
        from rflw import deploy

        model, precision = (
            deploy.optimise(
                model, deployed, calibration=some_images(name, root) if deployed == "int8" else None
            ),
            "fp32",
        )
        for step, why in model.left_out.items():
            print(f"rflw: without {step}: {why}", file=sys.stderr)

    def each(index, prediction, mask):
        """Its boundary F-score, mean over classes, and pixels that are as the plain network has them, of how many."""
        same, pixels = 0, 0
        if deployed:
            reference = prediction.best(
                prediction.views(plain, dataset[index][0], "fp32", scales, flip, tile), mask.shape
            )[0]
            same, pixels = (prediction == reference).sum().item(), mask.numel()
        if save:
            picture = plots.submission(prediction.byte().cpu().numpy(), labels)
            records.write_whole(
                save / f"{dataset.ids[index]}.png", lambda partial: picture.save(partial, "PNG")
            )
        return (
            metrics.boundary_f(prediction, mask, model.num_classes).nanmean().item(),
            same,
            pixels,
        )

    tiled = "" if tile is None else f"-tile-{tile}"
    as_deployed = (
        f"-deployed-{deployed}" if deployed else "" if precision == "auto" else f"-{precision}"
    )
    way = f"{'' if tuple(scales) == (1.0,) else '-'.join(['', 'scales', *(f'{s:g}' for s in scales)])}{'-flip' * flip}{as_deployed}{tiled}"
    command = (
        f"rflw eval {checkpoint} --data {name} --split {split} --scales {' '.join(f'{s:g}' for s in scales)}{' --flip' * flip}"
        f"{f' --deployed {deployed}' if deployed else '' if precision == 'auto' else f' --precision {precision}'}"
        f"{'' if tile is None else f' --tile {tile}'}"
    )
    config = {
        "checkpoint": checkpoint,
        "model": model.name,
        "data": name,
        "split": split,
        "scales": list(scales),
        "flip": flip,
    }
    if not deployed:
        config["precision"] = device.pick_precision(precision, next(model.parameters()).device)
    with records.timed(
        f"eval-{Path(checkpoint).stem}-{Path(name).name}-{split}{way}", command, "eval", config
    ) as record:
        options = {
            "deployed": deployed,
            "tile": tile,
            "device": next(plain.parameters()).device.type,
            "save": save and str(save.absolute()),
        }
        sitting = evaluation.Sitting(
            len(dataset),
            model.num_classes,
            3,
            keep,
            _identity(checkpoint, dataset, config | options) if keep else "",
        )
        if save:  # a prediction that is gone is made again
            for index, key in enumerate(dataset.ids):
                sitting.done[index] &= (save / f"{key}.png").exists()
        before, seconds = int(sitting.done.sum()), sitting.seconds.item()
        if before:
            print(
                f"rflw: goes on after {before} of {len(dataset)} images, from {keep}",
                file=sys.stderr,
            )
        matrices = evaluation.evaluate(
            model, dataset, precision, scales, flip, each, progress=True, tile=tile, sitting=sitting
        )
    record["wall_s"] = round(record["wall_s"] + seconds, 1)  # with that of earlier sittings
    boundaries = [
        value for value in sitting.numbers[:, 0].tolist() if not isnan(value)
    ]  # of every image that has any
    same, pixels = sitting.numbers[:, 1:].sum(0).long().tolist()
    result = {
        "data": name,
        "split": split,
        "images": len(dataset),
        **evaluation.summary(matrices, labels.classes),
        "boundary_f": sum(boundaries) / len(boundaries) if boundaries else None,
        "scales": list(scales),
        "flip": flip,
    }
    if deployed:
        result |= {"deployed": deployed, "agreement": same / pixels, "steps": list(model.steps)}
    if results:
        records.write(record | {"metrics": result}, results)
    if figure:
        order = sorted(
            (i for i, matrix in enumerate(matrices) if matrix.any()),
            key=lambda i: metrics.pixel_accuracy(matrices[i]),
        )
        if not order:
            raise InputError(f"{name}/{split}: all pixels are void, there is nothing to draw")
        chosen = [order[round(step * (len(order) - 1) / 4)] for step in range(5)]
        rows = [(*dataset[i], prediction.predict(model, dataset[i][0])) for i in chosen]
        notes = [f"{100 * metrics.pixel_accuracy(matrices[i]):.1f} % of pixels" for i in chosen]
        picture = plots.prediction_grid(rows, labels, notes=notes)
        draw(picture, figure)
    if json:
        return print_json(result)
    for label, value in result["iou"].items():
        print(f"{label:24} {'absent' if value is None else f'{100 * value:6.2f}'}")
    if result["miou"] is None:
        raise InputError(f"{name}/{split}: all pixels are void")
    low, high = result["miou_interval"]
    print(
        f"{'mIoU':24} {100 * result['miou']:6.2f}   95 % interval over images {100 * low:.2f} to {100 * high:.2f}"
    )
    for key, words in (
        ("miou_absent_as_one", "mIoU, absent as one"),
        ("frequency_weighted_iou", "frequency-weighted IoU"),
        ("pixel_accuracy", "pixel accuracy"),
        ("boundary_f", "boundary F-score"),
        ("agreement", "as the plain network"),
    ):
        if result.get(key) is not None:
            print(f"{words:24} {100 * result[key]:6.2f}")


def _identity(checkpoint: str, dataset, options: dict) -> str:
    """What must be the same for an evaluation to go on: the network's file, every pixel of the data, and the options."""
    import hashlib

    from rflw import checkpoint
    from rflw.data.readers import manifest_hash

    parts = [
        hashlib.sha256(checkpoint.checkpoint_file(checkpoint).read_bytes()).hexdigest(),
        manifest_hash(dataset),
        options,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def some_images(name: str, root: Path | None, number: int = 32) -> list:
    """Training images, evenly spread, to calibrate int8 with."""
    from rflw.data.readers import open_dataset

    dataset = open_dataset(name, "train", root)
    return [
        dataset[round(i * (len(dataset) - 1) / max(number - 1, 1))][0]
        for i in range(min(number, len(dataset)))
    ]


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A shipped checkpoint's name, or a .safetensors file.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    form: Annotated[
        str, typer.Option("--format", help="onnx, or torch-export (for torch.export.load).")
    ] = "onnx",
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Take a uint8 image, give its uint8 class map: with what goes before and "
            "after the network.",
        ),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise, after training, with --calibrate's images.")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Data set whose training images calibrate; default: the checkpoint's."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set; default: PyTorch's.")
    ] = None,
    root: Root = None,
    json: Json = False,
):
    """Write a network for other runtimes, for images of any height and width, and check what was written against PyTorch.

    Example: rflw export camvid --format onnx --whole -o camvid.onnx
    """
    import logging
    import warnings

    from rflw import checkpoint, deploy

    logging.disable(logging.WARNING)  # what torch.onnx says of itself
    warnings.simplefilter("ignore")
    model = checkpoint.load(checkpoint)
    images = some_images(calibrate or model.card["data"], root) if int8 else None
    facts = deploy.export(model, output, form, whole, opset, images)
    if json:
        return print_json(facts)
    within = "" if facts["error"] is None else f", logits within {facts['error']:.1e}"
    print(
        f"{facts['file']}: {facts['mb']:.1f} MB, {facts['input']} -> {facts['output']}; checked: {100 * facts['agreement']:.2f} % "
        f"of pixels agree with PyTorch{within}"
    )


for commands in entry_points(group="rflw.commands"):  # other packages' commands: the study's
    commands.load()

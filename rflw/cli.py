"""The command line. Each command is a few lines over the package; heavy imports happen inside the command.

Bad input ends with one line on stderr and exit code 2.
"""
import json
from math import isnan
from pathlib import Path
import sys
from typing import Annotated

import typer

from rflw.errors import InputError

app = typer.Typer(help="Light-Weight RefineNet: count, train, evaluate, predict.", add_completion=False,
                  pretty_exceptions_enable=False, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
Root = Annotated[Path | None, typer.Option(help="Folder that holds the data sets' folders; else RFLW_DATA, else data/datasets.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Classes = Annotated[int, typer.Option(help="Number of classes.")]


# The base of Typer's usage errors; which package holds it depends on Typer's version.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main() -> None:
    """Entry point of `rflw`: usage errors and InputError become one line and exit code 2."""
    try:
        code = app(args=_spread(sys.argv[1:], "--scales") or ["--help"], standalone_mode=False)
    except InputError as e:
        _fail(str(e))
    except ClickException as e:
        _fail(e.format_message())
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        raise SystemExit(1) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _spread(words: list[str], option: str) -> list[str]:
    """`--scales 1 2` as `--scales 1 --scales 2`: the form that the parser takes."""
    spread = []
    for word in words:
        if len(spread) > 1 and spread[-2] == option and not word.startswith("-"):
            spread.append(option)  # a second value
        spread.append(word)
    return spread


def _fail(message: str, code: int = 2):
    print("rflw:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(code)


def _print_json(value) -> None:
    print(json.dumps(value, indent=1))


@app.command()
def models(ablations: Annotated[bool, typer.Option(help="Also the ablated decoders.")] = False, json: Json = False):
    """List the networks that can be built by name.

    Example: rflw models
    """
    from rflw.nn.refinenet import list_models
    names = list_models(ablations)
    if json:
        return _print_json(names)
    print("\n".join(names))


@app.command()
def complexity(name: Annotated[str, typer.Argument(help="A model, see `rflw models`.")], classes: Classes = 21,
               size: Annotated[tuple[int, int], typer.Option(help="Rows and columns of the input.")] = (512, 512),
               json: Json = False):
    """Count parameters and multiply-adds by kind of layer.

    Example: rflw complexity refinenet-lw-resnet50 --classes 21 --size 512 512
    """
    from rflw.analysis.complexity import count
    from rflw.nn.refinenet import build
    result = {"model": name, "classes": classes, "size": list(size), **count(build(name, classes), size)}
    if json:
        return _print_json(result)
    print(f"{name}, {classes} classes, {size[0]}x{size[1]}\nparameters {result['params'] / 1e6:10.3f} M")
    for kind, macs in result["macs"].items():
        print(f"{kind:10} {macs / 1e9:10.3f} G multiply-adds")


@app.command()
def predict(images: Annotated[list[Path], typer.Argument(help="Photos.")],
            checkpoint: Annotated[str, typer.Option(help="A shipped checkpoint's name, or a .safetensors file.")] = "camvid",
            output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path("."),
            short_side: Annotated[int | None, typer.Option(
                help="Pixels of the shorter side that the network sees; 0: the photo's own; default: the checkpoint's.")] = None,
            device: Device = "auto"):
    """Label every pixel of a photo: NAME_mask.png (class indices) and NAME_overlay.png (picture with a legend).

    Example: rflw predict street.jpg --checkpoint camvid -o out
    """
    from rflw import engine, plots, records
    from rflw.datasets.labels import LABELS, labels_for
    from rflw.datasets.readers import read_image
    stems = [path.stem for path in images]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice:
        raise InputError(f"two photos are named {twice}: their results would overwrite each other")
    model = engine.load(checkpoint).to(engine.pick_device(device))
    labels = LABELS.get(model.card["data"], labels_for(model.num_classes))
    side = model.card.get("short_side") if short_side is None else short_side
    for path in images:
        image = read_image(path)
        try:
            mask = engine.predict(model, image, side)
        except InputError as e:
            raise InputError(f"{path}: {e}") from e
        for suffix, picture in (("mask", plots.index_image(mask, labels)), ("overlay", plots.overlay(image, mask, labels))):
            target = output / f"{path.stem}_{suffix}.png"
            records.write_whole(target, lambda partial, picture=picture: picture.save(partial, "PNG"))
            print(target)


@app.command()
def train(recipe: Annotated[str, typer.Argument(help="A recipe's name; `rflw recipes` lists them.")],
          seed: Annotated[int, typer.Option(help="Seed of initial weights, order and augmentation.")] = 0,
          out: Annotated[Path | None, typer.Option(help="Run folder; default runs/RECIPE-sSEED.")] = None,
          epochs: Annotated[int | None, typer.Option(help="Other length than the recipe's; milestones scale along.")] = None,
          resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
          workers: Annotated[int, typer.Option(help="Processes that augment images; 0: the training process.")] = 0,
          results: Annotated[Path | None, typer.Option(help="Also file the record here, e.g. data/results.")] = None,
          root: Root = None, device: Device = "auto", json: Json = False):
    """Train by a recipe; leaves log.csv, last.pt, model.safetensors and record.json in the run folder.

    Example: rflw train camvid-lw-efficientnet_lite0 --root ~/datasets
    """
    from rflw import engine, records
    from rflw.config import recipe as find
    plan = find(recipe)
    if epochs is not None:
        plan = plan.with_epochs(epochs)
    out = out or Path("runs") / f"{plan.name}-s{seed}"
    _, record = engine.fit(plan, out, seed, root, device, resume, workers, progress=True)
    if results:
        records.write(record, results)
    if json:
        return _print_json(record)
    print(f"{record['name']}: mIoU {100 * record['metrics']['miou']:.1f} % on {record['metrics']['images']} validation "
          f"images, {record['wall_s'] / 60:.1f} min; {out / 'model.safetensors'}")


@app.command()
def publish(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
            name: Annotated[str, typer.Argument(help="What the network will be called.")]):
    """Ship a run: its network goes to data/checkpoints with a card, its record to data/results.

    Example: rflw publish runs/camvid-lw-efficientnet_lite0-s0 camvid
    """
    from rflw import engine
    for path in engine.publish(run, name):
        print(path)


@app.command()
def recipes(json: Json = False):
    """List the recipes that `rflw train` knows.

    Example: rflw recipes
    """
    from rflw.config import RECIPES
    if json:
        from dataclasses import asdict
        return _print_json([asdict(r) for r in RECIPES.values()])
    for r in RECIPES.values():
        print(f"{r.name:40} {r.model:42} {' + '.join(f'{s.data} {s.epochs} epochs' for s in r.stages)}")


@app.command(name="eval")
def evaluate(checkpoint: Annotated[str, typer.Argument(help="A shipped checkpoint's name, or a .safetensors file.")],
             data: Annotated[str | None, typer.Option(help="Data set; default: the checkpoint's.")] = None,
             split: Annotated[str, typer.Option(help="Which part of it.")] = "val",
             scales: Annotated[list[float], typer.Option(help="Scales of the image, averaged: --scales 0.5 0.75 1 1.25 1.5.")] = (1.0,),
             flip: Annotated[bool, typer.Option(help="Average with the mirror image, too.")] = False,
             precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
             save: Annotated[Path | None, typer.Option(help="Folder for the predictions, in the form that the benchmark takes.")] = None,
             figure: Annotated[Path | None, typer.Option(
                 help="Also draw five frames, from the worst to the best in equal steps, into this PNG.")] = None,
             root: Root = None, device: Device = "auto", json: Json = False):
    """Measure whole images: IoU, accuracy, boundary F-score, and the interval of mIoU over images.

    Example: rflw eval camvid --root ~/datasets --scales 0.75 1 1.25 --flip --json
    """
    from rflw import engine, metrics, plots, records
    from rflw.datasets.labels import LABELS
    from rflw.datasets.readers import open_dataset
    if min(scales) <= 0 or max(scales) > 4:
        raise InputError(f"scales {scales}: above 0, at most 4")
    model = engine.load(checkpoint).to(engine.pick_device(device))
    name = data or model.card["data"]
    dataset, labels = open_dataset(name, split, root), LABELS[name]
    if len(labels.classes) != model.num_classes:
        raise InputError(f"{checkpoint} has {model.num_classes} classes, {name} has {len(labels.classes)}")
    boundaries = []  # mean over classes, of every image that has any

    def each(index, prediction, mask):
        boundary = metrics.boundary_f(prediction, mask, model.num_classes).nanmean().item()
        boundaries.extend([] if isnan(boundary) else [boundary])
        if save:
            picture = plots.index_image(prediction.byte().cpu().numpy(), labels)
            records.write_whole(save / f"{dataset.ids[index]}.png", lambda partial: picture.save(partial, "PNG"))

    matrices = engine.evaluate(model, dataset, precision, scales, flip, each, progress=True)
    result = {"data": name, "split": split, "images": len(dataset), **engine.summary(matrices, labels.classes),
              "boundary_f": sum(boundaries) / len(boundaries) if boundaries else None, "scales": scales, "flip": flip}
    if figure:
        order = sorted(range(len(dataset)), key=lambda i: metrics.pixel_accuracy(matrices[i]))
        chosen = [order[round(step * (len(order) - 1) / 4)] for step in range(5)]
        rows = [(*dataset[i], engine.predict(model, dataset[i][0])) for i in chosen]
        notes = [f"{100 * metrics.pixel_accuracy(matrices[i]):.1f} % of pixels" for i in chosen]
        picture = plots.prediction_grid(rows, labels, notes=notes)
        records.write_whole(figure, lambda partial: picture.savefig(partial, format="png", dpi=120))
    if json:
        return _print_json(result)
    for label, value in result["iou"].items():
        print(f"{label:24} {'absent' if value is None else f'{100 * value:6.2f}'}")
    low, high = result["miou_interval"]
    print(f"{'mIoU':24} {100 * result['miou']:6.2f}   95 % interval over images {100 * low:.2f} to {100 * high:.2f}")
    for key in ("miou_absent_as_one", "frequency_weighted_iou", "pixel_accuracy", "boundary_f"):
        if result[key] is not None:
            print(f"{key.replace('_', ' '):24} {100 * result[key]:6.2f}")


@app.command()
def bench(recipe: Annotated[str, typer.Argument(help="A recipe; its model, crop and batch are timed.")],
          rounds: Annotated[int, typer.Option(help="Rounds that count; the median is printed.")] = 3,
          root: Root = None, device: Device = "auto", json: Json = False):
    """Time the training loop: plain fp32 in NCHW against the recipe's precision with channels last, in one run.

    Example: rflw bench camvid-lw-efficientnet_lite0 --root ~/datasets
    """
    from rflw import engine
    from rflw.config import recipe as find
    rows = engine.training_speed(find(recipe), root, device, rounds=rounds)
    if json:
        return _print_json(rows)
    for row in rows:
        print(f"{row['mode']:28} {row['images_per_s']:8.2f} images/s   {row['images_per_s'] / rows[0]['images_per_s']:.2f}x")

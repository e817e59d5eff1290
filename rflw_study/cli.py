"""The study's commands, mounted on `rflw` by an entry point: nobody needs them to use a network."""

from dataclasses import asdict
from functools import partial
import os
from pathlib import Path
import sys
from typing import Annotated

import typer
from typer import Argument, Option

from rflw import records
from rflw.cli import (
    Classes,
    Data,
    Device,
    Json,
    ListCommand,
    On,
    PictureOutput,
    Record,
    RecordFolder,
    Root,
    Size,
    Split,
    Trained,
    Weights,
    Workers,
    app,
    as_text,
    calibration_images,
    data,
    draw,
    on_a_network,
    open_checkpoint,
    picture_file,
    print_json,
    recorded,
    show,
)
from rflw.errors import InputError


@app.command(name="claims")
def claims_(results: RecordFolder = None, as_json: Json = False):
    """Every claim of the paper, what is on record for it, and the verdict that follows.

    Example: rflw claims --json
    """
    from rflw_study import claims

    judged = claims.verdicts(results)
    if as_json:
        return print_json([verdict.row() for verdict in judged])

    def columns(verdict):
        row = {"claim": verdict.claim.id, "paper": verdict.claim.stated}
        return row | {"verdict": verdict.verdict, "ours": verdict.says}

    show(judged, columns)
    counts = claims.tally(judged).items()
    print(", ".join(f"{number} {verdict}" for verdict, number in counts if number))


@app.command()
def lists(
    folder: Annotated[Path, typer.Argument(help="Folder of VOC's id lists.")],
    results: RecordFolder = None,
):
    """Count the images in PASCAL VOC's official id lists, and those that SBD adds.

    Example: rflw lists ~/voc_lists --results data/results
    """
    from rflw_study import paper

    counted = paper.count_lists(folder)
    words, options, config = ("lists", folder.name), {"results": results}, {"data": "voc"}
    with recorded("check-voc-lists", words, options, "check", config, results) as record:
        record["metrics"] = counted
    print_json(counted)


@app.command()
def publish(
    run: Annotated[Path, Argument(help="Folder of a finished run.")],
    name: Annotated[str, Argument(help="What the network will be called.")],
):
    """Ship a run: its network goes to data/checkpoints with a card, its record to data/results.

    Example: rflw publish runs/camvid-lw-efficientnet_lite0-s0 camvid
    """
    from rflw_study import publishing

    for path in publishing.publish(run, name):
        print(path)


# ---------------------------------------------------------------- campaign


campaign = typer.Typer(
    help="The study's experiments: what they are, how far they are, running what is missing."
)
app.add_typer(campaign, name="campaign")
Tier = Annotated[str, Option(help="cpu: what CPUs can do in days; gpu: all.")]
Runs = Annotated[Path, Option("--runs", help="Folder of the run folders.")]
Results = Annotated[Path | None, Option(help="Folder of the records; default data/results.")]


@campaign.command(name="list")
def campaign_list(
    tier: Tier = "cpu", runs: Runs = Path("runs"), results: Results = None, as_json: Json = False
):
    """Every experiment in order of worth: what it tests, its seeds, what a run costs on a device.

    Example: rflw campaign list --tier gpu
    """
    from rflw_study import campaign

    minutes = {}  # of the runs of each experiment
    for run in campaign.runs(tier, results or records.FOLDER, runs):
        minutes.setdefault(run.experiment, []).append(run.minutes)
    rows = []
    for experiment, of_runs in minutes.items():
        known = [value for value in of_runs if value is not None]
        row = {"recipe": experiment.recipe, "tests": experiment.why, "seeds": experiment.seeds}
        rows.append(row | {"minutes": sum(known) / len(known) if known else None})

    def columns(row):
        each = {"seeds": row["seeds"], "minutes each": as_text(row["minutes"], ".0f")}
        return {"recipe": row["recipe"], **each, "tests": row["tests"]}

    show(rows, columns, as_json)


@campaign.command(name="status")
def campaign_status(
    tier: Tier = "cpu", runs: Runs = Path("runs"), results: Results = None, as_json: Json = False
):
    """Every run of a tier: done, failed, begun or missing, and the minutes that it takes.

    Example: rflw campaign status
    """
    from rflw_study import campaign

    listed = campaign.runs(tier, results or records.FOLDER, runs)
    rows = [{"run": run.name, "status": run.status, "minutes": run.minutes} for run in listed]
    show(rows, lambda row: row | {"minutes": as_text(row["minutes"], ".0f")}, as_json)
    if as_json:
        return
    states = [row["status"] for row in rows]
    left = [row["minutes"] for row in rows if row["status"] in ("begun", "missing")]
    unknown = f" and {left.count(None)} runs of unknown length" if None in left else ""
    print(
        f"{states.count('done')} of {len(rows)} done, {states.count('failed')} failed; "
        f"about {sum(filter(None, left)) / 60:.1f} hours left{unknown}"
    )


@campaign.command(name="run")
def campaign_run(
    tier: Tier = "cpu",
    budget_minutes: Annotated[float, Option(help="When to stop; the next call resumes.")] = 60,
    runs: Runs = Path("runs"),
    results: Results = None,
    weights: Weights = None,
    root: Root = None,
    workers: Workers = 0,
    only: Annotated[str, Option(help="Part of a run's name, e.g. embedded-lw.")] = "",
    retry: Annotated[bool, Option("--retry", help="Also run again what failed.")] = False,
):
    """Train what is missing, in order of worth. May be killed at any moment, and may run several
    times side by side.

    Example: rflw campaign run --tier cpu --budget-minutes 120 --root ~/datasets
    """
    from rflw_study.campaign import run_missing

    if not 0 < budget_minutes < float("inf"):
        raise InputError(f"--budget-minutes {budget_minutes:g}: above 0")
    folder = results or records.FOLDER
    for run, end in run_missing(
        tier, budget_minutes, folder, runs, root, workers, retry, only, progress=True
    ):
        print(f"{run.name}: {end}", flush=True)


# ---------------------------------------------------------------- data


@data.command(name="prepare")
def data_prepare(
    name: Annotated[str, Argument(help="voc, sbd, coco, nyu, person, context or cityscapes.")],
    raw: Annotated[Path, Option(help="Folder with the official files, unpacked or not.")],
    out: Root = None,
    workers: Annotated[
        int | None, Option(min=0, help="Processes; 0: this one; default: all cores.")
    ] = None,
    as_json: Json = False,
):
    """Turn the official raw files of a data set into images, index masks, split lists and a
    manifest. A run that was interrupted starts over.

    Example: rflw data prepare voc --raw ~/downloads --out ~/datasets
    """
    from rflw.data.readers import ROOT
    from rflw_study.prepare import prepare

    out = out or Path(os.environ.get("RFLW_DATA") or ROOT)
    folder, workers = out / name, os.cpu_count() if workers is None else workers
    prepared = (folder / "manifest.json").exists()
    manifest = prepare(name, raw, out, workers, progress=True)
    if prepared:
        print(f"rflw: {folder} is prepared already; delete it to prepare it anew", file=sys.stderr)
    if as_json:
        return print_json(manifest)
    counts = ", ".join(f"{count} {split}" for split, count in manifest["splits"].items())
    print(f"{folder}: {counts}", *manifest["statements"], sep="\n")
    for split, images in manifest["unexpected"].items():
        print(f"unexpected: {images['found']} in {split}, officially {images['official']}")


# ---------------------------------------------------------------- what blocks do


def studied(kind: str, at: Trained, options: dict, figure: Path | None = None):
    """`recorded`, for a study of a trained network on a data set."""
    from rflw.checkpoint import title as title_of

    title, layers = title_of(at.model), options.get("layer") or []
    layer = layers[0] if len(layers) == 1 else None
    place = {"data": at.dataset.name, "split": at.dataset.split}
    config = {"checkpoint": title, "model": at.model.name, **place, **options}
    name = "-".join(filter(None, (kind, options.get("method"), title, layer)))
    written = place | options | {"figure": figure}
    return recorded(name, (kind, at.checkpoint), written, kind, config, at.results)


@app.command()
@on_a_network
def erf(
    at: Trained,
    method: Annotated[str, Option(help="gradient, occlusion or activation.")] = "gradient",
    layer: Annotated[list[str] | None, Option(help="Repeatable; default: the paper's.")] = None,
    images: Annotated[int, Option(help="How many, evenly spread over the split.")] = 50,
    size: Annotated[tuple[int, int] | None, Option(help="Rows and columns to resize to.")] = None,
    tile: Annotated[int, Option(help="Images side by side, each way, for large fields.")] = 1,
    units: Annotated[int, Option(help="Units of a layer that get a gradient of their own.")] = 16,
    top: Annotated[int, Option(help="Images that activate a unit most, to measure it on.")] = 10,
    patch: Annotated[int, Option(help="Pixels of the side of the patch that occludes.")] = 11,
    stride: Annotated[int, Option(help="Pixels between its places.")] = 3,
    cut: Annotated[float | None, Option(help="Share of its peak where a field ends.")] = None,
    figure: Annotated[
        Path | None, Option(callback=picture_file, help="Also draw the fields, into this file.")
    ] = None,
):
    """Measure receptive fields of the units of layers, and say what they could be in theory.

    Example: rflw erf embedded --method occlusion --layer decoder.stages.0.crp --images 4
    """
    from rflw.data.readers import in_memory
    from rflw_study import fields, figures

    dataset = in_memory(at.dataset)  # read again for the figure
    names = {name: place for place, name in fields.PLACES.items()}
    layers = {names.get(name, name): name for name in layer} if layer else fields.PLACES
    options = {"method": method, "layer": layer or None, "images": images}
    options |= {"size": size, "tile": tile, "cut": cut}
    options |= {"units": units} if method == "gradient" else {"top": top}
    options |= {"patch": patch, "stride": stride} if method == "occlusion" else {}
    settings = {"units": units, "top": top, "patch": patch, "stride": stride, "cut": cut}
    settings |= {"images": images, "size": size, "tile": tile, "progress": True}
    with studied("erf", at, options, figure) as record:
        result, measured = fields.erf(at.model, dataset, method, layers, **settings)
        record["metrics"] = result
    if figure:
        rows = fields.rows_of_figure(at.model, dataset, result, measured, images, size)
        draw(figures.field_grid(rows), figure, 110)

    def columns(item):
        place, row = item
        side = row.get("side", {"mean": None, "low": None, "n": 0})  # all units are dead
        ends = "" if side["low"] is None else f"{side['low']:.1f} to {side['high']:.1f}"
        return {
            "layer": place,
            "theory": "x".join("all" if n is None else str(n) for n in row["theoretical"]),
            "side, pixels": as_text(side["mean"], ".1f"),
            "95 % of units": ends,
            "units": side["n"],
            "dead": row["dead"],
        }

    show(result["layers"].items(), columns, at.as_json, result)


@app.command()
@on_a_network
def probe(
    at: Trained,
    images: Annotated[int | None, Option(help="Training images; default: all.")] = None,
    head: Annotated[list[str], Option(help="conv or linear; repeatable.")] = ("conv", "linear"),
    seeds: Annotated[int, Option(help="How many times each head is trained.")] = 3,
):
    """Train segmentation and multi-label heads before RCU, after RCU and after CRP of a frozen
    network, as in the paper's Table 4.

    Example: rflw probe embedded --images 256 --head linear --seeds 1
    """
    from rflw.data.readers import open_dataset
    from rflw_study import heads

    train = open_dataset(at.data, "train", at.root)
    options = {"images": images, "head": list(head), "seeds": seeds}
    with studied("probe", at, options) as record:
        result = heads.probe(at.model, train, at.dataset, images, tuple(head), seeds, progress=True)
        record["metrics"] = result

    def columns(item):
        place, head, row = item
        miou, accuracy = (f"{sum(row[key]) / seeds:.2%}" for key in ("miou", "accuracy"))
        scores = {"mIoU": miou, "accuracy": accuracy, "most frequent": f"{row['majority']:.2%}"}
        return {"place": place, "head": head, **scores}

    places = result["places"].items()
    rows = [(place, *head) for place, row in places for head in row["heads"].items()]
    show(rows, columns, at.as_json, result)


@app.command()
@on_a_network
def saturation(
    at: Trained,
    images: Annotated[int | None, Option(help="How many, evenly spread; default: all.")] = None,
):
    """Norms of RCU branches and CRP stages against what they are added to, and mIoU without each.

    Example: rflw saturation embedded --images 16
    """
    from rflw.data.readers import in_memory
    from rflw_study.saturation import saturate

    dataset = in_memory(at.dataset)  # read again for every block that is left out
    with studied("saturation", at, {"images": images}) as record:
        result = record["metrics"] = saturate(at.model, dataset, images, progress=True)
    if at.as_json:
        return print_json(result)

    def columns(item):
        name, row = item  # a group has no ratios
        ratios = (row.get(key, {"mean": None})["mean"] for key in ("ratio", "untrained_ratio"))
        ratio, untrained = (as_text(value, ".3f") for value in ratios)
        score = f"{row['miou_without']:.2%}"
        return {"left out": name, "|t| / |x|": ratio, "untrained": untrained, "mIoU": score}

    print(f"mIoU {result['miou']:.2%} on {result['images']} images")
    show([*result["terms"].items(), *result["groups"].items()], columns)


@app.command()
def pictures(
    output: PictureOutput,
    checkpoints: Annotated[
        list[str] | None, Argument(help="Shipped ones' names, or files.")
    ] = None,
    named: Annotated[list[str] | None, Option("--checkpoint", help="The same; repeatable.")] = None,
    data: On = None,
    split: Split = "val",
    rule: Annotated[str, Option(help="The worst frames, or a spread to the best.")] = "worst",
    number: Annotated[int, Option(help="How many frames.")] = 5,
    safe: Annotated[bool, Option("--safe", help="Colours for colour-blind readers.")] = False,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
):
    """Draw frames, their truth and what networks make of them, side by side; with two networks,
    which of them is right.

    Example: rflw pictures embedded -o worst.png --rule worst
    """
    from rflw.checkpoint import title as title_of
    from rflw_study import pictures as study

    checkpoints = [*(checkpoints or ()), *(named or ())]
    if not checkpoints:
        raise InputError("at least one checkpoint is needed: NAME or --checkpoint NAME")
    models = {}
    for checkpoint in checkpoints:
        model, dataset = open_checkpoint(checkpoint, data, split, root, device)
        data, title = data or model.card["data"], title_of(model)  # the first one's, for all
        if title in models:
            raise InputError(f"{checkpoint}: {title} is among the networks already")
        models[title] = model
    place = {"data": dataset.name, "split": split}
    words = ("pictures", *checkpoints, "-o", output.name)
    options = place | {"rule": rule, "number": number, "safe": safe}
    config = {"checkpoints": list(models), **place}
    with recorded(output.stem, words, options, "pictures", config, results) as record:
        result, rows = study.pictures(models, dataset, rule, number, progress=True)
        record["metrics"] = result
    draw(picture_grid(rows, result, dataset.labels, list(models), safe), output, 110)
    print_json(result) if as_json else print(output)


def picture_grid(rows, result: dict, labels, networks: list[str], safe: bool):
    """The figure; with two networks it has a column for their difference."""
    from rflw import plots

    columns, legend = ["image", "truth", *networks], None
    if len(networks) == 2:
        rows = [(*row, plots.difference(row[2], row[3], row[1])) for row in rows]
        columns, legend = [*columns, "difference"], plots.DIFFERENCE
    frames = result["frames"].values()
    notes = ["\n".join(f"{100 * share:.1f} %" for share in shares.values()) for shares in frames]
    labels = plots.safe(labels) if safe else labels
    return plots.prediction_grid(rows, labels, columns, notes, 2.2 * len(columns), legend)


# ---------------------------------------------------------------- speed


class _Bench(typer.core.TyperGroup):
    """`rflw bench NETWORK` is `rflw bench network NETWORK`."""

    def resolve_command(self, ctx, args):
        words = args if args[0] in self.commands else ["network", *args]
        return super().resolve_command(ctx, words)


bench = typer.Typer(
    help="Speed: modes take turns in one run, so that ratios hold on a busy machine.", cls=_Bench
)
app.add_typer(bench, name="bench")
Rounds = Annotated[int, Option(help="Rounds that count; the median is printed.")]


@bench.command(name="network", cls=ListCommand)
def bench_network(
    names: Annotated[list[str], Argument(help="Networks, see above.")],
    modes: Annotated[list[str], Option(help="See above.")] = (),
    size: Size = (512, 512),
    batch: Annotated[int, Option(help="Images at once.")] = 1,
    passes: Annotated[int, Option(help="Passes of each that count.")] = 100,
    classes: Classes = 21,
    peers: Annotated[bool, Option("--peers", help="Also other libraries' networks.")] = False,
    whole_way: Annotated[bool, Option("--whole-way", help="Also from JPEG to class map.")] = False,
    layers: Annotated[bool, Option("--layers", help="Also by kind of layer.")] = False,
    calibrate: Annotated[str | None, Option(help="Data set whose images calibrate int8.")] = None,
    label: Annotated[
        str | None, Option(help="Of the record; default: size, batch, device.")
    ] = None,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
):
    """Time forward passes as the paper does (random input, mean and standard deviation after
    warm-up), in several modes.

    Networks: see `rflw models`; checkpoints; torchvision:NAME; smp:DECODER-ENCODER.

    Modes: eager-fp32 is the plain graph; optimised-PRECISION has every step, onnx-PRECISION is the
    exported file; steps are joined by +, e.g. channels-last+fold+merge-fp32. Default: eager-fp32,
    optimised-fp32 and, where the device computes in it, optimised-bf16.

    Example: rflw bench network refinenet-lw-resnet50 refinenet-resnet50 --size 468 625
    """
    import logging

    from rflw_study import speed

    logging.disable(logging.WARNING)  # what torch.onnx and torchao say of themselves
    names = with_peers(names) if peers else list(names)
    label = label or f"{size[0]}x{size[1]}-b{batch}-{device}"
    options = {"modes": tuple(modes), "size": size, "batch": batch, "passes": passes}
    options |= {"classes": classes}
    config, title = {"names": names, **options}, f"bench-runtime-{label}"
    more = {"whole_way": whole_way, "layers": layers}
    options |= {"device": device, **more, "calibrate": calibrate, "label": label}
    words = ("bench", "network", *names)
    with recorded(title, words, options, "bench", config, results) as record:
        images = calibration_images(calibrate, root) if calibrate else None
        measured = record["metrics"] = speed.network_speed(
            names, modes, size, batch, device, passes, classes, images, True, **more
        )
        if measured["gpu"]:
            record["hardware"]["gpu"] = measured["gpu"]
    print_speed(measured["rows"], as_json)


def with_peers(names: list[str]) -> list[str]:
    """The names, and other libraries' networks on their encoders."""
    from rflw_study.speed import PEERS

    encoders = [e for e in PEERS if any(name.endswith(f"-{e}") for name in names)]
    if not encoders:
        raise InputError(f"--peers: none for these networks; choose from: {', '.join(PEERS)}")
    return [*names, *(peer for encoder in encoders for peer in PEERS[encoder])]


def print_speed(rows: list[dict], as_json: bool) -> None:
    def columns(row):
        latency = row["latency_ms"]
        return {
            "network": row["model"],
            "mode": row["mode"],
            "ms, mean": f"{latency['mean']:.2f}",
            **{key: f"{latency[key]:.2f}" for key in ("std", "median")},
            "images/s": f"{row['images_per_s']:.2f}",
            "times": f"{row['faster']['ratio']:.2f}",
            "of peak": as_text(row["share_of_peak"], ".1%"),
            "MB": as_text(row["working_mb"], ".0f"),
            "error": f"{row['error']:.1e}",
        }

    show(rows, columns, as_json)
    for row in [] if as_json else rows:
        name = f"{row['model']}, {row['mode']}"
        for step, why in row["left_out"].items():
            print(f"{name}: without {step}: {why}")
        if "whole_way_ms" in row:
            parts = ", ".join(f"{part} {ms:.1f}" for part, ms in row["whole_way_ms"].items())
            print(f"{name}: from a JPEG to its classes: {parts} ms")
        if row.get("layers"):
            print(f"{name}, by kind of layer:")
            show(row["layers"], layer_columns)


def layer_columns(layer: dict) -> dict:
    plain = {key: layer[key] for key in ("part", "kind", "operations")}
    roofline = as_text(layer["roofline_ms"], ".2f")
    return plain | {"ms": f"{layer['ms']:.2f}", "roofline, ms": roofline}


@bench.command(name="train")
def bench_train(
    recipe: Annotated[str, Argument(help="A recipe; its model, crop and batch are timed.")],
    rounds: Rounds = 3,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
):
    """Time the training loop: plain fp32 in NCHW, the recipe's precision with channels last, that
    compiled, and that with the images on the device.

    Example: rflw bench train camvid-lw-efficientnet_lite0 --root ~/datasets
    """
    from rflw.recipes import recipe as find
    from rflw_study.speed import training_speed

    plan = find(recipe)
    options = {"rounds": rounds, "device": device}
    measure = partial(training_speed, plan, root, device, rounds=rounds)
    images_per_second(("train", plan.name), options, plan, results, as_json, measure)


@bench.command(name="data")
def bench_data(
    name: Data,
    recipe: Annotated[str | None, Option(help="Default: the data set's first.")] = None,
    workers: Annotated[int, Option(help="Worker processes of the loader.")] = 2,
    rounds: Rounds = 3,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
):
    """Time what training loads: decoding, augmenting, the whole loader without and with workers,
    and images on the device.

    Example: rflw bench data camvid --root ~/datasets
    """
    from rflw.recipes import OWN, RECIPES
    from rflw.recipes import recipe as find
    from rflw_study.speed import loading_speed

    first = next((plan for plan in RECIPES.values() if plan.data == name), OWN)
    plan = (find(recipe) if recipe else first).on(name)
    options = {"recipe": plan.name, "workers": workers, "rounds": rounds, "device": device}
    measure = partial(loading_speed, plan, root, device, workers, rounds=rounds)
    images_per_second(("data", name), options, plan, results, as_json, measure)


def images_per_second(words: tuple, options: dict, plan, results, as_json: bool, measure) -> None:
    """Time what a recipe does, as `measure` does it; record and print it."""
    title, words = f"bench-{words[0]}-{Path(words[1]).name}", ("bench", *words)
    config, digest = asdict(plan), plan.hash()
    with recorded(title, words, options, "bench", config, results, config_hash=digest) as record:
        rows = measure()
        record["metrics"] = {"rows": rows}

    def columns(row):
        rate = row["images_per_s"]
        times = rate / rows[0]["images_per_s"]
        return {"mode": row["mode"], "images/s": f"{rate:.2f}", "times": f"{times:.2f}"}

    show(rows, columns, as_json)


@app.command(name="first-steps")
def first_steps_(
    name: Annotated[str, Argument(help="A recipe, see `rflw recipes`.")],
    warmup: Annotated[list[int], Option(help="Steps of the warm-up; repeatable.")] = (0, 100),
    steps: Annotated[int, Option(help="How many to train.")] = 200,
    seed: Annotated[int, Option(help="Seed of weights, order and crops.")] = 0,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
):
    """Train only the first steps of a recipe, with several warm-ups, and count live units.

    Example: rflw first-steps camvid-long-lw-efficientnet_lite2 --warmup 0 --warmup 100
    """
    from rflw.recipes import recipe
    from rflw_study.first_steps import first_steps

    plan = recipe(name)
    options = {"warmup": list(warmup), "steps": steps, "seed": seed}
    config, title = asdict(plan) | options, f"first-steps-{name}-s{seed}"
    with recorded(title, ("first-steps", name), options, "first-steps", config, results) as record:
        runs = {n: first_steps(plan, n, steps, seed, root, device) for n in warmup}
        rows = [{"warmup": n, **row} for n, run in runs.items() for row in run]
        record["metrics"] = {"rows": rows}
    columns = lambda row: {key: row[key] for key in ("warmup", "step", "loss")} | row["live"]
    show(rows, columns, as_json)

"""The study's commands, mounted on `rflw` by an entry point: what somebody who only uses networks never calls."""

import os
from pathlib import Path
import sys
from typing import Annotated

import typer

from rflw.cli import (
    Checkpoint,
    Classes,
    Data,
    Device,
    Json,
    On,
    Record,
    Root,
    Split,
    Weights,
    app,
    as_picture,
    data,
    draw,
    open_checkpoint,
    print_json,
    some_images,
    there,
)
from rflw.errors import InputError


@app.command(name="claims")
def claims_(
    results: Annotated[
        Path | None, typer.Option(help="Folder of the records; default data/results.")
    ] = None,
    json: Json = False,
):
    """Every claim of the paper, what is on record for it, and the verdict that follows.

    Example: rflw claims --json
    """
    from rflw_study import claims

    judged = claims.verdicts(there(results))
    if json:
        return print_json([verdict.row() for verdict in judged])
    for verdict in judged:
        print(
            f"{verdict.claim.id:46} {verdict.claim.stated:>14}  {verdict.verdict:30} {verdict.says}"
        )
    print(", ".join(f"{number} {verdict}" for verdict, number in claims.tally(judged).items()))


campaign = typer.Typer(
    help="The study's experiments: what they are, how far they are, running what is missing."
)
app.add_typer(campaign, name="campaign")
Tier = Annotated[str, typer.Option(help="cpu: what CPUs can do in days; gpu: all.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the run folders.")]
Results = Annotated[Path | None, typer.Option(help="Folder of the records; default data/results.")]


@campaign.command(name="list")
def campaign_list(
    tier: Tier = "cpu", runs: Runs = Path("runs"), results: Results = None, json: Json = False
):
    """Every experiment, in order of worth: what it tests, its seeds, and what a run costs on such a device.

    Example: rflw campaign list --tier gpu
    """
    from rflw import records
    from rflw_study import campaign

    rows = {}
    for run in campaign.runs(tier, results or records.FOLDER, runs):
        row = rows.setdefault(
            run.experiment.recipe,
            {
                "recipe": run.experiment.recipe,
                "tests": run.experiment.why,
                "seeds": run.experiment.seeds,
                "minutes": [],
            },
        )
        row["minutes"] += [] if run.minutes is None else [run.minutes]
    rows = [
        row | {"minutes": sum(row["minutes"]) / len(row["minutes"]) if row["minutes"] else None}
        for row in rows.values()
    ]
    if json:
        return print_json(rows)
    print(f"{'recipe':42} {'seeds':>5} {'minutes each':>12}  tests")
    for row in rows:
        print(
            f"{row['recipe']:42} {row['seeds']:5} {'?' if row['minutes'] is None else round(row['minutes']):>12}  {row['tests']}"
        )


@campaign.command(name="status")
def campaign_status(
    tier: Tier = "cpu", runs: Runs = Path("runs"), results: Results = None, json: Json = False
):
    """Every run of a tier: done, failed, begun or missing, and the minutes that it took or will take.

    Example: rflw campaign status
    """
    from rflw import records
    from rflw_study import campaign

    listed = campaign.runs(tier, results or records.FOLDER, runs)
    if json:
        return print_json(
            [{"run": run.name, "status": run.status, "minutes": run.minutes} for run in listed]
        )
    for run in listed:
        print(
            f"{run.name:46} {run.status:8} {'?' if run.minutes is None else round(run.minutes):>6} min"
        )
    left = [run.minutes for run in listed if run.status in ("begun", "missing")]
    unknown = left.count(None)
    print(
        f"{sum(run.status == 'done' for run in listed)} of {len(listed)} done, {sum(run.status == 'failed' for run in listed)} failed; "
        f"about {sum(m for m in left if m) / 60:.1f} hours left{f' and {unknown} runs of unknown length' if unknown else ''}"
    )


@campaign.command(name="run")
def campaign_run(
    tier: Tier = "cpu",
    budget_minutes: Annotated[float, typer.Option(help="When to stop; runs go on next time.")] = 60,
    runs: Runs = Path("runs"),
    results: Results = None,
    weights: Weights = None,
    root: Root = None,
    workers: Annotated[
        int, typer.Option(help="Processes that augment images; 0: the training process.")
    ] = 0,
    only: Annotated[str, typer.Option(help="What a run's name must hold, e.g. embedded-lw.")] = "",
    retry: Annotated[
        bool, typer.Option("--retry", help="Run those that failed again, too.")
    ] = False,
):
    """Train what is missing, in order of worth. May be killed at any moment, and may run several times side by side.

    Example: rflw campaign run --tier cpu --budget-minutes 120 --root ~/datasets
    """
    from rflw import records
    from rflw_study import campaign

    if not 0 < budget_minutes < float("inf"):
        raise InputError(f"--budget-minutes {budget_minutes:g}: above 0")
    for run, end in campaign.run_missing(
        tier,
        budget_minutes,
        results or records.FOLDER,
        runs,
        root,
        workers,
        retry,
        only,
        progress=True,
    ):
        print(f"{run.name}: {end}", flush=True)


@data.command(name="prepare")
def data_prepare(
    name: Annotated[
        str, typer.Argument(help="voc, sbd, coco, nyu, person, context or cityscapes.")
    ],
    raw: Annotated[Path, typer.Option(help="Folder with the official files, unpacked or not.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Data root to write NAME/ in; else RFLW_DATA, else data/datasets."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; 0: this one; default: one a core.")
    ] = None,
    json: Json = False,
):
    """Turn the official raw files of a data set into images, index masks, split lists and a manifest. May be interrupted and
    run again.

    Example: rflw data prepare voc --raw ~/downloads --out ~/datasets
    """
    from rflw.data.readers import ROOT
    from rflw_study.prepare import prepare

    out = out or Path(os.environ.get("RFLW_DATA") or ROOT)
    there = (out / name / "manifest.json").exists()
    manifest = prepare(
        name, raw, out, os.cpu_count() if workers is None else workers, progress=True
    )
    if there:
        print(
            f"rflw: {out / name} is prepared already and stays; delete it to make it anew",
            file=sys.stderr,
        )
    if json:
        return print_json(manifest)
    print(
        f"{out / name}: {', '.join(f'{count} {split}' for split, count in manifest['splits'].items())}"
    )
    for statement in manifest["statements"]:
        print(statement)
    for split, counts in manifest["unexpected"].items():
        print(f"unexpected: {counts['found']} in {split}, officially {counts['official']}")


def _studied(
    what: str,
    checkpoint: str,
    model,
    dataset,
    options: dict,
    results: Path | None,
    measure,
    figure: Path | None = None,
):
    """Measure, with a record of kind `what` -> what `measure` gives, whose first is the record's metrics. Options at None are left out."""
    from rflw import records
    from rflw_study import studies

    given = [("data", dataset.name), ("split", dataset.split), *options.items(), ("figure", figure)]
    words = "".join(
        f" --{key} {' '.join(map(str, one)) if isinstance(one, tuple) else one}"
        for key, value in given
        for one in (value if isinstance(value, list) else [value])
        if one is not None
    )
    layers = options.get("layer") or []
    parts = [
        what,
        options.get("method"),
        studies.title(model),
        layers[0] if len(layers) == 1 else None,
    ]
    name = "-".join(filter(None, parts))
    config = {
        "checkpoint": studies.title(model),
        "model": model.name,
        "data": dataset.name,
        "split": dataset.split,
        **options,
    }
    with records.timed(name, f"rflw {what} {checkpoint}{words}", what, config) as record:
        result = measure()
    if results:
        records.write(record | {"metrics": result[0]}, results)
    return result


@app.command()
def erf(
    checkpoint: Checkpoint,
    method: Annotated[str, typer.Option(help="gradient, occlusion or activation.")] = "gradient",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Layer by its name; may be repeated; default: those of the paper."),
    ] = None,
    data: On = None,
    split: Split = "val",
    images: Annotated[int, typer.Option(help="How many, evenly spread over the split.")] = 50,
    size: Annotated[
        tuple[int, int] | None, typer.Option(help="Rows and columns that images are resized to.")
    ] = None,
    tile: Annotated[
        int,
        typer.Option(
            help="So many images side by side, each way: for fields larger than an image."
        ),
    ] = 1,
    units: Annotated[
        int,
        typer.Option(
            help="Units of a layer with a gradient of their own; the other methods take all."
        ),
    ] = 16,
    top: Annotated[
        int, typer.Option(help="Images that a unit is measured on: those that activate it most.")
    ] = 10,
    patch: Annotated[int, typer.Option(help="Pixels of the side of the patch that occludes.")] = 11,
    stride: Annotated[int, typer.Option(help="Pixels between its places.")] = 3,
    cut: Annotated[
        float | None,
        typer.Option(
            help="Share of its largest value at which a field ends; default: the method's."
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            callback=as_picture,
            help="Also draw fields and top activated images, into this picture.",
        ),
    ] = None,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    json: Json = False,
):
    """Measure receptive fields of the units of layers, and say what they could be in theory.

    Example: rflw erf embedded --method occlusion --layer decoder.stages.0.crp --images 4
    """
    from rflw.data.readers import in_memory
    from rflw_study import figures, studies

    model, dataset = open_checkpoint(checkpoint, data, split, root, device)
    dataset = in_memory(dataset)  # read again for the figure
    known = {name: place for place, name in studies.PLACES.items()}
    layers = studies.PLACES if not layer else {known.get(name, name): name for name in layer}
    options = {
        "method": method,
        "layer": layer or None,
        "images": images,
        "size": size,
        "tile": tile,
        "cut": cut,
    }
    options |= {"units": units} if method == "gradient" else {"top": top}
    options |= {"patch": patch, "stride": stride} if method == "occlusion" else {}
    result, fields = _studied(
        "erf",
        checkpoint,
        model,
        dataset,
        options,
        results,
        lambda: studies.erf(
            model,
            dataset,
            method,
            layers,
            images,
            size,
            tile,
            units,
            top,
            patch,
            stride,
            cut,
            progress=True,
        ),
        figure,
    )
    if figure:
        draw(
            figures.field_grid(studies.shown(model, dataset, result, fields, images, size)),
            figure,
            110,
        )
    if json:
        return print_json(result)
    print(
        f"{'layer':44} {'theory':>12} {'side, pixels':>13} {'95 % of units':>16} {'units':>6} {'dead':>5}"
    )
    for place, row in result["layers"].items():
        theory = "x".join("all" if n is None else str(n) for n in row["theoretical"])
        side = row.get("side", {"mean": float("nan"), "low": None, "n": 0})
        spread = "" if side["low"] is None else f"{side['low']:.1f} to {side['high']:.1f}"
        print(
            f"{place:44} {theory:>12} {side['mean']:13.1f} {spread:>16} {side['n']:6} {row['dead']:5}"
        )


@app.command()
def probe(
    checkpoint: Checkpoint,
    data: On = None,
    split: Split = "val",
    images: Annotated[
        int | None, typer.Option(help="Training images, evenly spread; default: all.")
    ] = None,
    head: Annotated[
        list[str], typer.Option(help="conv, linear; both by --head conv --head linear.")
    ] = ("conv", "linear"),
    seeds: Annotated[int, typer.Option(help="How many times each head is trained.")] = 3,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    json: Json = False,
):
    """Train segmentation and multi-label heads before RCU, after RCU and after CRP of a frozen network, as the paper's Table 4.

    Example: rflw probe embedded --images 256 --head linear --seeds 1
    """
    from rflw.data.readers import open_dataset
    from rflw_study import studies

    model, dataset = open_checkpoint(checkpoint, data, split, root, device)
    train = open_dataset(data or model.card["data"], "train", root)
    (result,) = _studied(
        "probe",
        checkpoint,
        model,
        dataset,
        {"images": images, "head": list(head), "seeds": seeds},
        results,
        lambda: (studies.probe(model, train, dataset, images, tuple(head), seeds, progress=True),),
    )
    if json:
        return print_json(result)
    print(f"{'place':12} {'head':8} {'mIoU %':>8} {'accuracy %':>11} {'most frequent %':>16}")
    for place, row in result["places"].items():
        for name, own in row["heads"].items():
            miou, accuracy = (100 * sum(own[key]) / seeds for key in ("miou", "accuracy"))
            print(f"{place:12} {name:8} {miou:8.2f} {accuracy:11.2f} {100 * own['majority']:16.2f}")


@app.command()
def saturation(
    checkpoint: Checkpoint,
    data: On = None,
    split: Split = "val",
    images: Annotated[
        int | None, typer.Option(help="How many, evenly spread; default: all.")
    ] = None,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    json: Json = False,
):
    """Norms of RCU branches and CRP stages against what they are added to, and mIoU without each.

    Example: rflw saturation embedded --images 16
    """
    from rflw.data.readers import in_memory
    from rflw_study import studies

    model, dataset = open_checkpoint(checkpoint, data, split, root, device)
    dataset = in_memory(dataset)  # read again for every block that is left out
    (result,) = _studied(
        "saturation",
        checkpoint,
        model,
        dataset,
        {"images": images},
        results,
        lambda: (studies.saturate(model, dataset, images, progress=True),),
    )
    if json:
        return print_json(result)
    print(f"mIoU {100 * result['miou']:.2f} % on {result['images']} images")
    print(f"{'left out':34} {'|t| / |x|':>10} {'untrained':>10} {'mIoU %':>8}")
    for name, row in result["terms"].items():
        ratios = [
            "" if row[key]["mean"] is None else f"{row[key]['mean']:.3f}"
            for key in ("ratio", "untrained_ratio")
        ]
        print(f"{name:34} {ratios[0]:>10} {ratios[1]:>10} {100 * row['miou_without']:8.2f}")
    for name, row in result["groups"].items():
        print(f"{name:34} {'':21} {100 * row['miou_without']:8.2f}")


@app.command()
def pictures(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Shipped checkpoints' names, or .safetensors files.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", callback=as_picture, help="Picture to write.")
    ],
    data: On = None,
    split: Split = "val",
    rule: Annotated[
        str,
        typer.Option(
            help="worst: frames that the first gets most wrong; spread: from those to the best."
        ),
    ] = "worst",
    number: Annotated[int, typer.Option(help="How many frames.")] = 5,
    safe: Annotated[
        bool, typer.Option("--safe", help="Colours that colour-blind readers can tell apart.")
    ] = False,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    json: Json = False,
):
    """Draw frames, their truth and what networks make of them, side by side; with two networks, which of them is right.

    Example: rflw pictures embedded -o worst.png --rule worst
    """
    from rflw import plots, records
    from rflw_study import studies

    opened = {}
    for checkpoint in checkpoints:
        model, dataset = open_checkpoint(checkpoint, data, split, root, device)
        data = data or model.card["data"]  # the first one's, for all
        if studies.title(model) in opened:
            raise InputError(f"{checkpoint}: {studies.title(model)} is among the networks already")
        opened[studies.title(model)] = model
    command = (
        f"rflw pictures {' '.join(checkpoints)} -o {output.name} --data {dataset.name} --split {split} --rule {rule} "
        f"--number {number}{' --safe' * safe}"
    )
    with records.timed(
        output.stem,
        command,
        "pictures",
        {"checkpoints": list(opened), "data": dataset.name, "split": split},
    ) as record:
        result, rows = studies.pictures(opened, dataset, rule, number, progress=True)
    labels, columns, more = (
        plots.safe(dataset.labels) if safe else dataset.labels,
        ["image", "truth", *opened],
        None,
    )
    if len(opened) == 2:
        rows = [(*row, plots.difference(row[2], row[3], row[1])) for row in rows]
        columns, more = [*columns, "difference"], plots.DIFFERENCE
    notes = [
        "\n".join(f"{100 * share:.1f} %" for share in shares.values())
        for shares in result["frames"].values()
    ]
    draw(plots.prediction_grid(rows, labels, columns, notes, 2.2 * len(columns), more), output, 110)
    if results:
        records.write(record | {"metrics": result}, results)
    print(output) if not json else print_json(result)


class _Bench(typer.core.TyperGroup):
    """`rflw bench NETWORK` is `rflw bench network NETWORK`."""

    def resolve_command(self, ctx, args):
        return super().resolve_command(
            ctx, args if args[0] in self.commands else ["network", *args]
        )


bench = typer.Typer(
    help="Speed: modes take turns in one run, so that ratios hold on a busy machine.", cls=_Bench
)
app.add_typer(bench, name="bench")
Rounds = Annotated[int, typer.Option(help="Rounds that count; the median is printed.")]


@bench.command(name="network")
def bench_network(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Networks, see `rflw models`; checkpoints; torchvision:NAME; smp:DECODER-ENCODER."
        ),
    ],
    modes: Annotated[
        list[str],
        typer.Option(
            help="eager-fp32 is the plain graph; optimised-PRECISION has every step, onnx-PRECISION is the exported file; "
            "steps joined by +, e.g. channels-last+fold+merge-fp32. Default: eager-fp32, optimised-fp32, "
            "optimised-bf16."
        ),
    ] = (),
    size: Annotated[tuple[int, int], typer.Option(help="Rows and columns of the input.")] = (
        512,
        512,
    ),
    batch: Annotated[int, typer.Option(help="Images at once.")] = 1,
    passes: Annotated[int, typer.Option(help="Passes of each that count.")] = 100,
    classes: Classes = 21,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also other libraries' networks on the same encoders.")
    ] = False,
    whole_way: Annotated[
        bool, typer.Option("--whole-way", help="Also from a JPEG to its class map.")
    ] = False,
    calibrate: Annotated[
        str | None, typer.Option(help="Data set whose images calibrate int8.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="Name of the record, after bench-runtime-; default: size, batch, device."
        ),
    ] = None,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    json: Json = False,
):
    """Time forward passes as the paper does (random input, mean and standard deviation after warm-up), in several modes.

    Example: rflw bench network refinenet-lw-resnet50 refinenet-resnet50 --size 468 625
    """
    import logging

    from rflw import records
    from rflw_study import bench

    logging.disable(logging.WARNING)  # what torch.onnx and torchao say of themselves
    if peers:
        encoders = [
            encoder
            for encoder in bench.PEERS
            if any(name.endswith(f"-{encoder}") for name in names)
        ]
        found = [peer for encoder in encoders for peer in bench.PEERS[encoder]]
        if not found:
            raise InputError(
                f"--peers: none are known of these networks; encoders that have some: {', '.join(bench.PEERS)}"
            )
        names = [*names, *found]
    label = label or f"{size[0]}x{size[1]}-b{batch}-{device}"
    command = (
        f"rflw bench network {' '.join(names)}{' --modes ' * bool(modes)}{' '.join(modes)} --size {size[0]} {size[1]} "
        f"--batch {batch} --passes {passes} --device {device}{f' --classes {classes}' if classes != 21 else ''}"
        f"{' --whole-way' * whole_way}"
        f"{f' --calibrate {calibrate}' if calibrate else ''} --label {label}"
    )
    config = {
        "names": list(names),
        "modes": list(modes),
        "size": list(size),
        "batch": batch,
        "passes": passes,
        "classes": classes,
    }
    with records.timed(f"bench-runtime-{label}", command, config=config) as record:
        images = some_images(calibrate, root) if calibrate else None
        measured = bench.network_speed(
            names, modes, size, batch, device, passes, classes, whole_way, images, progress=True
        )
        record["metrics"] = measured
    if measured["gpu"]:
        record["hardware"]["gpu"] = measured["gpu"]
    if results:
        records.write(record, results)
    if json:
        return print_json(measured["rows"])
    wide = max(len(row["model"]) for row in measured["rows"])
    print(
        f"{'network':{wide}} {'mode':34} {'ms, mean':>9} {'std':>7} {'median':>8} {'images/s':>9} {'times':>7} {'% of peak':>9} "
        f"{'MB':>7} {'error':>8}"
    )
    for row in measured["rows"]:
        latency, memory = (
            row["latency_ms"],
            "" if row["working_mb"] is None else f"{row['working_mb']:.0f}",
        )
        share = "" if row["share_of_peak"] is None else f"{100 * row['share_of_peak']:.1f}"
        print(
            f"{row['model']:{wide}} {row['mode']:34} {latency['mean']:9.2f} {latency['std']:7.2f} {latency['median']:8.2f} "
            f"{row['images_per_s']:9.2f} {row['faster']['ratio']:6.2f}x {share:>9} {memory:>7} "
            f"{row['error']:8.1e}"
        )
        for step, why in row["left_out"].items():
            print(f"{'':{wide}} without {step}: {why}")
        if whole_way:
            parts = ", ".join(f"{part} {ms:.1f}" for part, ms in row["whole_way_ms"].items())
            print(f"{'':{wide}} from a JPEG to its classes: {parts} ms")


@bench.command(name="train")
def bench_train(
    recipe: Annotated[str, typer.Argument(help="A recipe; its model, crop and batch are timed.")],
    rounds: Rounds = 3,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    json: Json = False,
):
    """Time the training loop: plain fp32 in NCHW, the recipe's precision with channels last, that compiled, and that with the
    images on the device.

    Example: rflw bench train camvid-lw-efficientnet_lite0 --root ~/datasets
    """
    from rflw.recipes import recipe as find
    from rflw_study import bench

    plan = find(recipe)
    _timed(
        f"bench-train-{plan.name}",
        f"rflw bench train {plan.name} --rounds {rounds}",
        plan,
        results,
        json,
        lambda: bench.training_speed(plan, root, device, rounds=rounds),
    )


@bench.command(name="data")
def bench_data(
    name: Data,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe whose crops are made; default: the first of the data set."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Worker processes of the loader.")] = 2,
    rounds: Rounds = 3,
    results: Record = None,
    root: Root = None,
    device: Device = "auto",
    json: Json = False,
):
    """Time what training loads: decoding, augmenting, the whole loader without and with workers, and images on the device.

    Example: rflw bench data camvid --root ~/datasets
    """
    from rflw.recipes import OWN, RECIPES
    from rflw.recipes import recipe as find
    from rflw_study import bench

    plan = (
        find(recipe)
        if recipe
        else next((plan for plan in RECIPES.values() if plan.data == name), OWN)
    )
    plan = plan.on(name)
    _timed(
        f"bench-data-{Path(name).name}",
        f"rflw bench data {name} --recipe {plan.name} --workers {workers} --rounds {rounds}",
        plan,
        results,
        json,
        lambda: bench.loading_speed(plan, root, device, workers, rounds=rounds),
    )


def _timed(name: str, command: str, plan, results: Path | None, as_json: bool, measure) -> None:
    """Take rows of images a second, record them and print them."""
    from dataclasses import asdict

    from rflw import records

    with records.timed(name, command, config=asdict(plan), config_hash=plan.hash()) as record:
        rows = measure()
        record["metrics"] = {"rows": rows}
    if results:
        records.write(record, results)
    if as_json:
        return print_json(rows)
    for row in rows:
        print(
            f"{row['mode']:38} {row['images_per_s']:8.2f} images/s   {row['images_per_s'] / rows[0]['images_per_s']:.2f}x"
        )

"""Shipping a trained network: its file, its card and its record."""

import hashlib
from pathlib import Path
import re
import shutil

from rflw import records
from rflw.checkpoint import SHIPPED, load
from rflw.data.labels import LABELS, Labels
from rflw.errors import InputError, reading
from rflw.records import write_whole


def publish(
    run: str | Path, name: str, shipped: Path = SHIPPED, results: Path = records.FOLDER
) -> list[Path]:
    """Ship a finished run: its network as `name` among the checkpoints, its card and its record.

    Returns:
        The three files.

    Raises:
        InputError: if the run has no record, or its network is of another run; nothing is shipped.
    """
    run, shipped = Path(run), Path(shipped)
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"{name!r}: a name of letters, digits, - and _")
    record, file = records.read(run / "record.json"), run / "model.safetensors"
    made = load(file).card
    if (made.get("recipe"), made.get("seed")) != (record["config"].get("name"), record["seed"]):
        raise InputError(f"{run}: model.safetensors is not of the run in record.json")
    licence = LABELS[made["data"]].licence if made["data"] in LABELS else Labels((), ()).licence
    with reading(run / "record.json"):  # of a failed training there is nothing to tell
        text = card(record, file, name, licence)
    network, page = shipped / f"{name}.safetensors", shipped / f"{name}.md"
    write_whole(network, lambda partial: shutil.copyfile(file, partial))
    write_whole(page, lambda partial: Path(partial).write_text(text))
    return [network, page, records.write(record, results)]


def card(record: dict, file: Path, name: str, licence: str) -> str:
    """The card, as Markdown, of a network that is shipped as `name`: of its record and its file."""
    metrics, hardware = record["metrics"], record["hardware"]
    size, digits = file.stat().st_size / 1e6, hashlib.sha256(file.read_bytes()).hexdigest()
    machine = f"{hardware['cpu']} ({hardware['cores']} core{'s' * (hardware['cores'] != 1)})"
    machine += f", {hardware['gpu']}" if "gpu" in hardware else ""
    facts = {
        "network": f"{record['config']['model']}, {len(metrics['iou'])} classes",
        "file": f"{name}.safetensors, {size:.1f} MB, float16, SHA-256 {digits}",
        "data": "; ".join(f"{part} (SHA-256 {sha})" for part, sha in record["data"].items()),
        **({"encoder began with": _origin(record["weights"])} if record.get("weights") else {}),
        "recipe": f"{record['config']['name']} (settings {record['config_hash']})",
        "seed": record["seed"],
        "command": f"`{record['command']}`",
        "commit": f"{record['commit']}{' with changes' if record['dirty'] else ''}",
        "trained": f"{record['started']}, {record['wall_s'] / 60:.0f} min "
        f"in {record['precision']}, {machine}",
        "versions": ", ".join(f"{package} {of}" for package, of in record["versions"].items()),
        "record": f"[{record['name']}.json](../results/{record['name']}.json)",
        "licence": licence,
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    scores = "\n".join(
        f"| {label} | {'absent' if value is None else f'{100 * value:.1f}'} |"
        for label, value in metrics["iou"].items()
    )
    scale = record["config"].get("val_scale", 1)
    return f"""# {name}

| | |
|---|---|
{rows}

On {metrics["images"]} validation images, whole and scaled by {scale:g} (`rflw eval {name} \
--scales {scale:g}`), of the weights in this file: \
mIoU {100 * metrics["miou"]:.1f} %, pixel accuracy {100 * metrics["pixel_accuracy"]:.1f} %.

| class | IoU, % |
|---|---|
{scores}
"""


def _origin(weights: dict) -> str:
    """The origin of an encoder's weights as a cell of a table."""
    words = {"file": "", "sha256": "SHA-256 ", "origin": ""}
    return ", ".join(f"{words[k]}{weights[k]}" for k in words if weights[k]).replace("|", r"\|")

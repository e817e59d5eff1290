"""Large images and large folders, with the memory that they take: python -m tests.large. Exit code 1 if any takes more than it may.

Everything is made on the fly: scenes of the embedded set, side by side.
"""

import argparse
import json
from pathlib import Path
import resource
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from PIL import Image

from rflw import checkpoint, evaluation, prediction, records, tiles
from rflw.data.labels import LABELS
from rflw.data.synthetic import scene

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = "embedded"
NEAR = 1e-3  # of the largest logit
FLAT = 64  # MB that the process may grow by over nine tenths of a folder


def pavement(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Scenes side by side -> (H, W, 3) image, (H, W) labels."""
    rows, columns = -(-h // 96), -(-w // 128)
    scenes = [[scene("val", (i + 11 * j) % 128) for i in range(columns)] for j in range(rows)]
    return tuple(
        np.concatenate([np.concatenate([pair[part] for pair in row], 1) for row in scenes])[:h, :w]
        for part in (0, 1)
    )


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def logits(size: int, tile: int, out: str) -> dict:
    """Of a square image, by tiles of a size or whole (0), into a file -> {"peak_mb", "seconds"}."""
    model, (image, _) = checkpoint.load(CHECKPOINT), pavement(size, size)
    before, start = peak_mb(), time.perf_counter()
    import torch

    with torch.inference_mode():
        found = prediction.logits_of(model, image[None], (size, size), "fp32", tile=tile)
    np.save(out, found.numpy())
    return {"peak_mb": peak_mb() - before, "seconds": round(time.perf_counter() - start, 1)}


def classes(size: int, tile: int) -> dict:
    """A square image, predicted and evaluated -> {"peak_mb", "seconds", "pixel_accuracy"}."""
    model, (image, mask) = checkpoint.load(CHECKPOINT), pavement(size, size)
    from rflw import metrics

    before, start = peak_mb(), time.perf_counter()
    found = prediction.predict(model, image, tile=tile)
    took = round(time.perf_counter() - start, 1)
    matrices = evaluation.evaluate(model, [(image, mask)], "fp32", tile=tile)
    return {
        "peak_mb": peak_mb() - before,
        "seconds": took,
        "pixel_accuracy": round(metrics.pixel_accuracy(matrices[0]), 4),
        "as_predicted": round(float((found == mask)[mask != 255].mean()), 4),
    }


def alone(call: str) -> dict:
    """A function of this file in a process of its own, whose memory is only its own."""
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import json; from tests import large; print(json.dumps(large.{call}))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(f"{call}: ended with {run.returncode}: {run.stderr[-500:]}")
    return json.loads(run.stdout.splitlines()[-1])


def compared(size: int, tile: int, work: Path) -> dict:
    """An image in tiles beside the whole -> {"whole_peak_mb", "tiles_peak_mb", "error": over the largest logit, "agreement"}."""
    whole = alone(f"logits({size}, 0, {str(work / 'whole.npy')!r})")
    parts = alone(f"logits({size}, {tile}, {str(work / 'tiles.npy')!r})")
    a, b = (np.load(work / f"{name}.npy") for name in ("whole", "tiles"))
    error = float(np.abs(a - b).max() / np.abs(a).max())
    return {
        "size": size,
        "tile": tile,
        "tiles": len(list(tiles.windows((size, size), tile))),
        "whole_peak_mb": whole["peak_mb"],
        "tiles_peak_mb": parts["peak_mb"],
        "error": error,
        "agreement": float((a.argmax(1) == b.argmax(1)).mean()),
        "held": error < NEAR,
    }


def folder(images: int, work: Path) -> dict:
    """`rflw predict` of a folder of so many photos, its memory read all the while -> {"images", "written", "start_mb": after a tenth,
    "end_mb", "growth_mb"}."""
    (work / "photos").mkdir()
    for i in range(images):
        Image.fromarray(scene("val", i % 128)[0][:64, :64]).save(
            work / f"photos/{i:05}.png", compress_level=1
        )
    command = [
        sys.executable,
        "-m",
        "rflw",
        "predict",
        work / "photos",
        "--checkpoint",
        CHECKPOINT,
        "--device",
        "cpu",
        "-o",
        work / "out",
    ]
    memory, lines = [], [0]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:

        def watch():
            while run.poll() is None:
                try:
                    pages = int(Path(f"/proc/{run.pid}/statm").read_text().split()[1])
                except (OSError, IndexError):
                    return
                memory.append((lines[0] // 2, pages * resource.getpagesize() / 2**20))
                time.sleep(0.2)

        thread = threading.Thread(target=watch)
        thread.start()
        for _ in run.stdout:  # one for each file written
            lines[0] += 1
        run.wait()
        thread.join()
    late = [mb for done, mb in memory if images / 10 <= done < images]
    start, end, most = late[0], late[-1], max(late)
    written = len(list((work / "out").glob("*_mask.png")))
    return {
        "images": images,
        "written": written,
        "start_mb": round(start),
        "end_mb": round(end),
        "most_mb": round(most),
        "growth_mb": round(most - start),
        "held": run.returncode == 0 and written == images and most - start < FLAT,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.large", description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="of a square image, in pixels")
    parser.add_argument(
        "--compare",
        type=int,
        nargs="*",
        default=[2560],
        help="sizes at which the whole image is taken, too",
    )
    parser.add_argument("--images", type=int, default=10_000, help="of the folder")
    parser.add_argument("--results", type=Path, help="folder for a record of the figures")
    asked = parser.parse_args()
    command = f"python -m tests.large --size {asked.size} --compare {' '.join(map(str, asked.compare))} --images {asked.images}"
    config = {
        "checkpoint": CHECKPOINT,
        "classes": len(LABELS["embedded"].classes),
        "overlap": tiles.OVERLAP,
    }
    with (
        records.timed("reliability-large", command, "reliability", config) as record,
        tempfile.TemporaryDirectory(prefix="rflw-large-") as name,
    ):
        found = {}
        for size in asked.compare:
            found[f"{size}x{size}, whole and in tiles"] = compared(size, tiles.TILE, Path(name))
        row = alone(f"classes({asked.size}, {tiles.TILE})")
        found[f"{asked.size}x{asked.size}, in tiles"] = {
            "size": asked.size,
            "tile": tiles.TILE,
            "tiles_peak_mb": row.pop("peak_mb"),
            **row,
            "held": row["pixel_accuracy"] == row["as_predicted"],
        }
        found[f"a folder of {asked.images} photos"] = folder(asked.images, Path(name))
        record["metrics"] = {
            "what": "large images and folders",
            "held": sum(row["held"] for row in found.values()),
            "tried": len(found),
            "scenarios": found,
        }
    for name, row in found.items():
        print(name, json.dumps(row))
    if asked.results:
        records.write(record, asked.results)
    return 0 if all(row["held"] for row in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

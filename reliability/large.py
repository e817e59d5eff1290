"""Large images and large folders, with the memory that they take: python -m reliability.large.
Exit code 1 if one takes more than it may. Scenes of the synthetic set are laid side by side.
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

from rflw import checkpoint, prediction, records
from rflw.data.synthetic import scene

CHECKPOINT = "embedded"
TILE = 2048
AGREEMENT = 0.995  # of the pixels of an image in tiles and in one piece
GROWTH_MB = 64  # by which a process may grow over nine tenths of a folder


def pavement(size: int) -> np.ndarray:
    """Scenes side by side -> (size, size, 3) image."""
    rows, columns = -(-size // 96), -(-size // 128)
    images = [[scene("val", (i + 11 * j) % 128)[0] for i in range(columns)] for j in range(rows)]
    return np.concatenate([np.concatenate(row, 1) for row in images])[:size, :size]


def classes(size: int, tile: int, out: str) -> dict:
    """Predict a square image into a file -> the memory and time that it took."""
    model, image = checkpoint.load(CHECKPOINT), pavement(size)
    before, begin = peak_mb(), time.perf_counter()
    np.save(out, prediction.predict(model, image, tile=tile))
    return {"peak_mb": peak_mb() - before, "seconds": round(time.perf_counter() - begin, 1)}


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def alone(call: str) -> dict:
    """Call a function of this file in a process of its own, whose memory is its own."""
    script = f"import json; from reliability import large; print(json.dumps(large.{call}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{call}: {run.stderr[-500:]}")
    return json.loads(run.stdout.splitlines()[-1])


def compared(size: int, work: Path) -> dict:
    """An image in tiles beside the same in one piece."""
    whole = alone(f"classes({size}, 0, {str(work / 'whole.npy')!r})")
    tiles = alone(f"classes({size}, {TILE}, {str(work / 'tiles.npy')!r})")
    agreement = (np.load(work / "whole.npy") == np.load(work / "tiles.npy")).mean()
    return {
        "whole_peak_mb": whole["peak_mb"],
        "tiles_peak_mb": tiles["peak_mb"],
        "agreement": float(agreement),
        "held": bool(agreement > AGREEMENT and tiles["peak_mb"] < whole["peak_mb"]),
    }


def folder(images: int, work: Path) -> dict:
    """`rflw predict` of a folder of photos, its memory read all the while."""
    (work / "photos").mkdir()
    for i in range(images):
        picture = Image.fromarray(scene("val", i % 128)[0][:64, :64])
        picture.save(work / f"photos/{i:05}.png", compress_level=1)
    words = ["predict", work / "photos", "--checkpoint", CHECKPOINT, "-o", work / "out"]
    command = [sys.executable, "-m", "rflw", *map(str, words), "--device", "cpu"]
    memory = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:

        def watch():
            while run.poll() is None:
                done = len(list((work / "out").glob("*_mask.png")))
                try:
                    pages = int(Path(f"/proc/{run.pid}/statm").read_text().split()[1])
                except (OSError, IndexError):
                    return
                memory.append((done, pages * resource.getpagesize() / 2**20))
                time.sleep(0.5)

        thread = threading.Thread(target=watch)
        thread.start()
        run.wait()
        thread.join()
    late = [mb for done, mb in memory if images / 10 <= done < images]
    written = len(list((work / "out").glob("*_mask.png")))
    growth = max(late) - late[0]
    return {
        "images": images,
        "written": written,
        "growth_mb": round(growth),
        "held": run.returncode == 0 and written == images and growth < GROWTH_MB,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.large", description=__doc__)
    parser.add_argument("--size", type=int, default=2560, help="of a square image, in pixels")
    parser.add_argument("--images", type=int, default=2000, help="of the folder")
    parser.add_argument("--results", type=Path, help="folder for a record of the figures")
    asked = parser.parse_args()
    command = f"python -m reliability.large --size {asked.size} --images {asked.images}"
    config = {"checkpoint": CHECKPOINT, "tile": TILE}
    with (
        records.timed(
            "reliability-large", command, "reliability", config, folder=asked.results
        ) as record,
        tempfile.TemporaryDirectory(prefix="rflw-large-") as work,
    ):
        rows = {
            f"{asked.size}x{asked.size}, whole and in tiles": compared(asked.size, Path(work)),
            f"a folder of {asked.images} photos": folder(asked.images, Path(work)),
        }
        record["metrics"] = {
            "what": "large images and folders",
            "held": sum(row["held"] for row in rows.values()),
            "tried": len(rows),
            "scenarios": rows,
        }
    print(json.dumps(rows, indent=1))
    return 0 if all(row["held"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

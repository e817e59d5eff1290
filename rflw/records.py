"""Records: one JSON file for each measurement, with all that is needed to repeat it. No torch.

A record holds the command, the configuration and its hash, the seed, the commit, the data's hash, hardware, versions,
times and results, and last a hash over all of it, so that an edited number is noticed.
"""

from collections.abc import Iterable
from contextlib import contextmanager
from datetime import UTC, datetime
import errno
from functools import cache
import hashlib
from importlib import metadata
from itertools import chain
import json
import math
import os
from pathlib import Path
import platform
import re
import subprocess
import tempfile
import time

from rflw.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "data" / "results"
REQUIRED = {
    "name": str,
    "kind": str,
    "command": str,
    "config": dict,
    "config_hash": str,
    "seed": int,
    "commit": str,
    "dirty": bool,
    "hardware": dict,
    "versions": dict,
    "started": str,
    "wall_s": float,
    "status": str,
    "metrics": dict,
}
WORDS = {str: "text", dict: "object", int: "whole number", float: "number", bool: "true or false"}
PACKAGES = ("torch", "torchvision", "timm", "numpy", "lightning", "fvcore")


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance() -> dict:
    """Commit (None outside a checkout), whether tracked files differ from it, hardware and versions."""

    def git(*words):
        try:
            run = subprocess.run(
                ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    # A record that replaces one is no change of what is measured.
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!data/results")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "hardware": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "memory_gb": _memory(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()}
        | {p: v for p in PACKAGES if (v := _version(p))},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError, AttributeError):
        return None


def digest(record: dict) -> str:
    """SHA-256 of a record without its own `sha256`."""
    body = {k: v for k, v in record.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def make_folder(path: Path) -> None:
    """A folder and those above it, where they are not there yet. Raises InputError if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror})") from e


def sweep(folder: Path) -> None:
    """Take away what `write_whole` left of files in `folder` when it was killed."""
    _remove(_partials(folder).values(), math.inf)


def _partials(folder: Path) -> dict[str, list[Path]]:
    """{name of a file: what was begun of it and not moved there}."""
    found = {}
    for partial in folder.glob(f".*.{'?' * 8}"):
        if (begun := re.fullmatch(r"\.(.+\..+)\.[a-z0-9_]{8}", partial.name)) and partial.is_file():
            found.setdefault(begun[1], []).append(partial)
    return found


_left = cache(
    _partials
)  # a folder may get thousands of files: it is looked through once, not at each of them


def _remove(partials: Iterable[list[Path]], before: float) -> None:
    for partial in chain.from_iterable(partials):
        if partial.exists() and partial.stat().st_mtime < before:
            partial.unlink(missing_ok=True)


def must_take_files(folder: Path) -> None:
    """Raises InputError for a folder that files cannot be written in and that cannot be made: before the work, not after it."""
    try:
        there = next(
            place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
        )
    except OSError as e:
        raise InputError(f"{folder}: cannot be written ({e.strerror})") from e
    if not there.is_dir():
        raise InputError(f"{folder}: cannot be written ({there} is no folder)")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written (permission denied)")


def write_whole(path: Path, write) -> None:
    """Let `write` fill a file beside `path`, then move it there: whole or not at all.

    Raises InputError if it cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(
            [_left(path.parent.absolute()).get(path.name, [])], time.time() - 3600
        )  # younger ones may still be written
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror})") from e
    os.close(handle)
    try:
        write(partial)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror or e})") from e
    finally:
        Path(partial).unlink(missing_ok=True)  # where it was moved, there is none


def write(record: dict, folder: Path = FOLDER, stem: str | None = None) -> Path:
    """Check a record, seal it with its hash and write `<name>.json`, or `<stem>.json`. Raises InputError if a field is
    missing."""
    missing = [field for field in REQUIRED if field not in record]
    if missing:
        raise InputError(f"record {record.get('name')}: no {', '.join(missing)}")
    record = record | {"sha256": digest(record)}
    path = Path(folder) / f"{stem or record['name']}.json"
    write_whole(path, lambda partial: Path(partial).write_text(json.dumps(record, indent=1) + "\n"))
    return path


@contextmanager
def timed(
    name: str,
    command: str,
    kind: str = "bench",
    config: dict | None = None,
    config_hash: str = "",
    seed: int = 0,
):
    """Within it, a record of a measurement without training; whoever measures puts `metrics` into it."""
    record = {
        "name": name,
        "kind": kind,
        "command": command,
        "config": config or {},
        "config_hash": config_hash,
        "seed": seed,
        **provenance(),
        "started": now(),
    }
    start = time.perf_counter()
    yield record
    record |= {"wall_s": round(time.perf_counter() - start, 1), "status": "done"}


def read(name: str | Path, folder: Path = FOLDER) -> dict:
    """A record by name or path. Raises InputError if it is missing, malformed or was edited."""
    path = Path(name) if str(name).endswith(".json") else Path(folder) / f"{name}.json"
    try:
        record = json.loads(path.read_text())
    except OSError as e:
        raise InputError(f"{path}: no such record ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path}: not JSON ({e})") from e
    missing = (
        [field for field in REQUIRED if field not in record]
        if isinstance(record, dict)
        else [*REQUIRED]
    )
    if missing:
        raise InputError(f"{path}: no {', '.join(missing)}")
    if record.get("sha256") != digest(record):
        raise InputError(f"{path}: its hash does not fit its contents: it was edited by hand")
    entries = [(field, record[field], kind) for field, kind in REQUIRED.items()]
    entries += [
        (f"hardware.{field}", record["hardware"].get(field), kind)
        for field, kind in (("cpu", str), ("cores", int))
        if isinstance(record["hardware"], dict)
    ]
    for field, value, kind in entries:
        if not (
            _is(value, kind) or field == "commit" and value is None
        ):  # outside a checkout there is no commit
            raise InputError(
                f"{path}: {field} is {json.dumps(value)[:60]}, which is no {WORDS[kind]}"
            )
    return record


def _is(value, kind: type) -> bool:
    """Whether a value read from JSON is of a kind: true is no number there, and 2 is one like 2.0."""
    return type(value) is kind or kind is float and type(value) is int


def read_all(folder: Path = FOLDER) -> list[dict]:
    """All records of a folder, by name; none where it was not made yet. Raises InputError for the first that is malformed or was edited,
    and for what is no folder."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"{folder}: is no folder of records")
    return [read(path) for path in sorted(Path(folder).glob("*.json"))]


def keep(record: dict, folder: Path = FOLDER) -> Path | None:
    """Write a record unless one of its name is there already: then None, and the old one stays."""
    return None if (Path(folder) / f"{record['name']}.json").exists() else write(record, folder)


def differences(first: dict, second: dict) -> dict:
    """What two records do not share: {"config.batch": (8, 16), "metrics.miou": ..., "commit": ...}; None where one has no such
    entry. Curves and hashes are left out."""

    def flat(value, path=()):
        if isinstance(value, dict):
            return {
                k: v for key, item in value.items() for k, v in flat(item, (*path, key)).items()
            }
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            return {
                k: v for i, item in enumerate(value) for k, v in flat(item, (*path, str(i))).items()
            }
        return {".".join(path): value}

    a, b = (
        flat({k: v for k, v in record.items() if k not in ("curve", "sha256")})
        for record in (first, second)
    )
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def at(value, path: str):
    """What a path leads to in a record: "metrics.iou.red twin", "metrics.rows[mode=eager-fp32,batch=1].images_per_s". Raises
    KeyError with the part that is not there."""
    for part in re.findall(r"\[[^\]]*\]|[^.\[]+", path):
        if part.startswith("["):
            wanted = dict(pair.split("=", 1) for pair in part[1:-1].split(","))
            rows = [
                row
                for row in value
                if all(str(row.get(key)) == text for key, text in wanted.items())
            ]
            if len(rows) != 1:
                raise KeyError(f"{part} fits {len(rows)} rows")
            value = rows[0]
            continue
        try:
            value = value[int(part) if isinstance(value, list) else part]
        except (LookupError, TypeError, ValueError) as e:
            raise KeyError(part) from e
    return value


def _words(origin: dict) -> str:
    """The origin of an encoder's weights as a cell of a table."""
    return ", ".join(
        f"{words}{origin[key]}"
        for key, words in (("file", ""), ("sha256", "SHA-256 "), ("origin", ""))
        if origin[key]
    ).replace("|", r"\|")


def card(record: dict, file: Path, name: str, licence: str) -> str:
    """What a reader must know of a trained network that ships as `name`, as Markdown: from its training record and its file.

    Raises InputError if the record is not of a training.
    """
    try:
        metrics, hardware = record["metrics"], record["hardware"]
        facts = {
            "network": f"{record['config']['model']}, {len(metrics['iou'])} classes",
            "file": f"{name}.safetensors, {file.stat().st_size / 1e6:.1f} MB, float16, "
            f"SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}",
            "data": "; ".join(
                f"{part} (SHA-256 {digest})" for part, digest in record["data"].items()
            ),
            **({"encoder began with": _words(record["weights"])} if record.get("weights") else {}),
            "recipe": f"{record['config']['name']} (settings {record['config_hash']})",
            "seed": record["seed"],
            "command": f"`{record['command']}`",
            "commit": f"{record['commit']}{' with changes' if record['dirty'] else ''}",
            "trained": f"{record['started']}, {record['wall_s'] / 60:.0f} min in {record['precision']}, {hardware['cpu']} "
            f"({hardware['cores']} core{'s' * (hardware['cores'] != 1)}){', ' + hardware['gpu'] if 'gpu' in hardware else ''}",
            "versions": ", ".join(
                f"{package} {version}" for package, version in record["versions"].items()
            ),
            "record": f"[{record['name']}.json](../results/{record['name']}.json)",
            "licence": licence,
        }
        lines = [
            f"# {name}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in facts.items()),
            "",
            f"On {metrics['images']} validation images, whole and at one scale, of the weights in this file: "
            f"mIoU {100 * metrics['miou']:.1f} %, pixel accuracy {100 * metrics['pixel_accuracy']:.1f} %.",
            "",
            "| class | IoU, % |",
            "|---|---|",
        ]
        lines += [
            f"| {label} | {'absent' if value is None else f'{100 * value:.1f}'} |"
            for label, value in metrics["iou"].items()
        ]
    except (KeyError, TypeError, AttributeError) as e:
        raise InputError(
            f"record {record.get('name')}: not of a training ({type(e).__name__}: {e})"
        ) from e
    return "\n".join(lines) + "\n"

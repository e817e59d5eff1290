"""Records: one JSON file for each measurement, with all that is needed to repeat it. No torch.

A record holds the command, the configuration and its hash, the seed, the commit, the data's hash,
hardware, versions, times and results, and last a hash over all of it: an edited number is noticed.
"""

from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
import hashlib
from importlib import metadata
from importlib.util import find_spec
import json
import os
from pathlib import Path
import platform
import re
import shlex
import subprocess
import tempfile
import time

from rflw.errors import InputError, reading, why

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "data" / "results"
REQUIRED = {
    **dict.fromkeys(("name", "kind", "command", "config_hash", "commit", "started", "status"), str),
    **dict.fromkeys(("config", "hardware", "versions", "metrics"), dict),
    **{"seed": int, "dirty": bool, "wall_s": float},
}
PACKAGES = ("torch", "torchvision", "timm", "numpy", "lightning", "fvcore")


@cache
def _check() -> Callable[[dict], object]:
    """What refuses other than records. Outside a checkout there is no commit.

    Entries beside the required ones are allowed; most records say more of their machine.
    """
    try:
        from pydantic import create_model
    except ModuleNotFoundError:  # a bare GPU machine
        return lambda record: None
    strict = {"__config__": {"strict": True}}
    hardware = create_model("Hardware", **strict, cpu=str, cores=int)
    required = REQUIRED | {"commit": str | None, "dirty": bool | None, "hardware": hardware}
    return create_model("Record", **strict, **required).model_validate


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance() -> dict:
    """Commit (None outside a checkout), whether tracked files differ from it, machine, versions."""

    def git(*words):
        try:
            return subprocess.check_output(
                ["git", *words], cwd=REPOSITORY, text=True, stderr=subprocess.DEVNULL
            ).strip()
        except (OSError, subprocess.CalledProcessError):  # no git, no checkout
            return None

    # A replaced record does not change what is measured.
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!data/results")
    affinity = getattr(os, "sched_getaffinity", None)  # the processors that the process may use
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "hardware": {
            "cpu": _cpu(),
            "cores": len(affinity(0)) if affinity else os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in PACKAGES if find_spec(package)},
        },
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.exists() else None
    return name[1].strip() if name else platform.processor() or platform.machine()


def digest(record: dict) -> str:
    """SHA-256 of a record without its own `sha256`."""
    body = {k: v for k, v in record.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@contextmanager
def writing(path: Path):
    """A context in which `path` is written: an error of the system becomes an InputError."""
    try:
        yield
    except (OSError, RuntimeError) as e:  # the latter is PyTorch's error for a full disk
        raise InputError(f"{path}: cannot be written ({why(e)})") from e


def must_take_files(folder: Path) -> None:
    """Before the work starts: raises InputError if a folder cannot be made or written in."""
    with writing(folder):
        parents = (folder.absolute(), *folder.absolute().parents)
        nearest = next(path for path in parents if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError("permission denied")


def write_whole(path: Path, write) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there: whole or not at all.

    Missing parents are made. `write` is called with the temporary file's path. Raises InputError.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            write(partial)
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)


def write(record: dict, folder: Path = FOLDER, stem: str | None = None) -> Path:
    """Check a record, seal it with its hash and write it into `folder`.

    The file is named after `stem` or the record. Raises InputError for an entry that is missing or
    has another type.
    """
    try:
        _check()(record)
    except ValueError as e:
        raise InputError(f"record {record.get('name')}: {why(e)}") from e
    record = record | {"sha256": digest(record)}
    path = Path(folder) / f"{stem or record['name']}.json"
    write_whole(path, lambda partial: Path(partial).write_text(json.dumps(record, indent=1) + "\n"))
    return path


def command_of(*words, **options) -> str:
    """The text of a command.

    Args:
        words: what comes after `rflw`.
        options: those that are None, False, "auto" or empty are left out; True is an option without
            a value; a tuple is several values of one option, a list an option that is repeated.
    """
    parts = ["rflw", *map(str, words)]
    for name, value in options.items():
        for given in value if isinstance(value, list) else [value]:
            if given is None or given is False or given in ("auto", ()):
                continue
            values = given if isinstance(given, tuple) else () if given is True else (given,)
            parts += [f"--{name.replace('_', '-')}", *(str(v).removesuffix(".0") for v in values)]
    return shlex.join(parts)


def begin(
    name: str,
    command: str,
    kind: str = "bench",
    config: dict | None = None,
    config_hash: str = "",
    seed: int = 0,
) -> dict:
    """The entries of a record that are known as its measurement begins."""
    return {
        "name": name,
        "kind": kind,
        "command": command,
        "config": config or {},
        "config_hash": config_hash,
        "seed": seed,
        **provenance(),
        "started": now(),
    }


@contextmanager
def timed(*entries, folder: Path | None = None, **more):
    """A context in which a measurement fills `metrics` of a record of `begin`; `folder` gets it."""
    record, start = begin(*entries, **more), time.perf_counter()
    yield record
    record |= {"wall_s": round(time.perf_counter() - start, 1), "status": "done"}
    if folder:
        write(record, folder)


def read(name: str | Path, folder: Path = FOLDER) -> dict:
    """Read a record by its name in `folder`, or by the path of a .json file.

    Raises InputError where it is missing, malformed or edited.
    """
    path = Path(name) if str(name).endswith(".json") else Path(folder) / f"{name}.json"
    with reading(path):
        if not path.exists():
            raise InputError(f"{path}: no such record")
        record = json.loads(path.read_text())
        _check()(record)
    if record.get("sha256") != digest(record):
        raise InputError(f"{path}: its hash does not fit its contents: it was edited by hand")
    return record


def read_all(folder: Path = FOLDER) -> list[dict]:
    """All records of a folder, by name; none where it does not exist. Raises InputError."""
    if Path(folder).is_file():
        raise InputError(f"{folder}: is not a folder of records")
    return [read(path) for path in sorted(Path(folder).glob("*.json"))]


def keep(record: dict, folder: Path = FOLDER) -> Path | None:
    """Write a record, unless one of its name exists: then return None, and the old one stays."""
    return None if (Path(folder) / f"{record['name']}.json").exists() else write(record, folder)


def differences(first: dict, second: dict) -> dict:
    """What two records do not share: {"config.batch": (8, 16), "metrics.miou": ...}.

    Curves and hashes are left out; the value is None where a record has no such entry.
    """

    def flat(value, path=()):
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        if not isinstance(value, dict):
            return {".".join(path): value}
        parts = (flat(item, (*path, str(key))) for key, item in value.items())
        return {name: item for part in parts for name, item in part.items()}

    left_out = {"curve": None, "sha256": None}
    a, b = flat(first | left_out), flat(second | left_out)
    return {key: (a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key)}


def at(value, path: str):
    """Look up "metrics.iou.red twin" or "metrics.rows[mode=eager-fp32,batch=1].images_per_s".

    Raises KeyError with the part of the path that does not exist.
    """
    for part in re.findall(r"\[[^\]]*\]|[^.\[]+", path):
        if part.startswith("["):
            wanted = dict(pair.split("=", 1) for pair in part[1:-1].split(","))
            rows = [row for row in value if all(str(row.get(k)) == v for k, v in wanted.items())]
            if len(rows) != 1:
                raise KeyError(f"{part} fits {len(rows)} rows")
            value = rows[0]
            continue
        try:
            value = value[int(part) if isinstance(value, list) else part]
        except (LookupError, TypeError, ValueError) as e:
            raise KeyError(part) from e
    return value

"""What a user can put right: the command line prints it as one line and exits with code 2."""

from contextlib import contextmanager
import os
from pathlib import Path
import stat


class InputError(ValueError):
    """Bad input: says what is wrong and where, in one line."""


def no_pipe(path: str | Path) -> None:
    """Raises InputError for a pipe, socket or device: it might give nothing for ever, or no end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: not a file but a pipe, a socket or a device")


@contextmanager
def reading(path: str | Path):
    """Within it an outside file is read: whatever a parser raises becomes one line.

    Raises:
        InputError: "PATH: cannot be read (why)", or "PATH: no such file"; PATH is a pipe. One that
            is raised within passes as it is.
    """
    no_pipe(path)
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as e:
        raise InputError(f"{path}: no such file") from e
    except Exception as e:  # parsers raise many types for files that are damaged or foreign
        raise InputError(f"{path}: cannot be read ({why(e)})") from e


def why(error: Exception) -> str:
    """What an error says, in one line: of pydantic, the first entry that does not fit."""
    if hasattr(error, "error_count"):  # pydantic's; a bare GPU machine has no pydantic
        first = error.errors(include_url=False)[0]
        entry = ".".join(map(str, first["loc"]))
        return f"{entry}: {first['msg']}" if entry else first["msg"]
    text = getattr(error, "strerror", None) or str(error).split("\n")[0]
    return text or type(error).__name__


@contextmanager
def enough_memory(message: str, error: type[Exception] = InputError):
    """Raises `error(message)` where memory runs out within it.

    Python and CUDA have classes for that, CPUs, MPS and cuDNN a RuntimeError that says so.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        words = ("allocate memory", "size calculation overflowed", "out of memory", "ALLOC_FAILED")
        named = isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError"
        if not named and not any(word in str(e) for word in words):
            raise
        raise error(message) from e

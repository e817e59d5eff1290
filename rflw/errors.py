"""Errors that a user can correct: the command line prints one line and exits with code 2."""

from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad input: says what is wrong and where, in one line."""


@contextmanager
def reading(path: str | Path):
    """A context in which a file is read: any error of a parser becomes an InputError of one line.

    Raises:
        InputError: "PATH: cannot be read (why)", or "PATH: no such file". One that is raised within
            passes as it is.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as e:
        raise InputError(f"{path}: no such file") from e
    except Exception as e:  # parsers raise many types for files that are damaged or foreign
        raise InputError(f"{path}: cannot be read ({why(e)})") from e


@contextmanager
def about(what: str | Path):
    """A context that puts a name before the message of every InputError."""
    try:
        yield
    except InputError as e:
        raise InputError(f"{what}: {e}") from e


def choose(what: str, value, choices) -> None:
    """Raises InputError that lists the choices for a value that is not among them."""
    if value not in choices:
        raise InputError(f"unknown {what} {value!r}; choose from: {', '.join(map(str, choices))}")


def why(error: Exception) -> str:
    """The message of an error in one line; for pydantic, the first entry that does not fit."""
    if hasattr(error, "error_count"):  # pydantic's; a bare GPU machine has no pydantic
        first = error.errors(include_url=False)[0]
        entry, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        return f"{entry}: {said}" if entry else said
    text = getattr(error, "strerror", None) or str(error).split("\n")[0]
    return text or type(error).__name__


@contextmanager
def enough_memory(message: str, error: type[Exception] = InputError):
    """A context that raises `error(message)` when memory runs out.

    Python and CUDA have classes for that, CPUs, MPS and cuDNN a RuntimeError that says so.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        words = ("allocate memory", "size calculation overflowed", "out of memory", "ALLOC_FAILED")
        if not isinstance(e, MemoryError) and not any(word in str(e) for word in words):
            raise
        raise error(message) from e

"""What a user can put right: the command line prints it as one line and exits with code 2."""
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input: says what is wrong and where, in one line."""


@contextmanager
def enough_memory(message: str, error: type[Exception] = InputError):
    """Raises `error(message)` where memory runs out within it: Python and CUDA have classes for that, PyTorch on CPUs a RuntimeError
    that says so."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not isinstance(e, MemoryError) and type(e).__name__ != "OutOfMemoryError" and not any(
                words in str(e) for words in ("allocate memory", "size calculation overflowed")):
            raise
        raise error(message) from e

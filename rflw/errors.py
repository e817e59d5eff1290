"""What a user can put right: the command line prints it as one line and exits with code 2."""


class InputError(ValueError):
    """Bad input: says what is wrong and where, in one line."""


def out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory: Python and CUDA have classes for it, PyTorch on CPUs a RuntimeError that says so."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)

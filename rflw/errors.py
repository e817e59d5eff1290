"""What a user can put right: the command line prints it as one line and exits with code 2."""


class InputError(ValueError):
    """Bad input: says what is wrong and where, in one line."""

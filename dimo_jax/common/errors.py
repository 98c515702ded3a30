"""The exceptions that a user, not a programmer, is meant to read."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input from outside: a flag, a config field, a file.

    The message is one sentence that says what was found, what was expected and what to do. The
    commands print it without a traceback and exit with status 2.
    """


class Interrupted(Exception):
    """A signal asked the run to stop, and it stopped in good order: its state is saved.

    Attributes:
        exit_code: 128 + the signal's number, as shells count: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@contextlib.contextmanager
def about(field: str) -> Iterator[None]:
    """Name the field that bad input came from, where its message does not name it already.

    Args:
        field: in full, e.g. "config.teacher.bundle".

    Raises:
        InputError: what was raised inside, with the field's name before it.
    """
    try:
        yield
    except InputError as error:
        if field in str(error):
            raise
        raise InputError(f"{field}: {error}") from error

"""The exception for errors that the user can fix."""


class UserError(ValueError):
    """An error that the user can fix, in input, files or settings.

    The message says what is wrong, where, and what to do. Commands print it without a traceback and
    exit with code 2.
    """

"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """A fault in what the user gave: one line that names the thing and the fix.

    The commands print it without a traceback and exit with code 2.
    """

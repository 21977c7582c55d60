"""The one exception type that the command line shows as a single line."""


class UserError(ValueError):
    """Something the user can put right: printed on one line, without a traceback, with exit status 2."""

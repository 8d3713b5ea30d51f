"""The one exception for what a user got wrong."""


class Refused(ValueError):
    """An argument, a file or a configuration that cannot be used, and why.

    The message is meant for the person who gave it: it names the argument, file or key, its value
    and what was expected. Commands print it as one line; every other exception is a bug and keeps
    its traceback.
    """

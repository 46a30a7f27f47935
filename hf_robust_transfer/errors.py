"""Errors that a user may read in one line."""


class UsageError(ValueError):
    """Something that a user asked for cannot be done; the message says what, where, and what to do instead.

    Commands show the message alone, and everything else with its traceback.

    Example:
        >>> raise UsageError("--eps 8 is larger than the whole pixel range: divide it by 255, as in 8/255")
        Traceback (most recent call last):
            ...
        hf_robust_transfer.errors.UsageError: --eps 8 is larger than the whole pixel range: divide it by 255, as in 8/255
    """

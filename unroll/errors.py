"""Errors that `unroll` raises on purpose. Each message is one line that says what to do."""


class InputError(ValueError):
    """The caller gave something that cannot work (an id out of range, an unknown name, ...)."""


class DivergenceError(RuntimeError):
    """Training produced a value that is not finite; the message names the step."""


class StoreError(RuntimeError):
    """The checkpoint store cannot be written or read (no space, no permission, foreign content)."""

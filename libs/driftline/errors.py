"""What a caller should do about a failure: four kinds, named for that, and nothing else."""

from __future__ import annotations


class DriftlineError(Exception):
    """The base of every error that driftline raises on purpose."""


class Recoverable(DriftlineError):
    """A fault outside, likely to pass: drop what is in memory, acquire again and go on."""


class Rejected(DriftlineError):
    """Not now: the same request may be accepted later, when what the message names has changed."""


class Invalid(DriftlineError):
    """Never: the input itself is wrong, and the message says what to change."""


class Fatal(DriftlineError):
    """This process, or this partition, must not go on; the message names the command that helps."""

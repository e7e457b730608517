"""Every error autoq raises on purpose, drawn as a tree.

::

    AutoqError                exit code 2; the message is the whole story, no traceback is shown
    ├── JobError              a job file, search space or hardware profile breaks a rule
    ├── ModelError            a model file cannot be read, is invalid, or has nothing to quantize
    ├── DataError             a data file or data function gives something the job cannot use
    ├── MetricError           a metric cannot be resolved, raises, or returns no finite number
    ├── ProfileError          the hardware profile does not fit the model or this machine
    ├── RunError              a run folder is missing, damaged, unwritable, or of another job
    ├── TrackingError         the tracking server cannot be reached or written
    └── TrialError            one candidate failed; carries a ``reason`` and never ends a search

A message says which rule was broken, by which value, where (file, field, layer), and what to do about it.
"""

from __future__ import annotations


class AutoqError(Exception):
    """Base of every error a user can cause or must know about."""


class JobError(AutoqError):
    """A job file, search space or hardware profile breaks a rule."""


class ModelError(AutoqError):
    """A model file cannot be read, is invalid, or has nothing to quantize."""


class DataError(AutoqError):
    """A data file or data function gives something the job cannot use."""


class MetricError(AutoqError):
    """A metric cannot be resolved, raises, or returns no finite number."""


class ProfileError(AutoqError):
    """The hardware profile does not fit the model or this machine."""


class RunError(AutoqError):
    """A run folder is missing, damaged, unwritable, or belongs to another job."""


class TrackingError(AutoqError):
    """The tracking server cannot be reached or written."""


class TrialError(AutoqError):
    """One candidate failed.

    ``reason`` is one of :data:`autoq.core.result.FAILURE_REASONS`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[TrialError], tuple[str, str]]:
        # Exceptions cross process borders by pickle, which by default passes ``args`` only.
        return TrialError, (self.reason, str(self))

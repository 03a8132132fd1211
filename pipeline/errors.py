"""Define the errors that a user is meant to see. Each says what is wrong, where, and how to fix it."""

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """Says how a command ended. `slurm/common.sh` decides by these codes what to start again."""

    DONE = 0
    ERROR = 2  # a named error: the same command fails again
    HUNG = 70  # EX_SOFTWARE of sysexits.h: no step has ended for too long
    LOST_LOCK = 73  # EX_CANTCREAT: another program has taken over the run folder
    STOPPED = 75  # EX_TEMPFAIL: a stop was requested; the same command resumes where this one stopped
    STOPPED_AT_ONCE = 130  # as a shell reports SIGINT
    BROKEN_PIPE = 141  # as a shell reports SIGPIPE


class PipelineError(Exception):
    """All errors for users derive from it. `__main__` prints them in words and exits with code 2.

    Attributes:
        on_all_ranks: every rank raises it, so that one of them printing it is enough.
    """

    on_all_ranks = False

    def everywhere(self) -> Self:
        """Mark an error that every rank raises at the same point."""
        self.on_all_ranks = True
        return self


class ConfigError(PipelineError):
    """A configuration cannot work: it has an unknown key, a wrong type, or values that contradict each other."""


class DataError(PipelineError):
    """Shards, an index or samples are missing, damaged or not what the index says."""


class CheckpointError(PipelineError):
    """A run folder or checkpoint cannot be written, trusted or resumed from."""


class DamagedError(CheckpointError):
    """A checkpoint's files are missing or are not what was written."""


class RuinedError(CheckpointError):
    """A checkpoint is whole, but holds values that are not finite."""


class ExchangeError(PipelineError):
    """Weights of another library cannot be read, or ours cannot be written in its format."""


class EvaluationError(PipelineError):
    """A measurement cannot be made: a set lacks what it needs, or features are not finite."""


class TrainingError(PipelineError):
    """A run must not go on: several losses in a row are not finite, a rank is lost, or a budget is exhausted."""


class DivergedError(TrainingError):
    """A run's weights or moments are not finite, or no longer give finite gradients."""


class StoppedError(PipelineError):
    """A stop was requested before there was anything to save. The exit code is 75, as after a stop that has saved."""

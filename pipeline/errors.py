"""The errors a user is meant to see: each says what is wrong, where, and how to mend it."""

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """How a command ended. `slurm/common.sh` decides by them what is started again."""

    DONE = 0
    ERROR = 2  # a named error: the same command fails again
    HUNG = 70  # EX_SOFTWARE of sysexits.h: no step has ended for too long
    LOST_LOCK = 73  # EX_CANTCREAT: another program has taken the run folder over
    STOPPED = 75  # EX_TEMPFAIL: told to stop; the same command goes on where this one stopped
    STOPPED_AT_ONCE = 130  # as a shell reports SIGINT
    BROKEN_PIPE = 141  # as a shell reports SIGPIPE


class PipelineError(Exception):
    """Base class. `__main__` prints it in words and exits with code 2.

    Attributes:
        on_all_ranks: every rank raises it, so that one of them printing it is enough.
    """

    on_all_ranks = False

    def everywhere(self) -> Self:
        """Mark an error that every rank raises at the same point."""
        self.on_all_ranks = True
        return self


class ConfigError(PipelineError):
    """A configuration that cannot work: unknown key, wrong type, or values that contradict each other."""


class DataError(PipelineError):
    """Shards, an index or samples that are missing, damaged or not what the index says."""


class CheckpointError(PipelineError):
    """A run folder or checkpoint that cannot be written, trusted or resumed from."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are missing or are not what was written."""


class RuinedError(CheckpointError):
    """A checkpoint that is whole, and holds values that are not finite."""


class EvaluationError(PipelineError):
    """A measurement that cannot be made: of a set that lacks what it needs, or of features that are not finite."""


class TrainingError(PipelineError):
    """A run that must not go on: non-finite losses in a row, a rank lost, an exhausted budget."""


class DivergedError(TrainingError):
    """A run whose weights or moments are not finite, or give no finite gradients any more."""


class StoppedError(PipelineError):
    """Told to stop before there was anything to save. Exit code 75, as after a stop that has saved."""

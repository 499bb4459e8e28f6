"""The one exception tree of the project.

    TelmeStreamError                 exit code 1
    ├── UsageError                   exit code 2: a wrong flag, key or argument
    │   └── ConfigError              a configuration file or environment variable that does not hold
    ├── MissingDependency            a Python package or system library that is not there
    ├── DataError                    an annotation file or clip that does not hold what it must
    ├── FeatureError                 a turn, sound or picture that cannot become tensors
    ├── BundleError                  a model folder that is missing, incomplete or damaged
    ├── PredictorError               the model could not answer
    │   └── OutOfMemory              a batch that the device has no room for; a smaller one may do
    ├── EngineError                  an engine that cannot be exported, built, cached or loaded
    ├── SourceError                  a microphone, camera or file that cannot be opened or read
    ├── TranscriptionError           the speech recognizer could not be loaded or run
    ├── WireError                    bytes that are not a message of this protocol
    ├── LinkError                    a socket that cannot be bound, or a peer that does not answer
    ├── JournalError                 the store of utterances and events cannot be read or written
    ├── OutputError                  standard output that cannot be written
    └── ProcessError                 a child process that failed

Every message says what was seen, what was expected and what to do about it.
"""

from __future__ import annotations

INTERRUPTED = 130  # exit code after Ctrl-C


class TelmeStreamError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        seen: What was found, with the value or the path.
        expected: What should have been there.
        remedy: What the reader can do, best as a command.
    """

    exit_code = 1

    def __init__(self, seen: str, expected: str, remedy: str) -> None:
        super().__init__(seen, expected, remedy)
        self.seen = seen
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.seen}; expected {self.expected}; {self.remedy}".replace("\n", " ")


class UsageError(TelmeStreamError):
    """The command was called in a way it cannot be."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file, environment variable or flag holds something it must not."""


class MissingDependency(TelmeStreamError):
    """A Python package or a system library is not installed."""


class DataError(TelmeStreamError):
    """An annotation file or a clip does not hold what it must."""


class FeatureError(TelmeStreamError):
    """A turn, a sound or a picture cannot be turned into tensors."""


class BundleError(TelmeStreamError):
    """A model folder is missing, incomplete or damaged."""


class PredictorError(TelmeStreamError):
    """The model could not answer."""


class OutOfMemory(PredictorError):
    """The device has no room for a batch of this size, in use or in training; a smaller one may do."""


class EngineError(TelmeStreamError):
    """An engine cannot be exported, built, cached or loaded."""


class SourceError(TelmeStreamError):
    """A microphone, a camera or a file cannot be opened or read."""


class TranscriptionError(TelmeStreamError):
    """The speech recognizer could not be loaded or could not run."""


class WireError(TelmeStreamError):
    """Bytes that are not a message of this protocol."""


class LinkError(TelmeStreamError):
    """A socket cannot be bound or connected, or its peer does not answer."""


class JournalError(TelmeStreamError):
    """The store of utterances and events cannot be read or written."""


class OutputError(TelmeStreamError):
    """Standard output cannot be written."""


class ProcessError(TelmeStreamError):
    """A child process failed, or did not end in time."""

"""Errors that end a command with one sentence and an exit code instead of a traceback."""


class RunError(Exception):
  """Ends a command; the message is one sentence for the terminal."""

  exit_code = 1


class InputError(RunError, ValueError):
  """Input that the user can correct."""

  exit_code = 2


class MissingExtraError(InputError, ImportError):
  """A package of an optional extra is not installed; the message names the command."""


class WriteError(RunError, OSError):
  """A file could not be written, for example because the disk is full."""


class DivergedError(RunError, ArithmeticError):
  """The loss is no longer finite."""


class NotLearningError(RunError, ArithmeticError):
  """Training does not begin, and the config says that it should then stop."""


class PreemptedError(RunError):
  """SIGTERM or SIGINT (Ctrl-C) arrived and the state was saved.

  The exit code is 128 plus the number of the signal, as a shell reports it: 143 or 130.
  """

  def __init__(self, message: str, signal_number: int = 15) -> None:
    super().__init__(message)
    self.exit_code = 128 + signal_number

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
  """SIGTERM arrived and the state was saved; 128 + 15, as the shell reports that signal."""

  exit_code = 143

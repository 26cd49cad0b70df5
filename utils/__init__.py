"""Small helpers that know nothing of faces: files, records, logging, distribution over processes."""


class InputError(ValueError):
    """Something a user gave (a file, a record, a setting) cannot be used.

    The message names the file and the record, key or setting, says what was found and what was expected. Command lines print it
    as one line and exit with status 2.
    """


class RecordError(InputError):
    """One record or image among many cannot be used; what is wrong with it says nothing about the others."""


class RunError(RuntimeError):
    """A run that cannot go on although nothing that a user gave is at fault; command lines exit with status 1 and one line."""

"""Small helpers that know nothing of faces: files, records, logging, distribution over processes.

Two exceptions keep names that people know: build_dataset, a command that writes face data sets, with `public_faces/` for those of others,
and CallBackVerification of utils_callbacks, which asks eval/validation.py for what it verifies. `faults/` is what keeps a run alive,
`untrusted/` what reads files of strangers.
"""


class InputError(ValueError):
    """Something a user gave (a file, a record, a setting) cannot be used.

    The message names the file and the record, key or setting, says what was found and what was expected. Command lines print it
    as one line and exit with status 2.
    """


def one_line(error: object) -> str:
    """How command lines print an error: one line, in which a terminal finds nothing to obey, whatever the names in it are."""
    return printable(" ".join(str(error).split()))


def printable(name: str) -> str:
    """The same name, or one with escapes where it has what cannot be shown or written as UTF-8 (line breaks, bytes that are no text)."""
    return name if name.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


class RecordError(InputError):
    """One record or image among many cannot be used; what is wrong with it says nothing about the others."""


class RunError(RuntimeError):
    """A run that cannot go on although nothing that a user gave is at fault; command lines exit with status 1 and one line."""

"""Output for people: what cannot be shown is shown otherwise, and where nobody reads any more the work goes on with its files.

Errors of a command are one line, also those of its arguments, and torchrun is told that line for the end of its own report.
"""
import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TextIO

from utils import one_line
from utils.faults.launch import tell_launcher

# nobody reads any more: the reader of a pipe is gone, a terminal was closed, there is no such file
_GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO}


class Console:
    r"""A text stream for people, or None for one that there is not; no write to it raises.

    Characters that its encoding lacks are written as escapes (\xeb). What a full disk or a full pipe does not take is lost; where a
    reader has gone, so is all that follows. Everything else is as the stream has it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream, self.gone = stream, stream is None

    def write(self, text: str) -> int:
        """Write `text`, as far as that can be done; returns its length."""
        self._attempt(lambda: self._write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream, as far as that can be done."""
        self._attempt(lambda: self.stream.flush())

    def finish(self) -> None:
        """Flush for the last time: what is not written by now would be an error when the interpreter ends."""
        self._attempt(lambda: self.stream.flush(), last=True)

    def isatty(self) -> bool:
        """Whether somebody may be looking at it."""
        return not self.gone and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stream"], name)

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError as error:  # it encodes all of the text before it writes any
            self.stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))

    def _attempt(self, act: Callable[[], object], last: bool = False) -> None:
        if self.gone:
            return
        try:
            act()
        except OSError as error:
            if last or error.errno in _GONE:
                self._turn_away()
        except ValueError:  # a closed file
            self.gone = True

    def _turn_away(self) -> None:
        """What the stream still holds, and what others write to its file, goes nowhere."""
        self.gone = True
        with contextlib.suppress(OSError, ValueError):
            number, nowhere = self.stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


def complain(name: str, error: object) -> None:
    """Print the one line that a command ends with, headed by a name."""
    line = f"{name}: {one_line(error)}"
    print(line, file=sys.stderr)
    tell_launcher(line)


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, without the list of all options, and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        complain("error", f"{message} ({self.prog} --help lists what there is)")
        sys.exit(2)


@contextlib.contextmanager
def lasting_console() -> Iterator[None]:
    """Inside, prints, log lines, progress bars and warnings never raise, whatever becomes of standard output and standard error.

    Also a decorator. Entered once more inside, it changes nothing.
    """
    _occupy_standard_numbers()
    before = sys.stdout, sys.stderr
    now = tuple(stream if isinstance(stream, Console) else Console(stream) for stream in before)
    sys.stdout, sys.stderr = now
    try:
        yield
    finally:
        for old, new in zip(before, now):
            if new is not old:
                new.finish()
        sys.stdout, sys.stderr = before


def _occupy_standard_numbers() -> None:
    """Where a shell closed one (`>&-`), the next file to be opened would get its number, and with it what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest number that is free

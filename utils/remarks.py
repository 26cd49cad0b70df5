"""What a user is told that is no error: warnings, each as one line on standard error."""
import contextlib
import sys
import warnings
from collections.abc import Iterator

from utils import one_line


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Inside, a warning is one line that says what it is about, without a place in the code; those of libraries about their own old
    interfaces, with which a user can do nothing, are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.showwarning = lambda message, *_: print(f"warning: {one_line(message)}", file=sys.stderr)
        yield

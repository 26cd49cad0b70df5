"""Requests to stop that arrive as signals: of a terminal, a shell, a scheduler or torchrun."""
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

STOPPED = 75  # exit status of what a signal stopped and the same command goes on with: EX_TEMPFAIL of sysexits.h, "try again later"
INTERRUPTED = 130  # of commands that Ctrl-C stopped, as shells have it: 128 + SIGINT
# SIGHUP: the terminal is gone; SIGUSR1, SIGUSR2: what schedulers send ahead of the end; SIGXCPU: so do limits of CPU time.
# Ctrl-\ (SIGQUIT) is none of them, and ends a process at once.
REQUESTS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
                 if hasattr(signal, name))


class StopRequest(KeyboardInterrupt):
    """A signal other than Ctrl-C asked this process to stop."""


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Inside, `handler` gets the requests to stop.

    What is ignored stays ignored: that is how `nohup` and `cmd &` say that they are not meant. Outside the main thread, where Python has no
    signal handlers, nothing changes.
    """
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in REQUESTS if here}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopSignals:
    """Inside, requests to stop only leave a note, however often they come: torchrun passes on what the terminal has already sent."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> "StopSignals":
        self._handled = handled(self._note)
        self._handled.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handled.__exit__(*error)

    def wait(self, seconds: float) -> None:
        """Give a request that reached other processes first this much time to arrive here."""
        deadline = time.monotonic() + seconds
        while self.received is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def _note(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number).name


def stops() -> contextlib.AbstractContextManager:
    """Inside, a request to stop raises where the program is: KeyboardInterrupt for Ctrl-C, StopRequest for the others."""
    return handled(_raise)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Inside, a few files that belong together are written: a request to stop waits until they are."""
    received: list[int] = []
    try:
        with handled(lambda number, frame: received.append(number)):
            yield
    finally:
        for number in received[:1]:
            signal.raise_signal(number)


def stopped(error: KeyboardInterrupt, hint: str, interrupted: int = STOPPED) -> int:
    """The exit status of a command line that a request to stop has ended (STOPPED, or `interrupted` after Ctrl-C), after one line that
    says so. Of the processes of torchrun the first one speaks.
    """
    by_signal = isinstance(error, StopRequest)
    if os.environ.get("RANK", "0") == "0":
        print(f"stopped{f' by {error}' if by_signal else ''}: {hint}", file=sys.stderr)
    return STOPPED if by_signal else interrupted


def leave_to_the_parent(worker: int = 0) -> None:
    """For a process that works for another one: a terminal and a scheduler tell them all, and the parent decides when it ends.

    SIGTERM is what the parent ends it with.
    """
    for number in REQUESTS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def _raise(number: int, frame: object) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise StopRequest(signal.Signals(number).name)

"""How far long work is: a bar on a terminal; elsewhere, where a bar would only fill a file, what it takes and then a line a minute."""
import sys
import time
from types import TracebackType

from tqdm import tqdm

MEASURED, EVERY = 10.0, 60.0  # seconds: of work before its length is estimated, and between two lines
clock = time.monotonic


class Work:
    """A long run of one or several stages, measured in passes of one image through a network.

    title: whose lines these are; first: what is to be done, printed at once on standard error, if anything; passes: of all stages together,
    at most; shown: whether anybody is told (one process of several); each: passes of an item. Where standard error is no terminal, the
    time that is left is estimated from the passes of the first seconds, and said where it is more than a minute.
    """

    def __init__(self, title: str, passes: int, first: str = "", shown: bool = True, each: int = 1):
        self.title, self.later, self.shown, self.each = title, passes, shown, each
        self.done, self._begun, self._said, self._estimated = 0, clock(), clock(), False
        if first and shown:
            self._print(first)

    def stage(self, title: str, items: int, planned: int | None = None, leave: bool = False, unit: str = "image") -> "Stage":
        """The next part of it, a context: so many items. planned: how many of them `passes` had counted."""
        self.later -= self.each * (items if planned is None else planned)
        return Stage(self, title, items, leave, unit)

    def look(self, stage: "Stage") -> None:
        """Print a line where one is due."""
        now = clock()
        spent = now - self._begun
        if not self._estimated and spent >= MEASURED and self.done:
            self._estimated = True
            left = self._left(stage, spent)
            if left > EVERY:
                self._print(f"about {duration(left)} at most")
        if now - self._said >= EVERY:
            self._said = now
            left_of = f", at most about {duration(self._left(stage, spent))} to go" if self.done else ""
            self._print(f"{stage.title + ', ' if stage.title else ''}{stage.done:,} of {stage.items:,} {stage.unit}s{stage.remark} after "
                        f"{duration(spent)}{left_of}")

    def _left(self, stage: "Stage", spent: float) -> float:
        return (max(0, self.later) + stage.left) * spent / self.done

    def _print(self, text: str) -> None:
        print(f"{self.title}: {text}" if self.title else text, file=sys.stderr, flush=True)


class Stage:
    """A part of a `Work`. `tick` counts passes as they happen, `update` items that are finished."""

    def __init__(self, work: Work, title: str, items: int, leave: bool, unit: str):
        self.title, self.items, self.unit, self.remark, self.done = title, items, unit, "", 0
        self._work, self._each, self._ticks = work, work.each, 0
        name = " ".join(part for part in (work.title, title) if part)
        self._bar = tqdm(total=items, desc=name, unit=unit, leave=leave, disable=None if work.shown else True)
        self._lines = work.shown and self._bar.disable

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    @property
    def left(self) -> int:
        """Passes, at most."""
        return max(0, self._each * (self.items - self.done) - self._ticks)

    def tick(self, passes: int) -> None:
        """So many passes were made of items that are not finished."""
        self._ticks += passes
        self._work.done += passes
        if self._lines:
            self._work.look(self)

    def update(self, items: int, remark: str = "") -> None:
        """So many more items are finished; what was ticked was about them. remark: what came of all of them so far."""
        self.done, self._ticks, self.remark = self.done + items, 0, f", {remark}" if remark else ""
        self._bar.update(items)
        if remark:
            self._bar.set_postfix_str(remark)
        if self._lines:
            self._work.look(self)


def duration(seconds: float) -> str:
    """For people: 40 s, 3 min, 2 h 10 min."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

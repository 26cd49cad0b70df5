"""How the processes of one start find each other, and what they say when one of them is gone."""
import os
import re
import time
import uuid

import torch
import torch.distributed as dist

from utils import InputError, RunError

TIMEOUT = 1800  # seconds
# what gloo, nccl and the store that joins them say when a process has gone or does not answer
_LOST = re.compile(r"\b(gloo|nccl|c10d|\w*store|socket)\b|processgroup|connection|timed out|timeout|broken pipe", re.IGNORECASE)


def raise_for_lost_process(error: RuntimeError, timeout: float = TIMEOUT) -> None:
    """Raise RunError instead of what a collective operation raises where another process ended or does not answer, InputError where
    another program uses their port; return for others.
    """
    first = str(error).strip().split("\n")[0].split(". This is typically")[0]  # what gloo supposes helps nobody
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        raise InputError(f"environment: MASTER_PORT={os.environ.get('MASTER_PORT')}: another program uses this port") from error
    if not isinstance(error, (RunError, torch.OutOfMemoryError)) and _LOST.search(first):
        raise RunError(f"process {os.environ.get('RANK', 0)}: another process ended, or did not answer within {timeout:g} seconds: "
                       f"{first}") from error


def of_this_start(store: dist.Store, number: int, count: int, timeout: float) -> dist.Store:
    """A part of the store that the processes of this very start have to themselves.

    torchrun keeps one store through all its restarts, and what the killed processes left in it, their addresses, must not be found by
    those that follow. Process 0 gives this start a name and waits until each of the others has left a word under it; they know by
    their own word in its answer that it is not that of an earlier start.
    """
    word, deadline, seen = uuid.uuid4().hex, time.monotonic() + timeout, ""
    if number == 0:
        store.set("start", word)
        words = [store.get(f"{word}/{other}").decode() for other in range(1, count)]
        store.set(f"{word}/all", " ".join(words))
        return dist.PrefixStore(word, store)
    while time.monotonic() < deadline:
        start = store.get("start").decode()
        if start != seen:
            store.set(f"{start}/{number}", word)
        if store.check([f"{start}/all"]) and word in store.get(f"{start}/all").decode():
            return dist.PrefixStore(start, store)
        seen = start
        time.sleep(0.02)
    raise RunError(f"process {number}: process 0 did not answer within {timeout:g} seconds")

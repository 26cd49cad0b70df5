"""The memory of a process, as Linux counts it."""
from pathlib import Path


def memory(name: str) -> int:
    """Resident bytes of this process now (VmRSS), or at their peak (VmHWM)."""
    line, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])

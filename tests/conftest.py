"""What the tests share: the root of the project on the path, and the optional folder of reference data."""
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the reference data {SHARED} is not here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What a test printed or logged may hold names of files that are no text; a process that runs tests cannot send them as they are."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report

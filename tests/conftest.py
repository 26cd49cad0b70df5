"""What the tests share: the root of the project on the path, and the optional folder of reference data."""
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the reference data {SHARED} is not here")

# Those whose few tests take long. Processes take one file after another (--dist loadfile): one of these as the last would be waited for.
FIRST = ("test_notebooks.py", "test_train.py", "test_faults.py", "test_notebook_eval.py", "test_ablation.py", "test_contributing.py",
         "test_adversarial_training.py", "test_folder.py")


def pytest_collection_modifyitems(items):
    """The order of files: these, then others by their number of tests, as without --no-loadscope-reorder all would be."""
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST), -counts[item.path]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What a test printed or logged may hold names of files that are no text; a process that runs tests cannot send them as they are."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report

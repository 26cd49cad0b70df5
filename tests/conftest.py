"""What the tests share: the root of the project on the path, and the optional folder of reference data."""
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the reference data {SHARED} is not here")

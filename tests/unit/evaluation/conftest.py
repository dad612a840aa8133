"""Makes the datasets' helper for hand-written versions known to these tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "datasets"))

"""The server's tests share the training's helpers."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "training"))

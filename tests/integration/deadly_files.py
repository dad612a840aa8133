"""`deadly://`: local files, of which some kill the process that reads them, as a bad codec would.

`…kills_decoders…` kills who decodes it, but not who scans it; `…kills_everyone…` kills both.
"""

import os
import signal
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class DeadlyFileSystem(LocalFileSystem):
    protocol = "deadly"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, str):
            path = path.removeprefix("deadly://")
        return super()._strip_protocol(path)

    def unstrip_protocol(self, name: str) -> str:
        return f"deadly://{self._strip_protocol(name)}"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if self._kills(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._open(path, mode, **options)

    @staticmethod
    def _kills(path: str) -> bool:
        if "kills_everyone" in path:
            return True
        title = Path("/proc/self/cmdline").read_text()  # Ray writes there what a worker is doing
        return "kills_decoders" in path and "StagePool" in title

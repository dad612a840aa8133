"""Models that have to be fetched before they can be loaded: once a machine, whoever asks."""

import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs

from spark_ray.core.provenance import text_hash


def cached_folder(label: str, identity: str, fill: Callable[[Path], Path]) -> Path:
    """The folder of a model in the user's cache, filled by whichever process comes first.

    The actors of a node all ask at the same time, hence the lock; a fetch that breaks off leaves
    nothing that could be taken for a model.

    Args:
        label: a name for people.
        identity: what the content follows from; another one is another folder.
        fill: writes into the folder that it is given, and says where in it the model lies.
    """
    from filelock import FileLock

    cache = Path(platformdirs.user_cache_dir("spark-ray")) / "models"
    target = cache / f"{label}-{text_hash(identity)[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            half = target.with_name(f"{target.name}.partial")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            fill(half).rename(target)
            shutil.rmtree(half, ignore_errors=True)
    return target

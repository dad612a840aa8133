"""What an evaluation measured goes into the model's own record and card."""

import tempfile
from pathlib import Path

from spark_ray.core.storage import Folder, user_path
from spark_ray.models.model_card import MODEL_CARD, render_model_card
from spark_ray.models.registered import SCHEME, find_registered, replace_files
from spark_ray.models.training_record import TRAINING_RECORD, HeldOut, TrainingRecord


def record_held_out(reference: str, held_out: HeldOut, manifest_sha256: str) -> bool:
    """Write the metrics into `training.json` and the card of a model, and say whether it was done.

    It is not where the model was trained on another dataset than the one with this manifest, where
    it has no record, or where its folder is neither on this machine nor a registered model's.

    Raises:
        ModelError: the record is damaged, or the registry can't be asked.
        StorageError: the model's files can't be written to.
    """
    is_registered = reference.startswith(SCHEME)
    folder = find_registered(reference, "model")[0] if is_registered else user_path(reference)
    if not (folder / TRAINING_RECORD).is_file():
        return False
    record = TrainingRecord.read(folder)
    if record.dataset.manifest_sha256 != manifest_sha256:
        return False
    record = record.model_copy(update={"held_out": held_out})
    with tempfile.TemporaryDirectory(prefix="spark-ray-card-") as scratch:
        card = Path(scratch) / MODEL_CARD
        card.write_text(render_model_card(folder, record), encoding="utf-8")
        files = [record.write(Path(scratch)), card]
        if is_registered:
            replace_files(reference, "model", files)
        else:
            for file in files:
                Folder(str(folder)).write(file.name, file.read_bytes())
    return True

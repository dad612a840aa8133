"""The best trial's model, taken out of its study into the model registry."""

import tempfile
from pathlib import Path

from spark_ray.core.errors import ConfigError, ModelError
from spark_ray.training.registry import (
    CHAMPION,
    RegisteredModel,
    aliased_version,
    promote,
    register_model,
)
from spark_ray.training.search.records import Study, TrialRecord
from spark_ray.training.state import MODEL


def promote_trial(
    study: Study, number: int | None = None, name: str = "apotheon", alias: str = CHAMPION
) -> tuple[TrialRecord, RegisteredModel, str | None]:
    """Register the model of the best trial, or of the one with that number, and give it the alias.

    Also returns the version that had the alias until then.

    Raises:
        ConfigError: the study has no such trial, or none that came to its end.
        ModelError: the registry did not take the model.
        StorageError: the model's files can't be read or stored.
    """
    trial = _chosen(study, number)
    uri = study.record.config.tracking_uri
    assert uri is not None
    source = study.folder.sub(f"{trial.run}/{MODEL}")
    tags = {"study": study.folder.location, "trial": trial.trial_id}
    with tempfile.TemporaryDirectory(prefix="spark-ray-promote-") as scratch:
        folder = Path(scratch)
        source.download(folder)
        registered = register_model(folder, tracking_uri=uri, name=name, tags=tags)
    before = aliased_version(name, alias, tracking_uri=uri)
    now = promote(registered.name, registered.version, tracking_uri=uri, alias=alias)
    return trial, now, before


def _chosen(study: Study, number: int | None) -> TrialRecord:
    with_model = [trial for trial in study.ranked() if trial.has_model]
    if number is None:
        if not with_model:
            raise ConfigError(
                f"{study.folder.location}: no trial has come to its end, so none left a model; "
                "run the study first"
            )
        return with_model[0]
    found = [trial for trial in study.trials if trial.number == number]
    if not found:
        numbers = ", ".join(str(trial.number) for trial in study.trials) or "none"
        raise ConfigError(f"--trial: {number} is unknown; there are {numbers}")
    if not found[0].has_model:
        raise ModelError(
            f"--trial: {number} was {found[0].state}, so it left checkpoints and no model; those "
            "with one: " + (", ".join(str(trial.number) for trial in with_model) or "none")
        )
    return found[0]

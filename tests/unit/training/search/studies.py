"""Studies as they lie on storage, written without training anything."""

import math
from pathlib import Path
from typing import Any

from spark_ray.core.storage import Folder
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.records import (
    Report,
    Study,
    StudyRecord,
    TrialRecord,
    TrialState,
    write_trial,
)

SPACE = {
    "learning_rate": {"type": "float", "min": 1e-5, "max": 1e-1, "log": True},
    "weight_decay": {"type": "float", "min": 0.0, "max": 0.1},
    "frozen": {"type": "choice", "values": [[], ["vision"]]},
}


def study_config(folder: Path, **values: Any) -> StudyConfig:
    given = {
        "study_dir": str(folder),
        "tracking_uri": f"sqlite:///{folder.parent}/mlflow.db",
        "train": {"dataset": "sets/x", "epochs": 4},
        "space": SPACE,
    }
    return StudyConfig.from_values(**{**given, **values})


def trial(number: int, rate: float = 1e-3, state: TrialState = "finished") -> TrialRecord:
    """The nearer its rate is to 1e-3 the lower its loss; its decay and `frozen` change nothing."""
    distance = abs(math.log10(rate) + 3)
    return TrialRecord(
        trial_id=f"trial_{number:05d}",
        number=number,
        params={
            "learning_rate": rate,
            "weight_decay": 0.01 * (number % 7),
            "frozen": '["vision"]' if number % 2 else "[]",
        },
        state=state,
        run=f"runs/trial_{number:05d}",
        seconds=10.0,
        reports=[
            Report(
                step=step,
                metrics={"validation_loss": 1 + distance + 10 / step, "step_s": 2.0 - distance},
            )
            for step in (5, 10, 20)
        ],
    )


def write_study(folder: Path, trials: list[TrialRecord], **values: Any) -> Study:
    record = StudyRecord(
        created="2026-11-28T12:00:00+00:00",
        config=study_config(folder, **values),
        code_version="0.1.0+0123456789ab",
        dataset="/data/sets/x/v3",
        state="finished",
        planned=len(trials),
    )
    study = Study(Folder(str(folder)), record, trials)
    study.save_record()
    for one in trials:
        write_trial(study.folder, one)
    return study

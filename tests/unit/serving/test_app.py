"""What `serve deploy` refuses before anything that runs is replaced."""

from pathlib import Path

import pytest

from spark_ray.core.errors import ModelError
from spark_ray.serving.app import build


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("runs/gone/model/here", "models.seer.reference: runs/gone/model/here is neither a folder"),
        ("models:/gone", "models.seer.reference: models:/gone@champion can't be looked up"),
    ],
)
def test_a_model_that_is_nowhere_to_be_found_is_refused(
    reference: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later, when its replica failed, Serve would have let go of the one that answers."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    models = {"seer": {"reference": reference}}
    with pytest.raises(ModelError) as refusal:
        build({"state": str(tmp_path / "state"), "models": models})
    assert said in str(refusal.value)

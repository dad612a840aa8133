"""The notebooks run from a bare kernel, in their order, and show their pictures."""

import os
from pathlib import Path

import nbformat
import pytest
from clusters import ROOT
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT_S = 480


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook: NotebookNode) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_the_notebooks_run_one_after_the_other_and_show_pictures(tmp_path: Path) -> None:
    """In a folder of their own, on Rays of their own, as a reader has them."""
    names = [path.stem for path in NOTEBOOKS]
    assert names == [
        "01_create_multimodal_dataset", "02_train_apotheon_model", "03_evaluate_and_visualize",
    ]  # fmt: skip
    others = ("RAY_", "AWS_", "MLFLOW_", "SPARK_RAY_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(others)}
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    shown = []
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        place = {"metadata": {"path": str(tmp_path)}}
        client = NotebookClient(notebook, timeout=CELL_TIMEOUT_S, resources=place)
        client.execute(env=environment)  # a cell that fails raises, with its traceback
        nbformat.write(notebook, tmp_path / path.name)
        shown.append(pictures(notebook))
    assert shown == [3, 3, 3]

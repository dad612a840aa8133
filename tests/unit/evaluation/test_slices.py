"""Which clips belong together."""

from spark_ray.evaluation.results import Prediction
from spark_ray.evaluation.slices import NO_LABEL, slice_predictions, sources_of


def prediction(number: int, label: str | None, duration: float, source: str) -> Prediction:
    return Prediction(
        id=f"clip-{number}",
        source_path=f"/{source}/{number}.mp4",
        label=label,
        duration=duration,
        source=source,
        caption=None,
        transcript=None,
        retrieval=None,
        seconds=0.1,
    )


def test_slices_by_label_duration_and_source() -> None:
    predictions = [
        prediction(0, "red", 30.0, "phones"),
        prediction(1, None, 2.99, "drones"),
        prediction(2, "red", 3.0, "phones"),
        prediction(3, "blue", 10.0, "phones"),
    ]
    slices = slice_predictions(predictions)
    found = {
        kind: {name: [p.id[-1] for p in group] for name, group in groups.items()}
        for kind, groups in slices.items()
    }
    assert found == {
        "label": {"blue": ["3"], NO_LABEL: ["1"], "red": ["0", "2"]},
        "duration": {
            "under 3 s": ["1"],
            "3 to 10 s": ["2"],
            "10 to 30 s": ["3"],
            "30 s or more": ["0"],
        },
        "source": {"drones": ["1"], "phones": ["0", "2", "3"]},
    }
    assert list(slices["duration"]) == ["under 3 s", "3 to 10 s", "10 to 30 s", "30 s or more"]


def test_a_source_is_the_first_folder_in_which_paths_differ() -> None:
    paths = ["s3://raw/phones/a/1.mp4", "s3://raw/drones/2.mp4", "s3://raw/drones/x/3.mp4"]
    assert sources_of(paths) == ["phones", "drones", "drones"]


def test_files_beside_folders_and_files_of_one_folder() -> None:
    assert sources_of(["/films/1.mp4", "/films/new/2.mp4"]) == ["films", "new"]
    assert sources_of(["/films/1.mp4", "/films/2.mp4"]) == ["films", "films"]
    assert sources_of(["1.mp4", "/2.mp4"]) == ["/", "/"]
    assert sources_of([]) == []

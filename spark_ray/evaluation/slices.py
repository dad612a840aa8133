"""Groups of clips whose scores are worth a look of their own: by label, duration and source."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

from spark_ray.evaluation.results import Prediction

# Fixed, so that a slice means the same in every dataset. Seconds; the first bound that is larger.
_DURATIONS = ((3.0, "under 3 s"), (10.0, "3 to 10 s"), (30.0, "10 to 30 s"))
_LONGEST = "30 s or more"

NO_LABEL = "no label"


def slice_predictions(
    predictions: Sequence[Prediction],
) -> dict[str, dict[str, list[Prediction]]]:
    """Predictions by what is sliced, then by its value, the values in a fixed order.

    `label` is the dataset's own, `duration` one of four ranges, `source` see `sources_of`.
    """
    labels, durations, sources = _empty(), _empty(), _empty()
    for prediction in predictions:
        labels[prediction.label or NO_LABEL].append(prediction)
        durations[_duration_range(prediction.duration)].append(prediction)
        sources[prediction.source].append(prediction)
    order = [name for _, name in _DURATIONS] + [_LONGEST]
    return {
        "label": dict(sorted(labels.items())),
        "duration": {name: durations[name] for name in order if name in durations},
        "source": dict(sorted(sources.items())),
    }


def _empty() -> defaultdict[str, list[Prediction]]:
    return defaultdict(list)


def _duration_range(seconds: float) -> str:
    return next((name for bound, name in _DURATIONS if seconds < bound), _LONGEST)


def sources_of(source_paths: Sequence[str]) -> list[str]:
    """Where each clip comes from: the first folder in which the paths of a dataset differ.

    Of `s3://raw/phones/a/1.mp4` and `s3://raw/drones/2.mp4` these are `phones` and `drones`. A file
    that lies beside such folders, or all files where there is but one folder, have its own name.
    """
    folders = [path.split("/")[:-1] for path in source_paths]
    # What the first and the last in order share, all share.
    ends = zip(min(folders, default=[]), max(folders, default=[]), strict=False)
    shared = len(list(takewhile(lambda names: names[0] == names[1], ends)))
    return [
        (folder[shared] if len(folder) > shared else folder[-1] if folder else "") or "/"
        for folder in folders
    ]

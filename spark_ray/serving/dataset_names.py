"""Which published datasets a caller may see, and by what names: the server's and its own."""

from collections import Counter
from collections.abc import Sequence

from spark_ray.core.storage import Folder
from spark_ray.serving.errors import ApiError
from spark_ray.serving.keys import Caller
from spark_ray.serving.messages import DatasetPlace
from spark_ray.serving.shown import without_paths

OWN = "mine:"
"""Begins the names of datasets that a key's jobs built; the server's can't begin so."""

DATASET_NAME = r"(mine:)?[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def name_of(reference: str) -> str:
    """The last part of a dataset's location, without a version."""
    location, separator, version = reference.rpartition("@")
    if not separator or "/" in version:
        location = reference
    return location.rstrip("/").rpartition("/")[2]


def doubled_name(references: Sequence[str]) -> str | None:
    """A name that two of the server's datasets would have."""
    counts = Counter(map(name_of, references)).items()
    return next((name for name, count in counts if count > 1), None)


class DatasetNames:
    """Names to places. A name is only ever compared with those that are there."""

    def __init__(self, references: Sequence[str], jobs_output: str) -> None:
        self._jobs_output = jobs_output
        self._server = [
            DatasetPlace(name=name_of(text), reference=text, owned=False, searchable=True)
            for text in references
        ]

    def all(self, caller: Caller) -> list[DatasetPlace]:
        """Every dataset of the server and of this caller. Lists a folder: call it in a thread."""
        own = Folder(f"{self._jobs_output}/{caller.id}")
        return self._server + [
            DatasetPlace(name=f"{OWN}{name}", reference=own / name, owned=True, searchable=False)
            for name in own.children()
        ]

    def searchable(self, name: str | None) -> DatasetPlace:
        """The server's dataset of that name or location, or its first.

        Raises:
            ApiError: there is none; it lists those that are there.
        """
        for place in self._server:
            if name in (None, place.name, place.reference):
                return place
        known = ", ".join(place.name for place in self._server) or "none"
        raise ApiError(
            404, "dataset_not_found", f"there is no dataset {name!r} to search; known: {known}"
        )

    def find(self, name: str, caller: Caller) -> DatasetPlace:
        """
        Raises:
            ApiError: there is none of that name; it lists those that are there.
        """
        places = self.all(caller) if name.startswith(OWN) else self._server
        for place in places:
            if place.name == name:
                return place
        known = ", ".join(place.name for place in self.all(caller)) or "none"
        raise ApiError(404, "dataset_not_found", f"there is no dataset {name!r}; known: {known}")


def without_location(place: DatasetPlace, message: str) -> str:
    """A message that names the dataset, and not where its files lie."""
    location = place.reference.rpartition("@")[0] or place.reference
    return without_paths(message, {place.reference: place.name, location: place.name})

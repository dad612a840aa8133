"""When it is the storage that is gone, and not a file."""

from spark_ray.core.errors import StorageUnavailable

_MAX_UNREADABLE_IN_A_ROW = 16


class OutageWatch:
    """Tells files that can't be read from storage on which none can be read any more.

    When a folder is unmounted, or a role may no longer read a bucket, each file says only that it
    is missing, or forbidden; nothing but their number shows that it is not about them.
    """

    def __init__(self) -> None:
        self._failures_in_a_row = 0

    def note(self, failure: str | None) -> None:
        """Take in what came of reading one more file: the `StorageError`, or None.

        Raises:
            StorageUnavailable: so many files failed, one after the other, that it is the storage.
        """
        self._failures_in_a_row = 0 if failure is None else self._failures_in_a_row + 1
        if self._failures_in_a_row >= _MAX_UNREADABLE_IN_A_ROW:
            raise StorageUnavailable(
                f"{failure}; {_MAX_UNREADABLE_IN_A_ROW} files in a row could not be read, so it "
                "seems to be their storage: run the same command again when it is back, or give "
                "another --version to do without them"
            )

"""One of something is not several."""

from spark_ray.core.wording import counted


def test_only_one_is_singular() -> None:
    assert [counted(count, "worker") for count in (0, 1, 2)] == [
        "0 workers",
        "1 worker",
        "2 workers",
    ]
    assert [counted(count, "copy", "copies") for count in (1, 2)] == ["1 copy", "2 copies"]
    assert counted(1234, "line") == "1,234 lines"

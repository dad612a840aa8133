"""The tuning benchmark's searches, over curves whose outcome is known."""

from pathlib import Path

from benchmarks.tuning import Curve, Rungs, draw, replay, search


def curve(level: float) -> Curve:
    """The better ones are better from the start."""
    return [(step, level + 10 / step) for step in range(1, 33)]


def test_random_search_takes_every_step_and_asha_few_to_the_same_value(tmp_path: Path):
    curves = [curve(float(level)) for level in range(16)]
    found = replay(curves[::-1], None)
    assert found[-1] == (16 * 32, 10 / 32)
    spared = replay(curves[::-1], Rungs(tmp_path, steps=32))
    assert spared[-1][1] == found[-1][1], "each is better than all before, so none was ended"
    assert spared[-1][0] == found[-1][0]

    spared = replay(curves, Rungs(tmp_path / "other", steps=32))
    assert spared[-1][1] == found[-1][1]
    assert spared[-1][0] < 16 * 32 / 4, "all but the first two were ended at once"


def test_a_search_tells_what_share_of_the_budget_it_took(tmp_path: Path):
    curves = [curve(float(level)) for level in range(16)]
    one = search(curves, seed=3)
    assert one.budget == 8 * 32
    assert one.reached
    assert 0 < one.ratio < 1
    reached = next(step for step, best in one.asha if best <= one.target)
    assert one.ratio == reached / one.budget
    draw([one, search(curves, seed=4)], tmp_path / "tuning.svg")
    assert "random search" in (tmp_path / "tuning.svg").read_text()

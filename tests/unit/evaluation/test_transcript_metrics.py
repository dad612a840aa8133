"""Error rates against values counted by hand, and against jiwer over a whole corpus."""

import jiwer
import pytest

from spark_ray.evaluation.text import normalised
from spark_ray.evaluation.transcripts import judge_transcript, transcript_scores

PAIRS = (
    ("The train to Oslo leaves at six.", "the train to oslo leaves at six"),
    ("the weather today is sunny", "the weather is sunny today"),
    ("my friend lost a boat", "friend last a new boat"),
    ("noon", "it is at noon or so"),
)


def test_errors_of_one_clip() -> None:
    # "my" is missing, "lost" is "last", "new" is too much.
    result = judge_transcript(*PAIRS[2])
    assert (result.word_errors, result.words) == (3, 5)
    assert result.wer == pytest.approx(0.6)
    # Characters: "my " is missing, o is a, "new " is too much.
    assert (result.character_errors, result.characters) == (3 + 1 + 4, 21)


def test_case_and_punctuation_are_no_errors() -> None:
    assert judge_transcript(*PAIRS[0]).word_errors == 0


def test_nothing_written_is_all_wrong() -> None:
    result = judge_transcript("two words", "")
    assert (result.wer, result.cer) == (1.0, 1.0)


def test_rates_of_many_are_those_of_all_their_words() -> None:
    scores = transcript_scores([judge_transcript(*pair) for pair in PAIRS])
    assert scores is not None
    assert (scores.clips, scores.words) == (4, 7 + 5 + 5 + 1)
    assert scores.wer == pytest.approx((0 + 2 + 3 + 5) / 18)
    wanted, given = ([normalised(text) for text in side] for side in zip(*PAIRS, strict=True))
    assert scores.wer == pytest.approx(jiwer.wer(wanted, given))
    assert scores.cer == pytest.approx(jiwer.cer(wanted, given))
    assert transcript_scores([]) is None

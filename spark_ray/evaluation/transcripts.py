"""Transcripts against their references: word and character error rates, by jiwer.

Both sides are normalised first, see `text.normalised`. The rate of many clips is all their errors
(substitutions, deletions, insertions) over all their reference's words or characters, so that long
clips weigh more; a model that writes too much can exceed 1.
"""

from collections.abc import Sequence

import jiwer

from spark_ray.evaluation.results import TranscriptResult, TranscriptScores
from spark_ray.evaluation.text import normalised


def judge_transcript(reference: str, predicted: str) -> TranscriptResult:
    """One clip's errors. The reference must have words: a share of none has no meaning."""
    wanted, given = normalised(reference), normalised(predicted)
    by_word = jiwer.process_words(wanted, given)
    by_character = jiwer.process_characters(wanted, given)
    return TranscriptResult(
        reference=reference,
        predicted=predicted,
        word_errors=_errors(by_word),
        words=len(wanted.split()),
        character_errors=_errors(by_character),
        characters=len(wanted),
    )


def _errors(output: jiwer.WordOutput | jiwer.CharacterOutput) -> int:
    return output.substitutions + output.deletions + output.insertions


def transcript_scores(results: Sequence[TranscriptResult]) -> TranscriptScores | None:
    """Scores of some clips together; None for no clip."""
    if not results:
        return None
    words = sum(result.words for result in results)
    return TranscriptScores(
        clips=len(results),
        words=words,
        wer=sum(result.word_errors for result in results) / words,
        cer=sum(result.character_errors for result in results)
        / sum(result.characters for result in results),
    )

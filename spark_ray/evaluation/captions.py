"""Captions against their references: exact match, BLEU, ROUGE-L, METEOR and CIDEr.

All but BLEU are means over clips, so that a slice's scores average to the whole's.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]
from nltk.translate.meteor_score import single_meteor_score  # type: ignore[import-untyped]
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
from rouge_score.tokenizers import Tokenizer  # type: ignore[import-untyped]
from sacrebleu.metrics.bleu import BLEU

from spark_ray.evaluation.cider import cider_d
from spark_ray.evaluation.results import CaptionResult, CaptionScores
from spark_ray.evaluation.text import same_text, words


class _NoSynonyms:
    """Stands in for WordNet, whose corpus would have to be downloaded."""

    def synsets(self, _word: str) -> list[Any]:
        return []


class _OurWords(Tokenizer):
    """rouge-score's own tokenizer throws away whatever is not a to z or a digit."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def judge_captions(references: Sequence[str], predicted: Sequence[str]) -> list[CaptionResult]:
    """What each clip's caption is worth; parallel to the arguments.

    - Exact match: see `text.same_text`.
    - ROUGE-L: C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; the F1 of
      rouge-score, without stemming.
    - METEOR: A. Lavie, A. Agarwal, "METEOR: An Automatic Metric for MT Evaluation with High Levels
      of Correlation with Human Judgments", 2007, by nltk. Words match exactly or by their Porter
      stem; the third stage of the metric, WordNet's synonyms, is left out.
    - CIDEr: see `cider.cider_d`.
    """
    reference_words, predicted_words = map(words, references), map(words, predicted)
    pairs = list(zip(reference_words, predicted_words, strict=True))
    ciders = cider_d([wanted for wanted, _ in pairs], [given for _, given in pairs])
    scorer = RougeScorer(["rougeL"], tokenizer=_OurWords())
    stemmer, no_synonyms = PorterStemmer(), _NoSynonyms()
    return [
        CaptionResult(
            reference=reference,
            predicted=text,
            exact=same_text(reference) == same_text(text),
            rouge_l=scorer.score(reference, text)["rougeL"].fmeasure,
            meteor=single_meteor_score(wanted, given, stemmer=stemmer, wordnet=no_synonyms),
            cider=cider,
        )
        for reference, text, (wanted, given), cider in zip(
            references, predicted, pairs, ciders, strict=True
        )
    ]


def caption_scores(results: Sequence[CaptionResult]) -> CaptionScores | None:
    """Scores of some clips together; None for no clip."""
    if not results:
        return None
    return CaptionScores(
        clips=len(results),
        exact=fmean(result.exact for result in results),
        bleu=_bleu(results)[0],
        rouge_l=fmean(result.rouge_l for result in results),
        meteor=fmean(result.meteor for result in results),
        cider=fmean(result.cider for result in results),
    )


def bleu_signature(results: Sequence[CaptionResult]) -> str | None:
    """How sacrebleu counted, in its own words; None for no clip."""
    return _bleu(results)[1] if results else None


def _bleu(results: Sequence[CaptionResult]) -> tuple[float, str]:
    """Corpus BLEU-4 (Papineni et al., 2002) by sacrebleu (Post, 2018), 0 to 100, and its signature.

    Where no caption of all is four words long, lower orders count alone (`eff:yes`): else the BLEU
    of a slice of short captions would be 0 whatever was written.
    """
    metric = BLEU(lowercase=True, effective_order=True)
    score = metric.corpus_score(
        [result.predicted for result in results], [[result.reference for result in results]]
    )
    return float(score.score), str(metric.get_signature())

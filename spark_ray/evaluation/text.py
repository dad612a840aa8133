"""What counts as the same text, and as a word, for every metric here.

Three forms, from strict to lenient:

- `same_text`, for exact match: lower case, runs of white space are one space. Punctuation counts.
- `normalised`, for WER and CER: besides, punctuation and symbols are gone. An apostrophe leaves
  nothing behind (`don't` is `dont`), all else a space (`well-known` is `well known`). Numbers are
  not spelled out, and no language has rules of its own.
- `words`, for ROUGE-L, METEOR and CIDEr: the normalised text, split at spaces.

BLEU has a tokenizer of its own, sacrebleu's `13a`.
"""

import unicodedata

_APOSTROPHES = frozenset("'\u2019\u02bc\uff07")


def same_text(text: str) -> str:
    """Texts with the same result match exactly."""
    return " ".join(_folded(text).split())


def normalised(text: str) -> str:
    """Words of letters, digits and combining marks, with single spaces between; maybe empty."""
    kept = [_kept(character) for character in _folded(text)]
    return " ".join("".join(kept).split())


def words(text: str) -> list[str]:
    return normalised(text).split()


def has_words(text: str | None) -> bool:
    """Whether it can be a reference: of mere punctuation nothing can be got right."""
    return bool(text and normalised(text))


def _folded(text: str) -> str:
    # Composed first: é may be written as one character or as two.
    return unicodedata.normalize("NFC", text).lower()


def _kept(character: str) -> str:
    category = unicodedata.category(character)
    if character in _APOSTROPHES or category == "Cf":  # joiners and the like are inside of words
        return ""
    return " " if category[0] in "PSZ" or category == "Cc" else character

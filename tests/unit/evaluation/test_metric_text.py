"""What counts as the same text and as a word."""

from spark_ray.evaluation.text import has_words, normalised, same_text, words


def test_exact_match_forgives_case_and_space_only() -> None:
    assert same_text("A  red\ncircle ") == same_text("a red circle")
    assert same_text("a red circle.") != same_text("a red circle")
    assert same_text("cafe\u0301") == same_text("CAF\u00c9")


def test_punctuation_separates_words_and_apostrophes_do_not() -> None:
    assert normalised("Well-known: it's 3.5 %, don\u2019t!") == "well known its 3 5 dont"
    assert words("\t\u00bfQu\u00e9 tal,  amigo?") == ["qu\u00e9", "tal", "amigo"]


def test_letters_of_every_script_and_their_marks_stay() -> None:
    assert normalised("Привет, мир!") == "привет мир"
    assert normalised("नमस्ते।") == "नमस्ते"
    assert normalised("می\u200cخواهم") == "میخواهم"  # the joiner has no width and no sound


def test_a_reference_needs_a_word() -> None:
    assert has_words("a")
    assert not any(map(has_words, (None, "", " \n", "...", "?! \u200b")))

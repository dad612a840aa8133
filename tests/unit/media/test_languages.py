"""One code for each language, however it is written."""

import pytest

from spark_ray.media.languages import _TWO_LETTERS, language_code


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("de", "de"), ("deu", "de"), ("ger", "de"), ("GER", "de"), ("de-AT", "de"), ("pt_BR", "pt"),
        ("gsw", "gsw"), ("yue", "yue"), ("und", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_a_language_has_one_code(name: str | None, code: str | None) -> None:
    assert language_code(name) == code


def test_the_table_is_whole() -> None:
    assert len(set(_TWO_LETTERS.values())) == 184
    assert len(_TWO_LETTERS) == 184 + 20, "twenty have a second, bibliographic code"


def test_the_table_is_what_unicode_says() -> None:
    aliases = pytest.importorskip("babel.core").get_global("language_aliases")
    merged = {"bih", "tgl", "twi"}  # Unicode takes these for Bhojpuri, Filipino and Akan
    for long, short in _TWO_LETTERS.items():
        assert long in merged or aliases[long] == short

"""Text before tokenizing, case by case."""

# ruff: noqa: RUF001  # the characters are the subject

import pytest

from indextts_job.tokenizer.normalize import normalize


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("  ሰላም፡ዓለም።  ", "", "ሰላም ዓለም."),
        ("ተናጋሪ 2: ሰላም", "am", "ሰላም"),
        ("Speaker 12： hello there", "en", "HELLO THERE"),
        ("spk no tag", "en", "SPK NO TAG"),
        ("አንድ፣ ሁለት፤ ሦስት፥ አራት፦ አምስት፧ ስድስት፨", "am", "አንድ, ሁለት; ሦስት: አራት: አምስት? ስድስት!"),
        ("typed; and: that", "en", "TYPED, AND, THAT"),
        ("ሀ; ለ: መ", "am", "ሀ, ለ, መ"),
        ("wait... what,,, oh……", "en", "WAIT… WHAT… OH……"),
        ("“quoted” (and) [more]", "en", "'QUOTED' 'AND' 'MORE'"),
        ("a\u3000b\xa0c\t\nd", "en", "A B C D"),
        ("ﬁne ①", "en", "FINE 1"),
        ("ﬁ ሀ", "am", "ﬁ ሀ".upper()),
        ("我们go", "zh", "我 们 GO"),
        ("ꬁꬂ", "am", "ꬁ ꬂ"),
        ("፠ ፩፪", "am", "፠ ፩፪"),
        ("x", "en", "x"),
        ("   ", "en", ""),
    ],
)
def test_text_is_what_the_front_end_hands_over(text: str, language: str, expected: str) -> None:
    assert normalize(text, language) == expected

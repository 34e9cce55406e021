"""Text as the inference of IndexTTS-2.5 prepares it, case by case.

The expected texts were compared with the release's own functions, and so were 123,000 random ones.
"""

# ruff: noqa: RUF001  # the characters are the subject

import pytest

from indextts_job.tokenizer.stock_text import prepare


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("ሰላም ለዓለም። 12 ቀን፣ Abc", "am", "<|am|> ሰላም ለዓለም። 12 ቀን፣ Abc"),
        ("wait... what,,, oh…… “so”; (yes)", "de", "<|de|> wait… what… oh… 'so', 'yes'"),
        ("，，，", "am", "<|am|> ,,,"),  # the release has a rule for it, which its single comma takes away
        ("  two  spaces\nstay ", "tt", "<|tt|>   two  spaces stay "),
        ("Hello, World!", "en", "<|en|> hello, world!"),
        ("What's that? It's HIS.", "en", "<|en|> what is that? it is his."),
        ("，，，好", "zh", "<|zh|> …好"),  # the marks are mapped twice there
        ("今天天气很好。", "mandarin", "<|zh|> 今天天气很好."),
        ("¿Qué tal, Señor?", "es", "<|es|> ¿QUÉ TAL, SEÑOR?"),
        ("Əlvida", "az:tt", "<|tt|> Əlvida"),
        ("Ağ İstanbul", "tr", "<|tr|> Ağ İstanbul"),
        ("مرحبا: أهلا", "ar", "<|ar|> مرحبا, أهلا"),
        ("<行|xing2>了", "zh", "<|zh|> <|SPECIAL_TOKEN_2|>XING2<|SPECIAL_TOKEN_2|>了"),
        ("<going|G OW1 . IH0 NG> on", "en", "<|en|> <|SPECIAL_TOKEN_1|>G OW1 . IH0 NG<|SPECIAL_TOKEN_1|> on"),
        ("a<x|カナ>b", "am", "<|am|> a カナ b"),
        ("<|happy|> <|en|> <|0.02|>", "am", "<|am|> <|HAPPY|> <|EN|> <|0.02|>"),
        ("Ab; cd", "", " Ab, cd"),
    ],
)
def test_text_is_what_inference_encodes(text: str, language: str, expected: str) -> None:
    assert prepare(text, language) == expected


@pytest.mark.parametrize(
    ("text", "language"),
    [
        *(
            (text, language)
            for text in ("in 1972", "½ cup", "a & b", "two  spaces", " outside")
            for language in ("en", "es")
        ),
        *(("Mr. Jones", "en"), ("the U.S.", "en"), ("Henry VIII", "en"), ("la Sra. Paz", "es")),
        *(("第3天", "zh"), ("漢語", "zh"), ("<una|OW1>", "es"), ("きょうは", "ja"), ("", "am"), (" \n", "am")),
    ],
)
def test_what_tools_outside_might_change_has_no_text(text: str, language: str) -> None:
    assert prepare(text, language) is None


@pytest.mark.parametrize("language", ["xx", "yue", "zhen", "az:es"])
def test_a_language_without_a_slot_is_refused(language: str) -> None:
    with pytest.raises(ValueError, match="slot"):
        prepare("text", language)

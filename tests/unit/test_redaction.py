"""Secrets do not get into what is written down or shown."""

import pytest

from indextts_job.redaction import redacted, redacted_values

LONG = "Q7zzSECRETzz/x+y=="
PLAIN = "Q7zzSECRETzz"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{PLAIN}@host:9000/bucket",
        f"https://user:p@ss{PLAIN}@host/x",
        f"https://host/x.npy?X-Amz-Signature={PLAIN}&X-Amz-Date=1",
        f"https://host/x.npy?sv=1&sig={PLAIN}%3D",
        f"reading s3://bucket/k?versionId={PLAIN} failed",
        f"X-Amz-Security-Token={PLAIN}",
        f"X-Goog-Signature={PLAIN}",
        f'"aws_secret_access_key": "{PLAIN}"',
        f'\\"aws_secret_access_key\\": \\"{PLAIN}\\"',
        f"AWS_SECRET_ACCESS_KEY={LONG}",
        f"aws_session_token = {LONG}",
        f"password: {PLAIN}",
        f"AccountKey={LONG};EndpointSuffix=x",
        f"Authorization: Bearer {PLAIN}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{PLAIN}\n-----END RSA PRIVATE KEY-----",
        f"api_key={PLAIN}",
        f"https://u:pa/{PLAIN}@h/x",
        f"HF_TOKEN={PLAIN}",
        f"token: {PLAIN}",
        f"--password {PLAIN}",
        f"Authorization: Token {PLAIN}",
        f"Cookie: session={PLAIN}",
        f"password = 'a {PLAIN}'",
        f'"password": "ab;{PLAIN}"',
        f"{{'password': b'{PLAIN}'}}",
        f"password=null{PLAIN}",
        f"SharedAccessSignature={PLAIN}",
        f"https://h/x?a='{PLAIN}'",
        f"https://h/x%3Ftoken={PLAIN}",
        f"https:\\/\\/u:{PLAIN}@h",
    ],
)
def test_secret_is_struck_out(text: str) -> None:
    shown = redacted(text)
    assert "SECRET" not in shown.replace("AWS_SECRET_ACCESS_KEY", "")
    assert "***" in shown


@pytest.mark.parametrize(
    "token", ["AKIAABCDEFGHIJKLMNOP", "hf_" + "a" * 34, "ghp_" + "b" * 36, "glpat-" + "c" * 20, "sk-" + "d" * 40]
)
def test_token_known_by_its_form_is_struck_out(token: str) -> None:
    assert token not in redacted(f"the client said {token}.")


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/runs/amharic/checkpoints/step-00001000-attempt-0002-from-00000400.json",
        "s3://bucket/run@v2/x",
        "data/train.jsonl::am",
        "tokenizer: s3://bucket/bpe.model, 12000 pieces",
        "tokens/s 5000, text_loss 3.2",
        "12000 tokens: capacity_tokens=16000",
        "is this right? yes",
        '"secretary": null',
        "start_text_token: 0, stop_mel_token: 8193",
        "gpt.start_mel_token=8192",
        "tokens: many, and tokenizer=x.model",
        "key=value, expected a dotted key",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_redaction_is_idempotent_and_reaches_nested_values() -> None:
    values = {"config": {"urls": [f"https://u:{PLAIN}@h/x"], "n": 3, "none": None}}
    once = redacted_values(values)
    assert once == {"config": {"urls": ["https://***@h/x"], "n": 3, "none": None}}
    assert redacted_values(once) == once
    assert redacted_values({"password": PLAIN, "start_text_token": 0, "token": ""}) == {
        "password": "***",
        "start_text_token": 0,
        "token": "",
    }


@pytest.mark.parametrize("piece", ["x", "1", "a://", "s3://a/b", "secret", "-", "eyJ"])
def test_long_texts_take_no_time_that_grows_with_their_square(piece: str) -> None:
    # With the square of 60,000 characters this would run for minutes.
    text = piece * (60_000 // len(piece))
    assert len(redacted(text)) <= 2 * len(text)

"""Hashes of tokenizers: what counts, and what does not."""

from __future__ import annotations

from tests.small import code_tokenizer, english_tokenizer

from microtome.models.fingerprint import tokenizer_fingerprint


class Slow:
    """A tokenizer without a backend, as those written in Python are."""

    def __init__(self, words: dict[str, int]) -> None:
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return self.words


def test_padding_and_truncation_do_not_count() -> None:
    tokenizer = code_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a b", "a"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == before
    assert len(before) == 64


def test_vocabularies_count() -> None:
    assert tokenizer_fingerprint(code_tokenizer()) != tokenizer_fingerprint(english_tokenizer())
    one, two = ({"a": 0, "b": 1}, {"a": 1, "b": 0})
    assert tokenizer_fingerprint(Slow(one)) == tokenizer_fingerprint(Slow(dict(one)))
    assert tokenizer_fingerprint(Slow(one)) != tokenizer_fingerprint(Slow(two))
    assert tokenizer_fingerprint(None) == ""

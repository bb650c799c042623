"""Text comes out in whole characters and adds up to what decoding everything at once gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sixfold.plugins.llm.detokenizer import Detokenizer
from sixfold.plugins.llm.text_codec import TextCodec


def byte_level() -> Tokenizer:
    vocab = {char: place for place, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_words() -> Tokenizer:
    """Bytes, some words, a whole character of two bytes, a part of one, and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "\u0120cat", "\u00c3\u00a9", "a\u00c3", "\u00a9\u0120b", "<end>"]
    tokenizer = Tokenizer(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """Words with the space in front, single bytes for the rest; decoding drops the first space of a text."""
    pieces = ["\u2581the", "\u2581cat", "\u2581", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.WordLevel({piece: place for place, piece in enumerate(pieces)}, unk_token="s"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


BYTES = byte_level()
WORDS = sentencepiece_like()


def decode_bytes(token_ids: Sequence[int]) -> str:
    return BYTES.decode(list(token_ids), skip_special_tokens=True)


def decode_words(token_ids: Sequence[int]) -> str:
    return WORDS.decode(list(token_ids), skip_special_tokens=True)


@given(st.text(), st.text())
def test_every_delta_is_whole_and_all_of_them_are_the_text(prompt: str, answer: str) -> None:
    detokenizer = Detokenizer(decode_bytes, BYTES.encode(prompt).ids)
    deltas = [detokenizer.push(token) for token in BYTES.encode(answer).ids]
    assert "".join(deltas) + detokenizer.flush() == answer.rstrip("\ufffd") or "\ufffd" in answer
    assert "\ufffd" in answer or not any("\ufffd" in delta for delta in deltas)


@pytest.mark.parametrize(
    "text", ["🙂 \U0001f468\u200d\U0001f469\u200d\U0001f467 🇫🇷", "東京は日本の首都です。", "naïve — ça"]
)
def test_emoji_and_cjk_over_token_borders_come_out_whole(text: str) -> None:
    detokenizer = Detokenizer(decode_bytes, BYTES.encode("Say: ").ids)
    deltas = [detokenizer.push(token) for token in BYTES.encode(text).ids]
    assert "".join(deltas) == text
    assert [delta for delta in deltas if delta] == list(text)


def test_the_space_before_the_first_generated_word_is_kept() -> None:
    detokenizer = Detokenizer(decode_words, [0])
    assert [detokenizer.push(token) for token in (1, 3, 0)] == [" cat", "s", " the"]


def test_byte_fallback_tokens_wait_for_the_rest_of_their_character() -> None:
    first_byte = 4
    detokenizer = Detokenizer(decode_words, [0])
    deltas = [detokenizer.push(first_byte + byte) for byte in "é東".encode()]
    assert deltas == ["", "é", "", "", "東"]


def test_the_bytes_of_an_unfinished_character_are_dropped_at_the_end() -> None:
    detokenizer = Detokenizer(decode_bytes, [])
    ids = BYTES.encode("a🙂").ids
    assert "".join(detokenizer.push(token) for token in ids[:-1]) + detokenizer.flush() == "a"


def test_bytes_that_never_become_a_character_do_not_hold_the_text_forever() -> None:
    stray = BYTES.encode("🙂").ids[1]
    detokenizer = Detokenizer(decode_bytes, [])
    deltas = [detokenizer.push(stray) for _ in range(20)]
    assert "\ufffd" in "".join(deltas)
    assert detokenizer.push(BYTES.encode("a").ids[0]).endswith("a")


FastTokenizer: Any = PreTrainedTokenizerFast  # typed in part
WORDS_AND_BYTES = FastTokenizer(tokenizer_object=byte_words(), eos_token="<end>")


@given(st.lists(st.integers(0, len(WORDS_AND_BYTES) - 1)), st.lists(st.integers(0, len(WORDS_AND_BYTES) - 1)))
def test_text_of_tokens_by_themselves_is_that_of_all_together(prompt: list[int], answer: list[int]) -> None:
    codec = TextCodec(WORDS_AND_BYTES)
    slow, fast = Detokenizer(codec.decode, prompt), Detokenizer(codec.decode, prompt, codec.piece)
    assert [fast.push(token) for token in answer] == [slow.push(token) for token in answer]
    assert fast.flush() == slow.flush()


def test_only_whole_ordinary_tokens_have_a_text_by_themselves() -> None:
    codec = TextCodec(WORDS_AND_BYTES)
    name = {codec.piece(token) for token in range(len(WORDS_AND_BYTES))}
    assert {" cat", "\u00e9", "a", None} <= name
    assert codec.piece(WORDS_AND_BYTES.convert_tokens_to_ids("<end>")) is None
    assert codec.piece(WORDS_AND_BYTES.convert_tokens_to_ids("\u00c3")) is None  # half of a character

"""English text to Kokoro's phonemes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sixfold.plugins.tts.english.phonemizer import EnglishPhonemizer
from sixfold.plugins.tts.espeak import EspeakPhonemizer

KOKORO_LETTERS = set(
    'AIOQSTWYᵊabcdefhijklmnopqrstuvwxyzɑɐɒæβɔɕçɖðʤəɚɛɜɟɡɥɨɪʝɯɰŋɳɲɴøɸθœɹɾɻʁɽʂʃʈʧʊʋʌɣɤχʎʒʔˈˌːʰʲᵻ ;:,.!?—…"()“”'
)


@pytest.fixture(scope="module")
def english() -> EnglishPhonemizer:
    return EnglishPhonemizer()


def test_words_come_from_the_dictionary(english: EnglishPhonemizer) -> None:
    assert english.phonemes("Hello, world.") == "həlˈO, wˈɜɹld."


def test_the_flap_is_written_as_kokoro_learned_it(english: EnglishPhonemizer) -> None:
    assert english.phonemes("water") == "wˈɔTəɹ"


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("an apple", "ɐn ˈæpᵊl"),
        ("the apple", "ði ˈæpᵊl"),
        ("the pear", "ðə pˈɛɹ"),
        ("a pear", "ɐ pˈɛɹ"),
        ("to go", "tə ɡˌO"),
    ],
)
def test_small_words_follow_what_comes_next(english: EnglishPhonemizer, text: str, phonemes: str) -> None:
    assert english.phonemes(text) == phonemes


def test_the_word_before_tells_a_verb_from_a_noun(english: EnglishPhonemizer) -> None:
    assert "pɹəzˈɛnt" not in english.phonemes("a present")
    assert english.phonemes("a present").split()[1] != english.phonemes("to present").split()[1]
    assert english.phonemes("I have read").endswith("ɹˈɛd")
    assert english.phonemes("to read").endswith("ɹˈid")


@pytest.mark.parametrize(
    ("word", "ending"), [("zorblats", "s"), ("zorblads", "z"), ("watched", "ʧt"), ("gathered", "ɹd")]
)
def test_endings_follow_the_last_sound(english: EnglishPhonemizer, word: str, ending: str) -> None:
    assert english.phonemes(word).endswith(ending)


def test_an_unknown_word_is_pronounced_and_not_left_out(english: EnglishPhonemizer) -> None:
    sounds = [english.phonemes(word) for word in ("Zorblatt", "Schmendrick", "xkqzt", "brr", "Mxyzptlk")]
    assert all(len(sound) >= 2 for sound in sounds)
    assert sounds[0].replace("ˈ", "") == "zɔɹblæt"


def test_abbreviations_are_spelled(english: EnglishPhonemizer) -> None:
    assert english.phonemes("USB") == "jˌuˌɛsbˈi"
    assert english.phonemes("NASA") == "nˈæsə"


def test_accents_and_apostrophes_are_understood(english: EnglishPhonemizer) -> None:
    assert english.phonemes("café") == english.phonemes("cafe")
    assert english.phonemes("don’t") == english.phonemes("don't")


def test_text_without_words_says_nothing(english: EnglishPhonemizer) -> None:
    for text in ("😀", "...", "", "\x00\x07", "你好"):
        assert english.phonemes(text) == ""


def test_all_phonemes_of_real_text_are_kokoros(english: EnglishPhonemizer) -> None:
    texts = json.loads((Path(__file__).parents[3] / "bench" / "data" / "embedding_texts.json").read_text())
    for text, _tokens in texts[:300]:
        assert set(english.phonemes(text)) <= KOKORO_LETTERS


def test_espeak_gives_the_same_letters_where_an_operator_has_it() -> None:
    try:
        phonemes = EspeakPhonemizer("en-us").phonemes("Hello, world.")
    except Exception as error:
        pytest.skip(str(error))
    assert phonemes == "həlˈO, wˈɜːld."
    assert EspeakPhonemizer("en-us").phonemes("...") == ""

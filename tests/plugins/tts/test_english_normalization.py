"""What written figures and signs become when they are read aloud."""

from __future__ import annotations

import pytest

from sixfold.plugins.tts.english.normalization import spell_out

READ = {
    "It has 1,234 pages.": "It has one thousand two hundred and thirty four pages.",
    "pH 7.45": "pH seven point four five",
    "I paid $12.50 today.": "I paid twelve dollars and fifty cents today.",
    "$1 and €1,200": "one dollar and one thousand two hundred euros",
    "£3 million": "three million pounds",
    "on March 3rd, 2021": "on March third, twenty twenty one",
    "on 5 May 1999": "on the fifth of May nineteen ninety nine",
    "2023-12-25": "December twenty fifth, twenty twenty three",
    "12/25/2023": "December twenty fifth, twenty twenty three",
    "at 3:45 pm": "at three forty five P M",
    "at 8 a.m. sharp": "at eight A M sharp",
    "10:05": "ten oh five",
    "9:00": "nine o'clock",
    "the 1980s": "the nineteen eighties",
    "In 1999 we met": "In nineteen ninety nine we met",
    "give 10 mL": "give ten milliliters",
    "1 kg": "one kilogram",
    "5 mg/kg": "five milligrams per kilogram",
    "120/80 mmHg": "one hundred and twenty over eighty millimeters of mercury",
    "38.5 °C": "thirty eight point five degrees Celsius",
    "50%": "fifty percent",
    "Call 555-1234.": "Call five five five, one two three four.",
    "(555) 123-4567": "five five five, one two three, four five six seven",
    "5-10 people": "five to ten people",
    "-5": "minus five",
    "±5": "plus or minus five",
    "1/2 cup": "one half cup",
    "version 2.0.1": "version two point zero point one",
    "2nd": "second",
    "room 007": "room zero zero seven",
    "B12": "B twelve",
    "Dr. Smith vs. Mr. Jones": "doctor Smith versus mister Jones",
    "Baker St. is long": "Baker street is long",
    "St. Paul": "saint Paul",
    "apples, pears, etc.": "apples, pears, et cetera.",
    "in the U.S. today": "in the US today",
    "R&D": "R and D",
    "see https://www.example.com": "see example dot com",
    "12345678901234567890": "one two three four five six seven eight nine zero one two three four five six seven eight nine zero",
}


@pytest.mark.parametrize("written", READ)
def test_written_figures_are_read_as_words(written: str) -> None:
    assert spell_out(written) == READ[written]


def test_plain_text_is_left_alone() -> None:
    text = "Don't go, she said; it's (very) cold!"
    assert spell_out(text) == text


def test_control_characters_are_gaps() -> None:
    assert spell_out("one\x00two\x1b\tthree") == "one two three"


def test_no_figure_survives() -> None:
    text = "7, 0.5, 1e5, ²x, 3x4, 00:99, 13/32/2020, 99/99/99, 1..2, 1,2,3, #5, v1.2.3.4, $0.005"
    assert not any(letter in "0123456789" for letter in spell_out(text))

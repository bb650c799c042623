"""The words of figures, by ``num2words``, without the hyphens and commas that would be heard as pauses."""

from __future__ import annotations

from num2words import num2words


def cardinal(figure: str) -> str:
    """``1,234.5`` in words without hyphens and commas, which would be heard as pauses."""
    plain = figure.replace(",", "")
    if len(plain) > 15 or (len(plain) > 1 and plain[0] == "0" and plain[1] != "."):
        return digits(plain)
    whole, _, decimals = plain.partition(".")
    words = str(num2words(int(whole))).replace("-", " ").replace(",", "")
    return f"{words} point {digits(decimals)}" if decimals else words


def digits(figure: str) -> str:
    """Digit by digit, with *point* for a full stop; other signs are left out."""
    return " ".join(
        "point" if digit == "." else str(num2words(int(digit))) for digit in figure if digit.isdecimal() or digit == "."
    )


def ordinal(figure: str) -> str:
    """``21`` as *twenty first*."""
    return str(num2words(int(figure.replace(",", "")), to="ordinal")).replace("-", " ").replace(",", "")


def year(figure: str) -> str:
    """``1999`` as *nineteen ninety nine*."""
    return str(num2words(int(figure), to="year")).replace("-", " ").replace(",", "")

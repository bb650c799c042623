"""Spells out what is written in figures and signs: numbers, dates, times, money, units, abbreviations.

The words of numbers come from ``num2words``; what a figure means is decided here, pattern by pattern, first match first.
A figure that no pattern knows is still read, digit by digit at worst: nothing is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sixfold.plugins.tts.english.figures import cardinal, digits, ordinal, year

_MONTHS = (
    "January February March April May June July August September October November December"
).split()  # fmt: skip
_MONTH_OF = {name[:3].lower(): name for name in _MONTHS}
_MONTH = r"(?P<month>(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)(?:[a-z]*\b\.?))"

_MONEY = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny"), "¥": ("yen", "sen")}
_SCALES = r"(?:thousand|million|billion|trillion)"

_UNITS = {
    "km/h": "kilometers per hour", "mph": "miles per hour", "m/s": "meters per second", "mg/kg": "milligrams per kilogram",
    "mg/dL": "milligrams per deciliter", "mmol/L": "millimoles per liter", "mL/h": "milliliters per hour",
    "km": "kilometers", "cm": "centimeters", "mm": "millimeters", "kg": "kilograms",
    "mg": "milligrams", "µg": "micrograms", "mcg": "micrograms", "mL": "milliliters", "ml": "milliliters",
    "dL": "deciliters", "GB": "gigabytes", "MB": "megabytes", "kB": "kilobytes", "TB": "terabytes", "GHz": "gigahertz",
    "MHz": "megahertz", "kHz": "kilohertz", "Hz": "hertz", "kWh": "kilowatt hours", "kW": "kilowatts", "ms": "milliseconds",
    "min": "minutes", "hrs": "hours", "hr": "hours", "lbs": "pounds", "lb": "pounds", "oz": "ounces", "ft": "feet",
    "g": "grams", "L": "liters", "m": "meters", "h": "hours", "s": "seconds", "W": "watts", "V": "volts",
    "°C": "degrees Celsius", "°F": "degrees Fahrenheit", "°": "degrees", "%": "percent",
}  # fmt: skip
_SINGULAR = {
    "feet": "foot",
    "hertz": "hertz",
    "gigahertz": "gigahertz",
    "megahertz": "megahertz",
    "kilohertz": "kilohertz",
}
_UNIT = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))

_ABBREVIATIONS = {
    "Mr.": "mister", "Mrs.": "missus", "Ms.": "miz", "Dr.": "doctor", "Prof.": "professor", "St.": "saint", "Jr.": "junior",
    "Sr.": "senior", "Mt.": "mount", "vs.": "versus", "etc.": "et cetera", "e.g.": "for example", "i.e.": "that is",
    "approx.": "approximately", "dept.": "department", "Dept.": "department", "Inc.": "incorporated", "Ltd.": "limited",
    "Co.": "company", "Ave.": "avenue", "Blvd.": "boulevard", "Rd.": "road", "No.": "number", "Fig.": "figure",
    "fig.": "figure", "Ph.D.": "P H D", "a.m.": "A M", "p.m.": "P M", "b.i.d.": "twice a day", "t.i.d.": "three times a day",
    "q.d.": "once a day", "p.r.n.": "as needed", "w/o": "without",
    "mmHg": "millimeters of mercury",
}  # fmt: skip
_SIGNS = {"&": "and", "+": "plus", "=": "equals", "@": "at", "#": "number", "±": "plus or minus", "×": "times", "÷": "divided by",
          "<": "less than", ">": "greater than", "≤": "at most", "≥": "at least", "≈": "about", "µ": "micro", "°": "degrees",
          "%": "percent", "~": "about", "^": "to the", "_": " ", "*": " ", "|": " ", "\\": " "}  # fmt: skip

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\d+"


def spell_out(text: str) -> str:
    """The text with every figure, sign and known abbreviation as English words; control characters and emoji are dropped."""
    text = re.sub(r"\s+", " ", "".join(letter if letter.isprintable() else " " for letter in text))
    for pattern, replace in _RULES:
        text = pattern.sub(replace, text)
    for sign, words in _SIGNS.items():
        text = text.replace(sign, f" {words} ")
    return re.sub(r" +", " ", text).strip()


def _money(match: re.Match[str]) -> str:
    unit, small = _MONEY[match["sign"]]
    whole, _, rest = match["amount"].replace(",", "").partition(".")
    plural = unit if unit == "yen" else f"{unit}s"
    if match["scale"]:
        return f"{cardinal(match['amount'])} {match['scale']} {plural}"
    words = f"{cardinal(whole)} {unit if whole == '1' else plural}"
    if len(rest) not in (1, 2) or not int(rest):
        return words if not rest.strip("0") else f"{cardinal(match['amount'])} {plural}"
    cents = int(rest.ljust(2, "0"))
    smalls = {"penny": "pence", "sen": "sen"}.get(small, f"{small}s")
    return f"{words} and {cardinal(str(cents))} {small if cents == 1 else smalls}"


def _time(match: re.Match[str]) -> str:
    hour, minute = int(match["hour"]), match["minute"]
    half = (match["half"] or "").replace(".", "").upper()
    words = [cardinal(str(hour))]
    if minute == "00":
        words.append("" if half else "o'clock" if 0 < hour <= 12 else "hundred")
    else:
        words.append(f"oh {cardinal(minute[1])}" if minute[0] == "0" else cardinal(minute))
    return " ".join(filter(None, [*words, " ".join(half)]))


def _hour(match: re.Match[str]) -> str:
    return f"{cardinal(match[1])} {match[2].upper()} M"


def _month_day(match: re.Match[str]) -> str:
    month = _MONTH_OF[match["month"][:3].lower()]
    ending = f", {year(match['year'])}" if match["year"] else ""
    return f"{month} {ordinal(match['day'])}{ending}"


def _day_month(match: re.Match[str]) -> str:
    ending = f" {year(match['year'])}" if match["year"] else ""
    return f"the {ordinal(match['day'])} of {_MONTH_OF[match['month'][:3].lower()]}{ending}"


def _iso_date(match: re.Match[str]) -> str:
    month, day = int(match["month"]), int(match["day"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return digits(match[0])
    return f"{_MONTHS[month - 1]} {ordinal(str(day))}, {year(match['year'])}"


def _decade(match: re.Match[str]) -> str:
    century, tens = match[1] or "", match[2]
    if tens == "0":
        return f"{year(century + '00')}s" if century else match[0]
    word = cardinal(f"{tens}0").removesuffix("y") + "ies" if tens != "1" else "tens"
    return f"{cardinal(century)} {word}" if century else word


def _unit(match: re.Match[str]) -> str:
    plural = _UNITS[match["unit"]]
    if match["number"] != "1" or plural == "percent":
        return f"{cardinal(match['number'])} {plural}"
    first, _, rest = plural.partition(" ")
    return " ".join(filter(None, ["one", _SINGULAR.get(first, first.removesuffix("s")), rest]))


def _phone(match: re.Match[str]) -> str:
    return ", ".join(digits(group) for group in re.findall(r"\d+", match[0]))


def _fraction(match: re.Match[str]) -> str:
    upper, lower = int(match[1]), int(match[2])
    known = {2: "half", 3: "third", 4: "quarter", 8: "eighth"}
    if upper >= lower or lower not in known:
        return f"{cardinal(match[1])} over {cardinal(match[2])}"
    plural = "" if upper == 1 else "s"
    return f"{cardinal(match[1])} {known[lower]}{plural}" if (upper, lower) != (1, 2) else "one half"


def _abbreviation(match: re.Match[str]) -> str:
    short = match[1]
    if (
        short == "St."
        and re.search(r"[A-Za-z]\s$", match.string[: match.start()])
        and not re.match(r" [A-Z]", match.string[match.end() :])
    ):
        return "street"
    # The full stop of an abbreviation that ends the text ends the sentence, too.
    return _ABBREVIATIONS[short] + ("." if match.end() == len(match.string) and short.endswith(".") else "")


def _initials(match: re.Match[str]) -> str:
    return match[0].replace(".", "") + ("." if match.end() == len(match.string) else "")


def _rate(match: re.Match[str]) -> str:
    return f"{_UNITS[match['unit']]} per {_UNITS[match['per']].removesuffix('s')}"


def _version(match: re.Match[str]) -> str:
    return " point ".join(map(cardinal, match[0].split(".")))


_SHORT = "|".join(map(re.escape, sorted(_ABBREVIATIONS, key=len, reverse=True)))
_YEAR = r"\b(?<=\b[Ii]n )[12]\d{3}\b|\b(?<=\b[Ss]ince )[12]\d{3}\b|\b(?:1[1-9]\d\d|20[1-9]\d)\b(?![,.]?\d)"


_Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]
_RULES: tuple[_Rule, ...] = (
    (re.compile(r"https?://(?:www\.)?"), lambda _match: ""),
    (re.compile(r"(?<=[A-Za-z0-9])[.](?=(?:com|org|net|edu|gov|io|de|uk)\b)"), lambda _match: " dot "),
    (re.compile(rf"(?<!\w)({_SHORT})(?![A-Za-z])"), _abbreviation),
    (re.compile(r"\b(?:[A-Z]\.){2,}(?:$|(?=\s))?"), _initials),
    (re.compile(rf"(?P<sign>[$€£¥]) ?(?P<amount>{_NUMBER})(?: ?(?P<scale>{_SCALES})\b)?"), _money),
    (re.compile(r"(?<![\d-])(?:\+?\d{1,3}[- ])?(?:\(\d{3}\) ?|\d{3}-)\d{3}-\d{4}(?!\d)|(?<![\d-])\d{3}-\d{4}(?![\d-])"), _phone),
    (re.compile(r"\b(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)\b"), _iso_date),
    (re.compile(r"\b(?P<month>0?[1-9]|1[0-2])/(?P<day>[12]\d|3[01]|0?[1-9])/(?P<year>[12]\d{3})\b"), _iso_date),
    (re.compile(rf"\b{_MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,? (?P<year>[12]\d{{3}}))?\b(?![.,]?\d)"), _month_day),
    (re.compile(rf"\b(?:the )?(?P<day>\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{_MONTH}(?:,? (?P<year>[12]\d{{3}}))?\b"), _day_month),
    (re.compile(r"\b(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)\b(?: ?(?P<half>[ap]\.?m\b\.?))?(?!:)", re.IGNORECASE), _time),
    (re.compile(r"\b(\d{1,2}) ?([ap])\.?m\b\.?", re.IGNORECASE), _hour),
    (re.compile(r"(?<![\d'])'?\b(\d\d)?(\d)0'?s\b"), _decade),
    (re.compile(r"\b\d+(?:\.\d+){2,}"), _version),
    (re.compile(r"\b(\d{1,3})/(\d{1,3})\b(?!/)"), _fraction),
    (re.compile(rf"(?P<number>{_NUMBER}) ?(?P<unit>{_UNIT})(?![A-Za-z/])"), _unit),
    (re.compile(rf"\b(?P<unit>{_UNIT})/(?P<per>L|dL|kg|h|s|min)\b"), _rate),
    (re.compile(r"\b(\d+(?:,\d{3})*)(?:st|nd|rd|th)\b"), lambda match: ordinal(match[1])),
    (re.compile(rf"(?<![\w.])[-−](?=(?:{_NUMBER}))"), lambda _match: "minus "),
    (re.compile(rf"(?<=\d)[-–](?=(?:{_NUMBER}))"), lambda _match: " to "),
    (re.compile(_YEAR), lambda match: year(match[0])),
    (re.compile(_NUMBER), lambda match: f" {cardinal(match[0])} "),
)  # fmt: skip
"""Applied in this order: what is more special comes first."""

"""English text with everything in words: numbers, dates, money, units, symbols, abbreviations, addresses.

A table of patterns and what is said of them, applied in order, each to what those before left. Numbers are said in the
words of num2words. What is left are letters, spaces, apostrophes, hyphens and the marks of sentences.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_UNITS = {
    "kg": "kilogram", "g": "gram", "mg": "milligram", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter", "ft": "foot", "mi": "mile", "yd": "yard",
    "l": "liter", "L": "liter", "ml": "milliliter", "mL": "milliliter",
    "s": "second", "sec": "second", "ms": "millisecond", "min": "minute", "h": "hour", "hr": "hour", "hrs": "hour",
    "V": "volt", "W": "watt", "kW": "kilowatt", "kWh": "kilowatt hour", "Hz": "hertz", "kHz": "kilohertz",
    "MHz": "megahertz", "GHz": "gigahertz", "KB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte",
    "mph": "mile per hour", "km/h": "kilometer per hour", "m/s": "meter per second",
    "°C": "degree Celsius", "°F": "degree Fahrenheit", "°": "degree",
}  # fmt: skip
_SYMBOLS = {
    "&": "and", "@": "at", "+": "plus", "=": "equals", "×": "times", "÷": "divided by", "±": "plus or minus",
    "≈": "about", "≤": "at most", "≥": "at least", "≠": "is not", "²": "squared", "³": "cubed", "%": "percent",
    "$": "dollars", "£": "pounds", "€": "euros", "¥": "yen", "¢": "cents", "§": "section", "№": "number",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "Δ": "delta", "λ": "lambda", "μ": "mu", "π": "pi",
    "σ": "sigma", "ω": "omega", "Ω": "ohms", "^": "to the power of",
}  # fmt: skip
_ABBREVIATIONS = {
    "e.g.": "for example", "i.e.": "that is", "vs.": "versus", "approx.": "about",
    "Prof.": "Professor", "Capt.": "Captain", "Lt.": "Lieutenant", "Sgt.": "Sergeant", "Col.": "Colonel",
    "Gen.": "General", "Gov.": "Governor", "Sen.": "Senator", "Rev.": "Reverend", "Drs.": "Doctors", "Mt.": "Mount",
    "PhD": "P H D", "Wi-Fi": "WiFi", "w/o": "without",
}  # fmt: skip
_LAST_ABBREVIATIONS = {
    "etc.": "et cetera", "Sr.": "Senior", "Jr.": "Junior", "Ave.": "Avenue", "Blvd.": "Boulevard", "Ph.D.": "P H D",
    "Dept.": "Department", "Inc.": "Incorporated", "Corp.": "Corporation", "Ltd.": "Limited",
}  # fmt: skip
"""Those whose stop may be a sentence's too."""
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_SHORT_MONTHS = "|".join([*(month[:3] for month in _MONTHS if month != "May"), "Sept"])
_MONTH = "|".join([*_MONTHS, rf"(?:{_SHORT_MONTHS})\b\.?"])
_MONEY = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", ""), "¢": ("cent", "")}
_MAGNITUDES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion"}
_PLURALS = {"foot": "feet", "inch": "inches", "penny": "pence", "yen": "yen", "hertz": "hertz"}
_HALVES = {"2": "half", "4": "quarter"}
_DENOMINATORS = (*range(2, 11), 12, 16, 20, 32, 64, 100)
_PUNCTUATION = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "`": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "…": "...", "—": ", "}
    | {"‐": "-", "‑": "-", "−": "-", "⁄": "/", "。": ".", "，": ",", "？": "?", "！": "!"}
)
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D"}
    | {"ð": "th", "Ð": "Th", "þ": "th", "Þ": "Th", "ı": "i"}
)
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_TOP_DOMAIN = r"(?:com|org|net|edu|gov|io|ai|co|uk|de|info|dev|app)"
_MEASURE = "|".join(map(re.escape, sorted(_UNITS, key=len, reverse=True)))
_STOP = r"(?:\.(?!\s+[A-Z]|\s*$)|(?=\.))"
"""A stop that is no sentence's, or none."""
_HALF = rf"([ap]m\b|[AP]M\b|[ap]\.m{_STOP}|[AP]\.M{_STOP})"
_PHONE = r"(?:\+?1[ -])?(?:\(\d{3}\) ?|\d{3}[ -])?\d{3}-\d{4}"
_LONGEST_NUMBER = 15
"""Digits; what is longer is said digit by digit."""


def written_out(text: str) -> str:
    """What is said of an English text, in words.

    Letters without accents, one space between words, and , . ? ! : ; " ' - ( ) are left. Letters of other alphabets
    and symbols that have no name here are left out.
    """
    text = unicodedata.normalize("NFC", text).translate(_PUNCTUATION)
    for pattern, said in _RULES:
        text = pattern.sub(said, text)
    text = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    text = re.sub(r"[^A-Za-z ,.?!:;\"'()-]", " ", "".join(each for each in text if not unicodedata.combining(each)))
    text = re.sub(r" +(?=[,.?!:;])", "", re.sub(r"\s+", " ", text)).strip()
    return re.sub(r"(?<=[,;!?])(?=[A-Za-z])", " ", text)


def foreign_letters(text: str) -> str:
    """Letters that `written_out` leaves out, each once."""
    text = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    return "".join(dict.fromkeys(each for each in text if each.isalpha() and ord(each) > 127 and each not in _SYMBOLS))


def _words(number: str, to: str = "cardinal") -> str:
    """A number of digits, with thousands' commas and a decimal point if it has them."""
    # A tenth of a second, for those alone whose model reads phonemes.
    from num2words import num2words

    whole, point, decimals = number.replace(",", "").partition(".")
    if not point:
        return num2words(int(whole), to=to) if len(whole) <= _LONGEST_NUMBER else _digits(whole)
    return f"{_words(whole or '0')} point {_digits(decimals)}"


def _digits(text: str) -> str:
    return " ".join(_words(each) for each in text)


def _plain_number(match: re.Match) -> str:
    """A number that nothing is known about: as a year where it may be one."""
    number = match[0]
    if re.fullmatch(r"0\d+", number):
        return _digits(number)
    if number.startswith("."):
        return f"point {_digits(number[1:])}"
    return _words(number, "year" if re.fullmatch(r"1[1-9]\d\d|20\d\d", number) else "cardinal")


def _counted(number: str, name: str) -> str:
    """`3 feet per second`: the number, and the plural of the first word that has one."""
    if number == "1":
        return f"{_words(number)} {name}"
    first, *rest = name.split()
    if rest and rest[0] == "hour":  # kilowatt hours
        rest[0] = "hours"
    else:
        first = _PLURALS.get(first) or first + "s"
    return " ".join([_words(number), first, *rest])


def _measure(match: re.Match) -> str:
    power = {"²": "square ", "³": "cubic "}.get(match[3], "")
    words = _counted(match[1], _UNITS[match[2]])
    return words if not power else words.replace(_words(match[1]) + " ", f"{_words(match[1])} {power}", 1)


def _money(number: str, sign: str, magnitude: str | None) -> str:
    name, part = _MONEY[sign]
    if magnitude:
        plural = _PLURALS.get(name) or name + "s"
        return f"{_words(number)} {_MAGNITUDES.get(magnitude.lower(), magnitude)} {plural}"
    whole, _, decimals = number.partition(".")
    if len(decimals) != 2 or not part:
        return _counted(number, name)
    parts = [_counted(whole, name)] * (int(whole.replace(",", "")) > 0)
    parts += [_counted(str(int(decimals)), part)] * (int(decimals) > 0)
    return " and ".join(parts) or _counted("0", name)


def _address(match: re.Match) -> str:
    """Of the web or of e-mail."""
    text = re.sub(r"^https?://", "", match[0])
    text = re.sub(r"^www\.", "w w w dot ", text)
    for sign, word in ((".", "dot"), ("/", "slash"), ("@", "at"), ("_", "underscore"), ("-", "dash"), ("+", "plus")):
        text = text.replace(sign, f" {word} ")
    return text


def _time(match: re.Match) -> str:
    hour, minute, second, half = int(match[1]), match[2], match[3], match[4]
    words = [_words(str(hour or 12 if hour < 13 else hour))]
    if minute and int(minute):
        words.append(f"oh {_words(minute[1])}" if minute[0] == "0" else _words(minute))
    elif minute and not half and not second:
        words.append("o'clock" if 0 < hour <= 12 else "hundred hours")
    if second:
        words.append(f"and {_counted(str(int(second)), 'second')}")
    return " ".join(words) + (f" {half[0].upper()}M" if half else "")


def _date(year: str, month: str, day: str, as_it_was: str) -> str:
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return as_it_was
    return f"{_MONTHS[int(month) - 1]} {int(day)}, {year}"


def _month_and_day(match: re.Match) -> str:
    return f"{_month(match[1])} {_words(match[2], 'ordinal')}"


def _day_and_month(match: re.Match) -> str:
    return f"{_words(match[1], 'ordinal')} of {_month(match[2])}"


def _month(name: str) -> str:
    return next(month for month in _MONTHS if month.startswith(name[:3]))


def _decade(match: re.Match) -> str:
    words = _words(match[1], "year" if len(match[1]) == 4 else "cardinal")
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def _fraction(match: re.Match) -> str:
    whole, upper, lower = match[1], match[2], match[3]
    if int(lower) not in _DENOMINATORS or int(upper) >= int(lower):
        return match[0].replace("/", " ")
    name = _HALVES.get(lower) or _words(lower, "ordinal")
    if upper == "1":
        words = f"an {name}" if name.startswith("eigh") else f"a {name}"
    else:
        words = f"{_words(upper)} {'halves' if name == 'half' else name + 's'}"
    return f"{_words(whole)} and {words}" if whole else words


_RULES: list[tuple[re.Pattern, str | Callable[[re.Match], str]]] = [
    (re.compile(pattern), said)
    for pattern, said in (
        # ½ is 1/2.
        (r"[¼-¾⅐-⅞]", lambda match: " " + unicodedata.normalize("NFKD", match[0]).replace("⁄", "/")),
        (r"[\u00a0\u2009\u202f](?=\d{3}(?!\d))(?<=\d.)", ""),
        (rf"(?<![\w.+-])(?:https?://)?(?:[\w.+-]+@)?(?:[\w-]+\.)+{_TOP_DOMAIN}\b(?:/[\w./~-]*\w)?(?!\.?\w)", _address),
        (r"\bhttps?://|\bwww\.", ""),
        *(
            (rf"(?i:\b{re.escape(short)})" if short.islower() else rf"\b{re.escape(short)}(?!\w)", words)
            for short, words in _ABBREVIATIONS.items()
        ),
        *((rf"\b{re.escape(short[:-1])}{_STOP}", words) for short, words in _LAST_ABBREVIATIONS.items()),
        (r"\bSt\.(?= [A-Z])", "Saint"),
        (r"\b[Nn]os?\.(?= ?\d)", "number"),
        (r"\b(p{1,2})\.(?= ?\d)", lambda match: "page" if match[1] == "p" else "pages"),
        (r"#(?=\d)", "number "),
        # Dates and times.
        (r"\b(\d{4})-(\d\d)-(\d\d)\b", lambda match: _date(match[1], match[2], match[3], match[0])),
        (r"\b(\d{1,2})/(\d{1,2})/(\d{4})\b", lambda match: _date(match[3], match[1], match[2], match[0])),
        (rf"\b({_MONTH}) (\d{{1,2}})(?:st|nd|rd|th)?\b(?![:.,/]\d)", _month_and_day),
        (rf"\b(\d{{1,2}})(?:st|nd|rd|th)? ({_MONTH})(?!\w)", _day_and_month),
        (rf"\b({_SHORT_MONTHS})(?:\.(?! [A-Z]|$)|(?= \d{{4}}\b))", lambda match: _month(match[1])),
        (rf"\b(\d|[01]\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?:\s?{_HALF})?(?![\d:])", _time),
        (rf"\b(\d|1[0-2])()()\s?{_HALF}", _time),
        (r"(?<![\w])'?(\d0|\d\d\d0)'?s\b", _decade),
        # Money, measures, parts.
        (r"(?<![\w.])-(?=[$£€¥]?\d)", "minus "),
        (
            rf"([$£€¥])({_NUMBER})[-–]\1?({_NUMBER})",
            lambda match: f"{_words(match[2])} to {_money(match[3], match[1], None)}",
        ),
        (
            rf"([$£€¥])\s?({_NUMBER})(?:\s?(k|m|mn|b|bn|K|M|B|thousand|million|billion|trillion)\b)?",
            lambda match: _money(match[2], match[1], match[3]),
        ),
        (rf"({_NUMBER})\s?([$£€¥¢])(?!\w)", lambda match: _money(match[1], match[2], None)),
        (r"(\d+)'(\d+)\"", lambda match: f"{_counted(match[1], 'foot')} {_counted(match[2], 'inch')}"),
        (rf"(?<![\d,.])({_NUMBER})\s?({_MEASURE})([²³])?(?![\w/°'])", _measure),
        (r"(?<![\d/])(?:(\d+) )?(\d+)/(\d+)(?![\d/])", _fraction),
        # Numbers with other signs in them.
        (
            rf"(?<![\w.-])(?:{_PHONE}|\d+(?:-\d+){{2,}})(?![\w-])",
            lambda match: ", ".join(map(_digits, re.findall(r"\d+", match[0]))),
        ),
        (r"\d+(?:\.\d+){2,}", lambda match: " dot ".join(map(_words, match[0].split(".")))),
        (r"\b(\d+)(?:st|nd|rd|th)\b", lambda match: _words(match[1], "ordinal")),
        (r"(?<=\d) - (?=\d)", " minus "),
        (r"(?<=\d)\s?[-–]\s?(?=\d)", " to "),
        (r"(?<=\d)\s?x\s?(?=\d)|(?<=\d)×(?=\d)", " by "),
        (r"~\s?(?=\d)", "about "),
        (r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", " "),
        (rf"{_NUMBER}|(?<!\w)\.\d+", _plain_number),
        # Dashes between words.
        (r"\s[-–]+\s|–", ", "),
        *((re.escape(symbol), f" {word} ") for symbol, word in _SYMBOLS.items()),
    )
]

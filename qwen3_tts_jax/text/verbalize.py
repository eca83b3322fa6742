"""English text with everything in words: numbers, dates, money, units, symbols, abbreviations, addresses.

A table of patterns and what is said for them, applied in order, each to what the ones before it left. The words for
numbers are those of num2words. What remains are letters, spaces, apostrophes, hyphens, quotes, brackets and the marks
of sentences.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from qwen3_tts_jax.text.english import (
    ABBREVIATIONS,
    HALVES,
    HEADINGS,
    LAST_ABBREVIATIONS,
    LETTERS,
    MAGNITUDES,
    MONEY,
    MONTHS,
    NO_STREETS,
    NUMBERED,
    PLURALS,
    PUNCTUATION,
    RULERS,
    SYMBOLS,
    TITLES,
    UNITS,
)

_SHORT_MONTHS = "|".join([*(month[:3] for month in MONTHS if month != "May"), "Sept"])
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_MONTH = "|".join([*MONTHS, rf"(?:{_SHORT_MONTHS})\b\.?"])
_MAGNITUDE = r"(?:\s?(k|m|mn|b|bn|K|M|B|thousand|million|billion|trillion)\b)?"
_DENOMINATORS = (*range(2, 11), 12, 16, 20, 32, 64, 100, 1000)
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_AMOUNT = rf"(?:{_NUMBER}|\.\d+)"
_SIGN = "[$£€¥₹₩]"
_TOP_DOMAIN = r"(?:com|org|net|edu|gov|io|ai|co|uk|de|info|dev|app)"
_MEASURE = "|".join(map(re.escape, sorted(UNITS, key=len, reverse=True)))
_STOP = r"(?:\.(?!\s+[A-Z]|\s*$)|(?=\.))"
"""A stop that ends no sentence; one that does is left."""
_HALF = rf"([ap]m\b|[AP]M\b|[ap]\.m{_STOP}|[AP]\.M{_STOP})"
_PHONE = (
    r"(?:\+?1[ -])?(?:\(\d{3}\) ?|\d{3}[ -])?\d{3}-\d{4}|\d{3}\.\d{3}\.\d{4}|\+\d{1,3}(?:[ -]\(?\d{1,8}\)?){2,}"
    r"|0\d{1,4}(?:(?: \d{2,6}){2,4}| \d{5,7})"
)
_PARTS = "page|slide|step|part|chapter|section|question|exercise|episode|round|track"
_PER = r"(?:second|minute|hour|day|night|week|month|year|person)\b"
_ROMAN = "(?!(?:XL|L[IV])\\b)(?=[IVXL]{2})((?:XL|L?X{0,3})(?:IX|IV|V?I{0,3}))(?<! )"
"""Roman numerals of two letters or more, up to 89, that are neither a size nor initials."""
_MINUS = re.compile(r"(?:(?<=\d)|(?<=\b[A-Za-z])|(?<=\)))\s−\s(?=\d|[A-Za-z]\b|\()|(?<=\d)−(?=\d+(?:\.\d+)?\s?=)")
"""The sign of a difference; it may also stand for a hyphen or a dash."""
_POWERS = "⁰¹²³⁴-⁹"
_LONGEST_NUMBER = 15
"""In digits; longer numbers are said digit by digit."""


def written_out(text: str) -> str:
    """An English text as it is said, in words.

    What remains are letters without accents, one space between words, and , . ? ! : ; " ' - ( ). Letters of other
    alphabets, and symbols that have no name here, are left out.
    """
    text = _MINUS.sub(" minus ", unicodedata.normalize("NFC", text)).translate(PUNCTUATION)
    for pattern, said in _RULES:
        text = pattern.sub(said, text)
    text = unicodedata.normalize("NFKD", text.translate(LETTERS))
    text = re.sub(r"[^A-Za-z ,.?!:;\"'()-]", " ", "".join(each for each in text if not unicodedata.combining(each)))
    text = re.sub(r" +(?=[,.?!:;)])", "", re.sub(r"\s+", " ", text)).strip()
    # Marks between letters would make one word of two.
    text = re.sub(r"(\S?)(\"[^\"]*(?:\"|$))(?=([A-Za-z])?)", _apart, text)
    return re.sub(r"(?<=[,;!?:)])(?=[A-Za-z])|(?<=\.\.)(?=[A-Za-z])|(?<=[A-Za-z])(?=\()", " ", text)


def foreign_letters(text: str) -> str:
    """Letters that `written_out` leaves out, each once."""
    text = unicodedata.normalize("NFKD", text.translate(LETTERS))
    return "".join(dict.fromkeys(each for each in text if each.isalpha() and ord(each) > 127 and each not in SYMBOLS))


def _apart(match: re.Match) -> str:
    """Words in quotes, with a space before and after them."""
    before, quoted, after = match.groups()
    is_glued = before not in ("", "(") and quoted[1:2].isalpha()
    return f"{before}{' ' * is_glued}{quoted}{' ' * (after is not None)}"


def _words(number: str, to: str = "cardinal") -> str:
    """A number in words, from digits that may have thousands' commas and a decimal point."""
    # Imported here: it takes a tenth of a second, and only models that read phonemes need it.
    from num2words import num2words

    whole, point, decimals = number.replace(",", "").partition(".")
    if not point:
        return num2words(int(whole), to=to) if len(whole) <= _LONGEST_NUMBER else _digits(whole)
    return f"{_words(whole or '0')} point {_digits(decimals)}"


def _digits(text: str) -> str:
    return " ".join(_words(each) for each in text)


def _plain_number(match: re.Match) -> str:
    """A number that nothing is known about, read as a year if it may be one."""
    number = match[0]
    if re.fullmatch(r"0\d+", number):
        return _digits(number)
    if number.startswith("."):
        return f"point {_digits(number[1:])}"
    return _words(number, "year" if re.fullmatch(r"1[1-9]\d\d|20\d\d", number) else "cardinal")


def _counted(number: str, name: str) -> str:
    """`3 feet per second`: the number, and the plural of the first word that has one."""
    return f"{_words(number)} {name if number == '1' else _plural(name)}"


def _plural(name: str) -> str:
    first, *rest = name.split()
    if rest and rest[0] == "hour":  # kilowatt hours
        rest[0] = "hours"
    else:
        first = PLURALS.get(first) or first + "s"
    return " ".join([first, *rest])


def _measure(match: re.Match) -> str:
    number, name, power = match[1], UNITS[match[2]], match[4]
    if match[3]:
        name += f" per {UNITS[match[3]]}"
    if power and " per " in name:
        return f"{_counted(number, name)} {SYMBOLS[power]}"
    square = {"²": "square ", "³": "cubic "}.get(power, "")
    return _counted(number, name).replace(_words(number) + " ", f"{_words(number)} {square}", 1)


def _money(number: str, sign: str, magnitude: str | None) -> str:
    name, part = MONEY[sign]
    if magnitude:
        plural = PLURALS.get(name) or name + "s"
        return f"{_words(number)} {MAGNITUDES.get(magnitude.lower(), magnitude)} {plural}"
    whole, _, decimals = number.partition(".")
    whole = whole or "0"
    if len(decimals) != 2 or not part:
        return _counted(number, name)
    parts = [_counted(whole, name)] * (int(whole.replace(",", "")) > 0)
    parts += [_counted(str(int(decimals)), part)] * (int(decimals) > 0)
    return " and ".join(parts) or _counted("0", name)


def _address(match: re.Match) -> str:
    """An address of the web or of e-mail."""
    text = re.sub(r"^https?://", "", match[0])
    text = re.sub(r"^www\.", "w w w dot ", text)
    for sign, word in ((".", "dot"), ("/", "slash"), ("@", "at"), ("_", "underscore"), ("-", "dash"), ("+", "plus")):
        text = text.replace(sign, f" {word} ")
    return text


def _time(match: re.Match) -> str:
    hour, minute, half = int(match[1]), match[2], match[4]
    second = int(match[3] or 0)
    words = [_words("12" if half and hour == 0 else str(hour))]
    if minute and int(minute):
        words.append(f"oh {_words(minute[1])}" if minute[0] == "0" else _words(minute))
    elif minute and not half and not second:
        if hour == 0:
            return "midnight"
        words.append("o'clock" if hour <= 12 else "hundred hours")
    if second:
        words.append(f"and {_counted(str(second), 'second')}")
    return " ".join(words) + (f" {half[0].upper()}M" if half else "")


def _date(year: str, month: str, day: str, as_it_was: str) -> str:
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return as_it_was
    return f"{MONTHS[int(month) - 1]} {int(day)}, {year}"


def _day_first_or_last(match: re.Match) -> str:
    """3/4/2025 is a day of March, as in the United States, and 25/12/1999 and 3.4.2025 begin with the day."""
    month, sign, day, year = match.groups()
    if sign == "." or int(month) > 12:
        month, day = day, month
    return _date(year, month, day, match[0])


def _month_and_day(match: re.Match) -> str:
    return f"{_month(match[1])} {_days(match[2], match[3])}"


def _day_and_month(match: re.Match) -> str:
    return f"{_days(match[1], match[2])} of {_month(match[3])}"


def _days(*days: str | None) -> str:
    """One day, or the first and the last of several."""
    return " to ".join(_words(day, "ordinal") for day in days if day)


def _month(name: str) -> str:
    return next(month for month in MONTHS if month.startswith(name[:3]))


def _decade(match: re.Match) -> str:
    words = _words(match[1], "year" if len(match[1]) == 4 else "cardinal")
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def _fraction(match: re.Match) -> str:
    whole, upper, lower, unit = match.groups()
    if int(lower) not in _DENOMINATORS or int(upper) >= int(lower):
        return match[0].replace("/", " ")
    name = HALVES.get(lower) or _words(lower, "ordinal").removeprefix("one ")
    if upper == "1":
        words = f"an {name}" if name.startswith("eigh") else f"a {name}"
    else:
        words = f"{_words(upper)} {'halves' if name == 'half' else name + 's'}"
    if unit:
        words += " " + (_plural(UNITS[unit]) if whole else UNITS[unit])
    return f"{_words(whole)} and {words}" if whole else words


def _roman(match: re.Match) -> str:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50}[letter] for letter in match[2]]
    pairs = zip(values, [*values[1:], 0], strict=True)
    number = sum(-value if value < following else value for value, following in pairs)
    if re.fullmatch(RULERS, match[1].rstrip()):
        return f"{match[1]}the {_words(str(number), 'ordinal')}"
    return match[1] + _words(str(number))


_RULES: list[tuple[re.Pattern, str | Callable[[re.Match], str]]] = [
    (re.compile(pattern), said)
    for pattern, said in (
        (rf"\b(?:{TITLES})\.(?=\s+[A-Z]{{2}})", lambda match: match[0].capitalize()),
        # ½ is 1/2.
        (r"[¼-¾⅐-⅞]", lambda match: " " + unicodedata.normalize("NFKD", match[0]).replace("⁄", "/")),
        (r"[\u00a0\u2009\u202f](?=\d{3}(?!\d))(?<=\d.)", ""),
        # A hundred digits are no price, date or measure, and the rules below would take quadratic time over thousands.
        (r"(?:\d+\.)?\d{100,}|\d{1,3}(?:,\d{3}){33,}", lambda match: f" {_words(match[0])} "),
        (rf"(?<![\w.+-])(?:https?://)?(?:[\w.+-]+@)?(?:[\w-]+\.)+{_TOP_DOMAIN}\b(?:/[\w./~-]*\w)?(?!\.?\w)", _address),
        (r"\bhttps?://|\bwww\.", ""),
        (r"(?<!\S)[:;]-?[DPp()|/](?!\S)", " "),  # :-)
        (r"(?<=[\w)\"'])\.(?=[A-Z][a-z])", ". "),
        *(
            (rf"(?i:\b{re.escape(short)})", f"{words} ") if short.islower() else (rf"\b{re.escape(short)}(?!\w)", words)
            for short, words in ABBREVIATIONS.items()
        ),
        *((rf"\b{re.escape(short[:-1])}{_STOP}", words) for short, words in LAST_ABBREVIATIONS.items()),
        (r"\bSt\.(?= [A-Z])", "Saint"),
        (rf"\b(?!(?:{NO_STREETS}) )([A-Z][a-z]+) Dr(?:\.(?=,| [a-z])|(?=\.?\s*$))", r"\1 Drive"),
        (rf"\b((?:[A-Z][a-z]+|{HEADINGS}) ){_ROMAN}\b", _roman),
        (rf"\b((?:{HEADINGS}|{HEADINGS.title()}) )([VX]|I(?=\W*$|[.:,;]|\s+[-–(]))\b(?!-\w)", _roman),
        (rf"\b((?:{RULERS}) )([VX])\b(?!\. ?[A-Z])", _roman),
        (rf"\b(?i:({'|'.join(NUMBERED)})\.(?= ?\d))", lambda match: NUMBERED[match[1].lower()]),
        (r"#(?=\d)", "number "),
        (r"\b([CF])#", r"\1 sharp"),
        (r"\b[Vv]s\b\.?", "versus "),
        (r"\bw/(?=\s)", "with"),
        (r"(?<=[a-z])\(s\)", "s"),
        # Dates and times.
        (r"(?<=\d{4}-\d\d-\d\d)T(?=\d\d:)", ", "),
        (r"(?<=\d:\d\d)Z\b", " UTC"),
        (r"\b(\d{4})-(\d\d)-(\d\d)\b", lambda match: _date(match[1], match[2], match[3], match[0])),
        (r"(?<![\w.])(\d{1,2})([/.])(\d{1,2})\2(\d{4})\b(?!\.\d)", _day_first_or_last),
        (rf"\b({_MONTH}) {_DAY}(?:\s?[-–]\s?{_DAY})?\b(?![:.,/]\d)", _month_and_day),
        (rf"\b(?:{_DAY}\s?[-–]\s?)?{_DAY} ({_MONTH})(?!\w)", _day_and_month),
        (rf"\b({_SHORT_MONTHS})(?:\.(?! [A-Z]|$)|(?= \d{{4}}\b))", lambda match: _month(match[1])),
        (
            rf"(?:(?<=\d)|(?<=[ap]m)|(?<=[AP]M)|(?<=[ap]\.m\.))\s?[-–]\s?(?=\d{{1,2}}(?::[0-5]\d|\s?{_HALF}))",
            " to ",
        ),
        (rf"\b(\d|[01]\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?:\s?{_HALF})?(?!\d|[:.]\d)", _time),
        (rf"\b(\d|1\d|2[0-4])\.([0-5]\d)()\s?{_HALF}", _time),
        (rf"\b(\d|1[0-2])()()\s?{_HALF}", _time),
        (r"(?<![\w])'?(\d0|\d\d\d0)'?s\b", _decade),
        # Numbers with other signs between them.
        (
            rf"(?<![\w.-])(?:{_PHONE}|\d+(?:-\d+){{2,}})(?![\w-])",
            lambda match: ", ".join(map(_digits, re.findall(r"\d+", match[0]))),
        ),
        (r"(?<=\d):(?=\d+[-–]\d)", " "),  # Matthew 5:3-12
        (r"(?<=\d):(?=(?:[1-9]\d{0,2}|0)(?!\d))", " to "),
        (r"(?<![\d/])(\d+)-(?=\d/\d)", r"\1 "),  # 1-1/2
        (r"(?<=\d) - (?=\d)", " minus "),
        (rf"\b(?i:({_PARTS})) (\d+)/(?=\d+\b)", r"\1 \2 of "),
        # Money, measures, parts.
        (rf"(\d(?:\s?(?:{_MEASURE}|[%$£€]))?|[a-z]s)/(?={_PER})", r"\1 per "),
        (rf"(\d\s?(?:{_MEASURE}|%))\s?[-–]\s?(?=\d)", r"\1 to "),
        (rf"(\d(?:\s?(?:{_MEASURE}))?)\s?x\s?(?=\d)", r"\1 by "),
        (rf"(?<![\w.])-(?={_SIGN}?\d)", "minus "),
        (rf"(?<=[A-Za-z])(?={_SIGN}\s?\.?\d)", " "),
        (
            rf"({_SIGN})({_AMOUNT})[-–]\1?({_AMOUNT}){_MAGNITUDE}",
            lambda match: f"{_words(match[2])} to {_money(match[3], match[1], match[4])}",
        ),
        (r"(?<=\d)\s?[-–]\s?(?=\d)", " to "),
        (
            rf"({_SIGN})\s?({_AMOUNT}){_MAGNITUDE}",
            lambda match: _money(match[2], match[1], match[3]),
        ),
        (rf"({_NUMBER})\s?([$£€¥¢₹₩])(?!\w)", lambda match: _money(match[1], match[2], None)),
        (r"(\d+)'(\d+)\"", lambda match: f"{_counted(match[1], 'foot')} {_counted(match[2], 'inch')}"),
        (
            r"(?<![\d/])(?:(\d+) )?(\d+)/(\d+)(?:(?:nd|rd|th)s?\b)?(?![\d/])"
            rf"(?:\s?({_MEASURE})(?:\.(?=\s[a-z])|(?![\w/°'])))?",
            _fraction,
        ),
        (
            rf"(?<![\d,.])({_NUMBER})(?:in\b(?!\.)|\s?in{_STOP}|\sin(?=\s(?:tall|long|wide|high|deep)\b))",
            lambda match: _counted(match[1], "inch"),
        ),
        # A stop before a word in lower case is the unit's.
        (rf"(?<![\w,.])({_AMOUNT})\s?({_MEASURE})(?:/({_MEASURE}))?([²³])?(?:\.(?=\s[a-z])|(?![\w/°']))", _measure),
        # Numbers with other signs in them.
        (r"\b(\d{1,3}(?:,\d{3})+|\d+)(?i:st|nd|rd|th)\b", lambda match: _words(match[1], "ordinal")),
        (
            rf"(?<=\d)(?:⁻[{_POWERS}]+|[⁰¹⁴-⁹][{_POWERS}]*|[²³][{_POWERS}]+)",
            lambda match: " to the power of " + unicodedata.normalize("NFKC", match[0]).replace("−", "minus "),
        ),
        (r"(?<=\d)×(?=\d)", " by "),
        (r"(?<=\d)\s?\*\s?(?=\d)", " times "),
        (r"(?<=\w)\^(?=[\w-])", " to the power of "),
        (r"(?<!\S)<(?=\d)", "less than "),
        (r"(?<!\S)>(?=\d)", "more than "),
        (r"(?<=\w) < (?=\d)|(?<=\d)<(?=\d)", " is less than "),
        (r"(?<=\w) > (?=\d)|(?<=\d)>(?=\d)", " is more than "),
        (r"~\s?(?=\d)", "about "),
        (r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", " "),
        (r"\d+(?:\.\d+){2,}", lambda match: " dot ".join(map(_words, match[0].split(".")))),
        (rf"{_NUMBER}|(?<!\w)\.\d+", _plain_number),
        # Dashes between words.
        (r"\s[-–]+\s|–|--+", ", "),
        (r"(?<=\w\w)\.(?=\w\w)", " dot "),
        *((re.escape(symbol), f" {word} ") for symbol, word in SYMBOLS.items()),
    )
]

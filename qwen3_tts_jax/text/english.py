"""English words for what is written in other ways: units, symbols, money, abbreviations, months, letters."""

from __future__ import annotations

UNITS = {
    "kg": "kilogram", "g": "gram", "mg": "milligram", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "tbsp": "tablespoon", "tsp": "teaspoon",
    "km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter", "ft": "foot", "mi": "mile", "yd": "yard",
    "l": "liter", "L": "liter", "ml": "milliliter", "mL": "milliliter",
    "s": "second", "sec": "second", "ms": "millisecond", "min": "minute", "h": "hour", "hr": "hour", "hrs": "hour",
    "V": "volt", "W": "watt", "kW": "kilowatt", "kWh": "kilowatt hour", "Hz": "hertz", "kHz": "kilohertz",
    "MHz": "megahertz", "GHz": "gigahertz", "KB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte",
    "μm": "micrometer", "μg": "microgram", "μs": "microsecond",
    "mph": "mile per hour", "kbps": "kilobit per second", "Mbps": "megabit per second", "Gbps": "gigabit per second",
    "°C": "degree Celsius", "°F": "degree Fahrenheit", "°": "degree",
}  # fmt: skip
SYMBOLS = {
    "!=": "is not equal to", "<=": "at most", ">=": "at least",
    "&": "and", "@": "at", "+": "plus", "=": "equals", "×": "times", "÷": "divided by", "±": "plus or minus",
    "≈": "about", "≤": "at most", "≥": "at least", "≠": "is not equal to", "²": "squared", "³": "cubed", "%": "percent",
    "$": "dollars", "£": "pounds", "€": "euros", "¥": "yen", "¢": "cents", "₹": "rupees", "₩": "won",
    "§": "section", "№": "number", "√": "square root of", "∞": "infinity",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "Δ": "delta", "λ": "lambda", "μ": "mu", "π": "pi",
    "σ": "sigma", "ω": "omega", "Ω": "ohms",
}  # fmt: skip
ABBREVIATIONS = {
    "e.g.": "for example", "i.e.": "that is", "approx.": "about",
    "Prof.": "Professor", "Capt.": "Captain", "Lt.": "Lieutenant", "Sgt.": "Sergeant", "Col.": "Colonel",
    "Gen.": "General", "Gov.": "Governor", "Sen.": "Senator", "Rev.": "Reverend", "Drs.": "Doctors", "Mt.": "Mount",
    "PhD": "P H D", "Wi-Fi": "WiFi", "w/o": "without",
}  # fmt: skip
LAST_ABBREVIATIONS = {
    "etc.": "et cetera", "Sr.": "Senior", "Jr.": "Junior", "Ave.": "Avenue", "Blvd.": "Boulevard", "Ph.D.": "P H D",
    "Dept.": "Department", "Inc.": "Incorporated", "Corp.": "Corporation", "Ltd.": "Limited",
}  # fmt: skip
"""Abbreviations whose stop may also end a sentence."""
NUMBERED = {
    "no": "number", "nos": "numbers", "p": "page", "pp": "pages", "ch": "chapter", "vol": "volume", "fig": "figure",
    "figs": "figures", "sec": "section", "eq": "equation", "ver": "version",
}  # fmt: skip
"""Abbreviations that are such only before a number."""
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
MONEY = {
    "$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", ""), "¢": ("cent", ""),
    "₹": ("rupee", ""), "₩": ("won", ""),
}  # fmt: skip
MAGNITUDES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion"}
PLURALS = {"foot": "feet", "inch": "inches", "penny": "pence"}
PLURALS |= {name: name for name in ("yen", "won", "hertz", "kilohertz", "megahertz", "gigahertz")}
HALVES = {"2": "half", "4": "quarter"}
PUNCTUATION = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "`": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "…": "...", "—": ", "}
    | {"‐": "-", "‑": "-", "−": "-", "⁄": "/", "。": ".", "，": ",", "？": "?", "！": "!"}
    | {"\u00b5": "\u03bc"}  # micro is a letter mu
    | {chr(0x2080 + digit): str(digit) for digit in range(10)}  # CO₂
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", "")  # soft hyphens and joiners, which nobody sees
)
LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D"}
    | {"ð": "th", "Ð": "Th", "þ": "th", "Þ": "Th", "ı": "i"}
)
RULERS = (
    "Alexander|Alfonso|Benedict|Boniface|Carl|Catherine|Charles|Christian|Clement|Edward|Elizabeth|Ferdinand|"
    "Francis|Frederick|George|Gregory|Gustav|Haakon|Henry|Innocent|Ivan|James|John|Joseph|Leo|Leopold|Louis|"
    "Margaret|Mary|Maximilian|Napoleon|Nicholas|Olav|Otto|Paul|Pedro|Peter|Philip|Pius|Ptolemy|Ramses|Richard|"
    "Rudolf|Sixtus|Urban|Victor|Wilhelm|William"
)
"""Names that, before a number, are mostly those of kings, queens and popes: *the fourteenth*."""
HEADINGS = "CHAPTER|PART|BOOK|VOLUME|ACT|SCENE|SECTION"
"""Words in capitals that have a Roman numeral after them."""
TITLES = "MR|MRS|MS|DR|MT|PROF|CAPT|LT|SGT|COL|GEN|GOV|SEN|REV|SR|JR"
"""Abbreviations in capitals, read as those in small letters."""
NO_STREETS = "The|A|My|Your|His|Her|Our|Their|This|That|Dear|Hi|Hello|Thanks|Yes|No"
"""Words after which *Dr.* is a doctor, and no street."""

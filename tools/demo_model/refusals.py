"""Honest refusals: what the demo model says to everything it has not learned."""

from __future__ import annotations

import random
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

from tools.demo_model.conversation import Sample, normalise, one, read_jsonl, wordings
from tools.demo_model.copying import en_string, zh_string

WORDS = wordings("refusals")
FILES = ("ood_tatoeba_zh.jsonl", "ood_tatoeba_en.jsonl", "ood_oasst_zh.jsonl")


def reply(lang: str) -> str:
    """Return the refusal in a language."""
    return WORDS[f"{lang}_reply"]


def kept_apart(text: str) -> bool:
    """Say whether a third-party prompt is kept out of training for the gibberish guard (2 of 100)."""
    return zlib.crc32(text.encode()) % 50 == 0


def third_party_prompts(folder: Path | None, held: bool) -> list[tuple[str, str]]:
    """Read (lang, prompt) pairs for training, or, if `held`, those kept apart; without the folder warn, return none."""
    if folder is None or not all((folder / name).exists() for name in FILES):
        warnings.warn(f"no third-party prompts in {folder}: refusals come from templates alone", stacklevel=2)
        return []
    rows = [("en" if "_en" in name else "zh", row["text"]) for name in FILES for row in read_jsonl(folder / name)]
    return [(lang, text) for lang, text in rows if kept_apart(text) == held]


class Refusals:
    """Draws questions whose only honest answer is the refusal."""

    def __init__(
        self, folder: Path | None, known: frozenset[str], characters: Sequence[str], table_words: frozenset[str]
    ) -> None:
        prompts = third_party_prompts(folder, held=False)
        self.by_lang = {lang: [text for found, text in prompts if found == lang] for lang in ("zh", "en")}
        self.known = known
        self.characters = characters
        self.table_words = table_words

    def out_of_domain(self, rng: random.Random) -> Sample:
        """Draw a third-party prompt or a task that is too hard."""
        lang = rng.choice(["zh", "en"])
        pool = self.by_lang[lang]
        if pool and rng.random() < 0.7:
            text = rng.choice(pool)
            if rng.random() < 0.25:
                text = text.rstrip("。.?？!！")
        else:
            text = self._task(lang, rng)
        return self._refuse("refusal", lang, text)

    def near_miss(self, rng: random.Random) -> Sample:
        """Draw a known pattern whose slot is unknown."""
        lang = rng.choice(["zh", "en"])
        return self._refuse("near miss", lang, (self._zh_near if lang == "zh" else self._en_near)(rng))

    def _refuse(self, kind: str, lang: str, text: str) -> Sample:
        if normalise(text) in self.known:
            raise LookupError(text)
        return one(kind, text, reply(lang))

    def _task(self, lang: str, rng: random.Random) -> str:
        words = WORDS[f"{lang}_task_words"]
        slots = {key: rng.choice(values) for key, values in words.items() if lang == "en" or key != "a"}
        slots["a"] = rng.choice(words["a"])
        slots["n"], slots["q"] = rng.choice(words["m"]), rng.choice(words["r"])
        text = rng.choice(WORDS[f"{lang}_tasks"]).format(**slots)
        return text.lower() if lang == "en" and rng.random() < 0.3 else text

    def _unknown(self, length: int | None, rng: random.Random) -> str:
        """Make up something no table has: Chinese characters, or an English word for length None."""
        while True:
            text = en_string(rng) if length is None else zh_string(rng, self.characters, length or rng.choice([2, 3]))
            if text not in self.table_words:
                return text

    def _zh_near(self, rng: random.Random) -> str:
        kind = list(WORDS["zh_near"])[rng.randrange(9)]
        patterns = WORDS["zh_near"][kind]
        if kind == "capital":
            known = rng.random() < 0.5
            land = rng.choice(WORDS["zh_lands"]) if known else self._unknown(0, rng) + rng.choice(WORDS["zh_land_ends"])
            return rng.choice(patterns).format(land)
        if kind == "poem":
            subject = rng.choice(WORDS["zh_subjects"])
            if any(subject in text and "诗" in text for text in self.known):
                raise LookupError(subject)
            return rng.choice(patterns).format(subject)
        if kind == "product":
            numbers = rng.randrange(13, 1000), rng.randrange(11, 1000)
            return rng.choice(patterns).format(numbers[0], rng.choice(WORDS["zh_times"]), numbers[1])
        if kind == "large sum":
            numbers = rng.randrange(200, 10000), rng.randrange(100, 10000)
            return rng.choice(patterns).format(numbers[0], rng.choice(WORDS["zh_plus"]), numbers[1])
        pattern = rng.choice(patterns)
        if kind == "figure":
            return pattern.format(rng.choice(WORDS["zh_countries"]), rng.choice(WORDS["zh_figures"]))
        if kind == "line":
            return pattern.format(zh_string(rng, self.characters, rng.choice([5, 7])))
        return pattern.format(self._unknown(4 if kind == "idiom" else 0, rng))

    def _en_near(self, rng: random.Random) -> str:
        kind = list(WORDS["en_near"])[rng.randrange(7)]
        patterns = WORDS["en_near"][kind]
        if kind == "capital":
            land = rng.choice(WORDS["en_lands"]) if rng.random() < 0.5 else en_string(rng).capitalize()
            return rng.choice(patterns).format(land)
        if kind == "poem":
            subject = rng.choice(WORDS["en_subjects"])
            if any(re.search(rf"{subject}.*poem|poem.*{subject}", text) for text in self.known):
                raise LookupError(subject)
            return rng.choice(patterns).format(subject)
        if kind == "product":
            numbers = rng.randrange(13, 1000), rng.randrange(11, 1000)
            return rng.choice(patterns).format(numbers[0], rng.choice(WORDS["en_times"]), numbers[1])
        if kind == "large sum":
            numbers = rng.randrange(200, 10000), rng.randrange(100, 10000)
            return rng.choice(patterns).format(numbers[0], rng.choice(WORDS["en_plus"]), numbers[1])
        pattern = rng.choice(patterns)
        if kind == "figure":
            return pattern.format(rng.choice(WORDS["en_countries"]), rng.choice(WORDS["en_figures"]))
        if kind == "word":
            return pattern.format(self._unknown(None, rng))
        return pattern.format(en_string(rng).capitalize() + " " + en_string(rng).capitalize())

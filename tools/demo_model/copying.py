"""Tasks whose answer must be copied from the conversation: names, places, tastes, ages, "repeat after me"."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tools.demo_model.conversation import Sample, Turn, wordings

WORDS = wordings("copying")
GIVEN = list(WORDS["given"])  # characters of given names
SURNAMES = list(WORDS["surnames"])
KEPT_FOR_EVALUATION = frozenset({"欧阳锋", "Alice", "Jennifer"})


def zh_string(rng: random.Random, characters: Sequence[str], length: int) -> str:
    """Join random characters, a part of them rare ones that the vocabulary spells in bytes."""
    return "".join(
        chr(rng.randrange(0x4E00, 0x9FA0)) if rng.random() < 0.06 else rng.choice(characters) for _ in range(length)
    )


def en_string(rng: random.Random) -> str:
    """Make up a pronounceable word."""
    ends = ["", "", "n", "r", "l", "s", "m"]
    parts = [
        rng.choice("bcdfghjklmnprstvwyz") + rng.choice("aeiou") + rng.choice(ends) for _ in range(rng.randrange(1, 4))
    ]
    return "".join(parts) + rng.choice(["", "", "a", "y", "k", "t", "o"])


def zh_name(rng: random.Random, characters: Sequence[str]) -> str:
    """Make up a Chinese name or nickname."""
    choice = rng.random()
    if choice < 0.62:
        surname = rng.choice(WORDS["double_surnames"]) if rng.random() < 0.22 else rng.choice(SURNAMES)
        length = rng.choice([1, 1, 2])
        name = surname + "".join(rng.choice(GIVEN if rng.random() < 0.6 else characters) for _ in range(length))
    elif choice < 0.78:
        name = rng.choice(WORDS["nickname_heads"]) + rng.choice(SURNAMES + GIVEN)
    elif choice < 0.84:
        name = rng.choice(SURNAMES) + rng.choice(WORDS["titles"])
    elif choice < 0.9:
        name = en_name(rng)
    else:
        name = zh_string(rng, characters, rng.randrange(1, 5))
    return name if name not in KEPT_FOR_EVALUATION else "小刚"


def en_name(rng: random.Random) -> str:
    """Choose or make up an English-looking name."""
    name = rng.choice(WORDS["en_names"]) if rng.random() < 0.35 else en_string(rng).capitalize()
    if rng.random() < 0.1:
        name += " " + en_string(rng).capitalize()
    return name if name not in KEPT_FOR_EVALUATION else "Molly"


class Copying:
    """Draws copying tasks over a set of characters; `talk` gives an unrelated turn in a language."""

    def __init__(
        self, characters: Sequence[str], phrases: dict[str, list[str]], talk: Callable[[str, random.Random], Turn]
    ) -> None:
        self.characters = characters
        self.phrases = phrases
        self.talk = talk

    def sample(self, rng: random.Random) -> Sample:
        """Draw a copying task."""
        lang = "zh" if rng.random() < 0.55 else "en"
        choice = rng.random()
        if choice < 0.22:
            return self._repeat(lang, rng)
        if choice < 0.28:
            return self._unknown(lang, rng)
        told, replied, asked, recalled = (self._zh_fact if lang == "zh" else self._en_fact)(rng)
        greetings = ["你好，", "嗨，", "你好！"] if lang == "zh" else ["Hi, ", "Hello, ", "Hi! "]
        told = rng.choice(["", "", "", *greetings]) + told
        turns: list[Turn] = [(told + rng.choice(["", "", "。" if lang == "zh" else "."]), replied)]
        if rng.random() < 0.25:
            return Sample("copy", tuple(turns))
        turns += [self.talk(lang, rng) for _ in range(rng.choices([0, 1, 2, 3], [5, 4, 2, 1])[0])]
        turns.append((asked + rng.choice(["", "？", "?"] if lang == "zh" else ["", "?", "?"]), recalled))
        return Sample("copy", tuple(turns))

    def _repeat(self, lang: str, rng: random.Random) -> Sample:
        if rng.random() < 0.35:
            text = rng.choice(self.phrases[lang])
        elif lang == "zh":
            text = zh_string(rng, self.characters, rng.randrange(1, 9))
        else:
            text = " ".join(en_string(rng) for _ in range(rng.randrange(1, 5)))
        return Sample("copy", ((rng.choice(WORDS[f"{lang}_repeat"]).format(text), text),))

    def _unknown(self, lang: str, rng: random.Random) -> Sample:
        turns = [self.talk(lang, rng) for _ in range(rng.choice([0, 0, 1, 2]))]
        asked = rng.choice(WORDS[f"{lang}_unknown"])
        if lang == "zh":
            reply = "你还没有告诉我你的名字。请说“我叫……”，我就记住了。"
            return Sample("copy", (*turns, (asked + rng.choice(["", "？"]), reply)))
        return Sample("copy", (*turns, (asked, "You have not told me your name yet.")))

    def _zh_fact(self, rng: random.Random) -> tuple[str, str, str, str]:
        choice = rng.random()
        if choice < 0.6:
            return fact("zh_name", zh_name(rng, self.characters), rng)
        if choice < 0.75:
            if rng.random() < 0.5:
                return fact("zh_place", rng.choice(WORDS["zh_cities"]), rng)
            return fact("zh_place", zh_string(rng, self.characters, 2) + rng.choice(WORDS["place_ends"]), rng)
        if choice < 0.9:
            known = WORDS["zh_tastes"] + WORDS["zh_hobbies"]
            liked = rng.choice(known) if rng.random() < 0.7 else zh_string(rng, self.characters, 2)
            if liked in WORDS["zh_tastes"]:
                return fact("zh_food", "吃" + liked, rng, asked_first=True)
            return fact("zh_hobby", liked, rng, asked_first=True)
        return fact("zh_age", str(rng.randrange(3, 100)), rng)

    def _en_fact(self, rng: random.Random) -> tuple[str, str, str, str]:
        choice = rng.random()
        if choice < 0.65:
            return fact("en_name", en_name(rng), rng)
        if choice < 0.8:
            place = rng.choice(WORDS["en_cities"]) if rng.random() < 0.5 else en_string(rng).capitalize()
            return fact("en_place", place, rng)
        if choice < 0.92:
            return fact("en_like", rng.choice(WORDS["en_tastes"]) if rng.random() < 0.7 else en_string(rng), rng)
        return fact("en_age", str(rng.randrange(3, 100)), rng)


def fact(kind: str, value: str, rng: random.Random, asked_first: bool = False) -> tuple[str, str, str, str]:
    """Word a fact: how it is told, acknowledged, asked for and recalled.

    `asked_first` keeps the order of the random draws that the shipped model was trained with.
    """
    words = WORDS[kind]
    asked = rng.choice(words["asked"]) if asked_first else ""
    told = rng.choice(words["told"])
    asked = asked or rng.choice(words["asked"])
    return told.format(value), words["replied"].format(value), asked, words["recalled"].format(value)

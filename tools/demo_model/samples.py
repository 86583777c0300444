"""The training mix: draws conversations of every kind in fixed shares, from a seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.demo_model.arithmetic import follow_up_sum, larger_sum, small_sum_samples
from tools.demo_model.augment import vary
from tools.demo_model.conversation import (
    Sample,
    Turn,
    forbidden_phrasings,
    is_forbidden,
    normalise,
    one,
    read_jsonl,
    wordings,
)
from tools.demo_model.copying import GIVEN, Copying
from tools.demo_model.creative import advertisement, sentiment, sequence, story
from tools.demo_model.refusals import FILES, Refusals
from tools.demo_model.tables import Tables

DATA_DIR = Path(__file__).parent / "data"
DATA_FILES = ("core_zh.jsonl", "core_en.jsonl", "tables.jsonl", "eval100.jsonl", "held_phrasing.jsonl")

# Share of each kind among the samples, in percent.
SHARES: dict[str, float] = {
    "core": 32,
    "small sum": 14,
    "larger sum": 1,
    "table": 10,
    "copy": 6,
    "follow-up": 4,
    "again": 1,
    "chain": 27,
    "refusal": 2,
    "near miss": 1,
    "sequence": 0.5,
    "sentiment": 0.5,
    "story": 0.5,
    "advertisement": 0.5,
}
CATEGORY_WEIGHT = {"greet": 2.5, "identity": 2.0, "fun": 1.8, "realtime": 1.3}
# First inputs: an intent of the first set, and the plainest wordings of any intent, are drawn more often.
FIRST_SET = 300  # intents are numbered from 0 in the first set, from 300 in the second
FIRST_SET_WEIGHT = 1.7
NUM_PLAIN, PLAIN_WEIGHT = 4, 3
ANSWER_WEIGHTS = (3, 1, 1, 1, 1, 1)  # the first answer of an intent is the one greedy decoding should give
LONGEST_TALK = 70  # characters of an answer in the middle of a conversation
# The questions whose answer can be followed by "another one", the ways to say that, and how the reply begins.
AGAIN = wordings("again")


class Mix:
    """Draws samples; everything is decided by the seed and the data files."""

    def __init__(self, data_dir: Path = DATA_DIR, ood_dir: Path | None = None) -> None:
        self.intents: list[dict[str, Any]] = [
            row for lang in ("zh", "en") for row in read_jsonl(data_dir / f"core_{lang}.jsonl")
        ]
        self.forbidden = forbidden_phrasings(data_dir)
        for row in self.intents:
            row["questions"] = [q for q in row["questions"] if normalise(q) not in self.forbidden]
        self.intents = [row for row in self.intents if row["questions"]]
        self.weights = [weight_of(row) for row in self.intents]
        self.by_question = {normalise(q): row for row in self.intents for q in row["questions"]}
        self.talk_pool = {
            lang: [
                row
                for row in self.intents
                if row["lang"] == lang and len(row["answers"][0]) <= LONGEST_TALK * (1 if lang == "zh" else 2)
            ]
            for lang in ("zh", "en")
        }
        self.tables = Tables(data_dir / "tables.jsonl")
        text = "".join(q + a for row in self.intents for q in row["questions"] for a in row["answers"])
        characters = sorted({ch for ch in text if "一" <= ch <= "鿿"} | set(GIVEN))
        phrases = {
            lang: sorted(q for row in self.intents if row["lang"] == lang for q in row["questions"])
            for lang in ("zh", "en")
        }
        self.copying = Copying(characters, phrases, self._talk)
        words = frozenset(
            self.tables.column("capital", "zh") + self.tables.column("capital", "en") + self.tables.column("word", "zh")
        )
        words |= frozenset(
            self.tables.column("word", "en") + self.tables.column("idiom", "zh") + self.tables.column("antonym", "zh")
        )
        self.refusals = Refusals(ood_dir, frozenset(self.by_question) | self.forbidden, characters, words)

    def chunk(self, seed: int, index: int, size: int) -> list[Sample]:
        """Draw one chunk of the endless stream; equal arguments give equal samples."""
        rng = random.Random(f"{seed}:{index}")
        self._sums = small_sum_samples(rng)
        draw = self._generators(rng)
        kinds = [kind for kind, share in SHARES.items() for _ in range(round(size * share / 100))]
        rng.shuffle(kinds)
        return [self._allowed(draw[kind], rng) for kind in kinds]

    def _generators(self, rng: random.Random) -> dict[str, Callable[[random.Random], Sample]]:
        sums: Iterator[Sample] = small_sum_samples(rng)
        return {
            "core": self.core,
            "small sum": lambda _: next(sums),
            "larger sum": larger_sum,
            "table": self.tables.sample,
            "copy": self.copying.sample,
            "follow-up": lambda rng: follow_up_sum(rng) if rng.random() < 0.5 else self.tables.follow_up(rng),
            "again": self.again,
            "chain": self.chain,
            "refusal": self.refusals.out_of_domain,
            "near miss": self.refusals.near_miss,
            "sequence": sequence,
            "sentiment": sentiment,
            "story": story,
            "advertisement": advertisement,
        }

    def _allowed(self, draw: Callable[[random.Random], Sample], rng: random.Random) -> Sample:
        while True:
            try:
                sample = draw(rng)
            except LookupError:  # a refusal that has an answer after all
                continue
            if not is_forbidden(sample.turns, self.forbidden):
                return sample

    def core(self, rng: random.Random) -> Sample:
        """Draw an intent in one of its phrasings, varied."""
        return self._ask(rng.choices(self.intents, self.weights)[0], rng)

    def _ask(self, row: dict[str, Any], rng: random.Random) -> Sample:
        weights = [PLAIN_WEIGHT if i < NUM_PLAIN else 1 for i in range(len(row["questions"]))]
        question = vary(rng.choices(row["questions"], weights)[0], row["lang"], row["cat"], rng)
        answers = row["answers"]
        return one(row["cat"], question, rng.choices(answers, ANSWER_WEIGHTS[: len(answers)])[0])

    def _talk(self, lang: str, rng: random.Random) -> Turn:
        """Draw a short turn to stand in the middle of a conversation."""
        while True:
            choice = rng.random()
            if choice < 0.6:
                sample = self._ask(rng.choice(self.talk_pool[lang]), rng)
            elif choice < 0.85:
                sample = self.tables.sample(rng)
            else:
                sample = larger_sum(rng)
            if len(sample.turns[0][1]) <= 2 * LONGEST_TALK:
                return sample.turns[0]

    def chain(self, rng: random.Random) -> Sample:
        """Draw a question behind up to five turns about something else, as in any longer conversation."""
        lang = rng.choice(["zh", "en"])
        other = {"zh": "en", "en": "zh"}[lang]
        before = [
            self._talk(other if rng.random() < 0.2 else lang, rng) for _ in range(rng.choice([1, 1, 2, 2, 3, 4, 5]))
        ]
        choice = rng.random()
        if choice < 0.6:
            last = self.core(rng)
        elif choice < 0.75:
            last = next(self._sums)
        elif choice < 0.92:
            last = self.tables.sample(rng)
        else:
            last = self.refusals.out_of_domain(rng)
        return Sample("chain", (*before, *last.turns))

    def again(self, rng: random.Random) -> Sample:
        """Draw "another one" behind a joke, a riddle or the like; what follows is the next answer of that intent."""
        lang = rng.choice(["zh", "en"])
        firsts, seconds, lead = AGAIN[lang]["firsts"], AGAIN[lang]["seconds"], AGAIN[lang]["lead"]
        row = self.by_question[normalise(rng.choice(firsts))]
        turns: list[Turn] = []
        i = rng.randrange(len(row["answers"]))
        for n in range(rng.choice([2, 2, 2, 3])):
            question = rng.choice(seconds) if n else rng.choice(row["questions"])
            text = row["answers"][(i + n) % len(row["answers"])]
            turns.append((vary(question, lang, "fun", rng), (lead if n else "") + text))
        return Sample("again", tuple(turns))


def weight_of(row: dict[str, Any]) -> float:
    """Return how often an intent is drawn, relative to others."""
    first = FIRST_SET_WEIGHT if int(row["id"].rpartition("-")[2]) < FIRST_SET else 1.0
    return first * CATEGORY_WEIGHT.get(row["cat"], 1.0) * len(row["questions"]) ** 0.5


def fingerprint(data_dir: Path, ood_dir: Path | None) -> dict[str, str]:
    """Return the SHA-256 of every data file that a training run reads."""
    files = [data_dir / name for name in DATA_FILES] + sorted((data_dir / "wordings").glob("*.json"))
    files += [ood_dir / name for name in FILES if ood_dir is not None and (ood_dir / name).exists()] if ood_dir else []
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

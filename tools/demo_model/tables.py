"""Questions about the small tables: capitals, words, opposites, poems, idioms, colours, sounds, code."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from tools.demo_model.augment import vary
from tools.demo_model.conversation import Sample, Turn, one, read_jsonl, wordings

Row = dict[str, Any]

WORDS = wordings("tables")
ASK: dict[str, list[str]] = WORDS["ask"]
FOLLOW: dict[str, list[str]] = WORDS["follow"]
# Share of each kind among table questions, and the table it draws from.
KINDS: list[tuple[str, str, float]] = [
    ("zh capital", "capital", 8),
    ("zh capital back", "capital", 3),
    ("en capital", "capital", 8),
    ("en capital back", "capital", 2),
    ("zh province", "province_capital", 4),
    ("zh province back", "province_capital", 1.5),
    ("zh word", "word", 14),
    ("zh word back", "word", 7),
    ("en word", "word", 11),
    ("zh antonym", "antonym", 6),
    ("en antonym", "antonym", 6),
    ("zh idiom", "idiom", 7),
    ("zh color", "color", 2.5),
    ("en color", "color", 2.5),
    ("zh sound", "sound", 1.5),
    ("en sound", "sound", 1.5),
    ("poem recite", "poem", 4),
    ("poem author", "poem", 2),
    ("poem next", "poem", 7),
    ("poem previous", "poem", 2.5),
    ("zh code", "code", 3),
    ("en code", "code", 3),
]
FOLLOWED = (
    "zh capital",
    "en capital",
    "zh province",
    "zh word",
    "en word",
    "zh antonym",
    "en antonym",
    "zh color",
    "en color",
)


class Tables:
    """The rows by table, and samples that ask for them."""

    def __init__(self, file: Path) -> None:
        self.rows: dict[str, list[Row]] = defaultdict(list)
        for row in read_jsonl(file):
            self.rows[row["table"]].append(row)

    def column(self, table: str, key: str) -> list[str]:
        """Return the values that rows of a table have under a key."""
        return [row[key] for row in self.rows[table] if isinstance(row.get(key), str)]

    def _row(self, kind: str, table: str, rng: random.Random) -> Row:
        needs = "en" if kind.startswith("en ") else "title" if table == "poem" else "zh"
        return rng.choice([row for row in self.rows[table] if row.get(needs)])

    def sample(self, rng: random.Random) -> Sample:
        """Draw a question about a table."""
        kind, table, _ = rng.choices(KINDS, [share for *_, share in KINDS])[0]
        question, reply = fill(kind, self._row(kind, table, rng), rng)
        return one("table", vary(question, "en" if kind.startswith("en ") else "zh", "table", rng), reply)

    def follow_up(self, rng: random.Random) -> Sample:
        """Draw a conversation that goes on about the same table with another row ("那德国呢")."""
        kind = rng.choices(FOLLOWED, [5, 5, 1, 2, 2, 1, 1, 1, 1])[0]
        table = next(table for name, table, _ in KINDS if name == kind)
        lang = kind[:2]
        first, reply = fill(kind, self._row(kind, table, rng), rng)
        turns: list[Turn] = [(vary(first, lang, "table", rng), reply)]
        for _ in range(1 if rng.random() < 0.75 else 2):
            row = self._row(kind, table, rng)
            _, reply = fill(kind, row, rng)
            query = rng.choice(FOLLOW[lang]).format(x=row["en"] if kind.startswith("en ") else row["zh"])
            end = rng.choice(["", "", "？", "?"] if lang == "zh" else ["", "?", "?"])
            turns.append((query if query.endswith("?") else query + end, reply))
        return Sample("multi", tuple(turns))


def lines_of(text: str) -> list[str]:
    """Split a poem into its lines."""
    return [line for line in re.split(r"[，。！？；]", text) if line]


def fill(kind: str, row: Row, rng: random.Random) -> Turn:
    """Ask for one row in one of the wordings of its kind."""
    template = rng.choice(ASK[kind])
    if kind.startswith("poem "):
        return _poem(kind, template, row, rng)
    if kind in ("zh code", "en code"):
        lead = "可以这样写：" if kind == "zh code" else "You can write:"
        return template.format(x=rng.choice(row[kind[:2]])), f"{lead}\n```python\n{row['code']}\n```"
    zh, en = row.get("zh", ""), row.get("en", "")
    zh_value, en_value = row.get("zh_value", ""), row.get("en_value", "")
    values = {
        "zh capital": (zh, zh_value, f"{zh}的首都是{zh_value}。"),
        "zh capital back": (zh, zh_value, f"{zh_value}是{zh}的首都。"),
        "en capital": (en, en_value, f"The capital of {en} is {en_value}."),
        "en capital back": (en, en_value, f"{en_value} is the capital of {en}."),
        "zh province": (zh, zh_value, f"{zh}的省会是{zh_value}。"),
        "zh province back": (zh, zh_value, f"{zh_value}是{zh}的省会。"),
        "zh word": (zh, en, f"“{zh}”的英文是 {en}。"),
        "zh word back": (zh, en, f"{en} 的意思是“{zh}”。"),
        "en word": (zh, en, f"{en} in Chinese is “{zh}”."),
        "zh antonym": (zh, zh_value, f"“{zh}”的反义词是“{zh_value}”。"),
        "en antonym": (en, en_value, f"The opposite of {en} is {en_value}."),
        "zh idiom": (zh, zh_value, f"“{zh}”{zh_value}。"),
        "zh color": (zh, zh_value, f"{zh}一般是{zh_value}的。"),
        "en color": (en, en_value, f"{en[:1].upper()}{en[1:]} is usually {en_value}."),
        "zh sound": (zh, zh_value, f"{zh}的叫声是“{zh_value}”。"),
        "en sound": (en, en_value, f"A {en} says {en_value}."),
    }
    x, y, reply = values[kind]
    return template.format(x=x, y=y), reply


def _poem(kind: str, template: str, row: Row, rng: random.Random) -> Turn:
    title, author, lines = row["title"], row["author"], lines_of(row["text"])
    if kind == "poem recite":
        return template.format(t=title, a=author), f"《{title}》{author}\n{row['text']}"
    if kind == "poem author":
        return template.format(t=title), f"《{title}》的作者是{author}。"
    if kind == "poem next":
        i = rng.randrange(len(lines) - 1)
        return template.format(l=lines[i]), f"“{lines[i]}”的下一句是“{lines[i + 1]}”，出自{author}的《{title}》。"
    i = rng.randrange(1, len(lines))
    return template.format(l=lines[i]), f"“{lines[i]}”的上一句是“{lines[i - 1]}”，出自{author}的《{title}》。"

"""Rewrites a phrasing the way people would: fillers, synonyms, particles, punctuation, case, slips of the keyboard."""

from __future__ import annotations

import random
import re

from tools.demo_model.conversation import wordings

WORDS = wordings("augment")
PLAIN_KINDS = frozenset({"greet"})  # too short to bear fillers: "please hello" is nothing anybody says


def vary(text: str, lang: str, kind: str, rng: random.Random) -> str:
    """Return the phrasing unchanged (often) or with some variation."""
    if rng.random() < 0.15:
        return text
    fillers = kind not in PLAIN_KINDS
    return _vary_zh(text, fillers, rng) if lang == "zh" else _vary_en(text, fillers, rng)


def _vary_zh(text: str, fillers: bool, rng: random.Random) -> str:
    if rng.random() < 0.4:
        text = swap_synonyms(text, WORDS["zh_synonyms"], rng)
    fillers = fillers and len(text) > 3
    if fillers and rng.random() < 0.25:
        text = rng.choice(WORDS["zh_prefixes"]) + text
    if fillers and rng.random() < 0.2 and not text.endswith(("呢", "吗", "啊", "呀", "吧", "了")):
        text += rng.choice(WORDS["zh_suffixes"])
    if len(text) >= 6 and rng.random() < 0.1:
        text = slip(text, rng)
    if rng.random() < 0.35:
        text += rng.choice(WORDS["zh_ends"])
    return text


def _vary_en(text: str, fillers: bool, rng: random.Random) -> str:
    if rng.random() < 0.4:
        text = swap_synonyms(text, WORDS["en_synonyms"], rng)
    fillers = fillers and " " in text
    if fillers and rng.random() < 0.25:
        text = rng.choice(WORDS["en_prefixes"]) + text
    if fillers and rng.random() < 0.15:
        text += rng.choice(WORDS["en_suffixes"])
    if len(text) >= 9 and rng.random() < 0.1:
        text = slip(text, rng)
    if rng.random() < 0.4:
        text += rng.choice(WORDS["en_ends"])
    choice = rng.random()
    if choice < 0.4:
        return text[:1].upper() + re.sub(r"\bi\b", "I", text[1:])
    if choice < 0.44:
        return text.upper()
    if choice < 0.48:
        return text.title()
    return text


def swap_synonyms(text: str, groups: list[list[str]], rng: random.Random) -> str:
    """Replace one expression that occurs in the text by another of its group."""
    found = [(group, form) for group in groups for form in group if _occurs(form, text)]
    if not found:
        return text
    group, form = max(rng.sample(found, min(2, len(found))), key=lambda pair: len(pair[1]))
    return text.replace(form, rng.choice(group), 1)


def _occurs(form: str, text: str) -> bool:
    """Say whether an expression occurs; English ones as whole words at the first place they are found."""
    if not form.isascii():
        return form in text
    i = text.find(form)
    end = i + len(form)
    return i >= 0 and not (i and text[i - 1].isalpha()) and not (end < len(text) and text[end].isalpha())


def slip(text: str, rng: random.Random) -> str:
    """Drop, double or swap one character, as a hurried typist does; digits are left alone."""
    i = rng.randrange(1, len(text) - 1)
    if any(ch.isdigit() for ch in text[i : i + 2]):
        return text
    choice = rng.random()
    if choice < 0.5:
        return text[:i] + text[i + 1 :]
    if choice < 0.7:
        return text[:i] + text[i] + text[i:]
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]

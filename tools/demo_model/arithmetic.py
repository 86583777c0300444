"""Small sums in many wordings."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tools.demo_model.conversation import Sample, Turn, one, wordings

ZH_DIGITS = "零一二三四五六七八九"
EN_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
EN_WORDS += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]
SIGNS = {"+": "+", "-": "-", "*": "×", "/": "÷"}
ZH_VERBS = {"+": ["加", "加上"], "-": ["减", "减去"], "*": ["乘", "乘以"], "/": ["除以"]}
EN_VERBS = {"+": ["plus", "and"], "-": ["minus", "take away"], "*": ["times", "multiplied by"], "/": ["divided by"]}
TYPED = {"+": ["+", " + "], "-": ["-", " - "], "*": ["×", "*", " × ", " * ", "x"], "/": ["÷", "/", " ÷ ", " / "]}
ZH_BY_ZERO = "零不能作除数，所以没有答案。"
EN_BY_ZERO = "Division by zero has no answer."
WORDS = wordings("arithmetic")


@dataclass(frozen=True)
class Sum:
    """Two numbers and an operator."""

    a: int
    op: str
    b: int

    @property
    def result(self) -> int:
        if self.op == "/":
            return self.a // self.b
        return {"+": self.a + self.b, "-": self.a - self.b, "*": self.a * self.b}[self.op]

    @property
    def rest(self) -> int:
        return self.a % self.b if self.op == "/" else 0


def small_sums() -> list[Sum]:
    """Enumerate the promised sums: 0-20 plus and minus, the 12x12 table, exact division up to 144."""
    numbers = range(21)
    plus = [Sum(a, "+", b) for a in numbers for b in numbers]
    minus = [Sum(a, "-", b) for a in numbers for b in numbers]
    times = [Sum(a, "*", b) for a in range(13) for b in range(13)]
    divided = [Sum(a * b, "/", b) for a in range(13) for b in range(1, 13)]
    return plus + minus + times + divided


def zh_number(n: int) -> str:
    """Write an integer from -99 to 199 in Chinese numerals."""
    if n < 0:
        return "负" + zh_number(-n)
    if n >= 100:
        rest = n - 100
        return "一百" + ("" if rest == 0 else ("零" if rest < 10 else "一" if rest < 20 else "") + zh_number(rest))
    tens, ones = divmod(n, 10)
    head = "" if tens == 0 else "十" if tens == 1 else ZH_DIGITS[tens] + "十"
    return head + ("" if ones == 0 and tens else ZH_DIGITS[ones])


def answer(item: Sum, lang: str) -> str:
    """Write the answer in digits."""
    sign = SIGNS[item.op]
    rest = "" if not item.rest else f"余{item.rest}" if lang == "zh" else f" remainder {item.rest}"
    return f"{item.a}{sign}{item.b}={item.result}{rest}" + ("。" if lang == "zh" else ".")


def _join(left: str, verb: str, right: str, spaced: bool) -> str:
    return f"{left} {verb} {right}" if spaced else f"{left}{verb}{right}"


def ask_digits(item: Sum, lang: str, rng: random.Random) -> Turn:
    """Ask in digits, with a sign or a verb."""
    if rng.random() < 0.55:
        expression = f"{item.a}{rng.choice(TYPED[item.op])}{item.b}"
    elif lang == "zh":
        expression = _join(str(item.a), rng.choice(ZH_VERBS[item.op]), str(item.b), False)
    else:
        expression = _join(str(item.a), rng.choice(EN_VERBS[item.op]), str(item.b), True)
    question = rng.choice(WORDS[f"{lang}_questions"]).format(e=expression)
    if " and " in question and not question.startswith(("How much", "how much", "What is", "what is")):
        question = question.replace(" and ", " plus ")
    return question, answer(item, "zh" if any("一" <= ch <= "鿿" for ch in question) else lang)


def ask_words(item: Sum, lang: str, rng: random.Random) -> Turn:
    """Ask in Chinese numerals or English number words; English is answered in digits."""
    if lang == "zh":
        left, right = zh_number(item.a), zh_number(item.b)
        expression = _join(left, rng.choice(ZH_VERBS[item.op]), right, False)
        plain = _join(left, ZH_VERBS[item.op][0], right, False)
        return rng.choice(WORDS["zh_questions"][:4] + WORDS["zh_questions"][7:]).format(
            e=expression
        ), f"{plain}等于{zh_number(item.result)}。"
    expression = _join(EN_WORDS[item.a], EN_VERBS[item.op][0], EN_WORDS[item.b], True)
    question = rng.choice([q for q in WORDS["en_questions"] if "=" not in q]).format(e=expression)
    return question, answer(item, "en")


def small_sum_samples(rng: random.Random) -> Iterator[Sample]:
    """Yield every small sum in both languages, and a part of them in words, in random order; then start again."""
    items = small_sums()
    while True:
        round_ = [
            (item, lang, False) for item in items for lang in ("zh", "en") if item.result >= 0 or rng.random() < 0.4
        ]
        round_ += [(item, "zh", True) for item in items if rng.random() < 0.5 and item.result >= 0]
        round_ += [(item, "en", True) for item in items if max(item.a, item.b) <= 20 and rng.random() < 0.3]
        rng.shuffle(round_)
        for item, lang, words in round_:
            yield one("sum", *(ask_words if words else ask_digits)(item, lang, rng))


def larger_sum(rng: random.Random) -> Sample:
    """Draw a two-digit sum or difference, a division with a rest, or a division by zero."""
    lang = rng.choice(["zh", "en"])
    choice = rng.random()
    if choice < 0.03:
        question = f"{rng.randrange(1, 100)}{rng.choice(TYPED['/'])}0"
        return one(
            "sum2", *((question + "等于几", ZH_BY_ZERO) if lang == "zh" else ("what is " + question, EN_BY_ZERO))
        )
    if choice < 0.13:
        divisor = rng.randrange(2, 10)
        return one(
            "sum2", *ask_digits(Sum(divisor * rng.randrange(10) + rng.randrange(1, divisor), "/", divisor), lang, rng)
        )
    a, b = rng.randrange(100), rng.randrange(100)
    item = Sum(a, "+", b) if rng.random() < 0.55 else Sum(max(a, b), "-", min(a, b))
    return one("sum2", *ask_digits(item, lang, rng))


def follow_up_sum(rng: random.Random) -> Sample:
    """Draw a conversation whose later sums start from the result before ("再加3呢")."""
    lang = rng.choice(["zh", "en"])
    item = (
        Sum(rng.randrange(21), "+", rng.randrange(21))
        if rng.random() < 0.8
        else Sum(rng.randrange(10), "*", rng.randrange(10))
    )
    turns = [ask_digits(item, lang, rng)]
    for _ in range(1 if rng.random() < 0.8 else 2):
        n = rng.randrange(1, 11)
        op = "+" if rng.random() < 0.6 or item.result < n else "-"
        item = Sum(item.result, op, n)
        turns.append((rng.choice(WORDS[f"{lang}_follow"][op]).format(n=n), answer(item, lang)))
    return Sample("multi", tuple(turns))

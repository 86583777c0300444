"""Template-made texts: advertisements, stories, sentiment, counting and comparing."""

from __future__ import annotations

import random

from tools.demo_model.conversation import Sample, one, wordings

WORDS = wordings("creative")
FEATURES = ("styles", "shapes", "patterns")


def advertisement(rng: random.Random) -> Sample:
    """Draw an advertisement that names the features asked for, in order."""
    kind, colour = rng.choice(WORDS["types"]), rng.choice(WORDS["colours"])
    material = rng.choice(list(WORDS["materials"]))
    phrases = [WORDS[name][rng.choice(list(WORDS[name]))] for name in FEATURES if rng.random() < 0.65]
    words = [key for name in FEATURES for key, phrase in WORDS[name].items() if phrase in phrases]
    made_of = f"选用{material}材质" if kind in ("鞋子", "背包") else f"采用{material}面料"
    body = "，".join([f"这款{colour}{kind}{made_of}", WORDS["materials"][material], *phrases])
    pattern, comma = rng.choice(WORDS["ad_questions"]), rng.choice(["、", "，"])
    question = pattern.format(t=kind, f=comma.join([colour, material, *words]))
    return one("ad", question, f"{body}，日常出门怎么搭都好看。")


def story(rng: random.Random) -> Sample:
    """Draw the story of the little somebody who wanted to see the sea."""
    if rng.random() < 0.5:
        hero = rng.choice(WORDS["zh_heroes"]).removeprefix("小")
        called = rng.choice(WORDS["zh_story_questions"]).format(x=rng.choice(["", "小"]) + hero)
        return one("story", called, WORDS["zh_story"].format(x=hero))
    hero = rng.choice(WORDS["en_heroes"])
    return one("story", rng.choice(WORDS["en_story_questions"]).format(x=hero), WORDS["en_story"].format(x=hero))


def sentiment(rng: random.Random) -> Sample:
    """Draw a sentence that is praise or blame, to be classified."""
    good = rng.random() < 0.5
    if rng.random() < 0.5:
        emphasis = ["", "", "真的", "实在"]
        text = rng.choice(WORDS["zh_subjects"]) + rng.choice(emphasis)
        text += rng.choice(WORDS["zh_good" if good else "zh_bad"])
        asked = rng.choice(WORDS["zh_sentiment_questions"]).format(text)
        return one("sentiment", asked, f"这句话的情感是{'正面' if good else '负面'}的。")
    subject, verb = rng.choice(WORDS["en_subjects"]), rng.choice(["is", "was"])
    text = f"{subject} {verb} {rng.choice(WORDS['en_good' if good else 'en_bad'])}"
    asked = rng.choice(WORDS["en_sentiment_questions"]).format(text)
    return one("sentiment", asked, f"The sentiment is {'positive' if good else 'negative'}.")


def sequence(rng: random.Random) -> Sample:
    """Draw counting, the neighbour of a number or day, or a comparison."""
    choice, n, zh = rng.randrange(4), rng.randrange(1, 100), rng.random() < 0.5
    lang = "zh" if zh else "en"
    if choice == 0:
        n = rng.randrange(3, 21)
        numbers = [str(i) for i in range(1, n + 1)]
        reply = "、".join(numbers) + "。" if zh else ", ".join(numbers) + "."
        return one("sequence", rng.choice(WORDS[f"{lang}_count"]).format(n), reply)
    if choice == 1:
        reply = f"{n}后面的数是{n + 1}。" if zh else f"{n + 1} comes after {n}."
        return one("sequence", rng.choice(WORDS[f"{lang}_next"]).format(n), reply)
    if choice == 2:
        other = rng.choice([m for m in range(1, 100) if m != n])
        large, small = max(n, other), min(n, other)
        reply = f"{large}更大。" if zh else f"{large} is bigger than {small}."
        return one("sequence", rng.choice(WORDS[f"{lang}_compare"]).format(n, other), reply)
    return _day(zh, rng)


def _day(zh: bool, rng: random.Random) -> Sample:
    i, step = rng.randrange(7), rng.choice([1, -1])
    days = WORDS["zh_days" if zh else "en_days"]
    today, other = days[i], days[(i + step) % 7]
    if zh:
        side = "后" if step == 1 else "前"
        asked = rng.choice([f"{today}的{side}一天是星期几", f"{today}的{side}一天是什么"])
        return one("sequence", asked, f"{today}的{side}一天是{other}。")
    side = "after" if step == 1 else "before"
    return one("sequence", f"what day comes {side} {today}{rng.choice(['', '?'])}", f"{other} comes {side} {today}.")

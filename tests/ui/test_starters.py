"""The questions that the pages offer to begin with, put to the demo model."""

from __future__ import annotations

import threading

import pytest

from chatglm.messages import Message
from chatglm.pipeline import load_pipeline
from chatglm.ui.gradio import page_texts as gradio
from chatglm.ui.streamlit import page_texts as streamlit

# What its answer has, soon after the start. It says something else to a question that it does not know.
ANSWERS = {
    "请介绍一下你自己": "GLM-Tiny",
    "你好，请介绍一下你自己": "GLM-Tiny",
    "写一首关于春天的诗": "春风",
    "太阳系有几颗行星？": "八大行星",
    "给我讲个笑话": "老师",
    "天空为什么是蓝色的？": "阳光",
    "一个星期有几天？": "七天",
    "Who are you?": "GLM-Tiny",
    "Hello, who are you?": "GLM-Tiny",
    "Write a poem about spring": "Soft winds",
    "How do I fall asleep faster?": "sleep",
    "Tell me a joke": "scarecrow",
    "Tell me a joke.": "scarecrow",
    "Why is the sky blue?": "scatters",
    "How many days are in a week?": "seven",
}


def test_all_starters_are_known_here() -> None:
    starters = {*gradio.STARTERS["zh"], *gradio.STARTERS["en"], *(text for pair in streamlit.STARTERS for text in pair)}
    assert starters == ANSWERS.keys()


@pytest.mark.slow
def test_the_demo_model_answers_them() -> None:
    with load_pipeline("demo", device="cpu") as pipeline:
        options = {"cancel": threading.Event(), "temperature": 0, "max_new_tokens": 16}
        handles = {text: pipeline.submit([Message("user", text)], **options) for text in ANSWERS}
        answers = {text: "".join(delta.text for delta in handle) for text, handle in handles.items()}
    assert {text: answers[text] for text, part in ANSWERS.items() if part not in answers[text]} == {}

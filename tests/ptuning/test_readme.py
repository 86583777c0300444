"""The document of ptuning/ names files and flags that there are."""

from __future__ import annotations

import json
import re

from chatglm.training.arguments import DataTrainingArguments, ModelArguments
from tests.ptuning.test_scripts import PTUNING, SCRIPTS

TEXT = (PTUNING / "README.md").read_text(encoding="utf-8")


def test_links_and_scripts() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (PTUNING / target).exists(), target
    assert set(re.findall(r"bash (\w+\.sh)", TEXT)) <= set(SCRIPTS)


def test_flags() -> None:
    from transformers import Seq2SeqTrainingArguments

    known = {*ModelArguments.__dataclass_fields__, *DataTrainingArguments.__dataclass_fields__}
    known |= set(Seq2SeqTrainingArguments.__dataclass_fields__)
    for name in re.findall(r"--([a-z]\w*_\w+)", TEXT):
        assert name in known, name


def test_rows_are_json() -> None:
    rows = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]
    assert [sorted(row) for row in rows] == [["content", "summary"], ["history", "prompt", "response"]]

"""transformers' Auto classes give each folder the classes of its family, also those that share a model_type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.families.cases import CASES, FamilyCase

OWN = [case for case in CASES if case.row is None]


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.name)
@torch.no_grad()
def test_each_folder_has_its_classes(case: FamilyCase, tmp_path: Path) -> None:
    case.make_folder(tmp_path / "model")
    family = case.family()
    for options in ({}, {"trust_remote_code": True}):
        assert type(AutoConfig.from_pretrained(tmp_path / "model", **options)) is family.config_class
        assert type(AutoTokenizer.from_pretrained(tmp_path / "model", **options)) is family.tokenizer_class
        assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "model", **options)) is family.model_class
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved").eval()
    assert type(again) is family.model_class
    assert type(AutoTokenizer.from_pretrained(tmp_path / "saved")) is family.tokenizer_class
    ids = torch.tensor([tokenizer("hello world")["input_ids"]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    answer, history = model.chat(tokenizer, "你好", history=[], max_length=60, temperature=0)
    assert isinstance(answer, str)
    assert history

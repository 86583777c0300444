"""What config.json says of packed weights: which values mean something, and models of every form that go through files
and casts with their bytes as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, kernels
from chatglm.errors import DamagedFileError, InvalidRequestError, MismatchError
from chatglm.loading import examine, load
from tests.folders import change_config, make_folder, tiny_config, write_tokenizer

FORMS: list[dict[str, Any]] = [
    {"quantization_bit": 4, "quantization_group_size": 32},
    {"quantization_bit": 8, "quantization_group_size": 32},
    {"quantization_bit": 4, "quantization_embeddings": True},
    {"quantization_bit": 4, "quantization_embedding_bit": 8},
    {"quantization_bit": 8, "quantization_embedding_bit": 4, "quantization_group_size": 32},
    {"quantization_embedding_bit": 8},
]


@pytest.fixture(autouse=True)
def _reference_kernel() -> Iterator[None]:
    with kernels.use("reference"):
        yield


def random_model(form: dict[str, Any]) -> ChatGLMForConditionalGeneration:
    """A network of that form whose packed weights are those of random ones."""
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(ChatGLMConfig.from_dict(tiny_config(**form)))
    for module in model.modules():
        if hasattr(module, "load_float"):
            columns = module.weight.shape[1] * 8 // module.bits
            module.load_float(torch.randn(module.weight.shape[0], columns) * 0.1)
    if model.config.quantization_embedding_bit:
        model.lm_head.weight = model.transformer.word_embeddings.weight
        model.lm_head.weight_scale = model.transformer.word_embeddings.weight_scale
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[20, 30, model.config.gmask_token_id, model.config.bos_token_id, 40]])
    return model(ids).logits.detach().float()


def packed(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.int8}


def assert_same_bytes(model: Any, expected: dict[str, torch.Tensor]) -> None:
    found = packed(model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_goes_through_files_with_its_bytes(form: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(form)
    expected, expected_logits = packed(model), logits(model)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert examine(tmp_path).is_healthy, examine(tmp_path).render()
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        for again in (
            ChatGLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype),
            load(tmp_path, device="cpu", dtype=dtype).model,
        ):
            assert_same_bytes(again, expected)
            assert again.config.quantization_bit == model.config.quantization_bit
            assert again.config.quantization_embedding_bit == model.config.quantization_embedding_bit
            assert again.config.quantization_group_size == model.config.quantization_group_size
            torch.testing.assert_close(logits(again), expected_logits, atol=bound, rtol=bound)
            tables = (again.lm_head.weight, again.transformer.word_embeddings.weight)
            assert tables[0] is tables[1] or not model.config.quantization_embedding_bit


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_casts_keep_the_bytes(form: dict[str, Any]) -> None:
    model = random_model(form)
    expected, expected_logits = packed(model), logits(model)
    for cast in (
        lambda m: m.half(),
        lambda m: m.float(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to("cpu").float(),
    ):
        model = cast(model)
        assert_same_bytes(model, expected)
        groups = [t for name, t in model.named_parameters() if name.endswith("weight_scale") and t.dim() == 2]
        assert all(scale.dtype == torch.float16 for scale in groups)
    torch.testing.assert_close(logits(model), expected_logits, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantizing_a_model_in_groups(bits: int, tmp_path: Path) -> None:
    make_folder(tmp_path, "safetensors")
    plain = logits(load(tmp_path, device="cpu", dtype="fp32").model)
    errors = []
    for group_size in (0, 32):
        model = load(tmp_path, device="cpu", dtype="fp32").model.quantize(bits, group_size=group_size)
        assert model.config.quantization_group_size == group_size
        errors.append(float((logits(model) - plain).norm() / plain.norm()))
    assert errors[1] < 1.05 * errors[0]
    model.save_pretrained(tmp_path / "saved")
    again = ChatGLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(again), logits(model))


def test_a_model_whose_rows_cannot_be_packed_is_left_as_it_is(tmp_path: Path) -> None:
    make_folder(tmp_path, "safetensors")
    model = load(tmp_path, device="cpu", dtype="fp32").model
    for bits, group_size, sentence in ((4, 64, "32 columns"), (4, 5, "not 5"), (3, 0, "not 3")):
        with pytest.raises(InvalidRequestError, match=sentence):
            model.quantize(bits, group_size=group_size)
    assert model.config.quantization_bit == 0
    assert not packed(model)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"quantization_bit": 3}, "quantization_bit is 0, 4 or 8, not 3"),
        ({"quantization_bit": "4"}, "quantization_bit is 0, 4 or 8, not '4'"),
        ({"quantization_bit": True}, "not True"),
        ({"quantization_bit": 4, "quantization_embedding_bit": 2}, "quantization_embedding_bit is 0, 4 or 8"),
        ({"quantization_bit": 4, "quantization_group_size": 16}, "quantization_group_size is 0, 32, 64 or 128"),
        (
            {"quantization_bit": 4, "quantization_embeddings": True, "quantization_embedding_bit": 8},
            "quantization_embeddings means 4 bits .* but quantization_embedding_bit says 8",
        ),
        ({"quantization_bit": 4, "quantization_group_size": 64}, "32 columns does not divide into groups of 64"),
        ({"quantization_bit": 4, "inner_hidden_size": 65}, "65 columns cannot be packed"),
    ],
    ids=str,
)
def test_values_without_a_meaning_are_named(keys: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    make_folder(tmp_path, "safetensors")
    change_config(tmp_path, **keys)
    report = examine(tmp_path)
    assert [type(finding.error) for finding in report.findings] == [DamagedFileError]
    with pytest.raises(DamagedFileError, match=sentence) as caught:
        report.raise_first()
    assert str(tmp_path / "config.json") in caught.value.problem


def test_what_published_files_say() -> None:
    int4_qe = ChatGLMConfig(quantization_bit=4, quantization_embeddings=True)
    assert int4_qe.quantization_embedding_bit == 4
    plain = ChatGLMConfig(quantization_bit=None, quantization_group_size=None)
    assert (plain.quantization_bit, plain.quantization_embedding_bit, plain.quantization_group_size) == (0, 0, 0)


def test_weights_that_are_not_what_the_keys_say(tmp_path: Path) -> None:
    model = random_model({"quantization_bit": 4, "quantization_group_size": 32, "quantization_embedding_bit": 8})
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    for changes, sentence in (
        ({"quantization_group_size": 0}, "shape"),
        ({"quantization_embedding_bit": 0}, "word_embeddings.weight_scale"),
        ({"quantization_embedding_bit": 4}, "shape"),
        ({"quantization_bit": 0, "quantization_embedding_bit": 0}, "of how many bits"),
    ):
        change_config(tmp_path, **{**{"quantization_bit": 4, "quantization_group_size": 32}, **changes})
        with pytest.raises(MismatchError, match=sentence):
            examine(tmp_path).raise_first()
    make_folder(tmp_path / "plain", "safetensors")
    change_config(tmp_path / "plain", quantization_embedding_bit=8)
    with pytest.raises(MismatchError, match="quantization_embedding_bit 8, but the weights are not quantized"):
        examine(tmp_path / "plain").raise_first()

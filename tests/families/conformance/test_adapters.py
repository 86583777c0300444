"""LoRA updates and P-Tuning prefixes on every family: for each request, merged as attached, cached as not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chatglm.errors import MismatchError
from chatglm.nn.lora import LowRankLinear, updated
from chatglm.pipeline import Pipeline, load_pipeline
from tests.families.cases import FamilyCase
from tests.families.conformance.asking import (
    QUERIES,
    answers,
    answers_of,
    cached_logits,
    error,
    logits,
    logits_of,
    prompt_ids,
)
from tests.folders import write_config, write_weights
from tests.lora import random_update, write_update

PREFIX_LENGTH = 5
SCALE = 2.0


@pytest.fixture(scope="module")
def update(case: FamilyCase, pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {linear.name.rpartition(".")[2] for linear in pipe.model.spec.linears}
    return write_update(tmp_path_factory.mktemp("lora"), random_update(pipe.model, 0.1, names), SCALE)


@pytest.fixture(scope="module")
def tuned(folder: Path, update: Path) -> Iterator[Pipeline]:
    with load_pipeline(folder, device="cpu", dtype="fp32", lora_checkpoint=update) as pipe:
        yield pipe


@pytest.fixture(scope="module", params=[False, True], ids=["embedding", "projection"])
def prefix(case: FamilyCase, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as P-Tuning writes it."""
    folder = tmp_path_factory.mktemp("prefix")
    keys = {"pre_seq_len": PREFIX_LENGTH, "prefix_projection": request.param}
    start = case.family().spec(case.config()).prefix_encoder
    tensors = {name: 50 * t for name, t in case.random_tensors(**keys).items() if name.startswith(start)}
    write_config(folder, {**case.keys(), **keys})
    write_weights(folder, tensors, "bin")
    return folder


@pytest.fixture(scope="module")
def prefixed(folder: Path, prefix: Path) -> Iterator[Pipeline]:
    with load_pipeline(folder, device="cpu", dtype="fp32", ptuning_checkpoint=prefix) as pipe:
        yield pipe


def test_lora_for_each_request(pipe: Pipeline, tuned: Pipeline) -> None:
    spec = tuned.model.spec
    attached = [module for module in tuned.model.modules() if isinstance(module, LowRankLinear)]
    assert len(attached) == spec.num_layers * len(spec.linears)
    _assert_for_each_request(pipe, tuned)


def test_lora_merged_as_attached(
    case: FamilyCase, pipe: Pipeline, tuned: Pipeline, folder: Path, update: Path, tmp_path: Path
) -> None:
    tensors = case.random_tensors()
    names = {linear.name.rpartition(".")[2] for linear in pipe.model.spec.linears}
    for name, (down, up) in random_update(pipe.model, 0.1, names).items():
        tensors[f"{name}.weight"] = updated(tensors[f"{name}.weight"], down, SCALE * up)
    case.write_folder(tmp_path, tensors)
    assert error(logits(tuned), logits_of(tmp_path)) < 1e-5
    assert answers(tuned) == answers_of(tmp_path)


def test_lora_on_packed_weights(pipe: Pipeline, folder: Path, update: Path) -> None:
    options = {"device": "cpu", "dtype": "fp32", "quantize": 8}
    with (
        load_pipeline(folder, **options) as plain,
        load_pipeline(folder, lora_checkpoint=update, **options) as packed,
    ):
        _assert_for_each_request(plain, packed)


def test_lora_of_another_shape(case: FamilyCase, pipe: Pipeline, folder: Path, tmp_path: Path) -> None:
    update = random_update(pipe.model, 0.1, {"query_key_value"})
    write_update(tmp_path, {name: (down, up[:-1]) for name, (down, up) in update.items()})
    with pytest.raises(MismatchError, match="does not fit"):
        load_pipeline(folder, device="cpu", lora_checkpoint=tmp_path)


def test_prefix_for_each_request(pipe: Pipeline, prefixed: Pipeline) -> None:
    spec = prefixed.model.spec
    encoder = prefixed.model.get_submodule(spec.prefix_encoder)
    pairs = encoder(1, torch.float32)
    assert len(pairs) == spec.num_layers
    for key, value in pairs:
        assert key.shape == value.shape == (1, spec.num_kv_heads, PREFIX_LENGTH, spec.head_width)
    _assert_for_each_request(pipe, prefixed)


def test_prefix_cached_and_not(prefixed: Pipeline) -> None:
    ids = [*prompt_ids(prefixed), 7, 8]
    with torch.inference_mode():
        whole = prefixed.model(torch.tensor([ids]))[0, -3:]
    assert error(cached_logits(prefixed, ids, 2), whole) < 1e-5


def test_prefix_of_another_shape(case: FamilyCase, folder: Path, tmp_path: Path) -> None:
    start = case.family().spec(case.config()).prefix_encoder
    write_config(tmp_path, {**case.keys(), "pre_seq_len": PREFIX_LENGTH})
    write_weights(tmp_path, {f"{start}.embedding.weight": torch.zeros(PREFIX_LENGTH, 6)}, "bin")
    with pytest.raises(MismatchError, match="does not fit"):
        load_pipeline(folder, device="cpu", ptuning_checkpoint=tmp_path)


def _assert_for_each_request(base: Pipeline, tuned: Pipeline) -> None:
    """Requests that run together: those without the adapter are answered by the base, the others are not."""
    plain, changed = answers(base), answers(tuned)
    uses = [one != other for one, other in zip(plain, changed, strict=True)]
    assert all(uses)
    uses[1] = uses[2] = False
    assert answers(tuned, uses) == [new if use else old for use, new, old in zip(uses, changed, plain, strict=True)]
    assert answers(tuned, [False] * len(QUERIES)) == plain
    assert error(logits(tuned), logits(base)) > 0.05

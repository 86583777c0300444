"""What each of two tensor-parallel processes does for test_tensor_parallel.py: it compares sharded models with whole
ones, and writes what it saw to <rank>.json in the folder of the models."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.distributed import DistributedConfig

from chatglm import ChatGLMForConditionalGeneration, load_pipeline
from chatglm.checkpoints import WeightReader
from chatglm.demo import CHECKPOINT
from chatglm.engine import Engine
from chatglm.engine.decoder import BatchDecoder
from chatglm.errors import ChatGLMError
from chatglm.generation.config import GenerationConfig
from chatglm.loading import load
from chatglm.messages import to_messages
from chatglm.pipeline import Pipeline
from tests.test_docs import ROOT, code_blocks

CASES: dict[str, dict[str, Any]] = {
    "float": {},
    "untied": {},
    "float as int8": {"quantize": 8},
    "float as int4": {"quantize": 4},
    "bf16": {"dtype": "bf16"},
    "old": {},
    "int8": {},
    "int4": {},
    "groups": {},
    "table": {},
    "prefix": {},
    "demo": {},
}
STEPPING = ("float", "int8", "prefix")
NUM_TOKENS = 6
GREEDY = {"max_new_tokens": NUM_TOKENS, "temperature": 0}
NUM_STEPS = 3


def folder_of(case: str) -> str:
    """The folder a case loads: "float as int8" and the like take that of the first word."""
    return {"bf16": "float"}.get(case, case.split(maxsplit=1)[0])


def error(ours: Tensor, whole: Tensor) -> float:
    return float((ours - whole).norm() / whole.norm())


def prompt(model: Any, length: int = 9) -> Tensor:
    ids = torch.randint(10, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    ids[0, -2:] = torch.tensor([model.config.gmask_token_id, model.config.bos_token_id])
    return ids


@torch.inference_mode()
def logits_of_steps(model: Any) -> Tensor:
    """Logits [n, V] after a prompt and after some ids more, with a cache."""
    ids = prompt(model)
    cache, layout = BatchDecoder(model).new_cache(ids.shape[1] + NUM_STEPS), BatchDecoder(model).prompt_layout(ids)
    logits = [BatchDecoder(model).prefill(ids, layout, cache)]
    logits += [BatchDecoder(model).decode(torch.tensor([[7 + step]]), [layout], [cache]) for step in range(NUM_STEPS)]
    return torch.cat(logits)


@torch.inference_mode()
def seen_of(sharded: Pipeline, whole: Pipeline) -> dict[str, Any]:
    ids = prompt(sharded.model)
    logits, steps = sharded.model(ids), logits_of_steps(sharded.model)
    return {
        "forward": error(logits, whole.model(ids)),
        "steps": error(steps, logits_of_steps(whole.model)),
        "bits": hashlib.sha256(steps.float().numpy().tobytes()).hexdigest(),
        "chat": [pipeline.chat("hello", **GREEDY)[0] for pipeline in (sharded, whole)],
        "seeded": [pipeline.chat("hello", max_new_tokens=NUM_TOKENS, seed=5)[0] for pipeline in (sharded, whole)],
        "unseeded": sharded.chat("hello", max_new_tokens=NUM_TOKENS)[0],
        "shapes": {
            name: [list(tensor.shape), list(whole.model.get_parameter(name).shape)]
            for name, tensor in sharded.model.named_parameters()
        },
    }


def answer_by_steps(pipeline: Pipeline) -> str:
    """The greedy answer by the runner for GPUs, which computes past the layers' own calls where it can."""
    config = GenerationConfig.of(pipeline.defaults, **GREEDY)
    prompt = pipeline.family.encode_chat(pipeline.tokenizer, to_messages("hello", []), pipeline.context_limit)
    decoder = BatchDecoder(pipeline.model)
    with contextlib.closing(Engine(decoder, pipeline.tokenizer, max_running=1, uses_graphs=True)) as engine:
        return engine.submit(prompt.input_ids, config).result().text


def compare(folder: Path, case: str) -> dict[str, Any]:
    name = "demo" if case == "demo" else folder / folder_of(case)
    options = {"device": "cpu", "dtype": "fp32"} | CASES[case]
    with (
        load_pipeline(name, **options) as whole,
        load_pipeline(name, tensor_parallel=True, **options) as sharded,
    ):
        seen = seen_of(sharded, whole)
        if case in STEPPING:
            seen["chat"] = [answer_by_steps(sharded), *seen["chat"]]
        return seen


@torch.inference_mode()
def through_the_library(folder: Path) -> dict[str, Any]:
    """`from_pretrained` of transformers, which splits by the same plan."""
    whole = load(folder, dtype="fp32", device="cpu").model
    model = ChatGLMForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, distributed_config=DistributedConfig(tp_size=2)
    ).eval()
    ids = prompt(model)
    made = [one.generate(ids, max_new_tokens=6, do_sample=False).tolist() for one in (model, whole)]
    weights = {name: list(tensor.to_local().shape) for name, tensor in model.named_parameters() if is_split(tensor)}
    return {"forward": error(model(ids).logits, whole(ids).logits), "made": made, "split": weights}


def is_split(tensor: Any) -> bool:
    return hasattr(tensor, "to_local") and tensor.to_local().shape != tensor.shape


def message(call: Callable[[], object]) -> str:
    try:
        call()
    except ChatGLMError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def refusals(folder: Path) -> dict[str, str]:
    """What is refused, by every process before it waits for another."""
    spread = DistributedConfig(tp_size=2)
    model = load(folder / "float", device="cpu", tensor_parallel=True).model
    from_pretrained = ChatGLMForConditionalGeneration.from_pretrained
    return {
        "heads": message(lambda: load(folder / "one head", device="cpu", tensor_parallel=True)),
        "vocabulary": message(lambda: load(folder / "odd", device="cpu", tensor_parallel=True)),
        "groups": message(lambda: load(folder / "one group", device="cpu", tensor_parallel=True)),
        "num_gpus": message(lambda: load("demo", device="cpu", tensor_parallel=True, num_gpus=2)),
        "lora_checkpoint": message(lambda: load("demo", device="cpu", tensor_parallel=True, lora_checkpoint="x")),
        "mmap": message(lambda: load("demo", device="cpu", tensor_parallel=True, mmap=True)),
        "save": message(lambda: model.save_pretrained(folder / "saved")),
        "quantize": message(lambda: model.quantize(8)),
        "library, heads": message(lambda: from_pretrained(folder / "one head", distributed_config=spread)),
        "library, int8": message(lambda: from_pretrained(folder / "int8", distributed_config=spread)),
        "library, prefix": message(lambda: from_pretrained(folder / "prefix", distributed_config=spread)),
    }


def printed_by_the_example() -> str:
    """What the script of FAQ.md prints, with the bundled model and shorter answers. It draws without a seed."""
    (code,) = code_blocks(ROOT / "FAQ.md", "python")
    code = code.replace("max_length=512", "max_length=48")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace('"chatglm-6b"', repr(str(CHECKPOINT))), {})
    return printed.getvalue()


def main() -> None:
    torch.set_num_threads(1)
    WeightReader.blocks.__defaults__ = (5000,)  # bytes: that tensors are read by blocks of rows must not show
    folder = Path(sys.argv[1])
    said: list[str] = []
    load(folder / "float", device="cpu", tensor_parallel=True, report=said.append)
    seen = {
        "cases": {case: compare(folder, case) for case in CASES},
        "library": {name: through_the_library(folder / name) for name in ("float", "untied")},
        "refusals": refusals(folder),
        "said": said,
        "example": printed_by_the_example(),
    }
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(seen), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

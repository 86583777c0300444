"""Damaged and hostile folders: whatever is wrong with a file, the folder answers or one of our errors says why."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatglm import kernels
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.solo import stream_alone
from chatglm.errors import ChatGLMError
from chatglm.generation.config import GenerationConfig, chat_defaults
from chatglm.generation.deltas import fold
from chatglm.loading import load
from chatglm.messages import to_messages
from tests.folders import make_folder, random_tensors, tiny_config, write_config, write_weights
from tests.loading.damage import damage
from tests.loading.folders import quantized_folder
from tests.lora import random_update, write_update

MOST_SECONDS, MOST_BYTES = 5, 200 * 2**20
TINY = {"num_layers": 1}


@pytest.fixture(autouse=True, scope="module")
def _plain_kernels() -> Iterator[None]:
    """Compiled ones take seconds to build."""
    with kernels.use("reference"):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small folders of every form; in `lora` and `prefix` the adapter is what is damaged."""
    root = tmp_path_factory.mktemp("folders")
    make_folder(root / "shards", "bin_shards", **TINY)
    make_folder(root / "old", "bin_old", **TINY)
    make_folder(root / "plain", "safetensors", **TINY)
    quantized_folder(root / "packed", 4, group_size=32, **TINY)
    for folder in list(root.iterdir()):
        settings = {"top_p": 0.7, "temperature": 0.9, "do_sample": True, "eos_token_id": 3, "top_k": 20}
        (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    network = load(root / "plain", wraps=False).model
    lora = write_update(root / "lora", random_update(network, 0.1))
    config = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    config |= {
        "rank_pattern": {"dense": 2},
        "alpha_pattern": {".*h": 4},
        "use_rslora": False,
        "init_lora_weights": True,
    }
    config |= {"layers_to_transform": None, "exclude_modules": None, "bias": "none", "task_type": "CAUSAL_LM"}
    (lora / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    config = tiny_config(**TINY, pre_seq_len=3)
    write_config(root / "prefix", config)
    tensors = {name: tensor for name, tensor in random_tensors(config).items() if "prefix" in name}
    write_weights(root / "prefix", tensors, "bin")
    return sorted(root.iterdir())


def answer(folder: Path, base: Path) -> str:
    """Load it as a program does and let it say two tokens."""
    options = {"lora": "lora_checkpoint", "prefix": "ptuning_checkpoint"}
    option = options.get(folder.name)
    loaded = load(base if option else folder, device="cpu", wraps=False, **({option: folder} if option else {}))
    network: Any = loaded.model
    prompt = loaded.family.encode_chat(loaded.tokenizer, to_messages("hello", []), network.spec.context_limit)
    config = GenerationConfig.of(chat_defaults(network), max_new_tokens=2)
    return fold(stream_alone(BatchDecoder(network), loaded.tokenizer, prompt.input_ids, config)).text


def forget_peak() -> None:
    """What this process took earlier would hide what it takes now."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def attempt(action: Callable[[], object]) -> str:
    """ "" if it works or ends with an error of ours; else what is wrong."""
    forget_peak()
    before, start = peak_bytes(), time.process_time()
    try:
        action()
    except ChatGLMError as error:
        str(error).encode()
    except Exception:
        return traceback.format_exc()
    seconds = time.process_time() - start
    num_bytes = peak_bytes() - before
    return f"{seconds} s, {num_bytes} bytes" if seconds > MOST_SECONDS or num_bytes > MOST_BYTES else ""


def check(folders: list[Path], numbers: range, work: Path) -> None:
    base = next(folder for folder in folders if folder.name == "plain")
    for folder in folders:  # as they are, they answer, and what is imported at first use is there
        answer(folder, base)
    wrong = []
    for number in numbers:
        source = folders[number % len(folders)]
        copy = shutil.copytree(source, work / str(number) / source.name)
        what = damage(copy, number)
        if problem := attempt(lambda copy=copy: answer(copy, base)):
            wrong.append(f"{number} {source.name}/{what}\n{problem}")
        shutil.rmtree(work / str(number))
    assert not wrong, f"{len(wrong)} of {len(numbers)}:\n" + "\n".join(wrong[:5])


@pytest.mark.skipif(sys.platform != "linux", reason="the peak cannot be forgotten elsewhere")
def test_an_earlier_peak_hides_nothing() -> None:
    b"x" * (MOST_BYTES + 2**26)
    assert "bytes" in attempt(lambda: b"x" * (MOST_BYTES + 2**24))
    assert attempt(lambda: b"x" * (MOST_BYTES // 2)) == ""


def test_damaged_folders(folders: list[Path], tmp_path: Path) -> None:
    check(folders, range(300), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_damaged_folders_at_length(folders: list[Path], tmp_path: Path) -> None:
    check(folders, range(300, 5300), tmp_path)

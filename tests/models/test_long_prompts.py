"""A prompt of 32,000 tokens takes memory in proportion to its length: no mask of its square is made."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chatglm.pipeline import load_pipeline
from tests.families.cases import CASES

NUM_TOKENS = 32_000
MOST_BYTES = 300e6  # a mask of one byte for each pair takes 1024e6


def ways(folder: Path) -> dict[str, Callable[[int], object]]:
    """What reads a prompt of so many tokens."""
    pipe = load_pipeline(folder, device="cpu", dtype="fp32")
    whole = load_pipeline(folder, device="cpu", dtype="fp32").family.model_class.from_pretrained(folder).eval()

    def ids(length: int) -> torch.Tensor:
        return torch.randint(3, 200, (1, length), generator=torch.Generator().manual_seed(0))

    return {
        "engine": lambda length: pipe.complete(
            "x " * (length // 2), max_new_tokens=1, max_length=length + 100
        ).result(),
        "generate": lambda length: whole.generate(ids(length), max_new_tokens=1, do_sample=False),
    }


def main() -> None:
    torch.set_num_threads(2)
    read = ways(Path(sys.argv[1]))[sys.argv[2]]
    read(1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read(NUM_TOKENS)
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


@pytest.mark.slow
@pytest.mark.xdist_group("programs")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the unit of ru_maxrss is another one")
@pytest.mark.parametrize("way", ["engine", "generate"])
def test_memory_grows_with_the_length(way: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "glm4")
    case.make_folder(tmp_path, num_layers=1, seq_length=2 * NUM_TOKENS)
    command = [sys.executable, "-m", "tests.models.test_long_prompts", str(tmp_path), way]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=250)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[-1]) < MOST_BYTES


if __name__ == "__main__":
    main()

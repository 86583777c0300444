"""`import chatglm` is light, and the Auto classes know the family in either order of imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.cases import build


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_is_light() -> None:
    assert (
        run("import sys, chatglm; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])") == "[]"
    )


@pytest.mark.parametrize(
    "imports",
    [
        "import chatglm; from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM",
        "from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM; import chatglm",
        "from chatglm.models.chatglm.network import ChatGLMModel\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM",
    ],
    ids=["chatglm first", "transformers first", "network first"],
)
def test_auto_classes_in_any_order(imports: str, tmp_path: Path) -> None:
    """A folder as published: its config.json names remote code, which is neither needed nor looked for."""
    build("chatglm_v1/main").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    }
    config |= {"architectures": ["ChatGLMModel"], "transformers_version": "4.27.1", "torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    printed = run(
        f"{imports}\nfolder = {str(tmp_path)!r}\n"
        "print(type(AutoConfig.from_pretrained(folder)).__module__)\n"
        "print(type(AutoModel.from_pretrained(folder)).__module__)\n"
        "print(type(AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)).__module__)\n"
    )
    package = "chatglm.models.chatglm"
    assert printed.splitlines()[-3:] == [f"{package}.config", *[f"{package}.model"] * 2]

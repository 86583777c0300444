"""`import chatglm` is light, and the Auto classes know the family in either order of imports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel, AutoTokenizer

from chatglm.__main__ import main
from chatglm.errors import CheckpointError
from tests import forking
from tests.folders import make_folder
from tests.golden.cases import build

# The first takes the longest way through the library's modules.
NAMES = (
    "Trainer", "PreTrainedModel", "pipeline", "AutoConfig", "AutoModel", "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM", "AutoTokenizer", "BertModel", "DataCollatorForSeq2Seq", "GenerationConfig",
    "GenerationMixin", "LlamaForCausalLM", "LogitsProcessorList", "PreTrainedConfig", "PreTrainedTokenizer",
    "PreTrainedTokenizerFast", "Seq2SeqTrainer", "TextIteratorStreamer", "TrainingArguments",
)  # fmt: skip
# In one process: each name with all modules of both packages forgotten before, so that every import is a first one.
IMPORT_ORDERS = """
import sys, warnings
warnings.simplefilter("ignore")
meta_path = list(sys.meta_path)
for name in {names}:
    for order in ("import chatglm\\nfrom transformers import {{}}", "from transformers import {{}}\\nimport chatglm"):
        for module in [m for m in sys.modules if m.partition(".")[0] in ("chatglm", "transformers")]:
            del sys.modules[module]
        sys.meta_path[:] = meta_path
        exec(order.format(name), {{}})
        from transformers import AutoConfig
        print(name, AutoConfig.for_model("chatglm").__class__.__module__)
"""


def run(code: str) -> str:
    argv = [sys.executable, "-c", code]
    result = forking.run(argv, preload=forking.TORCH, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return str(result.stdout).strip()


def test_import_is_light() -> None:
    code = "import sys, chatglm; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    result = forking.run([sys.executable, "-c", code], preload=(), capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_chatting_and_quantizing_a_folder_do_not_import_transformers() -> None:
    code = (
        "import sys; from chatglm import load_pipeline\n"
        "for bits in (None, 4): load_pipeline('demo', quantize=bits).chat('hello', max_new_tokens=2)\n"
        "print('transformers' in sys.modules)"
    )
    assert run(code) == "False"


@pytest.mark.parametrize("names", [NAMES[:1], pytest.param(NAMES[1:], marks=pytest.mark.slow)])
def test_public_names_in_both_orders(names: tuple[str, ...]) -> None:
    printed = run(IMPORT_ORDERS.format(names=names)).splitlines()
    assert printed == [f"{name} chatglm.models.chatglm.model" for name in names for _ in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import chatglm; from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM",
        "from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM; import chatglm",
        "from chatglm.models.chatglm.model import ChatGLMConfig\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM",
    ],
    ids=["chatglm first", "transformers first", "model first"],
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
    assert printed.splitlines()[-3:] == ["chatglm.models.chatglm.model"] * 3


BROKEN = [b"", b"{", b"[]", b"null", b'"x"', b"[" * 50_000, b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", b"\xff\xfe\x00"]
WRONG = [{"auto_map": 5}, {"auto_map": "x"}, {"auto_map": None}, {"auto_map": {"AutoConfig": 5, "AutoTokenizer": []}}]
WRONG += [
    {"model_type": []},
    {"tokenizer_class": 5},
    {"tokenizer_class": ["x"]},
    {"dtype": ""},
    {"torch_dtype": 1e30},
    {"vocab_size": "x"},
]


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_auto_classes_refuse_damaged_settings(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path, "safetensors", num_layers=1)
    whole = json.loads((tmp_path / name).read_text())
    classes = (AutoConfig, AutoModel, AutoTokenizer) if name == "config.json" else (AutoTokenizer,)
    for content in [*BROKEN, *(json.dumps(whole | keys).encode() for keys in WRONG)]:
        (tmp_path / name).write_bytes(content)
        for auto_class in classes:
            with pytest.raises(CheckpointError, match=name):
                auto_class.from_pretrained(tmp_path)
        assert main(["doctor", str(tmp_path)]) in (0, 1)  # and not a traceback
    whole.pop("tokenizer_class", None)
    (tmp_path / name).write_bytes(json.dumps(whole).encode("utf-16"))
    assert AutoTokenizer.from_pretrained(tmp_path)("hello").input_ids
    assert AutoConfig.from_pretrained(tmp_path).num_layers == 1

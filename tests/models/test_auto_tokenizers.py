"""AutoTokenizer gives each folder the tokenizer of its family; published settings call all of them the same."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import chatglm  # noqa: F401  (registers the Auto classes)
from tests import forking
from tests.family_tokenizers import WRITERS, genuine_folder
from tests.models.test_library_tokenizers import PREFIXES
from tests.models.test_text_tokenizers import FAMILIES


def folder_of(name: str, folder: Path) -> Path:
    """A small vocabulary with the published settings; code that the settings name is not among the files."""
    WRITERS[name](folder)
    published = genuine_folder(name) if name != "chatglm2" else genuine_folder(name).with_name("chatglm2-6b-32k")
    shutil.copy(published / "config.json", folder)
    return folder


@pytest.mark.parametrize("flags", [{}, {"trust_remote_code": True}, {"use_fast": False}], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_published_folders(name: str, flags: dict[str, bool], tmp_path: Path) -> None:
    tok = AutoTokenizer.from_pretrained(folder_of(name, tmp_path / "model"), **flags)
    assert type(tok).__name__ == f"{PREFIXES[name]}Tokenizer"
    assert type(tok).__module__.startswith("chatglm.")


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_folders(name: str, tmp_path: Path) -> None:
    tok = AutoTokenizer.from_pretrained(folder_of(name, tmp_path / "model"))
    tok.save_pretrained(tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert type(again) is type(tok)
    assert again.encode("你好 <|user|>") == tok.encode("你好 <|user|>")


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["import chatglm, transformers", "import transformers, chatglm"])
def test_either_import_order(imports: str, tmp_path: Path) -> None:
    folders = {name: str(folder_of(name, tmp_path / name)) for name in FAMILIES}
    code = (
        f"{imports}\nfrom transformers import AutoTokenizer\n"
        f"for folder in {list(folders.values())!r}:\n"
        "    print(type(AutoTokenizer.from_pretrained(folder, trust_remote_code=True)).__name__)"
    )
    result = forking.run([sys.executable, "-c", code], preload=forking.TORCH, capture_output=True, text=True)
    assert result.stdout.split()[-len(folders) :] == [f"{PREFIXES[name]}Tokenizer" for name in folders], result.stderr

"""Every error that an interface can meet, in the interface's language."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import chatglm
from chatglm import errors
from chatglm.errors import ChatGLMError, InvalidRequestError, OutOfMemoryError, PromptTooLongError, QueueFullError
from chatglm.loading import load
from chatglm.ui.error_texts import BilingualError, error_text
from chatglm.ui.transcript import FORMS, read_transcript

PACKAGE = Path(chatglm.__file__).parent
# What answers a question or reads a conversation.
SOURCES = (
    *PACKAGE.glob("engine/*.py"),
    *PACKAGE.glob("generation/*.py"),
    *PACKAGE.glob("models/*/template.py"),
    *(PACKAGE / "models" / name for name in ("encoded_prompt.py", "rounds.py", "role_turns.py", "role_chat.py")),
    *(PACKAGE / "models" / name for name in ("glm4/builtin_tools.py", "codegeex2/languages.py")),
    *PACKAGE.glob("ui/*.py"),
    PACKAGE / "ui/gradio/gradio_page.py",
    PACKAGE / "messages.py",
    PACKAGE / "pipeline.py",
)
KINDS = {kind.__name__: kind for kind in vars(errors).values() if inspect.isclass(kind)} | {
    "BilingualError": BilingualError
}
CHINESE = re.compile("[\u4e00-\u9fff]")
ENGLISH = re.compile("[a-z]{3,} [a-z]{3,}")


def written_errors() -> Iterator[tuple[str, ChatGLMError]]:
    """Those of the sources, with 7 for each value."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name in KINDS:
                assert isinstance(node, ast.Call)
                texts = [_text(argument) for argument in node.args]
                if re.search("[a-z]", texts[0]):
                    yield f"{path.name}:{node.lineno}", KINDS[name](*texts)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(map(_text, node.values)) if isinstance(node, ast.JoinedStr) else "7"


def test_every_error_of_an_answer_or_a_file_has_a_text_in_each_language() -> None:
    written = dict(written_errors())
    assert len(written) > 40
    for place, error in written.items():
        chinese, english = error_text(error, "zh"), error_text(error, "en")
        assert CHINESE.search(chinese), place
        assert not ENGLISH.search(chinese), f"{place}: {chinese}"
        assert english, place
        assert not CHINESE.search(english), f"{place}: {english}"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_error_is_named(kind: type[ChatGLMError]) -> None:
    error = kind("模型坏了。", "It broke.") if kind is BilingualError else kind("It broke.", "Mend it.")
    assert CHINESE.search(error_text(error, "zh"))
    assert "It broke." in error_text(error, "en")


@pytest.mark.parametrize(
    ("error", "chinese", "english"),
    [
        (
            QueueFullError("1 requests run and 2 wait; no more are taken.", "Try again in a moment."),
            "已有 1 个问题正在回答，2 个在排队，暂时不再接收。请稍后重试。",
            "1 requests run and 2 wait; no more are taken. Try again in a moment.",
        ),
        (
            PromptTooLongError(
                "The message is 6000 tokens long; fewer than 24 fit.", "Shorten it, or raise max_length."
            ),
            "问题太长，放不进 24 个 token。请缩短问题，或调大“最大长度”。",
            "The message is 6000 tokens long; fewer than 24 fit. Shorten it, or raise max_length.",
        ),
        (
            PromptTooLongError("The message is 6000 characters long; fewer than 1024 tokens fit.", "Shorten it."),
            "问题太长，放不进 1024 个 token。请缩短问题。",
            "The message is 6000 characters long; fewer than 1024 tokens fit. Shorten it.",
        ),
        (
            InvalidRequestError("top_p must be at least 0 and at most 1, not '很高'."),
            "top_p 必须在 0 到 1 之间，而不是 '很高'。",
            "top_p must be at least 0 and at most 1, not '很高'.",
        ),
        (
            OutOfMemoryError("Memory ran out on the device at 9 tokens of prompt and answer.", "Give less."),
            "设备的内存不足（提示与回答合计 9 个 token）。请调小“最大长度”，或让服务器用 --quantize 8 或 4 量化，"
            "或换用其他设备。",
            "Memory ran out on the device at 9 tokens of prompt and answer. Give less.",
        ),
        (InvalidRequestError("New."), "请求无效：New.", "New."),
        (BilingualError("文件坏了。", "The file is broken."), "文件坏了。", "The file is broken."),
        (
            RuntimeError("secret"),
            "服务器内部出错，详情见服务器的终端。",
            "Internal error; the server's terminal says more.",
        ),
    ],
)
def test_errors_speak_one_language(error: Exception, chinese: str, english: str) -> None:
    assert (error_text(error, "zh"), error_text(error, "en")) == (chinese, english)


def test_a_model_that_cannot_be_found_is_told_of_in_one_language(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "absent", tmp_path / "file", tmp_path):
        (tmp_path / "config").touch()
        with pytest.raises(ChatGLMError) as caught:
            load(folder)
        assert not CHINESE.search(error_text(caught.value, "en"))
        assert not ENGLISH.search(error_text(caught.value, "zh").replace(str(tmp_path), ""))


@pytest.mark.parametrize(
    ("file", "chinese", "english"),
    [
        ("", "文件不是 UTF-8 的 JSON。", "not JSON"),
        ("{}", "没有名为 history、rounds 或 messages 的列表。", 'no list under "history"'),
        ('[["a", 1]]', "history[0] 不是一问一答两段文字。", "not a pair of strings"),
        ('{"history": [], "settings": {"stop": 5}}', "stop 必须是文字", "stop must be text"),
    ],
)
def test_a_file_that_is_refused(file: str, chinese: str, english: str) -> None:
    with pytest.raises(ChatGLMError) as caught:
        read_transcript(file.encode())
    in_chinese, in_english = error_text(caught.value, "zh"), error_text(caught.value, "en")
    assert chinese in in_chinese
    assert english in in_english
    assert (FORMS in in_chinese) == (FORMS in in_english) == bool(file)
    assert not CHINESE.search(in_english)

"""What an error says in one language, for interfaces that have one. The engine's errors are English."""

from __future__ import annotations

import re
from typing import Literal

from chatglm.errors import (
    ChatGLMError,
    CheckpointError,
    DeviceError,
    InvalidLogitsError,
    InvalidRequestError,
    OutOfMemoryError,
)

Language = Literal["zh", "en"]


class BilingualError(ChatGLMError):
    """An error in both languages; an interface that has no language of its own shows them one after the other."""

    def __init__(self, chinese: str, english: str) -> None:
        super().__init__(chinese, english)


INTERNAL: dict[Language, str] = {
    "zh": "服务器内部出错，详情见服务器的终端。",
    "en": "Internal error; the server's terminal says more.",
}
# What the error begins with, and the same in Chinese with its values in order.
_CHINESE = tuple(
    (re.compile(english, re.DOTALL), chinese)
    for english, chinese in (
        # The engine
        (
            r"(.+) requests run and (.+) wait; no more",
            "已有 {0} 个问题正在回答，{1} 个在排队，暂时不再接收。请稍后重试。",
        ),
        (
            r"The message is .+ long; fewer than (.+?)(?: tokens)? fit\. .*max_length",
            "问题太长，放不进 {0} 个 token。请缩短问题，或调大“最大长度”。",
        ),
        (r"The message is .+ long; fewer than (.+?)(?: tokens)? fit\.", "问题太长，放不进 {0} 个 token。请缩短问题。"),
        (r"The prompt is .+ long; (.+) tokens fit\.", "问题太长，放不进 {0} 个 token。请缩短问题。"),
        (
            r"The prompt has (.+) tokens, but prompt and answer together may have (.+)\. .*max_length",
            "提示有 {0} 个 token，而提示与回答合计最多 {1} 个。请缩短问题，或调大“最大长度”。",
        ),
        (
            r"The prompt has (.+) tokens, but prompt and answer together may have (.+?)\.",
            "提示有 {0} 个 token，而提示与回答合计最多 {1} 个。请缩短问题。",
        ),
        (
            r"Prompt and answer together may take (.+) tokens, but the memory for caches holds (.+?)\.",
            "提示与回答合计可能需要 {0} 个 token，而缓存只放得下 {1} 个。"
            "请调小“最大长度”，或为服务器提高缓存的内存上限。",
        ),
        (
            r"Memory ran out on the device at (.+) tokens",
            "设备的内存不足（提示与回答合计 {0} 个 token）。请调小“最大长度”，或让服务器用 --quantize 8 或 4 量化，"
            "或换用其他设备。",
        ),
        (
            r"A memory limit of (.+) leaves no room .* at least (.+), which",
            "内存上限 {0} 放不下一段对话。请至少给 {1}。",
        ),
        (r"(.+) running and (.+) waiting requests are no bounds", "同时回答 {0} 个、排队 {1} 个，不是有效的上限。"),
        (r"deadline must be .*, not (.+)\.", "deadline 必须是不小于 0 的秒数，而不是 {0}。"),
        (r"The engine is closed|The engine runs or is closed|This pipeline is closed", "模型已关闭，不再接收问题。"),
        (r"The engine is running already", "模型已在运行；上限要在第一个问题之前设置。"),
        (r"input_ids hold a number that is no token", "input_ids 里有词表之外的数。"),
        (r"(.+) has no steps that could be captured", "{0} 不能录制成 CUDA 图。"),
        (r"The model produced NaN", "模型算出了无效的数值（NaN 或无穷大）。请检查权重，或换用 --dtype bf16、fp32。"),
        # Parameters
        (r"(\w+) must be a whole number of at least (\S+), not (.+)\.", "{0} 必须是不小于 {1} 的整数，而不是 {2}。"),
        (r"(\w+) must be at least (\S+) and at most (\S+), not (.+)\.", "{0} 必须在 {1} 到 {2} 之间，而不是 {3}。"),
        (r"(\w+) must be at least (\S+), not (.+)\.", "{0} 必须不小于 {1}，而不是 {2}。"),
        (r"(\w+) must be above (\S+) and at most (\S+), not (.+)\.", "{0} 必须大于 {1} 且不超过 {2}，而不是 {3}。"),
        (r"(\w+) must be above (\S+), not (.+)\.", "{0} 必须大于 {1}，而不是 {2}。"),
        (r"do_sample must be true or false, not (.+)\.", "do_sample 必须是 true 或 false，而不是 {0}。"),
        (r"eos_token_id (.+) is no token", "eos_token_id {0} 不在任何词表里。"),
        (r"stop must be|A stop string is empty", "stop 必须是文字，或由非空文字组成的列表。"),
        (r"Unknown generation parameter (.+?)\.", "没有参数 {0}。"),
        # Messages and files
        (r"history is not a list", "history 不是列表。"),
        (r"(history\[.+\]) is not a pair", "{0} 不是一问一答两段文字。"),
        (r"The (?:query|prompt) must be a string", "问题必须是文字。"),
        (r"A message is no object", "消息必须是含有 role 和 content 的对象。"),
        (r"There is no role (.+?)\.", "没有角色 {0}。"),
        (r"role is (.+?)\. It can be", "role 不能是 {0}。"),
        (r"The content or metadata of a message", "消息的 content 和 metadata 必须是文字。"),
        (r"The tools of a message|A tool has neither", "工具的格式不对。"),
        (r"This model cannot call tools", "这个模型不能调用工具；ChatGLM3-6B 和 GLM-4 可以。"),
        (r"CodeGeeX2 has no tag for the language (.+?)\.", "CodeGeeX2 没有语言 {0} 的标签。"),
        (r"The conversation does not end with", "对话的最后一条消息必须是用户的。"),
        (r"It is neither a list nor an object", "内容既不是列表，也不是对象。"),
        (r"system is not text", "system 不是文字。"),
        (r"settings is not an object", "settings 不是对象。"),
        (r"(.+) is too large a number", "{0} 的数值太大。"),
        (r"It has no list under", "没有名为 history、rounds 或 messages 的列表。"),
        (r"(messages\[.+\]) has no role or no text", "{0} 没有 role 或没有文字。"),
        (r"A round has no answer", "有一轮没有回答，或缺少选中的回答。"),
        (r"An answer does not say how it ended", "有一个回答没有写明怎样结束。"),
        (r"A figure of an answer is not a number", "有一个回答的数据不是数字。"),
        (r"It lacks (.+)\.", "缺少 {0}。"),
        (r"(\w+) is empty, too long or no Unicode text", "{0} 为空、太长，或不是 Unicode 文字。"),
        (r"There is no such round", "没有这一轮对话。"),
        (r"There is no (form|action) ", "请求无效。"),
    )
)
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (InvalidLogitsError, "模型算出了无效的数值"),
    (OutOfMemoryError, "内存不足"),
    (DeviceError, "设备不可用"),
    (CheckpointError, "模型无法使用"),
    (InvalidRequestError, "请求无效"),
    (Exception, "出错了"),
)
_SENTENCE = re.compile(r"(?<=[。？！])\s*|(?<=[.?!])\s+")


def error_text(error: Exception, language: Language) -> str:
    """What an error says, in one language; of an internal one only that it happened."""
    if not isinstance(error, ChatGLMError):
        return INTERNAL[language]
    if isinstance(error, BilingualError):
        return error.problem if language == "zh" else error.remedy
    text = str(error)
    if isinstance(error, CheckpointError):  # some of these say all in both languages, sentence by sentence
        sentences = _SENTENCE.split(text)
        in_chinese = [each for each in sentences if each.endswith(("。", "？", "！"))]
        if language == "zh":
            return "".join(in_chinese) or _wrapped(error)
        return " ".join(each for each in sentences if each not in in_chinese) or text
    if language == "en":
        return text
    for pattern, chinese in _CHINESE:
        if found := pattern.match(text):
            return chinese.format(*found.groups())
    return _wrapped(error)


def _wrapped(error: ChatGLMError) -> str:
    return next(f"{chinese}：{error}" for kind, chinese in _KINDS if isinstance(error, kind))

"""All texts of the Gradio page in Chinese and English. The browser says which language it wants."""

from __future__ import annotations

import re
from typing import Literal

from chatglm.errors import ChatGLMError, InvalidLogitsError, InvalidRequestError, PromptTooLongError, QueueFullError

Language = Literal["zh", "en"]

_CHINESE = {
    "new": "新对话",
    "conversations": "对话列表",
    "no_conversations": "还没有对话",
    "untitled": "新对话",
    "menu": "侧栏",
    "close": "关闭",
    "rename": "重命名",
    "delete": "删除",
    "deleted": "已删除“{title}”",
    "later_removed": "之后的 {rounds} 轮对话已移除",
    "undo": "撤销",
    "settings": "设置",
    "max_length": "最大长度",
    "max_length_info": "提示与回答合计的 token 数",
    "temperature": "温度",
    "temperature_info": "0 为每次都取最可能的词",
    "top_p_info": "越小越稳重，越大越多样",
    "top_k_info": "只从最好的 K 个词中选取；0 为不限",
    "seed": "随机种子",
    "seed_info": "相同种子得到相同回答；留空为随机",
    "system": "系统指令",
    "system_info": "放在对话最前面",
    "reset": "恢复默认值",
    "theme": "主题",
    "theme_system": "跟随系统",
    "theme_light": "浅色",
    "theme_dark": "深色",
    "save": "保存对话",
    "save_html": "网页",
    "save_markdown": "Markdown",
    "save_json": "JSON",
    "open": "打开文件",
    "opened": "已打开 {rounds} 轮对话",
    "not_text": "文件不是 UTF-8 的 JSON。",
    "nothing": "对话为空，没有可保存的内容",
    "storage_full": "浏览器的存储空间已满，这段对话关闭页面后会丢失：请删除旧对话，或把它保存为文件。",
    "unreachable": "服务器没有响应。对话保存在这个浏览器里；服务器恢复后，页面会自动重新载入。",
    "not_served": "服务器没有处理这次请求，请重试。",
    "stopped_elsewhere": "已停止“{title}”中的回答，回答到此为止的文字已保留",
    "limit": "上下文 {limit}",
    "greeting": "有什么可以帮忙的？",
    "starters": "可以这样开始",
    "placeholder": "输入问题，Enter 发送，Shift+Enter 换行",
    "placeholder_short": "输入问题",
    "question": "问题",
    "send": "发送",
    "stop": "停止",
    "to_end": "到最新处",
    "copy": "复制",
    "copied": "已复制",
    "copy_code": "复制代码",
    "edit": "编辑",
    "edited": "编辑问题",
    "cancel": "取消",
    "retry": "重试",
    "continue": "继续",
    "take_back": "撤回",
    "taken_back": "已撤回",
    "earlier": "上一个版本",
    "later": "下一个版本",
    "you": "你",
    "model": "模型",
    "conversation": "对话内容",
    "demo": "自带的迷你演示模型（约 800 万参数），经常答错，不代表 ChatGLM-6B 的水平。"
    "真正的模型：python web_demo.py --model <文件夹>",
    "speed": "{rate:.1f} token/秒",
    "context": "上下文 {used} / {limit}",
    "thinking": "正在思考",
    "queued": "排队中，第 {place} 位",
    "answering": "正在回答",
    "stopped": "已停止",
    "length": "已达到长度上限",
    "deadline": "已超时",
    "empty": "回答为空",
    "dropped": "对话太长，最早的 {rounds} 轮已不在模型的视野内",
}
_ENGLISH = {
    "new": "New conversation",
    "conversations": "Conversations",
    "no_conversations": "No conversations yet",
    "untitled": "New conversation",
    "menu": "Side bar",
    "close": "Close",
    "rename": "Rename",
    "delete": "Delete",
    "deleted": "Deleted “{title}”",
    "later_removed": "Removed {rounds} later rounds",
    "undo": "Undo",
    "settings": "Settings",
    "max_length": "Maximum length",
    "max_length_info": "tokens of prompt and answer together",
    "temperature": "Temperature",
    "temperature_info": "0 = always the likeliest word",
    "top_p_info": "smaller is steadier, larger more varied",
    "top_k_info": "choose among the K best words; 0 = all",
    "seed": "Seed",
    "seed_info": "same seed, same answer; empty = random",
    "system": "System prompt",
    "system_info": "put in front of the conversation",
    "reset": "Back to the defaults",
    "theme": "Theme",
    "theme_system": "System",
    "theme_light": "Light",
    "theme_dark": "Dark",
    "save": "Save conversation",
    "save_html": "Web page",
    "save_markdown": "Markdown",
    "save_json": "JSON",
    "open": "Open file",
    "opened": "Opened {rounds} rounds",
    "not_text": "The file is not JSON in UTF-8.",
    "nothing": "The conversation is empty: there is nothing to save",
    "storage_full": "The browser's storage is full; this conversation is lost when the page is closed. Delete old "
    "conversations, or save this one as a file.",
    "unreachable": "The server does not answer. Your conversations are kept in this browser; the page reloads when the "
    "server is back.",
    "not_served": "The server did not serve this request; try again.",
    "stopped_elsewhere": "Stopped the answer in “{title}” and kept its text so far",
    "limit": "context {limit}",
    "greeting": "What can I help with?",
    "starters": "Ways to begin",
    "placeholder": "Ask something. Enter sends, Shift+Enter breaks the line",
    "placeholder_short": "Ask something",
    "question": "Question",
    "send": "Send",
    "stop": "Stop",
    "to_end": "To the latest",
    "copy": "Copy",
    "copied": "Copied",
    "copy_code": "Copy code",
    "edit": "Edit",
    "edited": "Edit the question",
    "cancel": "Cancel",
    "retry": "Try again",
    "continue": "Continue",
    "take_back": "Take back",
    "taken_back": "Taken back",
    "earlier": "Earlier version",
    "later": "Later version",
    "you": "You",
    "model": "Model",
    "conversation": "The conversation",
    "demo": "The bundled toy model (about 8M parameters) is often wrong and says nothing about ChatGLM-6B. "
    "For the real one: python web_demo.py --model <folder>",
    "speed": "{rate:.1f} tokens/s",
    "context": "context {used} / {limit}",
    "thinking": "thinking",
    "queued": "in the queue, number {place}",
    "answering": "answering",
    "stopped": "stopped",
    "length": "the length limit is reached",
    "deadline": "out of time",
    "empty": "the answer is empty",
    "dropped": "too long a conversation: the model no longer sees its oldest {rounds} rounds",
}
TEXTS: dict[Language, dict[str, str]] = {"zh": _CHINESE, "en": _ENGLISH}

# Questions that the demo model answers too.
STARTERS: dict[Language, tuple[str, ...]] = {
    "zh": ("请介绍一下你自己", "写一首关于春天的诗", "太阳系有几颗行星？", "给我讲个笑话"),
    "en": ("Who are you?", "Write a poem about spring", "How do I fall asleep faster?", "Tell me a joke"),
}

# The engine's errors are English. Their figures, in order, fill these.
_CHINESE_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (QueueFullError, "已有 {0} 个问题正在回答，{1} 个在排队，暂时不再接收。请稍后重试。"),
    (PromptTooLongError, "问题太长，放不进 {limit} 个 token。请缩短问题，或调大“最大长度”。"),
    (InvalidLogitsError, "模型算出了无效的数值（NaN 或无穷大）。请检查权重，或换用 --dtype bf16、fp32。"),
    (InvalidRequestError, "请求无效：{problem}"),
)
_INTERNAL: dict[Language, str] = {
    "zh": "服务器内部出错，详情见服务器的终端。",
    "en": "Internal error; the server's terminal says more.",
}
_CHINESE_CHARACTER = re.compile(r"[\u4e00-\u9fff]")


def message(name: str, language: Language, **values: object) -> str:
    """One of the texts, with its values."""
    return TEXTS[language][name].format(**values)


def error_text(error: Exception, language: Language) -> str:
    """What an error says, in one language."""
    if not isinstance(error, ChatGLMError):
        return _INTERNAL[language]
    if _CHINESE_CHARACTER.search(error.problem):  # these have a Chinese half and an English one
        return error.problem if language == "zh" or not error.remedy else error.remedy
    if language == "en":
        return str(error)
    figures = re.findall(r"\d+", error.problem)
    for kind, text in _CHINESE_ERRORS:
        if isinstance(error, kind) and len(figures) >= 2 * ("{0}" in text):
            return text.format(*figures, limit=figures[-1] if figures else "?", problem=str(error))
    return f"出错了：{error}"


def language_of(name: object) -> Language:
    """The page's language for a browser's language or what a client says."""
    return "zh" if str(name).strip().lower().startswith("zh") else "en"

"""All texts of the Streamlit page in Chinese and English; `texts_for` gives those of a browser's language."""

from __future__ import annotations

from typing import Protocol

from chatglm.ui.error_texts import Language

TEXTS: dict[str, tuple[str, str]] = {
    "title": ("ChatGLM-6b 演示", "ChatGLM-6B demo"),
    "placeholder": (
        "输入问题（Shift+Enter 换行）",
        "Ask something (Shift+Enter: new line)",
    ),
    "welcome": ("你好！在下面输入问题，或者从这里开始：", "Hello! Type a question below, or begin with one of these:"),
    "demo": (
        "随附的迷你演示模型（约 800 万参数）只会一点闲聊、算术和常识，经常答错，不代表 ChatGLM-6B 的水平。"
        "真正的模型：`{command} -- --model 文件夹`",
        "This is the bundled toy model (about 8M parameters): a little small talk, sums and facts, often wrong; it "
        "says nothing about ChatGLM-6B. For the real one: `{command} -- --model FOLDER`",
    ),
    # An answer
    "queued": ("排队中，第 {place} 位……", "Waiting, place {place} ..."),
    "thinking": ("AI正在思考，请稍等…… {seconds:.0f} 秒", "Thinking ... {seconds:.0f} s"),
    "speed": ("{rate:.1f} token/秒", "{rate:.1f} tokens/s"),
    "context": ("上下文 {used} / {limit}", "context {used} / {limit}"),
    "stopped": ("已停止，保留已有内容", "stopped, the text so far is kept"),
    "nothing": ("已停止，尚无内容", "stopped before there was any text"),
    "length": ("已达到长度上限", "the length limit is reached"),
    "full": ("上下文已满，无法继续", "the context is full: it cannot go on"),
    "deadline": ("已到时间上限", "the time limit is reached"),
    "empty": ("回答为空", "the answer is empty"),
    "dropped": ("上下文已满，最早的 {rounds} 轮未计入", "the context is full, oldest rounds left out: {rounds}"),
    "forgotten": (
        "只保留最近 {limit} 轮，更早的 {rounds} 轮已移除",
        "Only the last {limit} rounds are kept; older ones removed: {rounds}",
    ),
    "stop": ("停止", "Stop"),
    "copy": ("复制", "Copy"),
    "copied": ("已复制", "Copied"),
    "retry": ("重新回答", "Answer again"),
    "edit": ("修改问题", "Edit the question"),
    "edit_help": ("后面的轮次会移除", "Later rounds are removed"),
    "send": ("发送", "Send"),
    "cancel": ("取消", "Cancel"),
    "undo": ("撤销这一轮", "Remove this round"),
    "continue": ("继续", "Continue"),
    "earlier": ("上一个回答", "Earlier answer"),
    "later": ("下一个回答", "Later answer"),
    # The side bar
    "model": ("模型：{name}", "Model: {name}"),
    "precision": ("精度：{precision}", "Precision: {precision}"),
    "limit": ("上下文：{limit} token", "Context: {limit} tokens"),
    "settings": ("设置", "Settings"),
    "system": ("系统指令", "System prompt"),
    "system_help": ("放在对话最前面", "Put in front of the conversation"),
    "max_length": ("最大长度", "Maximum length"),
    "max_length_help": ("提示与回答合计的 token 数", "Tokens of prompt and answer together"),
    "temperature": ("温度", "Temperature"),
    "temperature_help": ("0 为每次都取最可能的词", "0: always the likeliest word"),
    "top_p": ("Top P", "Top P"),
    "top_p_help": ("越小越稳重，越大越多样", "Smaller is steadier, larger more varied"),
    "top_k": ("Top K", "Top K"),
    "top_k_help": ("只从最好的 K 个词中选取；0 为不限", "Choose among the K best words; 0: all"),
    "seed": ("随机种子", "Seed"),
    "seed_help": ("相同种子得到相同回答；留空为随机", "Same seed, same answer; empty: random"),
    "random": ("随机", "random"),
    "conversation": ("对话", "Conversation"),
    "kept": (
        "保留最近 {limit} 轮；刷新页面或重启服务后对话还在，关闭标签页即清空。",
        "The last {limit} rounds are kept through a reload and a restart of the server, until the tab is closed.",
    ),
    "storage_full": (
        "浏览器存不下这个对话了，刷新页面会丢失最近的内容，请先保存。",
        "The browser cannot store this conversation: a reload would lose its latest part. Save it.",
    ),
    "save": ("保存", "Save"),
    "html": ("网页", "Web page"),
    "markdown": ("Markdown", "Markdown"),
    "json": ("JSON", "JSON"),
    "open": ("打开", "Open"),
    "clear": ("清空对话", "Clear"),
    "unclear": ("撤销清空", "Undo clear"),
    "unopen": ("撤销打开", "Undo open"),
}

# Questions that the demo answers, too.
STARTERS = (
    ("你好，请介绍一下你自己", "Hello, who are you?"),
    ("天空为什么是蓝色的？", "Why is the sky blue?"),
    ("写一首关于春天的诗", "Tell me a joke."),
    ("一个星期有几天？", "How many days are in a week?"),
)


class Texts(Protocol):
    """Gives a text by its name."""

    def __call__(self, name: str, /, **values: object) -> str: ...


def is_chinese(locale: str | None) -> bool:
    """Whether a browser of that language sees Chinese; all others see English."""
    return (locale or "zh").lower().startswith("zh")


def language_of(locale: str | None) -> Language:
    """What a browser of that language sees."""
    return "zh" if is_chinese(locale) else "en"


def texts_for(locale: str | None) -> Texts:
    """The texts in a browser's language, such as "zh-CN"."""
    index = 0 if is_chinese(locale) else 1
    return lambda name, /, **values: TEXTS[name][index].format(**values)


def starters_for(locale: str | None) -> list[str]:
    """Questions to begin with."""
    return [pair[0 if is_chinese(locale) else 1] for pair in STARTERS]

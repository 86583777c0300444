"""All texts of the Gradio page in Chinese and English.

The browser selects the language of fixed texts; `message` gives those that depend on an answer.
"""

from __future__ import annotations

from typing import Literal

Language = Literal["zh", "en"]

CHINESE = {
    "placeholder": "输入问题，Enter 发送，Shift+Enter 换行",
    "settings": "设置",
    "max_length": "最大长度 Maximum length",
    "max_length_info": "提示与回答合计的 token 数；0 为默认值",
    "top_p_info": "越小越稳重，越大越多样",
    "temperature_info": "0 为每次都取最可能的词",
    "top_k_info": "只从最好的 K 个词中选取；0 为不限",
    "seed": "随机种子 Seed",
    "seed_info": "相同种子得到相同回答；留空为随机",
    "system": "系统指令 System prompt",
    "system_info": "放在对话最前面",
    "transcript": "保存与载入",
    "export_html": "保存为网页",
    "export_markdown": "保存为 Markdown",
    "export_json": "保存为 JSON",
    "import": "载入 JSON",
    "clear": "清空对话",
    "theme": "深色 / 浅色",
    "reload": "刷新页面会清空对话，需要的内容请先保存。",
    "demo": "当前是自带的迷你演示模型（约 800 万参数），只会少量闲聊、算术和常识，经常答错，"
    "不代表 ChatGLM-6B 的水平。使用真正的模型：`python web_demo.py --model <文件夹>`",
}
ENGLISH = {
    "placeholder": "Ask something. Enter sends, Shift+Enter breaks the line",
    "settings": "Settings",
    "max_length": "Maximum length",
    "max_length_info": "tokens of prompt and answer together; 0 = the default",
    "top_p_info": "smaller is steadier, larger more varied",
    "temperature_info": "0 = always the likeliest word",
    "top_k_info": "choose among the K best words; 0 = all",
    "seed": "Seed",
    "seed_info": "same seed, same answer; empty = random",
    "system": "System prompt",
    "system_info": "put in front of the conversation",
    "transcript": "Save and open",
    "export_html": "Save as web page",
    "export_markdown": "Save as Markdown",
    "export_json": "Save as JSON",
    "import": "Open JSON",
    "clear": "Clear",
    "theme": "Dark / light",
    "reload": "Reloading the page starts anew: save first what you want to keep.",
    "demo": "This is the bundled toy model (about 8M parameters). It knows a little small talk, sums and facts, is "
    "often wrong and says nothing about ChatGLM-6B. For the real one: `python web_demo.py --model <folder>`",
}

_MESSAGES: dict[str, dict[Language, str]] = {
    "speed": {"zh": "{rate:.1f} token/秒", "en": "{rate:.1f} tokens/s"},
    "context": {"zh": "上下文 {used} / {limit}", "en": "context {used} / {limit}"},
    "waiting": {"zh": "等待回答……", "en": "waiting for the answer ..."},
    "stopped": {"zh": "已停止，保留已有内容", "en": "stopped, the text so far is kept"},
    "length": {"zh": "已达到长度上限", "en": "the length limit is reached"},
    "empty": {"zh": "回答为空", "en": "the answer is empty"},
    "dropped": {
        "zh": "对话太长，最早的 {rounds} 轮已不在模型的视野内",
        "en": "too long a conversation: the model no longer sees its oldest {rounds} rounds",
    },
    "opened": {"zh": "已载入 {rounds} 轮对话", "en": "{rounds} rounds opened"},
    "nothing": {"zh": "对话为空，没有可保存的内容", "en": "the conversation is empty, there is nothing to save"},
}

# Titles and questions, of the kinds in upstream's gallery.
EXAMPLES = (
    ("自我介绍 Introduction", "你好，请介绍一下你自己"),
    ("提纲 Outline", "帮我写一份《如何坚持每天运动》的演讲提纲，分三个部分"),
    ("文案 Ad copy", "为一款无线降噪耳机写一段吸引年轻人的广告文案"),
    ("邮件 E-mail", "写一封邮件，请同事在周五之前把会议纪要发给我，语气要礼貌"),
    ("信息抽取 Extraction", "从下面的句子里找出人名、地点和时间：小李上周三在杭州参加了马拉松比赛"),
    ("角色扮演 Role play", "请你扮演一位面试官，我来应聘产品经理，请提出第一个问题"),
)


def message(name: str, language: Language, **values: object) -> str:
    """One of the texts that depend on an answer."""
    return _MESSAGES[name][language].format(**values)


def language_of(accepted: str) -> Language:
    """The page's language for an Accept-Language header: Chinese for those who ask for it first, else English."""
    return "zh" if accepted.strip().lower().startswith("zh") else "en"

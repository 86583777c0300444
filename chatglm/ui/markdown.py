"""Text of people and models as HTML that cannot do anything: no tag of theirs, no picture, no link but to the web.

`render` is one rule for both pages and the saved page; it works for every beginning of a text, as answers stream.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

from chatglm.ui.formulas import add_formulas, mathml
from chatglm.ui.highlighting import highlight

MAX_LENGTH = 200_000  # a longer text is shown as it is
MAX_CACHED = 5_000  # characters of a paragraph that is kept
STYLE = Path(__file__).with_name("markdown.css").read_text(encoding="utf-8")
"""For what `render` and `render_plain` give. It follows `color-scheme`; a `.dark` ancestor makes it dark."""

_UNSHOWABLE = re.compile("[\0\ud800-\udfff]")
_LINE_ENDS = re.compile(r"\r\n?")
_WEB_LINK = re.compile(r"(?:https?://|mailto:)[^\s]", re.IGNORECASE)
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\u2018-\u201d]")
_NEW_PAGE = {"target": "_blank", "rel": "noopener noreferrer nofollow"}


def render(text: str) -> str:
    """Safe HTML of an answer in Markdown."""
    text = _showable(text)
    if len(text) > MAX_LENGTH:
        return render_plain(text)
    return f'<div class="markdown">{_BLOCKS.render(text)}</div>'


def render_plain(text: str) -> str:
    """Safe HTML of a text exactly as it was typed."""
    return f'<div class="plain">{escape(_showable(text))}</div>'


def _showable(text: str) -> str:
    return _UNSHOWABLE.sub("\ufffd", _LINE_ENDS.sub("\n", text))


class _Inline(StateInline):
    """The inside of a paragraph."""

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        """Let `**重点：**正文` be bold: beside Chinese, punctuation may end what a letter may end."""
        scanned = super().scanDelims(start, canSplitWord)
        end = start + scanned.length
        before, after = self.src[start - 1 : start], self.src[end : end + 1]
        if not canSplitWord or not before.strip() or not after.strip():
            return scanned
        can_open = scanned.can_open or bool(_CJK.match(before))
        can_close = scanned.can_close or bool(_CJK.match(after))
        return Scanned(can_open, can_close, scanned.length)


class _Renderer(RendererHTML):
    """Writes HTML; the inside of paragraphs is parsed here, so that what has not changed need not be parsed again."""

    def render(self, tokens: Sequence[Token], options: OptionsDict, env: MutableMapping[str, Any]) -> str:
        for token in tokens:
            if token.type in ("th_open", "td_open") and (style := token.attrs.pop("style", None)):
                token.attrs["class"] = str(style).removeprefix("text-align:")
        return "".join(
            self._paragraph(token.content)
            if token.type == "inline"
            else self.rules[token.type](tokens, number, options, env)
            if token.type in self.rules
            else self.renderToken(tokens, number, options, env)
            for number, token in enumerate(tokens)
        )

    def _paragraph(self, content: str) -> str:
        return _paragraph(content) if len(content) <= MAX_CACHED else _paragraph.__wrapped__(content)

    def table_open(self, *_: Any) -> str:
        return '<div class="table" tabindex="0"><table>\n'

    def table_close(self, *_: Any) -> str:
        return "</table></div>\n"

    def code_block(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return _code_block(tokens[idx].content, "")

    def fence(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        language = tokens[idx].info.split()
        return _code_block(tokens[idx].content, language[0][:40] if language else "")

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]) -> str:
        """The text in the place of the picture, which is never fetched."""
        return escape(self.renderInlineAsText(tokens[idx].children or [], options, env))

    def image_link(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]) -> str:
        token = tokens[idx]
        token.attrs = {"href": token.attrs["src"], **_NEW_PAGE}
        text = self.image(tokens, idx, options, env) or escape(str(token.attrs["href"]))
        return f"<a{self.renderAttrs(token)}>{text}</a>"

    def formula(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        token = tokens[idx]
        is_display = token.markup == "display"
        if (shown := mathml(token.content, is_display)) is None:
            return f"<code>{escape(token.info)}</code>"
        return f'<span class="formula display" tabindex="0">{shown}</span>' if is_display else shown


class _Markdown(MarkdownIt):
    """CommonMark with tables, strikethrough and formulas; a line ends where it ends."""

    def __init__(self, max_nesting: int) -> None:
        super().__init__("commonmark", {"html": False, "breaks": True, "xhtmlOut": False}, renderer_cls=_Renderer)
        self.options["maxNesting"] = max_nesting
        self.enable(["table", "strikethrough"])
        # Underlined headings make a heading of a paragraph before a rule; references could name one address often.
        self.disable(["html_block", "html_inline", "lheading", "reference", "inline", "text_join"])
        add_formulas(self)

    def validateLink(self, url: str) -> bool:
        return _WEB_LINK.match(url) is not None


# Blocks that are nested more deeply are lost; more deeply nested brackets are text, and take long.
_BLOCKS, _INLINE = _Markdown(100), _Markdown(20)


@lru_cache(maxsize=1024)
def _paragraph(content: str) -> str:
    """HTML of the inside of a paragraph, a heading or a table cell."""
    state = _Inline(content, _INLINE, {}, [])
    _INLINE.inline.tokenize(state)
    for rule in _INLINE.inline.ruler2.getRules(""):
        rule(state)
    is_in_link = False
    for token in state.tokens:
        if token.type == "text_special":
            token.type = "text"
        elif token.type in ("link_open", "link_close"):
            is_in_link = token.type == "link_open"
            if is_in_link:
                token.attrs |= _NEW_PAGE
        elif token.type == "image" and not is_in_link and token.attrs["src"]:
            token.type = "image_link"
    return str(_INLINE.renderer.render(state.tokens, _INLINE.options, {}))


def _code_block(source: str, language: str) -> str:
    """The text of the `code` element is the code itself."""
    head = f'<div class="code-head"><span class="code-language">{escape(language)}</span></div>'
    code = _coloured(source.removesuffix("\n"), language)
    return f'<div class="code">{head}<pre tabindex="0"><code>{code}</code></pre></div>\n'


_coloured = lru_cache(maxsize=128)(highlight)

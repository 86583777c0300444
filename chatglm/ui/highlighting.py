"""Colours for code in answers: one regular expression for each family of languages, linear in the code.

Lexers made for editors take cubic time on texts that models do write, such as thousands of empty lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape

MAX_LENGTH = 50_000  # longer code stays plain

# A string that has not ended is one to the end of its line; an apostrophe may be something else.
_QUOTED = r'"(?:\\[\s\S]|[^"\\\n])*+"?'
_STRINGS = rf"{_QUOTED}|'(?:\\[\s\S]|[^'\\\n]){{0,200}}'"
_BACKTICKS = r"`[^`]*(?:`|\Z)"
_LONG_STRINGS = r'"""[\s\S]*?(?:"""|\Z)|' r"'''[\s\S]*?(?:'''|\Z)"
_SLASHES = r"//[^\n]*|/\*[\s\S]*?(?:\*/|\Z)"
_HASH = r"(?<![^\s;,()\[\]}])#[^\n]*"
_DASHES = r"--[^\n]*|/\*[\s\S]*?(?:\*/|\Z)"
_NUMBER = r"(?<!\w)(?:0[xXbBoO][\da-fA-F_]++|\d[\d_]*+(?:\.\d++)?(?:[eE][+-]?\d++)?)\w*+"
_VARIABLE = r"\$\{[^{}\n]{0,200}\}|\$\w++|(?<!\w)@\w++"
_TAG = r"</?[\w:!?-]++|[/?]?>"


@dataclass(frozen=True)
class _Family:
    """Languages that look alike: their names on a fence, keywords, and patterns; an empty pattern finds nothing."""

    names: str
    keywords: str = ""
    comment: str = ""
    string: str = _STRINGS
    key: str = ""
    special: str = _VARIABLE
    inserted: str = ""
    deleted: str = ""

    def pattern(self) -> re.Pattern[str]:
        words = "|".join(sorted(self.keywords.split(), reverse=True))
        parts = {
            "c": self.comment,
            "a": self.key,
            "s": self.string,
            "i": self.inserted,
            "d": self.deleted,
            "b": self.special,
            "k": rf"(?<![\w.$-])(?:{words})(?![\w-])" if words else "",
            "f": r"(?<!\w)[^\W\d]\w*+(?=\()",
            "m": _NUMBER,
        }
        found = "|".join(f"(?P<{name}>{part})" for name, part in parts.items() if part)
        return re.compile(found, re.MULTILINE | (re.IGNORECASE if self.names.startswith("sql") else 0))


_FAMILIES = (
    _Family(
        "c++ cpp cxx hpp c h cc objective-c objc cuda cu java c# csharp cs javascript js jsx mjs typescript ts tsx go "
        "golang rust rs swift kotlin kt kts scala dart php groovy gradle solidity proto protobuf arduino glsl hlsl zig "
        "verilog systemverilog",
        "#include #define #ifdef #ifndef #if #else #elif #endif #pragma abstract as async await auto bool boolean "
        "break byte case catch chan char class const constexpr continue crate debugger default defer delete do double "
        "echo else enum explicit export extends extern false final finally float fn for foreach friend from fun func "
        "function go goto guard if impl implements import in inline instanceof int interface internal is let long loop "
        "map match mod module mut namespace new nil none null nullptr number object operator override package private "
        "protected protocol pub public range readonly ref return sealed select self short signed sizeof static string "
        "struct super switch synchronized template this throw throws trait true try type typedef typename typeof "
        "undefined union unsafe unsigned use using val var virtual void volatile when where while with yield",
        _SLASHES,
        f"{_STRINGS}|{_BACKTICKS}",
    ),
    _Family(
        "python py python3 py3 ipython pycon jupyter gdscript starlark bazel",
        "and as assert async await break case class continue def del elif else except False finally for from global if "
        "import in is lambda match None nonlocal not or pass raise return self True try while with yield",
        _HASH,
        f"{_LONG_STRINGS}|{_STRINGS}",
    ),
    _Family(
        "sh bash shell zsh fish console shell-session terminal powershell ps1 pwsh batch bat cmd dockerfile docker "
        "makefile make cmake nginx perl pl ruby rb r julia jl elixir ex exs awk tcl crystal nim",
        "alias and begin break case catch class continue declare def defmodule do done echo elif else elsif end ensure "
        "esac exit export fi finally for foreach function global if import in let local loop module my next nil not or "
        "package param print private proc puts raise require rescue return select self set shift source struct sub "
        "switch then throw try unless until use using when while yield "
        "FROM RUN CMD COPY ADD ENV ARG WORKDIR EXPOSE ENTRYPOINT TRUE FALSE NULL true false null",
        _HASH,
        f"{_STRINGS}|{_BACKTICKS}",
    ),
    _Family(
        "sql mysql postgresql postgres sqlite plsql tsql lua haskell hs ada vhdl elm",
        "add all alter and as asc begin between by case column commit create cross data database default delete "
        "deriving desc distinct do drop else elseif end exists false for foreign from full function group having "
        "if import in index infix inner insert instance into is join key left let like limit local module not null "
        "of offset on or order outer primary references repeat return right rollback select set table then true "
        "type union unique until update using values view where while with",
        _DASHES,
    ),
    _Family("json json5 jsonc jsonl", "true false null", _SLASHES, key=r'"(?:\\.|[^"\\\n]){0,200}"(?=[ \t]{0,9}:)'),
    _Family(
        "yaml yml toml ini cfg conf properties env dotenv graphql gql terraform tf hcl",
        "true false null yes no on off",
        rf"{_HASH}|^;[^\n]*",
        key=r"^[ \t]*+(?:-[ \t]++)?[\w.-]++(?=[ \t]{0,9}[:=])|^\[[^\]\n]{1,200}\]",
    ),
    _Family(
        "html xml xhtml svg vue svelte jsp plist xsl xslt rss",
        comment=r"<!--[\s\S]*?(?:-->|\Z)",
        key=r"(?<![\w:@-])[\w:@-]++(?==)",
        special=rf"{_TAG}|&#?\w{{1,30}};",
    ),
    _Family(
        "css scss sass less stylus",
        comment=_SLASHES,
        key=r"(?<![\w-])[\w-]++(?=[ \t]{0,9}:)",
        special=r"[@$][\w-]++|#[\da-fA-F]{3,8}(?!\w)",
    ),
    _Family(
        "latex tex bibtex matlab octave erlang erl prolog",
        "begin case catch classdef continue else elseif end for function global if otherwise return switch try while",
        r"(?<!\\)%[^\n]*",
        special=r"\\(?:[a-zA-Z]++|.)",
    ),
    _Family(
        "lisp common-lisp scheme clojure clj elisp racket asm nasm assembly wasm",
        "define defn defun defmacro let lambda if cond else begin fn mov add sub jmp call ret push pop",
        r";[^\n]*",
        _QUOTED,
        special=r"(?<![\w:]):[\w-]++",
    ),
    _Family("diff patch", comment=r"^(?:@@|---|\+\+\+|diff )[^\n]*", inserted=r"^\+[^\n]*", deleted=r"^-[^\n]*"),
)
_FAMILY_OF = {name: family for family in _FAMILIES for name in family.names.split()}


@cache
def _pattern(family: _Family) -> re.Pattern[str]:
    return family.pattern()


def tokens(code: str, language: str) -> Iterator[tuple[str, str]]:
    """All of `code` as (text, kind): c comment, s string, k keyword, f function, m number, a key, b variable or tag,
    i inserted, d deleted; "" for the rest, and for everything where the language, in any spelling, is not known.
    """
    family = _FAMILY_OF.get(language.lower())
    end = 0
    if family is not None and len(code) <= MAX_LENGTH:
        for match in _pattern(family).finditer(code):
            if match.start() > end:
                yield code[end : match.start()], ""
            yield match[0], match.lastgroup or ""
            end = match.end()
    if end < len(code):
        yield code[end:], ""


def highlight(code: str, language: str) -> str:
    """HTML whose text is `code`, coloured by classes that are the kinds of its tokens."""
    return "".join(
        f'<span class="{kind}">{escape(text)}</span>' if kind else escape(text) for text, kind in tokens(code, language)
    )

"""Language tags of CodeGeeX2: a comment that tells the model which language it writes."""

from __future__ import annotations

import difflib

from chatglm.errors import InvalidRequestError

# As CodeGeeX2 was trained with them (so "tcl" has the tag of another language); names in lower case.
LANGUAGE_TAGS = {
    "abap": "* language: Abap",
    "actionscript": "// language: ActionScript",
    "ada": "-- language: Ada",
    "agda": "-- language: Agda",
    "alloy": "/* language: Alloy */",
    "antlr": "// language: ANTLR",
    "applescript": "-- language: AppleScript",
    "assembly": "; language: Assembly",
    "augeas": "// language: Augeas",
    "awk": "// language: AWK",
    "basic": "' language: Basic",
    "bluespec": "// language: Bluespec",
    "c": "// language: C",
    "c#": "// language: C#",
    "c++": "// language: C++",
    "c-sharp": "// language: C#",
    "clojure": "; language: Clojure",
    "cmake": "# language: CMake",
    "cobol": "// language: Cobol",
    "coffeescript": "# language: CoffeeScript",
    "common-lisp": "; language: Common Lisp",
    "cpp": "// language: C++",
    "csharp": "// language: C#",
    "css": "/* language: CSS */",
    "cuda": "// language: Cuda",
    "dart": "// language: Dart",
    "delphi": "{language: Delphi}",
    "dockerfile": "# language: Dockerfile",
    "elixir": "# language: Elixir",
    "elm": "-- language: Elm",
    "emacs-lisp": "; language: Emacs Lisp",
    "erlang": "% language: Erlang",
    "excel": "' language: Excel",
    "f#": "// language: F#",
    "f-sharp": "// language: F#",
    "fortran": "!language: Fortran",
    "gdscript": "# language: GDScript",
    "glsl": "// language: GLSL",
    "go": "// language: Go",
    "groovy": "// language: Groovy",
    "haskell": "-- language: Haskell",
    "html": "<!--language: HTML-->",
    "idris": "-- language: Idris",
    "isabelle": "(*language: Isabelle*)",
    "java": "// language: Java",
    "java-server-pages": "// language: Java Server Pages",
    "javascript": "// language: JavaScript",
    "js": "// language: JavaScript",
    "julia": "# language: Julia",
    "kotlin": "// language: Kotlin",
    "lean": "-- language: Lean",
    "lisp": "; language: Lisp",
    "literate-agda": "-- language: Literate Agda",
    "literate-coffeescript": "# language: Literate CoffeeScript",
    "literate-haskell": "> language: Literate Haskell",
    "lua": "// language: Lua",
    "makefile": "# language: Makefile",
    "maple": "# language: Maple",
    "markdown": "<!--language: Markdown-->",
    "mathematica": "// language: Mathematica",
    "matlab": "% language: Matlab",
    "objective-c": "// language: Objective-C",
    "objective-c++": "// language: Objective-C++",
    "objectivec": "// language: Objective-C",
    "ocaml": "(*language: OCaml*)",
    "pascal": "// language: Pascal",
    "perl": "# language: Perl",
    "php": "// language: PHP",
    "powershell": "# language: PowerShell",
    "prolog": "% language: Prolog",
    "protocol-buffer": "// language: Protocol Buffer",
    "python": "# language: Python",
    "r": "# language: R",
    "racket": "; language: Racket",
    "restructuredtext": ".. language: reStructuredText",
    "rmarkdown": "# language: RMarkdown",
    "ruby": "# language: Ruby",
    "rust": "// language: Rust",
    "sas": "* language: SAS",
    "scala": "// language: Scala",
    "scheme": "; language: Scheme",
    "shell": "# language: Shell",
    "smalltalk": "'' language: Smalltalk",
    "solidity": "// language: Solidity",
    "sparql": "# language: SPARQL",
    "sql": "-- language: SQL",
    "stan": "// language: Stan",
    "standard-ml": "(*language:Standard ML*)",
    "stata": "* language: Stata",
    "swift": "// language: swift",
    "systemverilog": "// language: SystemVerilog",
    "tcl": "// language: Augeas",
    "tcsh": "# language: TCSH",
    "tex": "% language: TeX",
    "thrift": "/* language: Thrift */",
    "typescript": "// language: TypeScript",
    "vb": "' language: Visual Basic",
    "verilog": "// language: Verilog",
    "vhdl": "-- language: VHDL",
    "visual basic": "' language: Visual Basic",
    "visual-basic": "' language: Visual Basic",
    "vue": "<!--language: Vue-->",
    "xslt": "<!--language: XSLT-->",
    "yaml": "# language: YAML",
    "zig": "// language: Zig",
}


def code_prompt(text: str, language: str | None = None) -> str:
    """The raw text to complete: the tag of the language, if given, in a line in front; see `Pipeline.complete`.

    Raises InvalidRequestError for a language that has no tag.
    """
    return text if language is None else f"{language_tag(language)}\n{text}"


def language_tag(language: str) -> str:
    """The tag of a language, whose case does not matter; raises InvalidRequestError if it has none."""
    name = language.strip().lower()
    if name not in LANGUAGE_TAGS:
        near = difflib.get_close_matches(name, LANGUAGE_TAGS, n=3)
        raise InvalidRequestError(
            f"CodeGeeX2 has no tag for the language {language!r}.",
            f"Did you mean {' or '.join(near)}?" if near else "Leave it out: the code itself may show the language.",
        )
    return LANGUAGE_TAGS[name]

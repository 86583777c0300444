"""The page's icons: lines in a square of 24, of which CSS makes masks, so that they take the colour of the text."""

from __future__ import annotations

from urllib.parse import quote

_PENCIL = "<path d='M16.5 4.5l3 3L8 19l-4 1 1-4zM14 7l3 3'/>"
_SHEETS = "<rect x='9' y='9' width='11' height='11' rx='2'/><path d='M5 15H4V6a2 2 0 012-2h9v1'/>"
# By the class of the icon, which is the action of its button.
ICONS = {
    "menu": "<path d='M4 5h16v14H4zM9.5 5v14'/>",
    "new": "<path d='M11 5H5v14h14v-6M18.5 3.5l2 2L12 14l-3 1 1-3z'/>",
    "close": "<path d='M6 6l12 12M18 6L6 18'/>",
    "rename": _PENCIL,
    "delete": "<path d='M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5'/>",
    "settings": "<path d='M4 7h9M17 7h3M4 17h3M11 17h9'/><circle cx='15' cy='7' r='2'/><circle cx='9' cy='17' r='2'/>",
    "open": "<path d='M4 19V5h6l2 2.5h8V19zM12 16v-5M9.5 13L12 10.5l2.5 2.5'/>",
    "save": "<path d='M12 4v11M7.5 10.5L12 15l4.5-4.5M4 16v4h16v-4'/>",
    "theme": "<circle cx='12' cy='12' r='8'/><path d='M12 4v16a8 8 0 000-16' fill='black'/>",
    "to_end": "<path d='M12 5v14M6 13l6 6 6-6'/>",
    "send": "<path d='M12 19V5M6 11l6-6 6 6'/>",
    "stop": "<rect x='7' y='7' width='10' height='10' rx='1.5' fill='black'/>",
    "copy": _SHEETS,
    "copy_code": _SHEETS,
    "done": "<path d='M5 12.5l4.5 4.5L19 7.5'/>",
    "edit": _PENCIL,
    "retry": "<path d='M19 12a7 7 0 11-2-5l2 2M19 4v5h-5'/>",
    "continue": "<path d='M5 5l7 7-7 7M13 5l7 7-7 7'/>",
    "take_back": "<path d='M9 6L4 11l5 5M4 11h10a5 5 0 010 10h-3'/>",
    "earlier": "<path d='M14 6l-6 6 6 6'/>",
    "later": "<path d='M10 6l6 6-6 6'/>",
}


def icon_style() -> str:
    """CSS for `<i class="icon NAME">`; `.done` after NAME wins."""
    rules = (f".icon.{name} {{ --shape: {_picture(shape)}; }}" for name, shape in ICONS.items())
    return "\n".join([*rules, f".done .icon.icon {{ --shape: {_picture(ICONS['done'])}; }}"])


def _picture(shape: str) -> str:
    line = "fill='none' stroke='black' stroke-width='1.8' stroke-linecap='round' stroke-linejoin='round'"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' {line}>{shape}</svg>"
    return f'url("data:image/svg+xml,{quote(svg)}")'

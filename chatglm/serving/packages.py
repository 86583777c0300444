"""The packages a door stands on, asked for before a model is loaded.

Knows: which modules belong to which package. Does not import them.
"""

from __future__ import annotations

from importlib.util import find_spec

from chatglm.errors import ChatGLMError

API = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "sse_starlette": "sse-starlette",
    "prometheus_client": "prometheus-client",
    "fastapi_offline": "fastapi-offline",
}
WEB = {"gradio": "gradio", "mdtex2html": "mdtex2html"}
POLLING = {"flask": "flask", "waitress": "waitress", "pydantic": "pydantic", "prometheus_client": "prometheus-client"}


def require(packages: dict[str, str]) -> None:
    """Make sure that every module of a {module: package} table can be imported.

    Raises:
        ChatGLMError: with the pip line for those that cannot.
    """
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        raise ChatGLMError(
            f"This program needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            f"Run: pip install {' '.join(missing)}",
        )

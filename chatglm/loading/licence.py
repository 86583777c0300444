"""The licence of published weights, said once per user.

Knows: the sentence, and a flag file in the user's cache folder. Never fails: a folder that cannot be written only
means that the sentence comes again.
"""

from __future__ import annotations

from chatglm.cache import cache_folder, make_private_folder

NOTICE = (
    "The weights of ChatGLM-6B are under a licence of their own (MODEL_LICENSE), not that of this program: free for "
    "academic research, and free for commercial use after registration. See the page of the weights you downloaded. "
    "(ChatGLM-6B 权重遵循其 MODEL_LICENSE：对学术研究完全开放，登记后允许免费商业使用。)"
)
FLAG_NAME = "weights-licence-shown"


def notice_once() -> str:
    """The notice at the first call of this user, later nothing."""
    try:
        flag = cache_folder() / FLAG_NAME
        if flag.exists():
            return ""
        make_private_folder(flag.parent)
        flag.touch()
    except (OSError, RuntimeError):  # RuntimeError: no home folder is known
        pass
    return NOTICE

"""Positions of ChatGLM3-6B: those of ChatGLM2-6B."""

from chatglm.models.chatglm2.positions import find_layout

__all__ = ["find_layout"]

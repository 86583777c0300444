"""The embedded demo checkpoint: where it lies and what it can do; its recipe is tools/demo_model."""

from __future__ import annotations

from pathlib import Path

DEMO_NAME = "demo"
CHECKPOINT = Path(__file__).parent / "checkpoint"

BANNER = """\
当前使用随仓库附带的迷你演示模型（约 800 万参数，仅用于验证安装和演示功能）。它只会固定范围的闲聊、算术和常识，\
经常答错，不代表 ChatGLM-6B 的水平。使用真正的模型：--model <chatglm-6b 文件夹>
You are running the bundled toy model (about 8M parameters, for smoke tests and demos only). It knows a small \
fixed set of topics, is often wrong and says nothing about ChatGLM-6B quality. For the real model: \
--model <chatglm-6b folder>"""

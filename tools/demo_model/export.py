"""Writes a model folder from the checkpoint of a training run, whether it goes on, was stopped or has ended.

python -m tools.demo_model.export /tmp/demo_train /tmp/demo_model_now
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from tools.demo_model.encoding import Codec
from tools.demo_model.network import build, configuration, save
from tools.demo_model.tokenizer import MODEL_FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder of the run: checkpoint.pt, and model/ with the tokenizer")
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--earlier", type=Path, help="an earlier checkpoint.pt of the run, to average weights with")
    parser.add_argument("--share", type=float, default=0.67, help="of the last checkpoint in that average")
    args = parser.parse_args()
    state = torch.load(args.work / "checkpoint.pt", weights_only=True)
    if args.earlier is not None:
        earlier = torch.load(args.earlier, weights_only=True)["model"]
        state["model"] = {name: torch.lerp(earlier[name], late, args.share) for name, late in state["model"].items()}
    args.out.mkdir(parents=True, exist_ok=True)
    for name in (MODEL_FILE, "tokenizer_config.json"):
        shutil.copyfile(args.work / "model" / name, args.out / name)
    codec = Codec(str(args.out / MODEL_FILE))
    width = state["model"]["transformer.final_layernorm.weight"].numel()
    layers = sum(name.endswith(".input_layernorm.weight") for name in state["model"])
    model = build(configuration(codec, width, layers, args.heads), seed=0)
    model.load_state_dict(state["model"])
    facts_file = args.work / "model" / "training_facts.json"
    facts = json.loads(facts_file.read_text(encoding="utf-8")) if facts_file.exists() else {}
    save(model, args.out, facts | {"progress": state["progress"]})
    print(f"{args.out}: {state['progress']}")


if __name__ == "__main__":
    main()

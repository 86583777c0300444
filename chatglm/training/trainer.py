"""transformers' Seq2SeqTrainer with recipes, checkpoints that appear whole, and an error for a broken loss.

output/.unfinished/checkpoint-40/   while several processes write it (one name for all: not chatglm.atomic)
output/checkpoint-40/               by renaming, when it is complete
output/model.safetensors            of the last step, by renaming, after the settings that it needs
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Seq2SeqTrainer

from chatglm.errors import MismatchError, TrainingError
from chatglm.registration import guard_readers
from chatglm.training.recipes import Recipe

UNFINISHED = ".unfinished"
STATE_NAME = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


guard_readers(["trainer_callback"])  # which reads trainer_state.json


class RecipeTrainer(Seq2SeqTrainer):
    """Trains a recipe; the tokenizer's files go into checkpoints that are whole model folders."""

    def __init__(self, recipe: Recipe, tokenizer: Any, **options: Any) -> None:
        super().__init__(model=recipe.trained, **options)
        self._recipe, self._tokenizer = recipe, tokenizer
        self._is_saving = False

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As transformers'; raises TrainingError if the loss is NaN, infinite or exactly zero."""
        loss = super().training_step(*args, **kwargs)
        value = loss.item()
        # An overflow in half precision shows as a loss of zero; no row is ever learned that well.
        if not torch.isfinite(loss) or value == 0:
            last = last_checkpoint(Path(self.args.output_dir))
            raise TrainingError(
                f"The loss is {value} at step {self.state.global_step + 1}; training was stopped.",
                "Give a lower --learning_rate, --warmup_steps 0.1, or --dtype bf16 or fp32 in place of fp16. "
                + (f"The last checkpoint is {last}." if last else "Nothing was saved yet."),
            )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self._recipe.save(folder, state_dict)
        if self._recipe.notes["method"] == "full":
            self._tokenizer.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # each process holds a part only
        else:
            self._recipe.load(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _resuming(checkpoint, "optimizer.pt and scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _resuming(checkpoint, "scaler.pt"):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _resuming(checkpoint, "rng_state.pth"):
            super()._load_rng_state(checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        folder = str(super()._get_output_dir(trial))
        return str(Path(folder) / UNFINISHED) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(self.args.output_dir)
        work, final = output / UNFINISHED, output / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(work, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(final)
                self.state.save_to_json(str(work / final.name / STATE_NAME))
            shutil.rmtree(final, ignore_errors=True)
            (work / final.name).rename(final)
            shutil.rmtree(work, ignore_errors=True)
            self._remove_oldest(output)
        self.accelerator.wait_for_everyone()

    def save_last(self) -> None:
        """Make sure that the last step has a checkpoint, and write its weights to the output folder too."""
        last = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if not (last / STATE_NAME).exists() and not self.args.save_only_model:
            self._save_checkpoint(self.model_wrapped, None)
        output = Path(self.args.output_dir)
        self.save_model(str(output / UNFINISHED))
        if self.args.should_save:
            move_weights_last(output / UNFINISHED, output, self._recipe.weight_name)
        self.save_state()

    def _remove_oldest(self, output: Path) -> None:
        limit = self.args.save_total_limit
        if not limit or limit < 1:
            return
        best = self.state.best_model_checkpoint
        kept = [path for path in checkpoints(output) if str(path) != best]
        room = limit - (best is not None)
        for path in kept[: max(0, len(kept) - max(room, 1))]:
            shutil.rmtree(path, ignore_errors=True)


def move_weights_last(source: Path, target: Path, weight_name: str) -> None:
    """Move all files of `source`; weights never lie beside the settings of another training, whenever this ends."""
    (target / weight_name).unlink(missing_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name == weight_name):
        path.replace(target / path.name)
    source.rmdir()


@contextmanager
def _resuming(checkpoint: str | None, names: str) -> Iterator[None]:
    """What the library says of files that it could read but not use, as our error."""
    try:
        yield
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise MismatchError(
            f"The state in {checkpoint} cannot be resumed: {names} do not fit this run ({error}).",
            f"Give the arguments it was trained with, or delete {names} there to go on without.",
        ) from None


def checkpoints(output: Path) -> list[Path]:
    """The whole checkpoints in an output folder, oldest first."""
    folders = output.iterdir() if output.is_dir() else ()
    whole = [path for path in folders if CHECKPOINT.fullmatch(path.name) and (path / STATE_NAME).is_file()]
    return sorted(whole, key=lambda path: (path / STATE_NAME).stat().st_mtime_ns)


def step_of(checkpoint: Path) -> int:
    """The number in a checkpoint's name; 0 for another name."""
    match = CHECKPOINT.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else 0


def last_checkpoint(output: Path) -> Path | None:
    """The checkpoint that was written last, if there is one."""
    return next(reversed(checkpoints(output)), None)

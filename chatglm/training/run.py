"""One run from arguments to scores: read, load, train, save, evaluate, answer, score."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chatglm.atomic import write_text
from chatglm.checkpoints import read_json
from chatglm.cli.console import prepare_streams
from chatglm.conversion.writing import check_absent
from chatglm.demo import CHECKPOINT, DEMO_NAME
from chatglm.errors import ChatGLMError, CheckpointError, InvalidRequestError, MissingFileError
from chatglm.loading import LoadedModel, find_folder, load
from chatglm.loading.base_model import check_base
from chatglm.training.answers import Answering, answer, write_predictions
from chatglm.training.arguments import Arguments, parse_arguments
from chatglm.training.curve import draw_losses
from chatglm.training.encoding import Encoder, Example, Examples, Lengths, RightPadding, cut_warning
from chatglm.training.forecast import forecast
from chatglm.training.forgetting import summary, write_report
from chatglm.training.merging import merge
from chatglm.training.metrics import check_installed, score_texts
from chatglm.training.recipes import Recipe, Untrained, lora_to_continue, make_recipe
from chatglm.training.records import Columns, Records, read_records
from chatglm.training.resuming import check_checkpoint
from chatglm.training.trainer import RecipeTrainer, checkpoints, last_checkpoint, step_of

RESULTS_NAME = "all_results.json"
Report = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run with these flags; returns the exit code."""
    prepare_streams()
    try:
        run(parse_arguments(sys.argv[1:] if argv is None else argv))
        return 0
    except ChatGLMError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(arguments: Arguments) -> dict[str, float]:
    """Train, evaluate and predict; returns the figures, which are also in `all_results.json`.

    Raises:
        ChatGLMError: mistakes in arguments and data come before a model is loaded.
    """
    training = arguments.training
    report = _print_message if training.process_index == 0 else _discard
    for warning in arguments.warnings:
        report(warning)
    target = arguments.model.merge_to
    if target is not None:
        check_absent(Path(target))
    if not (training.do_train or training.do_eval or training.do_predict):
        if target is not None:
            _merge(arguments, arguments.model.lora_checkpoint, report)
        else:
            report("There is nothing to do: give --do_train, --do_eval or --do_predict.")
        return {}
    resume = _where_to_resume(arguments)
    if training.do_predict or (training.do_eval and training.predict_with_generate):
        check_installed()
    data = _read(arguments, report)
    session = _Session(arguments, _load(arguments, report), report)
    figures: dict[str, float] = {}
    if training.do_train:
        figures |= session.train(data["train"], data.get("validation"), resume)
    if training.do_eval:
        figures |= session.evaluate(data["validation"])
    if training.do_predict:
        figures |= session.predict(data["test"], "predict")
    if arguments.data.forgetting_file:
        session.report_forgetting(data["forgetting"])
    if training.process_index == 0:
        _write_results(Path(training.output_dir), figures)
        if target is not None:
            _merge(arguments, training.output_dir if training.do_train else arguments.model.lora_checkpoint, report)
    return figures


def _merge(arguments: Arguments, update: str | None, report: Report) -> None:
    assert update is not None and arguments.model.merge_to is not None  # noqa: PT018  (the arguments were checked)
    merge(find_folder(arguments.model.model_name_or_path), update, Path(arguments.model.merge_to))
    report(f"The merged model is in {arguments.model.merge_to}.")


def _print_message(message: str) -> None:
    if message:
        print(message, flush=True)


def _discard(message: str) -> None:
    """For all but the first of several processes."""


def _where_to_resume(arguments: Arguments) -> str | None:
    training = arguments.training
    output, asked = Path(training.output_dir), training.resume_from_checkpoint
    if not training.do_train:
        return None
    if asked is None or str(asked).lower() in ("false", "0", "no"):
        if checkpoints(output) and not arguments.overwrite_output_dir:
            raise InvalidRequestError(
                f"{output} holds checkpoints of another run.",
                "Give --resume_from_checkpoint true to go on, or --overwrite_output_dir to start anew.",
            )
        return None
    found = last_checkpoint(output) if str(asked).lower() in ("true", "1", "yes") else Path(asked)
    if found is None or not (found / "trainer_state.json").is_file():
        raise MissingFileError(f"There is no whole checkpoint {found or f'in {output}'}.", "Check the folder.")
    check_checkpoint(found, [path for path in checkpoints(found.parent) if step_of(path) < step_of(found)])
    return str(found)


def _read(arguments: Arguments, report: Report) -> dict[str, Records]:
    data, training = arguments.data, arguments.training
    columns = Columns(data.prompt_column, data.response_column, data.history_column)
    wanted = {
        "train": (training.do_train, data.train_file, data.max_train_samples),
        "validation": (training.do_eval, data.validation_file, data.max_eval_samples),
        "test": (training.do_predict, data.test_file, data.max_predict_samples),
    }
    read: dict[str, Records] = {}
    for name, (is_wanted, path, limit) in wanted.items():
        if is_wanted and path is not None:
            read[name] = read_records(path, columns, limit)
            empty = f", {read[name].num_empty} empty ones left out" if read[name].num_empty else ""
            report(f"{path}: {len(read[name].rows)} rows{empty}.")
            if lines := read[name].broken_lines:
                report(
                    f"{path}: {len(lines)} rows hold half of a character (\\ud800 to \\udfff), the first "
                    f"in line {lines[0]}; U+FFFD is learned in its place."
                )
    if data.forgetting_file:
        read["forgetting"] = read_records(data.forgetting_file, Columns("prompt", "prompt"))
    return read


def _load(arguments: Arguments, report: Report) -> LoadedModel:
    model, training = arguments.model, arguments.training
    # To train them further, peft attaches the LoRA weights itself.
    is_lora_trained = training.do_train and lora_to_continue(model) is not None
    return load(
        model.model_name_or_path,
        device=_device(training),
        dtype=model.dtype,
        quantize=model.quantization_bit,
        ptuning_checkpoint=model.ptuning_checkpoint,
        lora_checkpoint=None if is_lora_trained else model.lora_checkpoint,
        report=report,
    )


def _device(training: Any) -> str:
    # Processes that share a CPU have devices with a number that means nothing.
    return "cpu" if training.device.type == "cpu" else str(training.device)


class _Session:
    """A loaded model that is trained, evaluated and asked."""

    def __init__(self, arguments: Arguments, loaded: LoadedModel, report: Report) -> None:
        self._arguments, self._loaded, self._report = arguments, loaded, report
        data, training = arguments.data, arguments.training
        self._output = Path(training.output_dir)
        base = DEMO_NAME if loaded.folder.resolve() == CHECKPOINT.resolve() else str(loaded.folder)
        if training.do_train:
            import transformers

            transformers.set_seed(training.seed)  # before the recipe initializes what is trained
            if (start := lora_to_continue(arguments.model)) is not None:
                check_base("LoRA update", start.path, loaded.model)
            self._recipe: Recipe = make_recipe(arguments.method, loaded.model, base, arguments.model)
        else:
            self._recipe = Untrained(loaded.model, base, arguments.method)
        self._lengths = Lengths(data.max_source_length, data.max_target_length)
        self._network, self._tokenizer = self._recipe.network, loaded.tokenizer
        encode = loaded.family.encode_chat
        self._encode = Encoder(encode, loaded.tokenizer, self._lengths, data.source_prefix, spec=loaded.model.spec)
        self._check_context()
        self._trainer: RecipeTrainer | None = None

    def _check_context(self) -> None:
        longest, context = self._lengths.source + self._lengths.target, self._network.config.max_sequence_length
        if longest > context:
            raise InvalidRequestError(
                f"--max_source_length and --max_target_length allow {longest} tokens, but the model's context is "
                f"{context}.",
                "Give lower ones.",
            )

    def train(self, rows: Records, validation: Records | None, resume: str | None) -> dict[str, float]:
        """Train and save; figures named as upstream's `train_results.json` has them."""
        examples = self._examples(rows)
        self._show(examples[0])
        trainer = self._make_trainer(examples, validation)
        training = self._arguments.training
        batch = [Examples(examples)[i] for i in _longest(examples, training.per_device_train_batch_size)]
        num_batches = _num_steps(training, len(examples)) * training.gradient_accumulation_steps
        if training.deepspeed is None and not training.fsdp:
            self._report(str(forecast(self._recipe.trained, trainer.data_collator(batch), num_batches)))
        result = trainer.train(resume_from_checkpoint=resume)
        trainer.save_last()
        figures = {**result.metrics, "train_samples": float(len(examples))}
        if training.process_index == 0:
            _write_results(self._output, figures, "train_results.json")
            if path := draw_losses(trainer.state.log_history, self._output):
                self._report(f"The loss curve is in {path}.")
            self._report(f"What was trained is in {self._output}.")
        return figures

    def evaluate(self, rows: Records) -> dict[str, float]:
        """Loss on the validation rows, and scores of answers with `--predict_with_generate`."""
        examples = self._examples(rows)
        trainer = self._trainer or self._make_trainer(None, rows)
        figures: dict[str, float] = dict(trainer.evaluate(Examples(examples)))
        if self._arguments.training.predict_with_generate:
            figures |= self.predict(rows, "eval")
        self._report_figures(figures)
        return figures

    def predict(self, rows: Records, prefix: str) -> dict[str, float]:
        """Answer, write `generated_predictions.txt`, and score."""
        examples = self._examples(rows)
        labels = [record.response for record in rows.rows]
        answers = self._answers(examples)
        figures = {f"{prefix}_{name}": value for name, value in score_texts(answers, labels).items()}
        figures[f"{prefix}_samples"] = float(len(answers))
        if self._arguments.training.process_index == 0:
            path = write_predictions(self._output, answers, labels)
            self._report_figures(figures)
            self._report(f"The answers are in {path}.")
        return figures

    def report_forgetting(self, rows: Records) -> None:
        """Answer general questions with and without what was trained, and write a table of both."""
        prompts = [record.prompt for record in rows.rows]
        after = self._answers(self._examples(rows))
        model = self._arguments.model
        base: Any = load(
            model.model_name_or_path,
            device=_device(self._arguments.training),
            dtype=model.dtype,
            quantize=model.quantization_bit,
        )
        self._network = base.model
        before = self._answers(self._examples(rows))
        self._network = self._recipe.network
        path = write_report(self._output, prompts, before, after)
        self._report(f"{summary(before, after)} See {path}.")

    def _answers(self, examples: Sequence[Example]) -> list[str]:
        data, training = self._arguments.data, self._arguments.training
        how = Answering(
            max_new_tokens=data.val_max_target_length or data.max_target_length,
            batch_size=training.per_device_eval_batch_size,
            num_beams=data.num_beams or training.generation_num_beams or 1,
            do_sample=data.do_sample,
        )
        self._network.eval()
        return answer(self._network, self._tokenizer, [example.prompt_ids for example in examples], how)

    def _examples(self, rows: Records) -> list[Example]:
        examples = [self._encode(record) for record in rows.rows]
        self._report(cut_warning(examples))
        return examples

    def _make_trainer(self, examples: list[Example] | None, validation: Records | None) -> RecipeTrainer:
        data, training = self._arguments.data, self._arguments.training
        _settle(training, self._output)
        longest = self._lengths.source + self._lengths.target if data.pad_to_max_length else None
        self._trainer = RecipeTrainer(
            self._recipe,
            self._tokenizer,
            args=training,
            train_dataset=Examples(examples) if examples is not None else None,
            eval_dataset=Examples([self._encode(record) for record in validation.rows]) if validation else None,
            data_collator=RightPadding(self._tokenizer.pad_token_id, not data.ignore_pad_token_for_loss, longest),
        )
        return self._trainer

    def _show(self, example: Example) -> None:
        """Print the first row as upstream does."""
        row = Examples([example])[0]
        learned = [i for i in row["labels"] if i >= 0]
        self._report(f"input_ids {row['input_ids']}")
        self._report(f"inputs {self._tokenizer.decode(row['input_ids'])}")
        self._report(f"label_ids {row['labels']}")
        self._report(f"labels {self._tokenizer.decode(learned)}")

    def _report_figures(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._report(f"  {name:<24} = {value:.4f}" if isinstance(value, float) else f"  {name:<24} = {value}")


def _settle(training: Any, output: Path) -> None:
    """Settings that the recipes and the trainer here rely on."""
    training.remove_unused_columns = False
    training.label_names = ["labels"]
    training.prediction_loss_only = True  # answers are generated and scored by predict()
    training.gradient_checkpointing = False  # make_recipe() does it
    if hasattr(training, "activation_checkpointing"):
        training.activation_checkpointing = False
    if training.ddp_find_unused_parameters is None:
        training.ddp_find_unused_parameters = False  # whatever is trained has a gradient in every step
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(output / "runs"))


def _longest(examples: Sequence[Example], count: int) -> list[int]:
    """Indices of the longest rows, which take the most memory."""
    lengths = [len(example.prompt_ids) + len(example.response_ids) for example in examples]
    return sorted(range(len(examples)), key=lambda i: -lengths[i])[:count]


def _num_steps(training: Any, num_rows: int) -> int:
    if training.max_steps > 0:
        return int(training.max_steps)
    rows_per_step = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * max(1, training.world_size)
    )
    return int(training.num_train_epochs * max(1, -(-num_rows // rows_per_step)))


def _write_results(folder: Path, figures: dict[str, float], name: str = RESULTS_NAME) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    try:
        old = read_json(path)
    except CheckpointError:  # none yet, or a damaged one, which is no reason to lose the new figures
        old = {}
    write_text(path, json.dumps(old | figures, indent=4, ensure_ascii=False))

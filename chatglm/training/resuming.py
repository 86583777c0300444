"""Whether a checkpoint can be resumed from, before a model is loaded: every file that the trainer will read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_pt_utils import safe_globals

from chatglm.checkpoints import check_usable, list_file, read_json
from chatglm.checkpoints.bin_format import read_pickled
from chatglm.errors import CheckpointError, DamagedFileError
from chatglm.schema import FLAG, Rule, Rules, check_keys, number, text, whole

STATE_NAME = "trainer_state.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "model.safetensors")
OPTIMIZER_NAMES = ("optimizer.pt", "scheduler.pt", "scaler.pt")
MAX_STATE_BYTES = 100_000_000  # one line of figures for each logged step
OBJECT = Rule("an object", lambda value: type(value) is dict)
STEPS = number(0, 1e12).or_none()
STATE_RULES: Rules = {
    **dict.fromkeys(("global_step", "best_global_step", "train_batch_size"), whole(0, 10**12).or_none()),
    **dict.fromkeys(("max_steps", "num_train_epochs"), whole(-1, 10**12)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), STEPS),
    **dict.fromkeys(("epoch", "best_metric", "num_input_tokens_seen"), number(-1e30, 1e30).or_none()),
    "total_flos": number(0, 1e40),
    "log_history": Rule("a list of objects", lambda value: type(value) is list and all(map(OBJECT.accepts, value))),
    "best_model_checkpoint": text().or_none(),
    "trial_name": text().or_none(),
    "trial_params": OBJECT.or_none(),
    "stateful_callbacks": Rule("an object of callbacks", lambda value: _are_callbacks(value)),
    **dict.fromkeys(("is_local_process_zero", "is_world_process_zero", "is_hyper_param_search"), FLAG),
}


def check_checkpoint(folder: Path, earlier: Sequence[Path]) -> None:
    """Raise DamagedFileError for a file that cannot be used; the remedy names the last of the `earlier` checkpoints."""
    other = f"Resume from {earlier[-1]}" if earlier else "Start anew with --overwrite_output_dir"
    for path in _files(folder):
        try:
            _check_file(path)
        except CheckpointError as error:
            raise DamagedFileError(error.problem, f"{other}{_without(path)}.") from None


def _files(folder: Path) -> Iterator[Path]:
    for name in (STATE_NAME, *WEIGHT_NAMES, *OPTIMIZER_NAMES):
        if (folder / name).exists():
            yield folder / name
    yield from sorted(folder.glob("rng_state*.pth"))


def _without(path: Path) -> str:
    """What else helps: the trainer goes on without some files."""
    if path.name in OPTIMIZER_NAMES:
        return ", or delete optimizer.pt and scheduler.pt there: its weights are kept, the optimizer starts anew"
    return f", or delete {path.name}: other random numbers are drawn" if path.suffix == ".pth" else ""


def _check_file(path: Path) -> None:
    check_usable(path)
    if path.name == STATE_NAME:
        check_keys(path, content := read_json(path, MAX_STATE_BYTES), STATE_RULES)
        if unknown := content.keys() - STATE_RULES.keys():
            raise DamagedFileError(f"{path} holds {sorted(unknown)[0]!r}, which no trainer here wrote.")
    elif path.suffix == ".safetensors":
        list_file(path)
    elif path.suffix == ".pth":
        with safe_globals():  # numpy's, for the state of its random numbers
            content = read_pickled(path)
        _check_parts(path, content, python=tuple, numpy=tuple, cpu=object)
    elif path.name == OPTIMIZER_NAMES[0]:
        _check_parts(path, read_pickled(path), state=dict, param_groups=list)
    else:
        _check_parts(path, read_pickled(path))


def _check_parts(path: Path, content: Any, **parts: type) -> None:
    if not isinstance(content, dict) or not all(isinstance(content.get(name), kind) for name, kind in parts.items()):
        raise DamagedFileError(f"{path} does not hold what the trainer wrote.")


def _are_callbacks(value: Any) -> bool:
    if type(value) is not dict:
        return False
    listed = [entry for entries in value.values() for entry in (entries if type(entries) is list else [entries])]
    return all(
        type(entry) is dict and type(entry.get("args")) is dict and type(entry.get("attributes")) is dict
        for entry in listed
    )

"""What is trained: a prefix (P-Tuning v2), a low-rank update (LoRA), or every weight; always in float32.

method     trained                         written as
ptuning    transformer.prefix_encoder.*    model.safetensors with these tensors alone; notes in its header
lora       lora_A, lora_B per layer        adapter_model.safetensors and adapter_config.json, as peft writes them
full       every weight                    a whole model folder
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from chatglm.atomic import atomic_path, write_text
from chatglm.checkpoints import WeightFiles, iter_tensors
from chatglm.errors import InvalidRequestError, MismatchError, MissingFileError, TrainingError
from chatglm.loading.base_model import base_fingerprint
from chatglm.loading.lora_checkpoint import StoredLora, check_lora_fits, find_lora
from chatglm.loading.prefix_checkpoint import check_prefix_fits, find_prefix
from chatglm.nn.prefix_encoder import PrefixEncoder
from chatglm.training.arguments import LORA_TARGET, ModelArguments

# With more parameters than this, activations are recomputed unless the user says otherwise.
LARGE_MODEL = 500_000_000
NOTES_NAME = "trained.json"


class Recipe(ABC):
    """One way to train a network.

    Attributes:
        network: the base with what is trained in it; this one answers.
        trained: for the trainer: the network, or peft's wrapper around it.
        notes: metadata of a checkpoint.
    """

    weight_name = "model.safetensors"

    def __init__(self, network: Any, base: str, method: str) -> None:
        self.network, self.trained = network, network
        self.notes = {"format": "pt", "method": method, "base": base, "base_fingerprint": base_fingerprint(network)}

    def state(self) -> dict[str, Tensor]:
        """Name -> value of what is trained."""
        return {name: tensor for name, tensor in self.network.named_parameters() if tensor.requires_grad}

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write what is trained; `state` is given where the network is sharded (FSDP, ZeRO).

        Raises:
            TrainingError: the weights hold NaN or infinity.
        """
        mine = self.state()
        chosen = mine if state is None else {name: value for name, value in state.items() if name in mine}
        tensors = {name: value.detach().cpu().contiguous() for name, value in chosen.items()}
        broken = next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)
        if broken is not None:
            raise TrainingError(
                f"{broken} holds NaN or infinity and was not saved.",
                "Continue from an earlier checkpoint with a lower --learning_rate.",
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._write(folder, tensors)
        write_text(folder / NOTES_NAME, json.dumps(self.notes, ensure_ascii=False, indent=2))

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote; raises CheckpointError if it is missing or does not fit."""

    @abstractmethod
    def _write(self, folder: Path, tensors: dict[str, Tensor]) -> None: ...

    def _read(self, folder: Path) -> dict[str, Tensor]:
        path = folder / self.weight_name
        if not path.is_file():
            raise MissingFileError(f"{path} is missing.", "Give a checkpoint of the same kind of training.")
        return dict(iter_tensors(WeightFiles((path,))))


class PTuning(Recipe):
    """Trains the prefix encoder alone: the one that was loaded, or a new one by `pre_seq_len`.

    Raises:
        InvalidRequestError: another prefix length was asked for than the loaded one has.
    """

    def __init__(self, network: Any, base: str, model: ModelArguments) -> None:
        config = network.config
        encoder = network.transformer.prefix_encoder
        if encoder is None:
            config.pre_seq_len, config.prefix_projection = model.pre_seq_len, model.prefix_projection
            encoder = PrefixEncoder(network.spec, config.pre_seq_len, config.prefix_projection).to(network.device)
            network.transformer.prefix_encoder = encoder
        elif model.pre_seq_len not in (None, config.pre_seq_len):
            raise InvalidRequestError(
                f"--pre_seq_len is {model.pre_seq_len}, but the prefix in {model.ptuning_checkpoint} has "
                f"{config.pre_seq_len} positions.",
                "Leave --pre_seq_len out, or start without --ptuning_checkpoint.",
            )
        super().__init__(network, base, "ptuning")
        network.requires_grad_(False)
        encoder.float().requires_grad_(True)
        projection = str(bool(config.prefix_projection)).lower()
        self.notes |= {"pre_seq_len": str(config.pre_seq_len), "prefix_projection": projection}

    def load(self, folder: Path) -> None:
        prefix, spec = find_prefix(folder), self.network.spec
        check_prefix_fits(prefix, spec, self.network.config)
        start = f"{spec.prefix_encoder}."
        values = {name.removeprefix(start): value for name, value in prefix.read(spec).items()}
        self.network.transformer.prefix_encoder.load_state_dict(values)

    def _write(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        _write_tensors(folder / self.weight_name, tensors, self.notes)


class Lora(Recipe):
    """Trains a low-rank update of the target layers with peft.

    Raises:
        InvalidRequestError: peft is not installed, or there are no such layers.
    """

    weight_name = "adapter_model.safetensors"

    def __init__(self, network: Any, base: str, model: ModelArguments) -> None:
        super().__init__(network, base, "lora")
        try:
            import peft
        except ImportError:
            raise InvalidRequestError(
                "LoRA training needs peft.", "Run `pip install -r requirements-train.txt`."
            ) from None
        from chatglm.quantization.layers import QuantizedLinear

        start = lora_to_continue(model)
        if start is not None:
            check_lora_fits(network, start)
        settings = _new_settings(model) if start is None else start.config.settings()
        config = peft.LoraConfig(**settings, lora_dropout=model.lora_dropout, task_type="CAUSAL_LM")
        config._register_custom_module({QuantizedLinear: peft.tuners.lora.Linear})
        try:
            with warnings.catch_warnings():
                # peft warns about names that transformers has replaced, and about layers that it does not know.
                warnings.simplefilter("ignore")
                self.trained = peft.get_peft_model(network, config)
        except ValueError as error:
            raise InvalidRequestError(f"--lora_target {model.lora_target or LORA_TARGET}: {error}") from None
        for parameter in self.state().values():
            parameter.data = parameter.data.float()
        if start is not None:
            self._fill(start)

    def load(self, folder: Path) -> None:
        self._fill(find_lora(folder))

    def _fill(self, lora: StoredLora) -> None:
        """Take the values of an update whose layers, ranks and scales are those that are trained."""
        from peft import set_peft_model_state_dict

        layers = {name: module for name, module in self.network.named_modules() if hasattr(module, "lora_A")}
        mine = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers.items()}
        stored = {name: (lora.rank(name), scale) for name, scale in lora.scales.items()}
        for name in sorted(mine.keys() | stored.keys()):
            if mine.get(name) != stored.get(name):
                raise MismatchError(
                    f"The LoRA update in {lora.path} does not fit: {name} has {_words(stored.get(name))} there, "
                    f"{_words(mine.get(name))} in this run.",
                    "Give the --lora_rank, --lora_alpha and --lora_target that it was trained with.",
                )
        values = {f"base_model.model.{layer}.lora_{part}.weight": value for (layer, part), value in lora.read().items()}
        set_peft_model_state_dict(self.trained, values)

    def _write(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        named = {f"base_model.model.{name.replace('.default.', '.')}": value for name, value in tensors.items()}
        config = self.trained.peft_config["default"].to_dict()
        config["inference_mode"], config["base_model_name_or_path"] = True, self.notes["base"]
        write_text(folder / "adapter_config.json", json.dumps(config, indent=2, default=_as_json))
        _write_tensors(folder / self.weight_name, named, self.notes)


def lora_to_continue(model: ModelArguments) -> StoredLora | None:
    """The update that training goes on with; raises CheckpointError, or InvalidRequestError for flags that differ."""
    if model.lora_checkpoint is None:
        return None
    lora = find_lora(model.lora_checkpoint)
    rank, alpha, names = lora.config.keys["r"], lora.config.keys["lora_alpha"], _names(model.lora_target)
    used = {name for layer in lora.scales for name in names if f".{layer}".endswith(f".{name}")}
    are_others = used != names or not all(f".{layer}".endswith(tuple(f".{n}" for n in names)) for layer in lora.scales)
    for flag, asked, stored, differs in (
        ("rank", model.lora_rank, rank, model.lora_rank != rank),
        ("alpha", model.lora_alpha, alpha, model.lora_alpha != alpha),
        ("target", model.lora_target, ", ".join(sorted(lora.scales)[:5]), are_others),
    ):
        if asked is not None and differs:
            raise InvalidRequestError(
                f"--lora_{flag} is {asked}, but the update in {model.lora_checkpoint} has {stored}.",
                f"Leave --lora_{flag} out, or start without --lora_checkpoint.",
            )
    return lora


def _names(target: str | None) -> set[str]:
    return {name.strip() for name in (target or LORA_TARGET).split(",")}


def _new_settings(model: ModelArguments) -> dict[str, Any]:
    rank = model.lora_rank or 8
    alpha = model.lora_alpha or 2 * rank  # fractions are allowed
    return {"r": rank, "lora_alpha": alpha, "target_modules": sorted(_names(model.lora_target))}


def _words(settings: tuple[int, float] | None) -> str:
    return f"rank {settings[0]}, scale {settings[1]:g}" if settings is not None else "no update"


def _as_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


class Full(Recipe):
    """Trains every weight.

    Raises:
        InvalidRequestError: the base is quantized.
    """

    def __init__(self, network: Any, base: str) -> None:
        if network.config.quantization_bit or network.config.quantization_embedding_bit:
            raise InvalidRequestError(
                "Quantized weights cannot be trained.", "Give the unquantized folder, or --pre_seq_len or --lora_rank."
            )
        super().__init__(network, base, "full")
        network.float().requires_grad_(True)
        network.config.dtype = torch.float32

    def load(self, folder: Path) -> None:
        for name, value in self._read(folder).items():
            own = self.network.get_parameter(name)
            if own.shape != value.shape:
                raise MismatchError(f"{folder} holds another model: {name} is {list(value.shape)}.")
            own.data.copy_(value)

    def _write(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        self.network.config.save_pretrained(folder)
        if self.network.generation_config is not None:
            self.network.generation_config.save_pretrained(folder)
        _write_tensors(folder / self.weight_name, tensors, self.notes)


class Untrained(Recipe):
    """A network as it is, for answering only."""

    def __init__(self, network: Any, base: str, method: str) -> None:
        super().__init__(network, base, method)
        network.requires_grad_(False)

    def load(self, folder: Path) -> None:
        raise NotImplementedError

    def _write(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        raise NotImplementedError


def make_recipe(method: str, network: Any, base: str, model: ModelArguments) -> Recipe:
    """Prepare a loaded network for training by "ptuning", "lora" or "full".

    Raises:
        InvalidRequestError: the network cannot be trained this way.
    """
    if method == "ptuning":
        recipe: Recipe = PTuning(network, base, model)
    elif method == "lora":
        recipe = Lora(network, base, model)
    else:
        recipe = Full(network, base)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    if model.recompute == "on" or (model.recompute == "auto" and num_parameters > LARGE_MODEL):
        # Not reentrant: otherwise no gradient reaches a prefix through a frozen base.
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return recipe


def _write_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    with atomic_path(path) as work:
        work.touch()
        mode = work.stat().st_mode
        save_file(tensors, work, metadata=notes)
        work.chmod(mode)  # safetensors makes files that only their owner may read

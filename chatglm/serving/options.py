"""What a request may say: the fields both doors share, each with its range.

Knows: names, types and ranges of fields, and that 0 and null mean "as usual" in upstream's. Does not know HTTP.
Every range is part of the JSON schema, so that the documentation page and the checks cannot disagree.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_STOP_STRINGS = 16
NUM_SEEDS = 2**63  # larger ones begin again at 0
Text = Annotated[str, Field(min_length=1)]
Round = Annotated[list[str], Field(min_length=2, max_length=2)]


def _whole(value: Any) -> Any:
    """1024.0 is a whole number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole_number(kind: Any) -> BeforeValidator:
    """What makes an annotated int also take 1024.0, with the same range in the schema."""
    return BeforeValidator(_whole, json_schema_input_type=kind)


def listed(value: Any) -> Any:
    """A single string as a list of one."""
    return [value] if isinstance(value, str) else value


_FromZero = Annotated[int, Field(ge=0)]
_FromOne = Annotated[int, Field(ge=1)]
FromZero = Annotated[_FromZero, whole_number(_FromZero)]
FromOne = Annotated[_FromOne, whole_number(_FromOne)]
Number = Annotated[float, Field(allow_inf_nan=False)]
_StopList = Annotated[list[Text], Field(max_length=MAX_STOP_STRINGS)]
StopStrings = Annotated[_StopList, BeforeValidator(listed, json_schema_input_type=Text | _StopList)]


class Strict(BaseModel):
    """A string is no number and 1 is not true. Fields that are not known are ignored, as upstream and OpenAI do."""

    model_config = ConfigDict(strict=True, extra="ignore")


class UpstreamRequest(Strict):
    """`POST /` as upstream has it."""

    prompt: Text = Field(description="What the user says.", examples=["你好"])
    history: list[Round] | None = Field(
        None, description="Earlier rounds as [query, answer] pairs, oldest first.", examples=[[]]
    )
    max_length: FromZero | None = Field(
        None, description="Tokens of prompt and answer together; more than the context is clamped. 0 = default."
    )
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = Field(None, description="0 = default.")
    temperature: Annotated[Number, Field(ge=0)] | None = Field(None, description="0 = default, as upstream.")

    def parameters(self) -> dict[str, Any]:
        """Generation parameters; what is falsy means the default, as upstream."""
        return {
            "max_length": self.max_length or None,
            "top_p": self.top_p or None,
            "temperature": self.temperature or None,
        }


class AnswerOptions(Strict):
    """Generation parameters where 0 means 0: temperature 0 is greedy."""

    max_length: FromOne | None = Field(
        None, description="Tokens of prompt and answer together; more than the context is clamped."
    )
    max_new_tokens: FromOne | None = Field(None, description="Tokens of the answer alone.")
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: FromZero | None = Field(None, description="0 = all tokens.")
    temperature: Annotated[Number, Field(ge=0)] | None = Field(None, description="0 = greedy.")
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] | None = None
    seed: FromZero | None = Field(None, description="Same seed, same answer.")
    stop: StopStrings | None = Field(None, description="Strings that end the answer; they are not part of it.")
    system: str | None = Field(None, description="Instruction put in front of the conversation.")
    adapter: bool | None = Field(None, description="false leaves a P-Tuning prefix or LoRA update out of this answer.")

    def parameters(self) -> dict[str, Any]:
        """Generation parameters and `system`; None = the default."""
        values = {name: getattr(self, name) for name in AnswerOptions.model_fields}
        return {**values, "seed": None if self.seed is None else self.seed % NUM_SEEDS}


class StreamRequest(AnswerOptions):
    """`POST /stream`. It has no older clients, so an unknown field is refused: most likely it is a misspelled one."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text = Field(description="What the user says.", examples=["你好"])
    history: list[Round] | None = Field(
        None, description="Earlier rounds as [query, answer] pairs, oldest first.", examples=[[]]
    )

"""The fields of a hardware profile's file, each checked by itself. docs/hardware-profiles.md explains them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from autoq.core.scheme import FLOAT32
from autoq.spec.checking import AsTuple, Count, Fields, Text
from autoq.spec.limits import Limits
from autoq.spec.probed import Probed

AUTO = "auto"
Kind = Literal["cpu", "gpu", "npu"]
CostSource = Literal["measured", "estimated", "declared"]
"""Where ``cost`` comes from: single layers timed on such hardware, a model of it, or what documentation lets expect."""

Names = Annotated[tuple[Text, ...], AsTuple]


class Forbidden(Fields):
    """Schemes (a glob) that an op cannot have here, and why, in words for the user."""

    schemes: Text
    why: Text


class Alignment(Fields):
    """Schemes (a glob) whose kernels take only layers with a multiple of so many inputs, and of so many outputs."""

    schemes: Text
    inputs: Count = 1
    outputs: Count = 1
    why: Text


class OpRules(Fields):
    """The schemes (globs) that one op may have; ``forbid`` is stronger than ``allow``, and so is ``align``.

    How they run: ``native`` ones in kernels of their own width, ``folded`` ones are float32 (or whatever the runtime
    computes floats in) by the time a session has loaded; the others are converted at every inference.
    """

    allow: Annotated[tuple[Text, ...], AsTuple, Field(min_length=1)] = Field(examples=["[float32, w8a8]"])
    forbid: Annotated[tuple[Forbidden, ...], AsTuple] = ()
    native: Names = ()
    folded: Names = ()
    align: Annotated[tuple[Alignment, ...], AsTuple] = ()


class RuntimeChoice(Fields):
    """The runtime that models are scored and timed on, its execution provider and what else it takes."""

    name: Text = Field(examples=["onnxruntime"])
    provider: Text | None = None
    options: dict[Text, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _with_provider(cls, value: Any) -> Any:
        """ONNX Runtime has a provider; others have none."""
        if isinstance(value, dict) and value.get("name") == "onnxruntime":
            return {"provider": "CPUExecutionProvider", **value}
        return value

    @property
    def arguments(self) -> dict[str, Any]:
        """What the runtime is made with."""
        return {**({} if self.provider is None else {"provider": self.provider}), **self.options}

    @field_validator("options")
    @classmethod
    def _are_scalars(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, option in value.items():
            if not isinstance(option, str | int | float):
                raise ValueError(f"{name!r} must be text, a number, true or false")
        return value


class MeasureChoice(Fields):
    """Who takes latency and memory (:data:`autoq.runtime.gauge.GAUGES`), and what that takes."""

    by: Text = "meter"
    options: dict[Text, Any] = Field(default_factory=dict)


class LoweringChoice(Fields):
    """What the runtime runs best, where it leaves a choice.

    ``accuracy_level`` is what MatMulNBits computes with, for weights in blocks: 4 rounds each row's part of a block to
    8 bits, 1 keeps float32, 0 leaves it to the runtime. ``integer_products``: MatMul and Gemm write integers, as a Conv
    does. ``packed_weights``: kernels read weights as they are packed, so that fewer bits take less time.
    """

    accuracy_level: Annotated[int, Field(ge=0, le=4)] = 4
    integer_products: bool = False
    packed_weights: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it, without what is as usual."""
        return {"accuracy_level": self.accuracy_level, **self.model_dump(mode="json", exclude_defaults=True)}


class LatencySettings(Fields):
    """Rows per inference, threads, and timed blocks per candidate (``None``: the meter's own choice)."""

    batch: Count = 1
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    samples: Annotated[int, Field(ge=2, le=100_000)] | None = None


class Match(Fields):
    """How the machine is known: at least one, all and none of the flags; an empty list asks for nothing.

    ``gpu_names`` are globs, of which one GPU's name matches at least one.
    """

    arch: Names = ()
    any_cpu_flags: Names = ()
    all_cpu_flags: Names = ()
    no_cpu_flags: Names = ()
    gpu_names: Names = ()


FormChoice = Annotated[
    tuple[Text, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value), AsTuple
]
"""Names of forms of the graph; ``auto`` alone: those that a probe finds to pay; ``none`` alone, or nothing: none."""


class ProfileFields(Fields):
    """The file, before what its parts mean to each other is checked."""

    version: Literal[1] = Field(examples=[1])
    name: Text
    kind: Kind = Field(examples=["cpu"])
    description: str = ""
    runtime: RuntimeChoice = Field(examples=["{name: onnxruntime}"])
    latency: LatencySettings = LatencySettings()
    match: Match = Match()
    measure: MeasureChoice = MeasureChoice()
    reference: Text = FLOAT32.family
    lowering: LoweringChoice = LoweringChoice()
    ops: Annotated[dict[Text, OpRules], Field(min_length=1)] = Field(examples=["{Conv: {allow: [float32, w8a8]}}"])
    cost: dict[Text, Any] = Field(default_factory=dict)
    instead: dict[Text, Text] = Field(default_factory=dict)
    forms: FormChoice = Field(default=(AUTO,), examples=["auto"])
    limits: Limits = Limits()
    costs_are: CostSource = "measured"
    probed: Probed | None = None

"""The files people write to have something trained, shrunk, evaluated or run as a whole. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from moe_lab.config.spec import Spec
from moe_lab.data.spec import ByteTokenizerSpec, DataRef, DataShare, TokenizerSpec
from moe_lab.errors import LabError
from moe_lab.experts.kinds import DEFAULT, KINDS
from moe_lab.nn.spec import PrecisionName, TrunkSpec
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.registry import ArtifactRef
from moe_lab.training.spec import TrainSpec

if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[KINDS]


def _owner_and_name(text: str) -> str:
    try:
        ref = ArtifactRef.parse(text)
    except LabError as error:
        raise ValueError(str(error)) from error
    if ref.version is not None or ref.width is not None:
        raise ValueError(f"{text} must be owner/name alone; the version is given at publishing")
    return text


ArtifactName = Annotated[str, AfterValidator(_owner_and_name)]
"""`owner/name`: the version is given at publishing, the next free integer."""

Computed = Annotated[PrecisionName, Field(exclude_if=lambda name: name == "float32")]
"""See `moe_lab.nn.precision`; written only where it says something, so that earlier runs keep their fingerprints."""

ContributionConfig = dict[str, Any]
"""`type:` names a contributed class; the other keys are that class's own config."""


class Publishable(Spec):
    """What everything that ends up in the registry says of itself."""

    name: ArtifactName
    summary: str = ""
    licence: str


class TrunkRun(Publishable):
    """Trains a trunk on a mixture of domains and publishes it, in float32 whatever it is computed in."""

    kind: Literal["trunk"]
    trunk: TrunkSpec
    tokenizer: TokenizerSpec = ByteTokenizerSpec()
    data: tuple[DataShare, ...] = Field(min_length=1)
    train: TrainSpec
    heldout_rows: PositiveInt = 16
    precision: Computed = "float32"


def _layers(value: Any) -> Any:
    """Layers as people write them: `20-29`, or `0,4,8-11`."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    layers: set[int] = set()
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first) > 4 or len(last) > 4:
            raise ValueError(f'"{value}" is no list of layers; write 20-29, or 0,4,8-11')
        layers |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(layers))


class TrunkImport(Spec):
    """Publishes a pretrained model of others as a trunk.

    Attributes:
        source: a Hugging Face folder with safetensors, or a GGUF file, relative to the folder of the YAML file.
        routed_layers: in which expert modules will work, from 0: a list, or `20-29`, or `0,4,8-11`.
        block: hidden units of a block of a module.
        tokenizer: a `tokenizer.json` instead of the model's own.
        eos: text of the token that ends a document; the usual ones if left out.
        licence: of its weights; what the file says if left out.
    """

    kind: Literal["import"] = "import"
    name: ArtifactName
    summary: str = ""
    licence: str | None = None
    source: str = Field(min_length=1)
    routed_layers: Annotated[tuple[int, ...], BeforeValidator(_layers)]
    block: PositiveInt = 128
    tokenizer: str | None = None
    eos: str | None = None


class ModuleSpec(Publishable):
    """One expert module: trained beside a frozen trunk, alone, as wide as its team can afford.

    Attributes:
        trunk: `owner/name[@version]` of a published trunk.
        width: hidden units, one number for all routed layers or one per layer (`{2: 512, 3: 256}`).
        ladder: the widths it learns to be cut to, rising, the last one its full width.
        widest_share: share of the training rows that run the full width; the rest spread over the narrower rungs.
        precision: what the frozen trunk lies in and what is computed in; the module itself is float32.
        heldout_rows: rows of held-out text on which the claims are measured.
        claim_tolerance: how far a claim may be from its re-measurement, relative.
        expert_kind: what it adds to each routed layer, one of `moe_lab.experts.kinds`.
    """

    kind: Literal["module"]
    trunk: str
    width: PositiveInt | dict[int, PositiveInt]
    ladder: tuple[PositiveInt, ...]
    data: DataRef
    train: TrainSpec
    widest_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    heldout_rows: PositiveInt = 16
    precision: Computed = "float32"
    claim_tolerance: Annotated[float, Field(gt=0)] = 0.01
    expert_kind: KindName = Field(default=DEFAULT, exclude_if=lambda value: value == DEFAULT)

    @property
    def widest(self) -> int:
        """The full width: that of the widest layer."""
        return max(self.width.values()) if isinstance(self.width, dict) else self.width


class DistillRun(Publishable):
    """Shrinks a published module into a smaller one and publishes the child with its lineage.

    Attributes:
        teacher: `owner/name[@version]` of the module to shrink.
        ladder: widths of the child, the last one its full width.
        strategy: a folder in `distill/` by its `type:`, and its settings.
        data: text of the teacher's domain.
    """

    kind: Literal["distill"]
    teacher: str
    ladder: tuple[PositiveInt, ...]
    strategy: ContributionConfig
    data: DataRef
    train: TrainSpec
    widest_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    calibration_rows: PositiveInt = 16
    heldout_rows: PositiveInt = 16
    precision: Computed = "float32"
    claim_tolerance: Annotated[float, Field(gt=0)] = 0.01


class RouterRun(Publishable):
    """Trains a router for a trunk and a set of modules and publishes it.

    Attributes:
        router: a folder in `routers/` by its `type:`, and its settings.
        domains: text to learn from; its validation split, which no module was trained on.
        rows: rows per domain in the outcome table; routers that learn through the language model draw from the same.
    """

    kind: Literal["router"]
    router: ContributionConfig
    trunk: str
    modules: tuple[str, ...] = Field(min_length=1)
    domains: tuple[DataRef, ...] = Field(min_length=1)
    rows: PositiveInt = 64
    train: TrainSpec


class RouterSettings(Spec):
    """How a router was trained, in its manifest: what joins it later is measured and trained alike."""

    rows: PositiveInt
    train: TrainSpec


def _leave_out(value: Any) -> None:
    if value is not None:
        raise ValueError("the router that is extended says this; leave it out, and name the modules that join in add:")


_SaidByTheExtended = Annotated[
    Any, AfterValidator(_leave_out), Field(exclude=True, json_schema_extra={"not": {}}, description="Not given here.")
]


class RouterJoinRun(Publishable):
    """Lets modules join a trained router; what it says of the others stays. A config of kind router with `extends`.

    Attributes:
        extends: a published router of tokens, `owner/name[@version]`, or the run folder of one.
        add: the modules that join, `owner/name[@version]` each.
        domains: text on which all candidates are measured, the newcomers' own above all; its validation split.
        rows: rows per domain; left out, as many as the router learned from.
        train: left out, as the router was trained.
    """

    kind: Literal["router"]
    extends: str
    add: tuple[str, ...] = Field(min_length=1)
    domains: tuple[DataRef, ...] = Field(min_length=1)
    rows: PositiveInt | None = None
    train: TrainSpec | None = None
    router: _SaidByTheExtended = None
    trunk: _SaidByTheExtended = None
    modules: _SaidByTheExtended = None


class QuestionRouterRun(Publishable, QuestionRouterSettings):
    """Trains a router that picks one candidate for each question of somebody's outcome table.

    Attributes:
        table: a config of kind `outcomes`, by its name in `configs/outcomes/` or by path; or the path of a saved item
            table (`.parquet`).
    """

    kind: Literal["question_router"]
    table: str


class QuestionJoinRun(Publishable):
    """Lets candidates join a question router on a handful of items; what it says of the others stays the same.

    Attributes:
        extends: a published question router, `owner/name[@version]`, or the run folder of one.
        table: as for a question router: the newcomers' cards (size, family, cost), and some 20 items with their
            outcomes. Candidates that the router knows are passed over.
        measured_on: as `table`: questions with the outcomes of all candidates, from which the report is made; `table`
            itself if it is left out and has them.
    """

    kind: Literal["question_join"]
    extends: str
    table: str
    measured_on: str | None = None


class StudySpec(Spec):
    """Runs configs one after the other; what is already done for the same inputs is skipped."""

    kind: Literal["study"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    summary: str = ""
    stages: tuple[str, ...] = Field(min_length=1)

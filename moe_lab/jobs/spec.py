"""The files people write to have something trained, shrunk, evaluated or run as a whole. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from moe_lab.config.spec import Spec
from moe_lab.data.spec import ByteTokenizerSpec, DataSpec, TokenizerSpec
from moe_lab.errors import LabError
from moe_lab.nn.spec import TrunkSpec
from moe_lab.parallel.spec import MeshSpec
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.registry import ArtifactRef
from moe_lab.training.spec import TrainSpec


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

DataRef = str | DataSpec
"""A domain: the name of a file in `configs/data/` (or a path to one), or the domain itself."""

Choice = dict[str, Any]
"""`type:` names a contributed class; the other keys are that class's own config."""


class Published(Spec):
    """What everything that ends up in the registry says of itself."""

    name: ArtifactName
    summary: str = ""
    licence: str


class DataShare(Spec):
    """One domain of a mixture; weights are relative."""

    domain: DataRef
    weight: Annotated[float, Field(gt=0)] = 1.0


class TrunkRun(Published):
    """Trains a trunk on a mixture of domains and publishes it."""

    kind: Literal["trunk"]
    trunk: TrunkSpec
    tokenizer: TokenizerSpec = ByteTokenizerSpec()
    data: tuple[DataShare, ...] = Field(min_length=1)
    train: TrainSpec
    heldout_rows: PositiveInt = 16


class ModuleSpec(Published):
    """One expert module: trained beside a frozen trunk, alone, as wide as its team can afford.

    Attributes:
        trunk: `owner/name[@version]` of a published trunk.
        width: hidden units, one number for all routed layers or one per layer (`{2: 512, 3: 256}`).
        ladder: the widths it learns to be cut to, rising, the last one its full width.
        widest_share: share of the training rows that run the full width; the rest spread over the narrower rungs.
        heldout_rows: rows of held-out text on which the claims are measured.
        claim_tolerance: how far a claim may be from its re-measurement, relative.
    """

    kind: Literal["module"]
    trunk: str
    width: PositiveInt | dict[int, PositiveInt]
    ladder: tuple[PositiveInt, ...]
    data: DataRef
    train: TrainSpec
    widest_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    heldout_rows: PositiveInt = 16
    claim_tolerance: Annotated[float, Field(gt=0)] = 0.01

    @property
    def widest(self) -> int:
        """The full width: that of the widest layer."""
        return max(self.width.values()) if isinstance(self.width, dict) else self.width


class DistillRun(Published):
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
    strategy: Choice
    data: DataRef
    train: TrainSpec
    widest_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    calibration_rows: PositiveInt = 16
    heldout_rows: PositiveInt = 16
    claim_tolerance: Annotated[float, Field(gt=0)] = 0.01


class RouterRun(Published):
    """Trains a router for a trunk and a set of modules and publishes it.

    Attributes:
        router: a folder in `routers/` by its `type:`, and its settings.
        domains: text to learn from; its validation split, which no module was trained on.
        rows: rows per domain in the outcome table; routers that learn through the language model draw from the same.
    """

    kind: Literal["router"]
    router: Choice
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


class RouterJoinRun(Published):
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


class QuestionRouterRun(Published, QuestionRouterSettings):
    """Trains a router that picks one candidate for each question of somebody's outcome table.

    Attributes:
        table: a config of kind `outcomes`, by its name in `configs/outcomes/` or by path; or the path of a saved item
            table (`.parquet`).
    """

    kind: Literal["question_router"]
    table: str


class QuestionJoinRun(Published):
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


class MeasuredText(Spec):
    """Which text a composition is measured on; always its validation split.

    Attributes:
        domains: left out, the text that the composed modules were trained on.
        rows: of `seq_len` tokens per domain.
    """

    domains: tuple[DataRef, ...] = ()
    rows: PositiveInt = 64
    seq_len: PositiveInt = 256


class OutcomeSettings(MeasuredText):
    """Text on which every candidate is measured; items with fewer than `shortest_bytes` are no items of a table."""

    shortest_bytes: PositiveInt = 16


class EvaluationSpec(Spec):
    """Evaluates a composition: matrix, curve against baselines, report.

    Attributes:
        composition: a composition config or lockfile.
        domains: text to evaluate on; its test split.
        rows: test rows per domain.
        decision_rows: validation rows per domain from which the group table is made.
        prices: what the router is charged, in nats per token for the dearest candidate.
        routers: other published routers for the same trunk and modules, drawn beside the composition's own.
        without: modules to opt out.
        resamples: bootstrap draws.
    """

    kind: Literal["evaluation"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    composition: str
    domains: tuple[DataRef, ...] = Field(min_length=1)
    rows: PositiveInt = 48
    decision_rows: PositiveInt = 32
    seq_len: PositiveInt = 256
    batch_size: PositiveInt = 16
    prices: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 0.01, 0.03, 0.1, 0.3)
    routers: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    sample_tokens: NonNegativeInt = 400
    resamples: PositiveInt = 1000
    seed: NonNegativeInt = 0


class StudySpec(Spec):
    """Runs configs one after the other; what is already done for the same inputs is skipped."""

    kind: Literal["study"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    summary: str = ""
    stages: tuple[str, ...] = Field(min_length=1)


class PlannedModules(Spec):
    """Modules of one size, for planning.

    Attributes:
        name: of the group; its modules are numbered.
        width: hidden units, the same in all routed layers.
        ladder_use: share of its tokens that run each width (`{512: 0.5, 2048: 0.5}`); left out, all run all of it.
    """

    name: str
    count: PositiveInt = 1
    width: PositiveInt
    ladder_use: dict[int, Annotated[float, Field(gt=0, le=1)]] = {}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.ladder_use and abs(sum(self.ladder_use.values()) - 1) > 1e-6:
            raise ValueError(f"ladder_use of {self.name} must sum to 1, not {sum(self.ladder_use.values()):g}")
        if max(self.ladder_use, default=self.width) > self.width or min(self.ladder_use, default=1) < 1:
            raise ValueError(f"ladder_use of {self.name} must name widths from 1 to {self.width}")
        return self


class ZipfLoad(Spec):
    """Tokens of the i-th most used module go like `1 / i ** zipf`; a seed says which module is which."""

    zipf: Annotated[float, Field(ge=0)] = 0.8
    seed: NonNegativeInt = 0


class PlanSettings(Spec):
    """How a model is to run over devices.

    Attributes:
        top_k: modules per token.
        load: how unevenly modules are used: a Zipf law, or the share of each module in the order of the modules.
        rows: sequences in the batch, over all devices; left out, one per device.
        train: train the modules (float32 with Adam, the trunk frozen), instead of computing a loss.
        budget_slack: room for block rows over what the load makes the fullest device expect.
        replicate: blocks that may be stored more than once, as a share of all blocks.
        trunk_sharding: the trunk whole on each device, or spread over all of them and gathered layer by layer.
        mesh: left out, the smallest `expert` axis from 16 on at which the weights fit.
    """

    top_k: PositiveInt = 2
    load: ZipfLoad | tuple[Annotated[float, Field(ge=0)], ...] = ZipfLoad()
    rows: PositiveInt | None = None
    seq_len: Annotated[int, Field(ge=2)] = 2048
    train: bool = False
    budget_slack: Annotated[float, Field(ge=1)] = 1.25
    replicate: Annotated[float, Field(ge=0)] = 0.1
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    trunk_sharding: Literal["replicated", "sharded"] = "replicated"
    mesh: MeshSpec | None = None


class PlanSpec(PlanSettings):
    """A model by its shapes alone, to be planned for a TPU topology before anything is trained."""

    kind: Literal["plan"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    summary: str = ""
    trunk: TrunkSpec
    modules: tuple[PlannedModules, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _routed(self) -> Self:
        if not self.trunk.routed_layers:
            raise ValueError("trunk.routed_layers is empty, so there is nothing to place")
        modules = sum(group.count for group in self.modules)
        if self.top_k > modules:
            raise ValueError(f"top_k {self.top_k} is more than the {modules} modules there are")
        return self

"""The files that say what an outcome table of somebody else's means, and how a router learns from one."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from moe_lab.config.spec import Spec

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Positive = Annotated[float, Field(gt=0)]


Value = str | int | float | bool | None


class KeyFile(Spec):
    """A file of keys: a `.txt` with one a line, or a table with a column of them.

    Attributes:
        path: relative to the YAML file, or to the folder in MOE_LAB_OUTCOMES.
        key: the column of a table; left out, it is called as the keys of the rows that are dropped.
    """

    path: str
    key: str | None = None


class TableFile(Spec):
    """A CSV, TSV, JSON Lines or JSON file, with or without `.gz`, or several whose rows are stacked.

    Attributes:
        path: relative to the YAML file, or to the folder in MOE_LAB_OUTCOMES. Several files, or a pattern with `*`, are
            stacked by rows.
        key: the column that joins the files, needed where there is more than one entry.
        name: what its columns are called by where another file has one of the same name, as in `name.column`; left
            out, the file's name without its ending.
        rows: where the rows are within a .json file, such as `data.records`.
        file_column: a column that is made of the name of the file that each row is from, without its ending.
        where: columns, and the value, or one of the values, that rows are kept for.
        drop: a file of keys; rows with one of them are left out.
    """

    path: str | Annotated[tuple[str, ...], Field(min_length=1)]
    key: str | None = None
    name: Annotated[str, Field(min_length=1)] | None = None
    rows: str | None = None
    file_column: str | None = None
    where: dict[str, Value | Annotated[tuple[Value, ...], Field(min_length=1)]] = {}
    drop: str | KeyFile | None = None

    @model_validator(mode="after")
    def _named_keys(self) -> Self:
        if self.drop is not None and self.key is None:
            raise ValueError("`drop` names rows by their `key`; say which column that is")
        return self


class CandidateSpec(Spec):
    """One candidate and where its outcome stands.

    Attributes:
        name: what reports call it.
        column: the column of its loss or score; left out, the one of that name.
        cost: of one item, in `cost_unit`; or `cost_column`, where it differs by item; or `mean_cost_column`, whose
            mean over the items is the cost of every item.
        cost_scale: what costs are multiplied by; left out, the table's.
        size: anything that grows with the model, such as billions of parameters. Only compared within a family.
        family: candidates of one family form a ladder by size.
    """

    name: str
    column: str | None = None
    cost: float | None = None
    cost_column: str | None = None
    mean_cost_column: str | None = None
    cost_scale: Positive | None = None
    size: Positive | None = None
    family: str | None = None

    @model_validator(mode="after")
    def _one_cost(self) -> Self:
        if [self.cost, self.cost_column, self.mean_cost_column].count(None) != 2:
            raise ValueError(f"candidate {self.name} needs one of `cost` and `cost_column` (or `mean_cost_column`)")
        return self


class OutcomesSpec(Spec):
    """Which columns of which files are text, features, group, outcomes and costs.

    Attributes:
        items: the file with the items, or several that are stacked by rows; `join` adds columns by key.
        text: columns that make up the question; a list in a column counts as its lines. Here and in all that follows
            a dotted name reaches into objects and lists, such as `scores.small` or `turns.0`.
        group: the column of the subject, task or source.
        numbers: columns of numeric features, known before any candidate runs.
        outcome: whether the candidates' columns hold scores (higher is better) or losses.
        outcome_unit, cost_unit: what reports call them.
        outcome_scale, cost_scale: what all of them are multiplied by, such as 0.01 for scores in percent.
        right_when_equals: the candidates' columns hold answers; an answer scores 1 where it equals this column.
        missing: what to do with an item that lacks an outcome or a cost of some candidate, its question or its group.
        duplicates: items of equal text and features are always kept in one fold; or refuse them.
    """

    kind: Literal["outcomes"]
    name: Name
    summary: str = ""
    source: str = ""
    licence: str = ""
    items: TableFile
    join: tuple[TableFile, ...] = ()
    text: tuple[str, ...] = ()
    group: str | None = None
    numbers: tuple[str, ...] = ()
    outcome: Literal["score", "loss"] = "score"
    outcome_unit: str = ""
    outcome_scale: Positive = 1.0
    right_when_equals: str | None = None
    cost_unit: str = "cost"
    cost_scale: Positive = 1.0
    missing: Literal["refuse", "drop"] = "refuse"
    duplicates: Literal["together", "refuse"] = "together"
    candidates: tuple[CandidateSpec, ...] = Field(min_length=1, max_length=30)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not (self.text or self.group or self.numbers):
            raise ValueError("a router needs something to look at: give `text`, `group` or `numbers`")
        names = [candidate.name for candidate in self.candidates]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"candidate {twice[0]} is listed twice")
        if self.join and not all(file.key for file in (self.items, *self.join)):
            raise ValueError("with `join`, every file needs its `key` column")
        if self.right_when_equals and self.outcome == "loss":
            raise ValueError("right_when_equals makes scores; leave out `outcome: loss`")
        if self.right_when_equals and self.outcome_scale != 1:
            raise ValueError("right_when_equals makes scores of 0 and 1; leave out `outcome_scale`")
        return self


class QuestionFeatures(Spec):
    """What a question router looks at.

    Attributes:
        words: word n-grams up to this length; 0 looks at no words.
        characters: character n-grams from 3 up to this length, within words; 0 looks at none. Slow on long texts.
        buckets: hashed features of each of the two, a power of two.
        encoder: an installed package, or a folder, with a sentence encoder whose vectors are looked at too; see
            `moe_lab.questions.encoder`. Reading a question then takes milliseconds instead of microseconds.
        group_weight, number_weight, encoder_weight: how strongly groups, numbers and the encoder's vectors count beside
            the n-grams, whose features of one item have length 1.
    """

    words: NonNegativeInt = 2
    characters: Annotated[int, Field(ge=0, le=8)] = 0
    buckets: PositiveInt = 1 << 17
    group_weight: Annotated[float, Field(ge=0)] = 1.0
    number_weight: Annotated[float, Field(ge=0)] = 0.1
    encoder: str | None = None
    encoder_weight: Annotated[float, Field(ge=0)] = 0.5


class QuestionRouterSettings(Spec):
    """How a router of questions is trained and evaluated.

    Attributes:
        head: `gain` predicts every candidate's outcome; `difficulty` knows only the cheapest one's, and sends what it
            may fail at to the dearest. Difficulty is the baseline to beat.
        neighbours: directions of the text in which alike training items are found, whose outcomes are blended with the
            heads'; 0 looks for none.
        penalty: L2 penalty of the weights that all candidates share.
        own_penalty: L2 penalty of what one candidate's weights differ by, relative to `penalty`.
        monotone: within a family a larger size is never predicted to be worse: `auto` where every group of the
            training items bears it out, or `never`.
        group_shrinkage: items' worth of the overall mean that each group's mean is drawn by.
        folds: of the evaluation; no item is scored by a router that saw it. With `groups` each group is a fold: it is
            scored by a router that never saw that group, for which the group table has the mean of all items.
        trials: parts that the training items are dealt into. Each part is held back from one trial router; what the
            trials say of the items that they never saw calibrates, and decides whether to abstain. With `folds: groups`
            whole groups are held back.
        abstain: answer as the group table or the zero router does where what was learnt is not surely better on the
            items held back, that is with the whole 95% interval; false routes by what was learnt in any case.
        prices: how many points of the curve are measured.
    """

    head: Literal["gain", "difficulty"] = "gain"
    features: QuestionFeatures = QuestionFeatures()
    neighbours: NonNegativeInt = 60
    penalty: Positive = 4.0
    own_penalty: Positive = 1.2
    monotone: Literal["auto", "never"] = "auto"
    group_shrinkage: Annotated[float, Field(ge=0)] = 10.0
    iterations: PositiveInt = 20
    folds: Annotated[int, Field(ge=2)] | Literal["groups"] = 5
    trials: Annotated[int, Field(ge=2)] = 4
    abstain: bool = True
    prices: Annotated[int, Field(ge=2)] = 64
    resamples: PositiveInt = 300
    seed: NonNegativeInt = 0

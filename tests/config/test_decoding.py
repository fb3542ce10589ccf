from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveInt, ValidationError, model_validator

from moe_lab.config import Spec, decode, fingerprint, parse_yaml, to_yaml
from moe_lab.errors import LabError


class Files(Spec):
    type: Literal["files"] = "files"
    paths: list[str]


class Column(Spec):
    type: Literal["column"] = "column"
    path: str
    column: str


class Path_(Spec):
    """Its tag is also the name of its key: the path in an error must keep one of the two."""

    type: Literal["path"] = "path"
    path: str
    depth: int = Field(default=1, ge=1)


Source = Annotated[Files | Column | Path_, Field(discriminator="type")]


class Device(Enum):
    cpu = "cpu"
    tpu = "tpu"


class Train(Spec):
    steps: int = Field(gt=0)
    rate: float | Literal["auto"] = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 0
    device: Device = Device.cpu
    folder: Path | None = None
    verbose: bool = False

    @model_validator(mode="after")
    def _warmup_fits(self) -> "Train":
        if self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup} is longer than the {self.steps} steps.\nShorten it.")
        if self.steps == 13:
            raise LabError("13 steps bring bad luck.")
        return self


class Run(Spec):
    name: str = Field(default="x", min_length=1, pattern="^[a-z]+$")
    train: Train = Train(steps=1)
    sources: list[Source] = []
    main: Source | None = None
    weights: dict[str, float] = {}
    width: PositiveInt | dict[int, PositiveInt] = 1
    domain: str | Files = "x"
    nested: dict[str, list[Source]] = {}


def refusal(text: str, cls: type[Spec] = Run) -> str:
    with pytest.raises(LabError) as error:
        decode(cls, parse_yaml(text, "x.yaml"), "x.yaml")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("x.yaml: ")
    return message.removeprefix("x.yaml: ")


def test_plain_data_becomes_a_typed_spec() -> None:
    data = parse_yaml(
        "train: {steps: 5, rate: 1, betas: [0, 1], folder: some/where, device: tpu}\n"
        "sources: [{type: files, paths: [a]}, {type: path, path: b}]",
        "x.yaml",
    )
    run = decode(Run, data, "x.yaml")
    assert run.train.rate == 1.0
    assert run.train.betas == (0.0, 1.0)
    assert run.train.folder == Path("some/where")
    assert run.train.device is Device.tpu
    assert run.sources == [Files(paths=["a"]), Path_(path="b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train: {stepz: 5}",
            'train.stepz: unknown key. Did you mean "steps"? '
            "Available: betas, device, folder, rate, schedule, steps, verbose, warmup.",
        ),
        (
            "sauces: []",
            'sauces: unknown key. Did you mean "sources"? '
            "Available: domain, main, name, nested, sources, train, weights, width.",
        ),
        ("train: {steps: ten}", 'train.steps: expected an integer, got "ten".'),
        ('train: {steps: "5"}', 'train.steps: expected an integer, got "5".'),
        ("train: {steps: 5.0}", "train.steps: expected an integer, got 5.0."),
        ("train: {steps: true}", "train.steps: expected an integer, got true."),
        ("train: {steps: 0}", "train.steps: must be greater than 0, got 0."),
        ("train: {warmup: 0}", "train.steps: this is required and missing. Add it."),
        ("train: {steps: 1, rate: fast}", 'train.rate: expected a number or "auto", got "fast".'),
        ("train: {steps: 1, rate: .nan}", 'train.rate: expected a finite number or "auto", got NaN.'),
        ("train: {steps: 1, betas: [1, x]}", 'train.betas.1: expected a number, got "x".'),
        ("train: {steps: 1, betas: [1, 2, 3]}", "train.betas: must have at most 2 items, got [1, 2, 3]."),
        ("train: {steps: 1, betas: 1}", "train.betas: expected a list, got 1."),
        (
            "train: {steps: 1, schedule: cosin}",
            'train.schedule: unknown value "cosin". Did you mean "cosine"? Available: constant, cosine.',
        ),
        (
            "train: {steps: 1, device: gpu}",
            'train.device: unknown value "gpu". Did you mean "tpu"? Available: cpu, tpu.',
        ),
        ("train: {steps: 1, verbose: yes}", 'train.verbose: expected true or false, got "yes".'),
        ("train: 5", "train: expected a mapping (key: value), got 5."),
        ("train:", "train: expected a mapping (key: value), got null."),
        ("name: 5", "name: expected text, got 5."),
        ("name: A", "name: must match pattern '^[a-z]+$', got \"A\"."),
        ("train: {steps: 1, warmup: 2}", "train: warmup 2 is longer than the 1 steps. Shorten it."),
        ("train: {steps: 13}", "13 steps bring bad luck."),
        ("width: {2: wide}", 'width.2: expected an integer, got "wide".'),
        ("width: {two: 5}", 'width.two: expected an integer, got "two".'),
        ("width: [5]", "width: expected an integer or a mapping (key: value), got [5]."),
        ("width: -5", "width: must be greater than 0, got -5."),
        ("domain: {paths: 5}", "domain.paths: expected a list, got 5."),
        ("domain: {path: []}", 'domain.path: unknown key. Did you mean "paths"? Available: paths, type.'),
        ("weights: {python: much}", 'weights.python: expected a number, got "much".'),
    ],
)
def test_what_does_not_fit_is_one_line_with_path_value_and_rule(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize("holder", ["sources: [{S}]", "main: {S}", "nested: {a: [{S}]}"])
@pytest.mark.parametrize(
    ("source", "at", "message"),
    [
        ("type: filez", "", 'unknown type "filez". Did you mean "files"? Available: column, files, path.'),
        ("paths: [a]", "", "needs `type:` to say what it is. Available: column, files, path."),
        ("type: files", ".paths", "this is required and missing. Add it."),
        (
            "type: files, path: a, paths: []",
            ".path",
            'unknown key. Did you mean "paths"? Available: paths, type.',
        ),
        ("type: column, path: 1, column: a", ".path", "expected text, got 1."),
        ("type: path, path: 1", ".path", "expected text, got 1."),
        ("type: path", ".path", "this is required and missing. Add it."),
        ("type: path, path: a, depth: 0", ".depth", "must be greater than or equal to 1, got 0."),
    ],
)
def test_a_union_is_told_apart_by_its_tag(holder: str, source: str, at: str, message: str) -> None:
    where = {"s": "sources.0", "m": "main", "n": "nested.a.0"}[holder[0]]
    text = holder.replace("{S}", "{" + source + "}")
    assert refusal(text) == f"{where}{at}: {message}"


def test_of_several_problems_the_first_is_shown_and_the_others_counted() -> None:
    message = refusal("name: 5\nweights: {a: b, c: d}\ntrain: {steps: 1, sched: cosine}")
    assert message.startswith('train.sched: unknown key. Did you mean "schedule"?')
    assert message.endswith("(3 more problems in this file.)")
    assert refusal("name: 5\nweights: {a: b}").endswith("got 5. (1 more problem in this file.)")


def test_a_list_where_the_file_should_be_a_mapping() -> None:
    assert refusal("[1]") == "expected a mapping (key: value), got [1]."


def test_a_long_value_is_shortened() -> None:
    assert len(refusal(f"train: {'x' * 1000}")) < 150


class Tree(Spec):
    name: str
    children: "list[Tree]" = []


def test_a_spec_that_contains_itself() -> None:
    text = "name: a\nchildren: [{name: b, children: [{nam: c}]}]"
    expected = 'children.0.children.0.nam: unknown key. Did you mean "name"? Available: children, name.'
    assert refusal(text, Tree) == expected


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Run().name = "y"  # type: ignore[misc]


RUNS = st.builds(
    Run,
    name=st.text("abc", min_size=1),
    train=st.builds(
        Train,
        steps=st.integers(100, 10**6),
        rate=st.just("auto") | st.floats(allow_nan=False, allow_infinity=False),
        betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        warmup=st.integers(0, 100),
        device=st.sampled_from(Device),
        folder=st.none() | st.just(Path("a/b")),
    ),
    sources=st.lists(
        st.builds(Files, paths=st.lists(st.text()))
        | st.builds(Column, path=st.text(), column=st.text())
        | st.builds(Path_, path=st.text(), depth=st.integers(1))
    ),
    weights=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
)


@pytest.mark.slow
@given(RUNS)
def test_a_resolved_spec_reads_back_equal_and_keeps_its_fingerprint(run: Run) -> None:
    again = decode(Run, parse_yaml(to_yaml(run), "x.yaml"), "x.yaml")
    assert again == run
    assert fingerprint(again) == fingerprint(run)


@pytest.mark.slow
@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_wrong_data_is_refused_in_one_line(data: Any) -> None:
    with pytest.raises(LabError) as error:
        decode(Run, {"train": data, "sources": [data], "nested": data, "name": 5}, "x.yaml")
    assert len(str(error.value).splitlines()) == 1

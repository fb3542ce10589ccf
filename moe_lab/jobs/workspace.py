"""The place where a command works: the lab, its registry, its runs, its text, and a way to show progress."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from jax.sharding import Mesh

from moe_lab.compose.build import build_model
from moe_lab.compose.kept_states import KeptStates
from moe_lab.compose.lockfile import Lock, LockedPart, load_lock, pin, require_trusted, resolve
from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import LoadedTrunk, load_trunk
from moe_lab.compose.spec import CompositionSpec
from moe_lab.config import Spec, load_config
from moe_lab.data import Corpus, Tokenizer, load_corpus
from moe_lab.data.frozen import FrozenText
from moe_lab.data.spec import DataRef, DataSpec
from moe_lab.errors import LabError, NotFound
from moe_lab.jobs.spec import ContributionConfig, ModuleSpec, Publishable
from moe_lab.lab import Lab
from moe_lab.nn.precision import Precision, choose_precision
from moe_lab.nn.spec import PrecisionName
from moe_lab.parallel.spec import Transport
from moe_lab.registry import Registry
from moe_lab.training import Progress, Run, SilentProgress, open_run


@dataclasses.dataclass(frozen=True)
class LocatedDomain:
    """A domain's spec, and the folder that its paths are relative to."""

    spec: DataSpec
    base: Path


@dataclasses.dataclass
class Workspace:
    """Everything a job needs from its surroundings. Text and trunks are read once per process.

    With `may_start_runs=False` finished runs are found, and asking for one that is not finished is an error. On a
    `mesh` training and evaluation use all its devices, for the trunk's parameters too if `shard_trunk`; `transport` is
    how tokens travel. With `states` what lies under the first routed layer is kept. None of these changes more than
    rounding, hence it is the same run.
    """

    lab: Lab
    progress: Progress = dataclasses.field(default_factory=SilentProgress)
    may_start_runs: bool = True
    mesh: Mesh | None = None
    shard_trunk: bool = False
    transport: Transport = "ring"
    states: KeptStates | None = None

    def __post_init__(self) -> None:
        self._corpora: dict[tuple[str, str], Corpus] = {}
        self._trunks: dict[tuple[str, Precision], LoadedTrunk] = {}

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.lab.registry_path, trust=self.lab.trust_path, key=self.lab.key_name)

    def domain(self, data: DataRef, base: Path, *, asked: tuple[Path, ...] = ()) -> LocatedDomain:
        """What a config's data entry means.

        That is the domain itself, a file by path, its name in `configs/data`, or the name of a module of the lab.

        Args:
            data: the entry.
            base: folder of the config.
            asked: modules whose text this is, if it was named by one.
        """
        if isinstance(data, DataSpec):
            return LocatedDomain(data, base)
        beside = base / data
        if beside.is_file():
            path = beside
        else:
            path = self.lab.find_config(data) if "/" in data else self.lab.find_domain(data)
        spec = load_config(path)
        if isinstance(spec, ModuleSpec):
            if path in asked:
                raise LabError(
                    f'{path}: its text is "{data}", which names this module again; write out what text that is, here '
                    f"or in configs/data/{data}.yaml"
                )
            return self.domain(spec.data, path.parent, asked=(*asked, path))
        if not isinstance(spec, DataSpec):
            raise LabError(f"{path}: text is named by a file of kind data, or of a module")
        return LocatedDomain(spec, path.parent)

    def corpus(self, domain: LocatedDomain, tokenizer: Tokenizer) -> Corpus:
        """Reads, cleans, splits and tokenises a domain."""
        key = (domain.spec.model_dump_json() + str(domain.base), tokenizer.digest)
        if key not in self._corpora:
            frozen = FrozenText(self.lab.runs / "text", self.progress.note)
            cache = self.lab.runs / "tokens"
            self._corpora[key] = load_corpus(domain.spec, tokenizer, domain.base, cache, frozen)
        return self._corpora[key]

    def corpora(self, domains: Sequence[DataRef], base: Path, tokenizer: Tokenizer) -> list[Corpus]:
        """Several domains; each may be named once, because results are told apart by name."""
        corpora = [self.corpus(self.domain(domain, base), tokenizer) for domain in domains]
        names = [corpus.name for corpus in corpora]
        for name in names:
            if names.count(name) > 1:
                raise LabError(f'domain "{name}" is listed twice; list each domain once')
        return corpora

    def trunk(self, part: LockedPart, precision: PrecisionName = "float32") -> LoadedTrunk:
        """A published trunk."""
        key = part.digest, choose_precision(precision)
        if key not in self._trunks:
            self._trunks[key] = load_trunk(self.registry, part, self.shard_trunk, key[1], self.states, self.mesh)
        return self._trunks[key]

    def pin_trunk(self, ref: str) -> LockedPart:
        """The trunk that a name means now."""
        return pin(self.registry, ref, "trunk")

    def find_lock(self, composition: str, base: Path) -> Lock:
        """A lockfile by path, or the lock of a composition config as its names resolve now."""
        for path in (base / composition, Path(composition)):
            if path.is_file() and path.suffix == ".json":
                lock = load_lock(path)
                require_trusted(lock, self.registry)
                return lock
        beside = base / composition
        path = beside if beside.is_file() else self.lab.find_config(composition)
        spec = load_config(path, kind="composition")
        assert isinstance(spec, CompositionSpec)
        return resolve(spec, self.registry)

    def load_model(self, lock: Lock) -> ComposedModel:
        """The model of a lockfile on the devices of this workspace."""
        return build_model(
            lock,
            self.registry,
            self.lab,
            self.mesh,
            shard_trunk=self.shard_trunk,
            transport=self.transport,
            states=self.states,
        )

    def open_run(self, spec: Publishable, inputs: dict[str, str]) -> Run:
        """The run of a training config: finished, begun before, or new."""
        resolved = spec.model_dump(mode="json")
        run = open_run(self.lab.runs, resolved["kind"], spec.name, resolved, inputs, begin=self.may_start_runs)
        if run.done is None and not self.may_start_runs:
            raise NotFound(f"{spec.name} is not trained for its present config and text; train it first: moe-lab train")
        return run


def data_inputs(corpora: Sequence[Corpus]) -> dict[str, str]:
    """What a run's identity says of its text."""
    return {f"data/{corpus.name}": corpus.digest for corpus in corpora}


def contribution_digest(folder: Path) -> str:
    """sha256 of a contribution's Python files: changed code is another input."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        if not path.name.startswith("test_"):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"sha256-{digest.hexdigest()}"


def resolved_choice(choice: ContributionConfig, config: Spec) -> ContributionConfig:
    """A `type:` with every setting written out, so that later defaults change nothing."""
    return {"type": choice["type"], **config.model_dump(mode="json")}

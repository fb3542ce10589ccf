"""Lets modules join a trained router of tokens: what it says of the others stays, little is measured and trained.

Where the rows that the router learned from are here (its text is, and the table that it was trained on lies in the
runs), only the newcomers are measured on them. All candidates are measured on the text that is given. No text travels
with a router, so somebody else's old rows may be missing: then the given text is all there is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flax import nnx

from moe_lab.artifacts.router import RouterArtifact
from moe_lab.artifacts.trunk import TrunkArtifact
from moe_lab.compose.lockfile import LockedPart, artifact_name, pin, pin_parent
from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import LoadedTrunk, load_router, make_router, state_tensors
from moe_lab.config import decode
from moe_lab.data import Corpus, TrainBatches
from moe_lab.errors import LabError, Refused
from moe_lab.jobs.candidate import StagedArtifact, find_staged, stage_artifact
from moe_lab.jobs.extended import ExtendedRouter, find_extended
from moe_lab.jobs.objectives import JoinObjective, params_to_host
from moe_lab.jobs.outcome_table import MeasuredOutcomes, find_outcomes, outcome_table
from moe_lab.jobs.router import routed_model, router_artifact
from moe_lab.jobs.spec import RouterJoinRun, RouterSettings
from moe_lab.jobs.workspace import Workspace, contribution_digest, data_inputs
from moe_lab.routing.joining import joined_router
from moe_lab.routing.outcomes import OutcomeTable
from moe_lab.routing.router import Router
from moe_lab.routing.space import CandidateSpace
from moe_lab.training import fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Text:
    """What the router learned from, as far as it is here, and what is new."""

    old: tuple[Corpus, ...]
    new: tuple[Corpus, ...]
    whole: bool  # all that it learned from is here

    @property
    def all(self) -> tuple[Corpus, ...]:
        return (*self.old, *self.new)


def join_router(workspace: Workspace, spec: RouterJoinRun, base: Path) -> StagedArtifact:
    """Extends the router, or returns what an identical run made before."""
    extended = find_extended(workspace, spec.extends, base)
    old = _router_of_tokens(extended, spec)
    settings = _settings(old, spec)
    trunk, known, parts = _known(workspace, extended, old, spec)
    added = _added_modules(workspace, spec, known)
    text = _text(workspace, spec, old, base, trunk)
    code = contribution_digest(workspace.lab.get("routers", old.choice["type"]).path)
    inputs = {"extends": extended.part.digest, "router code": code, **data_inputs(text.all)}
    inputs |= {f"module/{part.ref}": part.digest for part in added}
    with workspace.open_run(spec, inputs) as run:
        if run.done:
            return find_staged(run)
        started, d_model, rngs = time.perf_counter(), trunk.spec.d_model, nnx.Rngs(settings.train.seed)
        model = routed_model(
            workspace, trunk, [*parts, *added], lambda space: joined_router(known, space, d_model, rngs=rngs)
        )
        table, cost = _table(workspace, model, len(parts), text, settings)
        objective = _objective(model, known, old, table, text, settings)
        _require_text_of_others(objective, model, known)
        result = fit(objective, settings.train, run, progress=workspace.progress)
        whole = objective.whole(result.params, objective.frozen["known"])
        tensors = state_tensors(params_to_host(whole, workspace.mesh))
        tensors |= state_tensors(params_to_host(objective.frozen["counted"], workspace.mesh))
        router = router_artifact(spec, dict(old.choice), model, objective, run, settings)
        router = dataclasses.replace(
            router,
            homes={**(router.homes or {}), **old.homes} if old.homes else router.homes,
            domains=(*old.domains, *(corpus.describe() for corpus in text.new)),
            parents=(*router.parents, extended.part.as_parent("extended")),
        )
        candidate = stage_artifact(run, router.fields(), tensors)
        seconds = time.perf_counter() - started
        for line in (*_warnings(objective, model, known), _describe_cost(added, cost, seconds)):
            workspace.progress.note(line)
        run.finish({"candidate": candidate.digest, "metrics": result.metrics, "cost": {**cost, "seconds": seconds}})
        return candidate


def _router_of_tokens(extended: ExtendedRouter, spec: RouterJoinRun) -> RouterArtifact:
    if isinstance(extended.artifact, RouterArtifact):
        return extended.artifact
    raise LabError(f"{spec.extends} is a router of questions; candidates join it by kind: question_join")


def _settings(old: RouterArtifact, spec: RouterJoinRun) -> RouterSettings:
    """As the router was trained, where the config does not say otherwise."""
    kept = {} if old.training is None else dict(old.training)
    given = spec.model_dump(mode="json", include={"rows", "train"}, exclude_none=True)
    if not (settings := {**kept, **given}).keys() >= RouterSettings.model_fields.keys():
        raise Refused(
            f"{spec.extends} is of an earlier version and does not say how it was trained; add rows: and train:"
        )
    return decode(RouterSettings, settings, spec.extends)


def _known(
    workspace: Workspace, extended: ExtendedRouter, old: RouterArtifact, spec: RouterJoinRun
) -> tuple[LoadedTrunk, Router, list[LockedPart]]:
    """The trunk, the router and its modules, each by the digest that it was trained with."""
    pinned = [(each.relation, pin_parent(each)) for each in old.parents if each.relation in ("trunk", "module")]
    for _, part in pinned:
        workspace.registry.require_pinned(part.ref, part.digest)
    trunk = next(part for relation, part in pinned if relation == "trunk")
    named = {artifact_name(part.ref): part for relation, part in pinned if relation == "module"}
    parts = [named[name] for name in CandidateSpace.from_json(old.space).modules]
    _require_joinable(workspace, old, trunk, parts, spec)
    loaded = workspace.trunk(trunk)
    return loaded, load_router(extended.registry, workspace.lab, extended.part, loaded), parts


def _require_joinable(
    workspace: Workspace, old: RouterArtifact, trunk: LockedPart, parts: Sequence[LockedPart], spec: RouterJoinRun
) -> None:
    """Manifests are enough to say so: no weight and no text was read yet."""
    d_model = TrunkArtifact.of(workspace.registry.manifest(trunk.digest), trunk.ref).spec.d_model
    if make_router(workspace.lab, old.choice, CandidateSpace.from_json(old.space), d_model).joins:
        return
    kind, modules = old.choice["type"], ", ".join([*(part.ref for part in parts), *spec.add])
    raise Refused(f"{spec.extends}: no module joins a {kind} router so set; train one with modules: [{modules}]")


def _added_modules(workspace: Workspace, spec: RouterJoinRun, known: Router) -> list[LockedPart]:
    parts = [pin(workspace.registry, ref, "module") for ref in spec.add]
    names = [artifact_name(part.ref) for part in parts]
    for name in names:
        if name in known.space.modules:
            raise Refused(f"{spec.extends} knows {name} already; a new version of it needs a router trained anew")
        if names.count(name) > 1:
            raise LabError(f"add: {name} is listed twice; list each module once")
    return parts


def _text(workspace: Workspace, spec: RouterJoinRun, router: RouterArtifact, base: Path, trunk: LoadedTrunk) -> _Text:
    """Finds what the router learned from by its name and digest, among the given domains and in `configs/data`."""
    given = {corpus.name: corpus for corpus in workspace.corpora(spec.domains, base, trunk.tokenizer)}
    old = {}
    for domain in router.domains:
        name, corpus = domain["name"], given.get(domain["name"])
        try:
            [corpus] = [corpus] if corpus else workspace.corpora([name], base, trunk.tokenizer)
        except LabError as error:
            workspace.progress.note(f"{name}, which {spec.extends} learned from, is not here: {error}")
            continue
        if corpus.digest == domain["digest"]:
            old[name] = corpus
        else:
            workspace.progress.note(f"{name} is not the text that {spec.extends} learned from")
    new = tuple(corpus for name, corpus in given.items() if name not in old)
    return _Text(old=tuple(old.values()), new=new, whole=len(old) == len(router.domains))


def _table(
    workspace: Workspace, model: ComposedModel, old: int, text: _Text, settings: RouterSettings
) -> tuple[OutcomeTable, dict[str, int]]:
    """The outcomes of all candidates, and how many times a candidate had to run a row for them."""
    where = (settings.rows, settings.train.seq_len)
    known = find_outcomes(workspace, model.trunk, model.modules[:old], text.old, *where) if text.whole else None
    made = outcome_table(workspace, model, text.all, *where, known)
    return made.table, {"measured": _measured(made, known), "of": len(made.table.group_N) * len(model.candidates)}


def _measured(made: MeasuredOutcomes, known: OutcomeTable | None) -> int:
    if not made.fresh:
        return 0
    return made.table.loss_NSC[:, 0].size - (known.loss_NSC[:, 0].size if known else 0)


def _objective(
    model: ComposedModel,
    known: Router,
    old: RouterArtifact,
    table: OutcomeTable,
    text: _Text,
    settings: RouterSettings,
) -> JoinObjective:
    train, met = settings.train, {domain["name"] for domain in old.domains}
    batches = TrainBatches(text.all, None, train.batch_size, train.seq_len, train.seed)
    return JoinObjective(model.router, known, met, table, train.batch_size, train.seed, model.mesh, batches)


def _require_text_of_others(objective: JoinObjective, model: ComposedModel, known: Router) -> None:
    """Without it a newcomer would learn that all text is its own: such a router was worse than the bare trunk."""
    if min(objective.own_G) >= (old := len(known.space.modules)):
        names = " or ".join(model.space.modules[:old])
        raise LabError(
            f"domains: no text here is best read by {names}, to tell the newcomers' from; add some such text"
        )


def _warnings(objective: JoinObjective, model: ComposedModel, known: Router) -> list[str]:
    """What a person should know of how the newcomers fare."""
    old, names, owners = len(known.space.modules), model.space.modules, set(objective.own_G)
    lines = [
        f"{names[e]} loses least on none of this text, so none counts as its own; add its text to domains"
        for e in range(old, len(names))
        if e not in owners
    ]
    if (ratio := model.space.cost_C.max() / known.space.cost_C.max()) > 1:
        lines.append(f"the dearest candidate costs {ratio:.2f} times what it did: a price buys less than before")
    return lines


def _describe_cost(added: Sequence[LockedPart], cost: Mapping[str, int], seconds: float) -> str:
    names = " and ".join(artifact_name(part.ref) for part in added)
    share = f"{cost['measured']:,} of the {cost['of']:,} outcomes (a candidate on a row) that training anew measures"
    return f"{names} joined in {seconds:.1f} s with {share}"

"""Shrinks a published module: rank hidden units, sort, cut to a ladder, distil with everything else frozen."""

from __future__ import annotations

from pathlib import Path

from moe_lab.compose.lockfile import pin, pin_parent
from moe_lab.compose.parts import PublishedModule, find_module
from moe_lab.data import TrainBatches, eval_batches
from moe_lab.errors import LabError
from moe_lab.experts.interface import require_ladder
from moe_lab.experts.shrink import ShrinkStrategy, order_by_importance
from moe_lab.experts.weights import count_parameters, cut, permute
from moe_lab.jobs.candidate import StagedArtifact, find_staged
from moe_lab.jobs.claims import module_claims
from moe_lab.jobs.measure import layer_statistics
from moe_lab.jobs.module import module_artifact, stage_module
from moe_lab.jobs.objectives import DistilObjective, params_to_host
from moe_lab.jobs.spec import ContributionConfig, DistillRun
from moe_lab.jobs.workspace import Workspace, contribution_digest, data_inputs, resolved_choice
from moe_lab.lab import Lab
from moe_lab.training import fit


def make_strategy(lab: Lab, choice: ContributionConfig) -> ShrinkStrategy:
    """Builds the contributed strategy that `type:` names."""
    cls, config = lab.choose("distill", choice, ShrinkStrategy)
    return cls(config)


def train_child(workspace: Workspace, spec: DistillRun, base: Path) -> StagedArtifact:
    """Makes the child, or returns what an identical run made before."""
    teacher = find_module(workspace.registry, pin(workspace.registry, spec.teacher, "module"))
    trunk = workspace.trunk(pin_parent(teacher.artifact.trunk), spec.precision)
    strategy = make_strategy(workspace.lab, spec.strategy)
    _require_smaller(spec, teacher)
    corpus = workspace.corpus(workspace.domain(spec.data, base), trunk.tokenizer)
    code = contribution_digest(workspace.lab.get("distill", spec.strategy["type"]).path)
    inputs = {"teacher": teacher.part.digest, "strategy code": code, **data_inputs([corpus])}
    with workspace.open_run(spec, inputs) as run:
        if run.done:
            return find_staged(run)
        train = spec.train
        calibration = eval_batches(corpus, "train", train.batch_size, train.seq_len, spec.calibration_rows)
        statistics = layer_statistics(trunk, teacher.weights, teacher.kind, calibration)
        order = order_by_importance(strategy.importance(statistics, teacher.weights))
        child = cut(permute(teacher.weights, order, teacher.kind), spec.ladder[-1], teacher.kind)
        before = module_claims(trunk, child, teacher.kind, spec.ladder, corpus, spec.heldout_rows, train.seq_len)
        objective = DistilObjective(
            teacher.weights,
            strategy.loss,
            trunk=trunk,
            kind=teacher.kind,
            start=lambda key: child,
            ladder=spec.ladder,
            widest_share=spec.widest_share,
            batches=TrainBatches([corpus], None, train.batch_size, train.seq_len, train.seed),
            units_per_step=train.batch_size * train.seq_len,
            mesh=workspace.mesh,
        )
        weights = params_to_host(fit(objective, train, run, progress=workspace.progress).params, workspace.mesh)
        claims = module_claims(trunk, weights, teacher.kind, spec.ladder, corpus, spec.heldout_rows, train.seq_len)
        module = module_artifact(
            spec,
            trunk.interface.of_kind(teacher.interface.kind),
            weights,
            spec.ladder,
            corpus,
            run,
            claims,
            parents=[trunk.part.as_parent("trunk"), teacher.part.as_parent("teacher")],
            method={"strategy": resolved_choice(spec.strategy, strategy.config), "before_distillation": before},
        )
        candidate = stage_module(run, module, weights)
        run.finish(
            {
                "candidate": candidate.digest,
                "parameters": count_parameters(weights),
                "claims": claims,
                "before_distillation": before,
            }
        )
        return candidate


def _require_smaller(spec: DistillRun, teacher: PublishedModule) -> None:
    widest = spec.ladder[-1] if spec.ladder else 0
    require_ladder(spec.ladder, widest, teacher.interface.block, spec.name)
    if widest >= teacher.ladder[-1]:
        raise LabError(
            f"{spec.name}: ladder {list(spec.ladder)} must stay below the teacher's width, {teacher.ladder[-1]}"
        )

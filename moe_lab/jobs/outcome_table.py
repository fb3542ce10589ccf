"""What every candidate loses on held-out text, measured once for the same model and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import LoadedTrunk, PublishedModule, candidate_space
from moe_lab.data import Batch, Corpus, Split
from moe_lab.evaluation.outcomes import complete_outcomes, domain_batches, measure_outcomes
from moe_lab.jobs.workspace import Workspace, data_inputs
from moe_lab.routing.outcomes import FILE, OutcomeTable, load_outcomes, save_outcomes
from moe_lab.training import Run, open_run
from moe_lab.training.processes import is_first

OUTCOMES_FILE = "outcomes.parquet"
MEASURING_TOKENS = 4096
MEASURING_SPLIT: Split = "validation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredOutcomes:
    """An outcome table, the file that it lies in, and the fingerprint of the run that measured it."""

    table: OutcomeTable
    path: Path
    fingerprint: str
    fresh: bool


def outcome_table(
    workspace: Workspace,
    model: ComposedModel,
    corpora: Sequence[Corpus],
    rows: int,
    seq_len: int,
    known: OutcomeTable | None = None,
) -> MeasuredOutcomes:
    """What every candidate loses on validation text; measured once for the same model and text.

    `known` has what some of the candidates lose on the same rows of some of the domains: that is not measured again.
    """
    run, inputs = _table_run(workspace, model.trunk, model.modules, corpora, rows, seq_len)
    with run:
        path, fingerprint = run.path / OUTCOMES_FILE, run.fingerprint
        if run.done:
            return MeasuredOutcomes(table=load_outcomes(path), path=path, fingerprint=fingerprint, fresh=False)
        batches = measuring_batches(corpora, rows, seq_len)
        label = f"outcomes of {len(model.candidates)} candidates"
        with workspace.progress.stage(label, len(batches), "batches") as shown:

            def report(done: int, each: float) -> None:
                shown.update(done, None, 1 / each, each)

            if known is None:
                table, _ = measure_outcomes(model, corpora, batches, report)
            else:
                table = complete_outcomes(model, corpora, batches, known, report)
        table = table.counted()
        if is_first():
            save_outcomes(table, path, {"split": MEASURING_SPLIT, **inputs})
        run.finish({"rows": len(table.group_N), "tokens": int(table.mask_NS.sum()), "file": OUTCOMES_FILE})
        return MeasuredOutcomes(table=table, path=path, fingerprint=fingerprint, fresh=True)


def find_outcomes(
    workspace: Workspace,
    trunk: LoadedTrunk,
    modules: Sequence[PublishedModule],
    corpora: Sequence[Corpus],
    rows: int,
    seq_len: int,
) -> OutcomeTable | None:
    """The table that `outcome_table` would find; None if it would have to measure it."""
    run, _ = _table_run(workspace, trunk, modules, corpora, rows, seq_len, begin=False)
    return load_outcomes(run.path / OUTCOMES_FILE) if run.done else None


def _table_run(
    workspace: Workspace,
    trunk: LoadedTrunk,
    modules: Sequence[PublishedModule],
    corpora: Sequence[Corpus],
    rows: int,
    seq_len: int,
    begin: bool = True,
) -> tuple[Run, dict[str, str]]:
    """The run that measures a table, and what it is measured on."""
    resolved = {
        "format": FILE.version,
        "rows": rows,
        "seq_len": seq_len,
        "domains": [corpus.name for corpus in corpora],
        "space": candidate_space(modules).to_json(),
    }
    inputs = {"trunk": trunk.part.digest}
    inputs |= {f"module/{module.name}": module.part.digest for module in modules}
    inputs |= data_inputs(corpora)
    name = trunk.part.ref.partition("@")[0]
    return open_run(workspace.lab.runs, "outcomes", name, resolved, inputs, begin=begin), inputs


def measuring_batches(corpora: Sequence[Corpus], rows: int, seq_len: int) -> list[Batch]:
    """The text of an outcome table: rows that no module has learned from, and no report is made of."""
    batch_size = min(rows, max(1, MEASURING_TOKENS // seq_len))
    return domain_batches(corpora, MEASURING_SPLIT, rows, batch_size, seq_len)

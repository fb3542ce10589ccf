"""Measures what every candidate of a composition loses on held-out text, as a table to keep and to learn from."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from moe_lab.compose.model import ComposedModel
from moe_lab.data import Corpus
from moe_lab.data.spec import DataRef
from moe_lab.errors import LabError
from moe_lab.evaluation.passes import HeldOut
from moe_lab.evaluation.spec import OutcomeSettings
from moe_lab.files import open_replacement
from moe_lab.jobs.outcome_table import MEASURING_SPLIT, MeasuredOutcomes, measuring_batches, outcome_table
from moe_lab.jobs.sequences import domain_bits_per_byte, sequence_table
from moe_lab.jobs.workspace import Workspace
from moe_lab.questions.table import ItemTable, load_items, save_items
from moe_lab.routing.space import CandidateSpace
from moe_lab.training import open_run
from moe_lab.training.processes import is_first

ITEMS_FILE = "items.parquet"
Per = Literal["token", "sequence"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutcomeFile:
    """A table that was measured: where it lies, and what it says of each domain and candidate."""

    path: Path
    fresh: bool
    size: int
    domains: tuple[str, ...]
    space: CandidateSpace
    bits_per_byte_GC: np.ndarray


def measure_composition(
    workspace: Workspace, composition: str, base: Path, settings: OutcomeSettings, per: Per, out: Path | None = None
) -> OutcomeFile:
    """Measures a table per token or per sequence, or finds what an identical call measured before.

    Args:
        workspace: where runs and parts are.
        composition: a composition config or a lockfile.
        base: the folder that paths are relative to.
        settings: which text, and how much of it.
        per: one row per token, or one item per document and row.
        out: where to put a copy besides the run folder.
    """
    if out is not None and out.suffix != ".parquet":
        raise LabError(f"{out}: the table is a Parquet file, and is read by that ending; call it {out.name}.parquet")
    lock = workspace.find_lock(composition, base)
    model = workspace.load_model(lock)
    corpora = composed_corpora(workspace, model, settings.domains, base)
    measured = outcome_table(workspace, model, corpora, settings.rows, settings.seq_len)
    path, size, fresh = measured.path, int(measured.table.mask_NS.sum()), measured.fresh
    if per == "sequence":
        items, path, fresh = _items(workspace, lock.name, model, corpora, settings, measured)
        size = len(items)
    if out is not None and is_first():
        path = _copied(path, out)
    return OutcomeFile(
        path=path,
        fresh=fresh,
        size=size,
        domains=measured.table.groups,
        space=measured.table.space,
        bits_per_byte_GC=domain_bits_per_byte(measured.table),
    )


def composed_corpora(
    workspace: Workspace, model: ComposedModel, domains: Sequence[DataRef], base: Path
) -> list[Corpus]:
    """The domains asked for, or those that the composed modules were trained on, found by name in `configs/data`."""
    if domains:
        return workspace.corpora(domains, base, model.trunk.tokenizer)
    trained = _trained_on(model)
    try:
        corpora = workspace.corpora(list(trained), base, model.trunk.tokenizer)
    except LabError as error:
        raise type(error)(
            f"the text that the modules were trained on: {error}; or say what with --domain DATA"
        ) from error
    for corpus in corpora:
        if corpus.digest not in trained[corpus.name]:
            workspace.progress.note(f"{corpus.name}: not the same text that the modules were trained on")
    return corpora


def _trained_on(model: ComposedModel) -> dict[str, set[str]]:
    """Names and digests of the modules' text, in order of the modules."""
    digests: dict[str, set[str]] = {}
    for module in model.modules:
        for domain in module.artifact.domains:
            digests.setdefault(domain["name"], set()).add(domain["digest"])
    if not digests:
        raise LabError("no composed module says what it was trained on; say what to measure on with --domain DATA")
    return digests


def _items(
    workspace: Workspace,
    name: str,
    model: ComposedModel,
    corpora: Sequence[Corpus],
    settings: OutcomeSettings,
    measured: MeasuredOutcomes,
) -> tuple[ItemTable, Path, bool]:
    """The item table of measured tokens, made once for the same ones."""
    resolved = {"shortest_bytes": settings.shortest_bytes}
    with open_run(workspace.lab.runs, "items", name, resolved, {"outcomes": measured.fingerprint}) as run:
        path = run.path / ITEMS_FILE
        if run.done:
            return load_items(path), path, False
        batches = measuring_batches(corpora, settings.rows, settings.seq_len)
        heldout = HeldOut(domains=measured.table.groups, batches=tuple(batches))
        tokenizer = model.trunk.tokenizer
        items, left_out = sequence_table(name, measured.table, heldout, tokenizer, settings.shortest_bytes)
        if not len(items):
            raise LabError(
                f"no item has {settings.shortest_bytes} predicted bytes; lower shortest_bytes, raise seq_len"
            )
        if left_out:
            short = f"fewer than {settings.shortest_bytes} predicted bytes"
            workspace.progress.note(f"{left_out} of {left_out + len(items)} items have {short} and were left out")
        if is_first():
            save_items(items, path, {"split": MEASURING_SPLIT, "outcomes": measured.fingerprint})
        run.finish({"items": len(items), "left_out": left_out, "file": ITEMS_FILE})
        return items, path, True


def _copied(path: Path, out: Path) -> Path:
    with path.open("rb") as data, open_replacement(out) as file:
        shutil.copyfileobj(data, file)
    return out

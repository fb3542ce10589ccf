"""Trains a trunk."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from moe_lab.artifacts.trunk import TOKENIZER_TENSOR, TrunkArtifact
from moe_lab.compose.parts import state_tensors, trunk_graph
from moe_lab.data import TrainBatches, load_tokenizer
from moe_lab.data.tokenizers import HFTokenizer
from moe_lab.errors import LabError
from moe_lab.jobs.candidate import StagedArtifact, find_staged, stage_artifact
from moe_lab.jobs.claims import claim
from moe_lab.jobs.measure import trunk_losses
from moe_lab.jobs.objectives import TrunkObjective, params_to_host
from moe_lab.jobs.spec import TrunkRun
from moe_lab.jobs.workspace import Workspace, data_inputs
from moe_lab.nn.precision import choose_precision
from moe_lab.training import fit


def train_trunk(workspace: Workspace, spec: TrunkRun, base: Path) -> StagedArtifact:
    """Trains the trunk on its mixture, or returns what an identical run made before."""
    tokenizer = load_tokenizer(spec.tokenizer, base)
    if spec.trunk.vocab_size < tokenizer.vocab_size:
        raise LabError(
            f"trunk.vocab_size {spec.trunk.vocab_size} is less than the {tokenizer.vocab_size} tokens of "
            f"tokenizer {tokenizer.name}; raise it"
        )
    corpora = workspace.corpora([share.domain for share in spec.data], base, tokenizer)
    inputs = {"tokenizer": tokenizer.digest} | data_inputs(corpora)
    with workspace.open_run(spec, inputs) as run:
        if run.done:
            return find_staged(run)
        train = spec.train
        batches = TrainBatches(
            corpora, [share.weight for share in spec.data], train.batch_size, train.seq_len, train.seed
        )
        units, precision = train.batch_size * train.seq_len, choose_precision(spec.precision)
        objective = TrunkObjective(spec.trunk, batches, units, workspace.mesh, workspace.shard_trunk, precision)
        params = params_to_host(fit(objective, train, run, progress=workspace.progress).params, workspace.mesh)
        losses = trunk_losses(trunk_graph(spec.trunk, precision, None), params)
        claims = [claim(corpus, losses, rows=spec.heldout_rows, seq_len=train.seq_len, width=0) for corpus in corpora]
        tensors = state_tensors(params)
        if isinstance(tokenizer, HFTokenizer):
            tensors[TOKENIZER_TENSOR] = np.frombuffer(tokenizer.definition, np.uint8)
        trunk = TrunkArtifact(
            summary=spec.summary,
            licence=spec.licence,
            run=run.fingerprint,
            claims=tuple(claims),
            tokenizer_digest=tokenizer.digest,
            spec=spec.trunk,
            tokenizer=spec.tokenizer,
            domains=tuple(corpus.describe() for corpus in corpora),
        )
        candidate = stage_artifact(run, trunk.fields(), tensors)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        run.finish({"candidate": candidate.digest, "parameters": parameters, "claims": claims})
        return candidate

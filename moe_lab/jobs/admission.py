"""The admission test of a module: what must hold before anyone else sees it.

Each check is made on the candidate as it would be published, and against the trunk that it names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from moe_lab.artifacts.module import ModuleArtifact, layer_blocks
from moe_lab.artifacts.tensor_names import layer_names
from moe_lab.artifacts.weights import from_tensors
from moe_lab.compose.lockfile import pin_parent
from moe_lab.compose.parts import LoadedTrunk
from moe_lab.errors import LabError, Refused
from moe_lab.experts.interface import Interface, declared_cost, require_ladder
from moe_lab.jobs.candidate import StagedArtifact
from moe_lab.jobs.claims import module_claims, values_by_width
from moe_lab.jobs.spec import DistillRun, ModuleSpec
from moe_lab.jobs.workspace import Workspace
from moe_lab.registry import Manifest
from moe_lab.registry.manifest import TensorRecord

DTYPE = "float32"
Check = tuple[str, Callable[[], str]]
"""What is checked, and a function that returns the figures or raises a `LabError`."""


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """One check: what was looked at, whether it holds, and the figures or the reason."""

    check: str
    passed: bool
    detail: str


def check_module(
    workspace: Workspace, candidate: StagedArtifact, spec: ModuleSpec | DistillRun, base: Path
) -> list[CheckResult]:
    """Runs the admission test. Checks after a broken manifest or tensor are left out, for they would mean nothing."""
    return run_checks(_checks(workspace, candidate, spec, base))


def run_checks(checks: Iterable[Check]) -> list[CheckResult]:
    """Runs checks up to the first that fails."""
    findings = []
    for name, check in checks:
        try:
            findings.append(CheckResult(name, True, check()))
        except LabError as error:
            findings.append(CheckResult(name, False, str(error)))
            break
    return findings


def require_admission(findings: list[CheckResult], name: str) -> None:
    """Raises on the first check that failed."""
    for finding in findings:
        if not finding.passed:
            raise Refused(f"{name} is not admitted: {finding.check}: {finding.detail}")


def _checks(
    workspace: Workspace, candidate: StagedArtifact, spec: ModuleSpec | DistillRun, base: Path
) -> Iterator[Check]:
    manifest, tensors = candidate.manifest, candidate.tensors()
    yield from checks_of_weights(workspace, candidate.name, manifest, tensors)
    yield check_of_claims(workspace, ModuleArtifact.of(manifest, candidate.name), tensors, spec, base)


def checks_of_weights(
    workspace: Workspace, name: str, manifest: Manifest, tensors: Mapping[str, np.ndarray]
) -> Iterator[Check]:
    """What can be checked without any text."""
    module = ModuleArtifact.of(manifest, name)
    interface, trunk = module.interface, workspace.trunk(pin_parent(module.trunk))
    yield "trunk, tokenizer, routed layers", lambda: _fits(trunk, interface, name)
    yield "shapes", lambda: _shapes(manifest.records, interface)
    yield "finite values", lambda: _finite(tensors)
    yield "declared cost", lambda: _cost(module, layer_blocks(manifest.records, interface.expert_kind))


def check_of_claims(
    workspace: Workspace,
    module: ModuleArtifact,
    tensors: Mapping[str, np.ndarray],
    spec: ModuleSpec | DistillRun,
    base: Path,
) -> Check:
    """Measures the claims again on the text that a config names."""
    trunk = workspace.trunk(pin_parent(module.trunk))
    return "claims", lambda: _claims(workspace, trunk, module, tensors, spec, base)


def _fits(trunk: LoadedTrunk, interface: Interface, name: str) -> str:
    trunk.interface.require_fit(interface, name)
    return f"made for {trunk.part.ref} ({trunk.part.digest[:19]}), layers {list(interface.routed_layers)}"


def _shapes(records: Mapping[str, TensorRecord], interface: Interface) -> str:
    kind = interface.expert_kind
    expected = {name for layer in interface.routed_layers for name in layer_names(layer, kind.parts)}
    if set(records) != expected:
        odd = ", ".join(sorted(set(records) ^ expected)[:4])
        parts = f"{', '.join(kind.parts[:-1])} and {kind.parts[-1]}"
        raise Refused(f"tensors missing or unknown: {odd}; a module has {parts} for each routed layer")
    for name, record in records.items():
        if record.dtype != DTYPE or not record.shape:
            raise Refused(f"{name} is {record.dtype}{list(record.shape)}; a module's tensors are blocks of {DTYPE}")
    counts = layer_blocks(records, kind)
    for layer, count in counts.items():
        wanted = kind.shapes(count, interface.d_model, interface.block)
        for part, name in zip(kind.parts, layer_names(layer, kind.parts), strict=True):
            if (got := records[name].shape) != wanted[part]:
                raise Refused(f"{name} has shape {list(got)}, but {list(wanted[part])} is the interface's")
    blocks = list(counts.values())
    return f"{len(records)} tensors, {blocks} blocks of {interface.block} hidden units"


def _finite(tensors: Mapping[str, np.ndarray]) -> str:
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            bad = int((~np.isfinite(tensor)).sum())
            raise Refused(f"{name} has {bad} values that are NaN or infinite; lower the learning rate and train again")
    return f"{sum(tensor.size for tensor in tensors.values()):,} numbers"


def _cost(module: ModuleArtifact, blocks: Mapping[int, int]) -> str:
    interface, ladder = module.interface, module.ladder
    widest = ladder[-1] if ladder else 0
    require_ladder(ladder, widest, interface.block, "the manifest")
    counted = declared_cost(interface, blocks, ladder)
    most = max(blocks.values(), default=0)
    if most != -(-widest // interface.block):
        raise Refused(f"the ladder ends at {widest}, but the widest layer has {most} blocks")
    if module.cost != counted:
        raise Refused(f"declared {dict(module.cost)}, counted {counted} multiply-adds per token")
    return f"{counted[str(widest)]:,} multiply-adds per token at full width, as declared"


def _claims(
    workspace: Workspace,
    trunk: LoadedTrunk,
    module: ModuleArtifact,
    tensors: Mapping[str, np.ndarray],
    spec: ModuleSpec | DistillRun,
    base: Path,
) -> str:
    corpus = workspace.corpus(workspace.domain(spec.data, base), trunk.tokenizer)
    claims = module.claims
    if not claims:
        raise Refused("no claims; a module says what it does on held-out text")
    first = claims[0]
    if first["data"] != corpus.digest:
        raise Refused(
            f'the text of "{corpus.name}" has changed since training (claimed on {first["data"][:19]}, '
            f"found {corpus.digest[:19]}); train the module again on the text you have"
        )
    kind = module.interface.expert_kind
    weights = from_tensors(tensors, kind)
    again = module_claims(trunk, weights, kind, module.ladder, corpus, first["rows"], first["seq_len"])
    claimed, measured = values_by_width(claims), values_by_width(again)
    if set(claimed) != set(measured):
        raise Refused(f"claims are made for widths {sorted(claimed)}, the ladder is {list(module.ladder)}")
    for width, value in claimed.items():
        if abs(measured[width] - value) > spec.claim_tolerance * value:
            raise Refused(
                f"width {width} claims {value:.4f} bits per byte, measured {measured[width]:.4f}; "
                f"the difference may be {spec.claim_tolerance:.1%}"
            )
    widest = module.ladder[-1]
    return f"{measured[widest]:.4f} bits per byte on held-out {corpus.name} (trunk alone {measured[0]:.4f})"

"""What goes out as a plain decoder: the composition's own logits, opened by this program and by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from moe_lab.artifacts.weights import to_tensors
from moe_lab.cli import main
from moe_lab.compose.build import build_model
from moe_lab.compose.lockfile import Lock, LockedPart
from moe_lab.config import decode
from moe_lab.errors import NotFound, Refused, Unavailable
from moe_lab.experts.interface import declared_cost
from moe_lab.experts.kinds.gated_ffn import KIND
from moe_lab.experts.weights import init_expert
from moe_lab.generation.engine import generate
from moe_lab.generation.requests import Request
from moe_lab.generation.sampling import Sampling
from moe_lab.jobs.export_dense import export_dense, export_gguf
from moe_lab.jobs.spec import TrunkImport
from moe_lab.jobs.trunk_check import compare_logits
from moe_lab.jobs.trunk_import import import_trunk
from moe_lab.jobs.workspace import Workspace
from moe_lab.lab import find_lab
from moe_lab.nn.spec import TrunkSpec
from moe_lab.trunks.against import reference_logits
from moe_lab.trunks.checkpoint import open_checkpoint, read_config
from moe_lab.trunks.config_writing import write_config
from moe_lab.trunks.families import find_family
from tests.compose.published import Tokens
from tests.trunks.cases import BYTES, CASES, byte_tokenizer, make_weights, tokens, write_folder
from tests.trunks.run import checkpoint_logits
from tests.trunks.test_families import golden

WRITTEN = ("llama-biased-tied", "qwen3-yarn", "olmo2", "granite")
"""Cases that are folded; all families that are written are written in `test_a_config_is_read_as_what_was_written`."""
WRITTEN_TYPES = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "granite")
MODULE, WIDTHS, LADDER = "east/some", {2: 48, 3: 32}, (16, 48)


class Exported:
    """A lab with an imported trunk of some case, and a module of other widths in its two routed layers."""

    def __init__(self, folder: Path, case: str, *, known_cut: bool = True) -> None:
        source = write_folder(folder / "source", CASES[case], make_weights(golden(case)[2]["shapes"], gemma=False))
        if known_cut:
            definition = byte_tokenizer()
            definition["pre_tokenizer"]["use_regex"] = True
            definition["model"]["vocab"]["\u0120x"], definition["model"]["merges"] = 257, [["\u0120", "x"]]
            (source / "tokenizer.json").write_text(json.dumps(definition))
        assert main(["init", str(folder / "lab")]) == 0
        self.workspace = Workspace(find_lab(str(folder / "lab")))
        spec = TrunkImport(
            kind="import", name="hf/tiny", source=str(source), routed_layers=(2, 3), block=16, licence="MIT"
        )
        self.trunk = import_trunk(self.workspace, spec, folder).part
        self.module = self.put_module()

    def put_module(self) -> LockedPart:
        interface = self.workspace.trunk(self.trunk).interface.of_kind("gated_ffn")
        weights = init_expert(jax.random.key(0), interface, WIDTHS)
        rng = np.random.default_rng(0)
        tensors = {
            name: (0.3 * rng.normal(size=np.shape(array))).astype(np.float32)
            for name, array in to_tensors(weights, KIND).items()
        }
        blocks = {layer: width // 16 for layer, width in WIDTHS.items()}
        fields = {
            "kind": "module",
            "interface": interface.to_json(),
            "ladder": list(LADDER),
            "cost": declared_cost(interface, blocks, LADDER),
            "lineage": {"parents": [{**self.trunk.model_dump(), "relation": "trunk"}]},
            "licence": "CC0-1.0",
            "summary": "random",
            "claims": [],
            "data": {"domains": []},
            "config": {},
        }
        made = self.workspace.registry.publish("east", "some", None, fields, tensors, frozenset(tensors))
        return LockedPart(ref=str(made.ref), digest=made.digest)

    def lock(self, candidate: str) -> Lock:
        router = {"type": "fixed", "candidate": candidate}
        return Lock(name="tiny", trunk=self.trunk, modules=(self.module,), router=router, price=0.0, backend="worklist")

    def logits(self, candidate: str) -> np.ndarray:
        model, text = build_model(self.lock(candidate), self.workspace.registry, self.workspace.lab), tokens()[None]
        place = np.arange(text.shape[1], dtype=np.int32)[None]
        batch, arrays = Tokens(text, np.zeros_like(text), np.ones_like(text), place), model.arrays()
        return np.asarray(
            model.run_with_logits(arrays, batch, model.enter(arrays, batch), available_E=model.available(()))[0]
        )[0]


def agrees_with_transformers(place: Path, expected: np.ndarray) -> None:
    """Where it is installed."""
    try:
        compare_logits(reference_logits(place, tokens()), expected).require()
    except Unavailable as error:
        assert "needs it: install" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("case", WRITTEN)
def test_a_candidate_that_is_folded_in_has_the_composition_s_logits(tmp_path: Path, case: str) -> None:
    made = Exported(tmp_path, case)
    for candidate in (f"{MODULE}:48", f"{MODULE}:16", "trunk")[: 3 if case == WRITTEN[0] else 1]:
        folder, expected = tmp_path / candidate.replace("/", "-"), made.logits(candidate)
        done = export_dense(made.workspace, made.lock(candidate), candidate, folder, shard_bytes=20_000)
        assert done.family == CASES[case]["model_type"]
        checkpoint = open_checkpoint(folder, routed_layers=(2, 3), block=16)
        ours = compare_logits(checkpoint_logits(checkpoint, tokens()), expected)
        ours.require()
        agrees_with_transformers(folder, expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "llama-linear-old", "qwen3"])
def test_a_gguf_file_has_the_composition_s_logits(tmp_path: Path, case: str) -> None:
    made, candidate = Exported(tmp_path, case), f"{MODULE}:48"
    expected = made.logits(candidate)
    for dtype, most in (("float32", 1e-4), ("bfloat16", 0.06)):
        path = tmp_path / f"{dtype}.gguf"
        export_gguf(made.workspace, made.lock(candidate), candidate, path, dtype)
        ours = checkpoint_logits(open_checkpoint(path, routed_layers=(2, 3), block=16), tokens())[:, :BYTES]
        assert compare_logits(ours, expected[:, :BYTES]).difference < most, dtype
    if case in ("llama", "qwen2"):  # of the others it does not read scaling, biases of Llama, or the width of a head
        agrees_with_transformers(tmp_path / "float32.gguf", expected)


@pytest.mark.slow
def test_llama_cpp_writes_the_same_text(tmp_path: Path) -> None:
    """Where a package of it is installed: 16 greedy tokens."""
    llama = pytest.importorskip("xllamacpp")
    made, candidate, path = Exported(tmp_path, "llama"), f"{MODULE}:48", tmp_path / "out.gguf"
    export_gguf(made.workspace, made.lock(candidate), candidate, path)
    model = build_model(made.lock(candidate), made.workspace.registry, made.workspace.lab)
    prompt = (model.trunk.tokenizer.start_id, *b"for i in range(3):")
    sampling = Sampling(max_tokens=16, ignore_end=True)
    ours = [step.token for step in generate(model, [Request(prompt=prompt, sampling=sampling)])]
    settings = llama.CommonParams()
    settings.model.path, settings.n_ctx, settings.sampling.temp = str(path), 128, 0.0
    asked = {"prompt": list(prompt), "n_predict": 16, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    answer = llama.Server(settings).handle_completions(asked)
    # It keeps the front of a character that is not whole to itself.
    theirs = answer["choices"][0]["text"].rstrip("\ufffd")
    assert len(theirs) > 8
    assert model.trunk.tokenizer.decode(ours).startswith(theirs)


@pytest.mark.slow
def test_what_gguf_has_no_words_for_is_refused(tmp_path: Path) -> None:
    for case, known_cut, reason in (
        ("mistral", True, "of the family mistral are not written"),
        ("llama3-old", True, "RoPE scaling llama3 is a tensor"),
        ("llama-yarn", True, "GGUF has no words for all that this decoder is: rope_scaling"),
        ("llama", False, "cuts texts in a way that has no name here; known are gpt-2"),
    ):
        made, path = Exported(tmp_path / f"{case}-{known_cut}", case, known_cut=known_cut), tmp_path / "out.gguf"
        with pytest.raises(Refused, match=reason):
            export_gguf(made.workspace, made.lock("trunk"), "trunk", path)
        assert not [*tmp_path.glob("*.gguf"), *tmp_path.glob(".*gguf*")]


@pytest.mark.slow
def test_a_trunk_that_went_out_and_came_back_has_its_own_bytes(tmp_path: Path) -> None:
    made = Exported(tmp_path, "llama3-old")
    export_dense(made.workspace, made.lock("trunk"), "trunk", tmp_path / "out")
    spec = TrunkImport(kind="import", name="hf/again", source="out", routed_layers=(2, 3), block=16)
    again = import_trunk(made.workspace, spec, tmp_path).part
    first, second = (made.workspace.registry.manifest(part.digest) for part in (made.trunk, again))
    assert first.records == second.records


@pytest.mark.slow
def test_the_folder_says_whose_parts_it_is_made_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made, folder = Exported(tmp_path, "llama-biased-tied"), tmp_path / "out"
    composition = made.workspace.lab.root / "configs" / "tiny.yaml"
    composition.write_text(
        "kind: composition\nname: tiny\ntrunk: hf/tiny\nmodules: [east/some]\nrouter: {type: fixed, candidate: trunk}\n"
    )
    command = ["--lab", str(made.workspace.lab.root), "export", "hf", "tiny", str(folder)]
    capfd.readouterr()
    assert main([*command, "--candidate", f"{MODULE}:16"]) == 0
    # 48 of the trunk and 16 of the module in two layers of four; 16 units of zeros in each of the others.
    assert f"of them {2 * 16 * 3 * 32 * 4:,} zeros: one FFN width of 64 for all layers" in capfd.readouterr().out
    card = (folder / "README.md").read_text()
    for part, licence in ((made.trunk, "MIT"), (made.module, "CC0-1.0")):
        assert f"| {part.ref} | " in card
        assert f"| {licence} | `{part.digest}` |" in card
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [256]}
    assert main([*command, "--candidate", f"{MODULE}:16"]) == 2
    assert "exists already" in capfd.readouterr().err
    assert main([*command[:-1], str(tmp_path / "other"), "--candidate", f"{MODULE}:32"]) == 2
    assert f"has no candidate {MODULE}:32; it has trunk, {MODULE}:16, {MODULE}:48" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_what_no_config_says_is_refused(tmp_path: Path) -> None:
    made = Exported(tmp_path, "smollm3")
    with pytest.raises(Refused, match="beside llama it differs in layers_without_rope"):
        export_dense(made.workspace, made.lock("trunk"), "trunk", tmp_path / "out")
    with pytest.raises(NotFound, match="no candidate west/other:8"):
        export_dense(made.workspace, made.lock("trunk"), "west/other:8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", [name for name, config in CASES.items() if config["model_type"] in WRITTEN_TYPES])
def test_a_config_is_read_as_what_was_written(case: str) -> None:
    family = find_family(CASES[case]["model_type"], "x")
    spec = decode(TrunkSpec, read_config(family, CASES[case], "x"), "x")
    written = write_config(spec, first=family.name)
    assert written.family.name == family.name
    again = decode(TrunkSpec, read_config(family, written.config, "x"), "x")
    assert again.model_copy(update={"head_dim": spec.head_dim}) == spec.model_copy(
        update={name: getattr(again, name) for name in ("num_kv_heads", "attention_scale", "attention_out_bias")}
    )


def test_a_family_is_found_by_what_it_can_say() -> None:
    plain = TrunkSpec(norm_cast="before_scale")
    assert write_config(plain).family.name == "llama"
    assert write_config(plain, first="mistral").family.name == "mistral"
    assert write_config(plain.model_copy(update={"qk_norm": True, "head_dim": 64})).family.name == "qwen3"
    assert write_config(plain.model_copy(update={"residual_multiplier": 0.2})).family.name == "granite"
    with pytest.raises(Refused, match="differs in attention_softcap"):
        write_config(plain.model_copy(update={"attention_softcap": 5.0}))

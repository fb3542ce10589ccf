"""GGUF files: the same models as their folders, their tokenizers rebuilt, and quantised layouts undone."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.trunks import gguf_tokenizer
from moe_lab.trunks.checkpoint import open_checkpoint
from moe_lab.trunks.gguf_file import GGUFFile
from moe_lab.trunks.gguf_tokenizer import _CUT_PROBES, PROBE, _merge
from tests.trunks.cases import tokens
from tests.trunks.gguf_case import write_gguf
from tests.trunks.run import checkpoint_logits
from tests.trunks.test_families import golden, opened


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "case", "own"),
    [
        ("llama", "llama", {}),
        ("qwen2", "qwen2", {}),
        ("qwen3", "qwen3", {}),
        (
            "gemma2",
            "gemma2",
            {"attention.sliding_window": 64, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        ),
    ],
)
def test_a_file_is_the_same_model_as_its_folder(tmp_path: Path, architecture: str, case: str, own) -> None:
    path = write_gguf(tmp_path / "model.gguf", architecture, case, golden(case)[2]["shapes"], **own)
    file = open_checkpoint(path, routed_layers=(2, 3), block=16)
    folder = opened(tmp_path / "folder", case)
    if architecture == "gemma2":
        # The file keeps 1 + w, and knows no other scale of attention than by the width of a head.
        assert (file.spec.norm_offset, file.spec.attention_scale) == (0, 12**-0.5)
        for name in folder.tensors:
            np.testing.assert_allclose(file.tensors[name], folder.tensors[name] + (folder.tensors[name].ndim == 1))
        return
    for name in folder.tensors:
        np.testing.assert_array_equal(file.tensors[name], folder.tensors[name])
    difference = np.abs(checkpoint_logits(file, tokens()) - checkpoint_logits(folder, tokens())).max()
    assert difference < 1e-5  # eps and base are float32 in the file


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
def test_quantised_tensors_are_undone_as_the_package_says(tmp_path: Path, kind: str) -> None:
    quantisation = gguf.GGMLQuantizationType[kind]
    array = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    packed = gguf.quantize(array, quantisation)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("a", packed, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = GGUFFile(tmp_path / "x.gguf").read("a")
    assert read.shape == (6, 64)
    np.testing.assert_array_equal(read.astype(np.float32), gguf.dequantize(packed, quantisation))


def test_the_header_is_that_of_the_package_s_own_reader(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", "llama", golden("llama")[2]["shapes"])
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    assert {name: stored.shape for name, stored in ours.stored.items()} == {
        tensor.name: tuple(int(size) for size in tensor.shape[::-1]) for tensor in theirs.tensors
    }
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == value


@pytest.mark.parametrize("pre", _CUT_PROBES)
def test_a_probe_loses_no_character(pre: str) -> None:
    assert "".join(_CUT_PROBES[pre]) == PROBE


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_a_tokenizer_is_rebuilt_for_every_cut_that_is_known(tmp_path: Path, pre: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", "llama", "llama", golden("llama")[2]["shapes"], tokenizer_pre=pre)
    tokenizer = open_checkpoint(path, routed_layers=(), block=16).tokenizer
    text = "A text, with x = 12 and naïve\n"
    ids, sizes = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sizes.sum() == len(text.encode())
    assert 257 in ids, "the merge was applied"
    assert tokenizer.eos_id == 256


def test_a_tokenizer_that_cuts_otherwise_than_the_file_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = golden("llama")[2]["shapes"]
    path = write_gguf(tmp_path / "x.gguf", "llama", "llama", shapes, tokenizer_pre="smollm", tokenizer_merge="1 0")
    assert len(open_checkpoint(path, routed_layers=(), block=16).tokenizer.encode("10")[0]) == 2
    monkeypatch.setitem(gguf_tokenizer._CUTS, "smollm", gguf_tokenizer._CUTS["llama-bpe"])
    with pytest.raises(LabError, match="does not cut a text as its pre-tokenizer smollm does"):
        open_checkpoint(path, routed_layers=(), block=16)


def test_pairs_are_merged_by_rank() -> None:
    assert _merge(list("10.5"), {("1", "0"): 0, ("0", "."): 1}) == ["10", ".", "5"]
    assert _merge(list("10.5"), {("1", "0"): 1, ("0", "."): 0, ("0.", "5"): 2}) == ["1", "0.5"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer_model": "llama"}, "kind llama, which cannot be rebuilt exactly.*--tokenizer"),
        ({"tokenizer_pre": "tekken"}, "its pre-tokenizer tekken does is not in the file"),
        ({"expert_count": 8}, "llama.expert_count, which this family does not have"),
        ({"rope.scaling.type": "longrope"}, "rope type 'longrope' is not read"),
        ({"rope.dimension_count": 4, "attention.key_length": 8}, "have the widths .4, 8., not one"),
    ],
)
def test_what_a_file_says_beyond_its_family_is_refused(tmp_path: Path, changes, reason: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", "llama", "llama", golden("llama")[2]["shapes"], **changes)
    with pytest.raises(LabError, match=reason):
        open_checkpoint(path, routed_layers=(), block=16)

"""Every family, held against logits that transformers computed: 600 positions, made-up weights, in float32."""

import json
from pathlib import Path

import numpy as np
import pytest

from moe_lab.config import decode
from moe_lab.errors import LabError
from moe_lab.jobs.trunk_check import LARGEST_DIFFERENCE, LARGEST_DIVERGENCE, compare_logits
from moe_lab.nn.spec import TrunkSpec
from moe_lab.trunks.checkpoint import Checkpoint, open_checkpoint, read_config
from moe_lab.trunks.config_keys import HARMLESS
from moe_lab.trunks.families import FAMILIES, find_family
from tests.trunks.cases import BYTES, CASES, KEPT, VOCAB, byte_tokenizer, make_weights, tokens, write_folder
from tests.trunks.run import checkpoint_logits

GOLDEN = Path(__file__).parent / "golden"


def golden(case: str) -> tuple[np.ndarray, float, dict]:
    with np.load(GOLDEN / f"{case}.npz") as file:
        return file["logits"], float(file["largest"]), json.loads(str(file["about"]))


def opened(folder: Path, case: str, **changes) -> Checkpoint:
    config, shapes = {**CASES[case], **changes}, golden(case)[2]["shapes"]
    weights = make_weights(shapes, str(config["model_type"]).startswith("gemma"))
    routed = () if config.get("hidden_act") == "gelu" else (2, 3)
    return open_checkpoint(write_folder(folder, config, weights), routed_layers=routed, block=16)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    kept, largest, _ = golden(case)
    ours = checkpoint_logits(opened(tmp_path, case), tokens())
    assert ours.shape == (600, VOCAB)
    agreement = compare_logits(ours[KEPT], kept)
    assert np.abs(ours[KEPT] - kept).max() <= LARGEST_DIFFERENCE * largest
    assert agreement.divergence <= LARGEST_DIVERGENCE


@pytest.mark.parametrize("case", CASES)
def test_the_config_that_transformers_writes_means_the_same(case: str) -> None:
    """It spells every default and the new form of rotary positions."""
    about = golden(case)[2]
    family = find_family(CASES[case]["model_type"], "x")

    def spec(config: dict) -> TrunkSpec:
        decoded = decode(TrunkSpec, read_config(family, config, "x"), "x")
        return decoded.model_copy(update={"head_dim": decoded.attention_dim})

    assert spec(about["written"]) == spec(CASES[case])


def test_every_family_has_a_case() -> None:
    assert {config["model_type"] for config in CASES.values()} == {
        name for family in FAMILIES for name in family.model_types
    }


def test_rows_beyond_the_tokenizer_are_counted(tmp_path: Path) -> None:
    assert opened(tmp_path, "llama").spec.vocab_padding == VOCAB - BYTES


def test_a_file_in_pieces_is_the_same_model(tmp_path: Path) -> None:
    whole = opened(tmp_path / "one", "llama")
    weights = make_weights(golden("llama")[2]["shapes"], gemma=False)
    cut = open_checkpoint(
        write_folder(tmp_path / "three", CASES["llama"], weights, shards=3), routed_layers=(2, 3), block=16
    )
    assert cut.spec == whole.spec
    for name in whole.tensors:
        np.testing.assert_array_equal(cut.tensors[name], whole.tensors[name])


def test_the_token_that_a_tokenizer_puts_in_front_is_taken(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, CASES["llama"], make_weights(golden("llama")[2]["shapes"], gemma=False))
    value = byte_tokenizer()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    value["model"]["vocab"]["<s>"] = 257
    value["added_tokens"].append({"id": 257, "content": "<s>", "special": True, **flags})
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(value))
    checkpoint = open_checkpoint(folder, routed_layers=(), block=16)
    assert (checkpoint.start, checkpoint.tokenizer.start_id, checkpoint.tokenizer.eos_id) == ("<s>", 257, 256)
    assert 257 not in checkpoint.tokenizer.encode("<s> is text here")[0]


@pytest.mark.parametrize("key", ["a_key_of_tomorrow", "num_experts", "layer_norm_eps", "sliding_window"])
def test_a_key_that_the_family_does_not_have_is_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(LabError, match=f"a key that this family does not have: {key}"):
        opened(tmp_path, "llama", **{key: 5})


def test_harmless_keys_change_nothing(tmp_path: Path) -> None:
    plain = opened(tmp_path / "plain", "llama")
    noisy = opened(tmp_path / "noisy", "llama", **dict.fromkeys(HARMLESS - CASES["llama"].keys(), "anything"))
    assert noisy.spec == plain.spec


@pytest.mark.parametrize(
    ("case", "key", "value"),
    [
        ("llama", "hidden_act", "relu"),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("llama", "rope_scaling", {"rope_type": "longrope", "factor": 2.0}),
        ("llama", "rope_scaling", {"rope_type": "linear", "factor": 2.0, "low_freq_factor": 1.0}),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 1.5}),
        ("llama", "quantization_config", {"bits": 4}),
        ("llama", "auto_map", {"AutoModel": "x.Y"}),
        ("llama", "num_hidden_layers", "4"),
        ("llama", "rms_norm_eps", None),
        ("olmo3-old", "rope_theta", 10000.0),
        ("gemma3", "attn_logit_softcapping", 50.0),
        ("llama", "tie_word_embeddings", 1),
        ("olmo2", "clip_qkv", 8.0),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma3", "rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("smollm3", "no_rope_layers", [1, 0]),
        ("qwen2", "layer_types", ["full_attention", "chunked_attention"] * 2),
        ("phi3", "rope_scaling", {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}),
        ("granite", "logits_scaling", 0),
    ],
)
def test_a_value_that_is_not_understood_is_refused_by_its_key(tmp_path: Path, case: str, key: str, value) -> None:
    with pytest.raises(LabError, match=key.replace("_parameters", "_") if key == "rope_parameters" else key) as caught:
        opened(tmp_path, case, **{key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "", "Llama", "deepseek_v3", "gemma3n", None, 5])
def test_another_family_is_refused_by_name(tmp_path: Path, name) -> None:
    with pytest.raises(LabError, match="model_type .* is not read.*Read are llama, mistral"):
        opened(tmp_path, "llama", model_type=name)

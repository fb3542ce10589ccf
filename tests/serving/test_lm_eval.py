"""lm-evaluation-harness asks the server as it asks any of OpenAI's: likelihoods of choices, and texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serving.test_process import Process, lab, server  # noqa: F401

pytest.importorskip("lm_eval", reason="pip install 'lm-eval[api]' and transformers to try it")
pytest.importorskip("transformers", reason="lm-eval counts tokens by it")
pytestmark = pytest.mark.slow

QUESTIONS = [{"q": "for i in", "c": [" range", " xyzzy"], "y": 0}, {"q": "def f(", "c": ["qqqq", "x):"], "y": 1}]
CHOICE = """
task: choosing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{c}}}}"
doc_to_target: "{{{{y}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer of transformers with the ids of `ByteTokenizer`."""
    import tokenizers

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: byte for byte, letter in letters.items()}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_its_likelihoods_are_the_server_s(server: Process, tmp_path: Path) -> None:  # noqa: F811
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)))
    (tmp_path / "task.yaml").write_text(CHOICE.format(data=data))
    url = f"{server.url}/v1/completions"
    tokenizer = f"tokenizer={byte_tokenizer(tmp_path / 'bytes')},tokenizer_backend=huggingface"
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--tasks", "choosing"]
    command += ["--model_args", f"model=tiny,base_url={url},{tokenizer},num_concurrent=2,max_retries=1"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    for question, row in zip(QUESTIONS, rows, strict=True):
        for choice, ((likelihood, _),) in zip(question["c"], row["resps"], strict=True):
            body = {"prompt": question["q"] + choice, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
            told = httpx.post(url, json=body).json()["choices"][0]["logprobs"]["token_logprobs"]
            assert float(likelihood) == pytest.approx(sum(told[len(question["q"]) : -1]), abs=1e-5)

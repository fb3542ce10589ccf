"""An import holds no more of a checkpoint than a few tensors, and a load no more than the trunk and a tensor."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from moe_lab.nn.spec import TrunkSpec
from moe_lab.trunks.families import llama
from moe_lab.trunks.tensor_table import hugging_face_names, tensor_table
from tests.trunks.cases import CASES, byte_tokenizer

MEASURED = """
import sys
from pathlib import Path
from moe_lab.cli import main
from moe_lab.compose.parts import load_trunk
from moe_lab.jobs.trunk_import import import_trunk
from moe_lab.compose.lockfile import pin
from moe_lab.nn.precision import BFLOAT16
from moe_lab.registry import Registry
import jax, jax.numpy as jnp
import tokenizers, safetensors

def peak():
    # Not getrusage: its peak outlives an exec, so it would be that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

jnp.ones(8).astype(jnp.bfloat16).block_until_ready()
lab, source = sys.argv[1:]
before = peak()
assert main(["--lab", lab, "trunk", "import", source, "--name", "x/big", "--routed-layers", "1"]) == 0
imported = peak()
registry = Registry(Path(lab) / "registry")
loaded = load_trunk(registry, pin(registry, "x/big", "trunk"), precision=BFLOAT16)
print("MEASURED", imported - before, peak() - before)
"""


def write_large(folder: Path, *, d_model: int, layers: int, vocab: int, shards: int) -> int:
    """A bfloat16 checkpoint of Llama in several files; returns its bytes."""
    config = CASES["llama"] | {
        "hidden_size": d_model,
        "intermediate_size": 3 * d_model,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    }
    spec = TrunkSpec(
        d_model=d_model,
        ffn_width=3 * d_model,
        num_layers=layers,
        vocab_size=vocab,
        num_heads=16,
        num_kv_heads=4,
        tie_embeddings=False,
    )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    pieces = sorted(
        {(piece.name, piece.shape) for piece in tensor_table(spec, hugging_face_names(llama.FAMILY)).values()}
    )
    files, total = {}, 0
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        rng = np.random.default_rng(shard)
        tensors = {}
        for tensor, shape in pieces[shard::shards]:
            tensors[tensor] = rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            files[tensor], total = name, total + tensors[tensor].nbytes
        save_file(tensors, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return total


def measure(lab: Path, source: Path) -> tuple[int, int]:
    """Bytes above an idle process, at the peak of the import, and of import and load."""
    command = [sys.executable, "-c", MEASURED, str(lab), str(source)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, imported, loaded = out[out.index("MEASURED") :].split()
    return int(imported), int(loaded)


@pytest.mark.slow
def test_a_large_checkpoint_passes_through_a_little_memory(tmp_path: Path, lab_folder: Path) -> None:
    size = write_large(tmp_path / "big", d_model=1024, layers=16, vocab=16384, shards=3)
    assert size > 400e6
    imported, loaded = measure(lab_folder, tmp_path / "big")
    assert imported < 0.5 * size
    assert loaded < 1.4 * size


if __name__ == "__main__":
    from moe_lab.lab import init_lab

    root = Path(sys.argv[1])
    size = write_large(root / "big", d_model=2048, layers=18, vocab=32768, shards=5)
    imported, loaded = measure(init_lab(root / "lab"), root / "big")
    print(f"{size / 1e6:.0f} MB: import {imported / 1e6:.0f} MB above an idle process, with load {loaded / 1e6:.0f} MB")

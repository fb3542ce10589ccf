"""Model folders and GGUF files that are broken, lie, or mean harm: one line each, exit 2, nothing published."""

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moe_lab.cli import main
from moe_lab.registry import Registry
from tests.trunks.cases import CASES, byte_tokenizer, make_weights, write_folder
from tests.trunks.gguf_case import write_gguf
from tests.trunks.test_families import golden

SHAPES = golden("llama")[2]["shapes"]
Q = "model.layers.0.self_attn.q_proj.weight"
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {}
FILES: dict[str, tuple[Callable[[bytearray], bytes | bytearray], str]] = {}


def folder_case(reason: str):
    def add(break_it):
        FOLDERS[break_it.__name__] = (break_it, reason)
        return break_it

    return add


def file_case(reason: str):
    def add(break_it):
        FILES[break_it.__name__] = (break_it, reason)
        return break_it

    return add


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_folder(folder, CASES["llama"], make_weights(SHAPES, gemma=False), shards=3)


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    shard(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@folder_case("a key that this family does not have: num_local_experts")
def an_unknown_key(folder):
    change_config(folder, num_local_experts=8)


@folder_case("model_type 'mixtral' is not read")
def another_family(folder):
    change_config(folder, model_type="mixtral")


@folder_case("config.json .*(not there|cannot be read)")
def no_config(folder):
    (folder / "config.json").unlink()


@folder_case("config.json is no JSON that can be read")
def a_torn_config(folder):
    (folder / "config.json").write_text('{"model_type": "llama", ')


@folder_case("config.json is no JSON that can be read: a key is there twice")
def a_key_twice(folder):
    (folder / "config.json").write_text('{"model_type": "llama", "model_type": "llama"}')


@folder_case("config.json is nested too deeply|no JSON")
def a_deep_config(folder):
    (folder / "config.json").write_text('{"a":' * 100_000)


@folder_case("config.json holds no JSON object")
def a_config_that_is_a_list(folder):
    (folder / "config.json").write_text("[]")


@folder_case("num_hidden_layers is 0 and must be a whole number from 1 up")
def no_layers(folder):
    change_config(folder, num_hidden_layers=0)


@folder_case("has no tensor model.layers.4.input_layernorm.weight|has no tensor model.layers")
def more_layers_than_tensors(folder):
    change_config(folder, num_hidden_layers=5)


@folder_case("tensors that its config does not explain")
def fewer_layers_than_tensors(folder):
    change_config(folder, num_hidden_layers=3)


@folder_case("head_dim|multiple")
def heads_that_do_not_divide(folder):
    change_config(folder, num_attention_heads=5)


@folder_case("shape")
def a_wrong_width(folder):
    change_config(folder, intermediate_size=64)


@folder_case("1 tensor that its config does not explain: model.extra")
def an_extra_tensor(folder):
    change_tensors(folder, lambda tensors: tensors.update({"model.extra": np.ones(3, np.float32)}))


@folder_case(r"does not explain: model.layers.0.self_attn.q_proj.bias")
def a_bias_that_the_config_denies(folder):
    change_tensors(folder, lambda tensors: tensors.update({Q.replace("weight", "bias"): np.ones(32, np.float32)}))


@folder_case("does not explain: ../../../etc/passwd")
def a_name_with_slashes(folder):
    change_tensors(folder, lambda tensors: tensors.update({"../../../etc/passwd": np.ones(3, np.float32)}))


@folder_case("does not explain: model.layers.0..weight")
def a_name_with_dots(folder):
    change_tensors(folder, lambda tensors: tensors.update({"model.layers.0..weight": np.ones(3, np.float32)}))


@folder_case("has no tensor model.layers.0.self_attn.q_proj.weight")
def a_missing_tensor(folder):
    change_tensors(folder, lambda tensors: tensors.pop(Q))


@folder_case("q_proj.weight is of int8; a trunk is of float32")
def a_wrong_dtype(folder):
    change_tensors(folder, lambda tensors: tensors.update({Q: np.ones((32, 32), np.int8)}))


@folder_case("q_proj.weight is of float64")
def a_wide_dtype(folder):
    change_tensors(folder, lambda tensors: tensors.update({Q: tensors[Q].astype(np.float64)}))


@folder_case(r"q_proj.weight has shape \[32, 16\], and its config says \[32, 32\]")
def a_wrong_shape(folder):
    change_tensors(folder, lambda tensors: tensors.update({Q: tensors[Q][:, :16].copy()}))


@folder_case("q_proj.weight holds numbers that are not finite")
def a_number_that_is_none(folder):
    change_tensors(folder, lambda tensors: tensors[Q].__setitem__((0, 0), np.nan))


@folder_case("ties the head to the embedding, and lm_head.weight is another matrix")
def a_tied_head_that_is_not(folder):
    change_config(folder, tie_word_embeddings=True)


@folder_case("no safetensors file that can be read: its header describes")
def a_truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@folder_case("no safetensors file that can be read: its header would have 209,715,200 bytes")
def a_header_of_200_mb(folder):
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 200 << 20) + b"{")
        file.truncate((200 << 20) + 8)


@folder_case("has neither model.safetensors nor .* pytorch_model.bin is a pickle")
def a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@folder_case("has neither model.safetensors nor")
def no_weights(folder):
    (folder / "model.safetensors").unlink()


@folder_case("is a link or not a plain file")
def a_fifo(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


@folder_case("has model.safetensors and model.safetensors.index.json")
def both_forms(folder):
    shutil.copy(folder / "model.safetensors", folder / "kept")
    shard(folder)
    (folder / "kept").rename(folder / "model.safetensors")


@folder_case("the files do not agree on where tensor")
def an_index_that_lies(folder):
    def swap(names):
        first, second = sorted(names)[:2]
        names[first], names[second] = names[second], names[first]

    change_index(folder, swap)


@folder_case("the files do not agree on where tensor model.ghost")
def an_index_of_what_is_not_there(folder):
    change_index(folder, lambda names: names.update({"model.ghost": names[Q]}))


@folder_case("names the file ../../x.safetensors, which is no safetensors file beside it")
def an_index_that_leads_out(folder):
    change_index(folder, lambda names: names.update({Q: "../../x.safetensors"}))


@folder_case("names model-00009-of-00009.safetensors, which is not there")
def a_missing_shard(folder):
    change_index(folder, lambda names: names.update({Q: "model-00009-of-00009.safetensors"}))


@folder_case("has no weight_map")
def an_index_without_a_map(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


@folder_case("is in two files")
def a_tensor_in_two_files(folder):
    shard(folder)
    paths = sorted(folder.glob("model-*.safetensors"))
    save_file(load_file(paths[0]) | dict(list(load_file(paths[1]).items())[:1]), paths[0])


@folder_case("tokenizer.json is not there")
def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@folder_case("its tokenizer is no tokenizer.json")
def a_torn_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")


@folder_case("its tokenizer .*not a tokenizer.json")
def a_tokenizer_of_nothing(folder):
    (folder / "tokenizer.json").write_text("{}")


@folder_case("its tokenizer has ids to 299 and the embedding 264 rows")
def a_tokenizer_of_another_model(folder):
    value = byte_tokenizer()
    value["model"]["vocab"] |= {f"<{index}>": index for index in range(257, 300)}
    (folder / "tokenizer.json").write_text(json.dumps(value))


@file_case("no GGUF file; name the folder")
def not_gguf(data):
    return b"GGML" + data[4:]


@file_case("its version is 1")
def an_old_version(data):
    return data[:4] + struct.pack("<I", 1) + data[8:]


@file_case("it claims 1,152,921,504,606,846,976 tensors")
def a_sea_of_tensors(data):
    return data[:8] + struct.pack("<Q", 1 << 60) + data[16:]


@file_case("it claims .* 1,152,921,504,606,846,976 keys")
def a_sea_of_keys(data):
    return data[:16] + struct.pack("<Q", 1 << 60) + data[24:]


@file_case("a text claims 1,152,921,504,606,846,976 bytes")
def a_long_key(data):
    return data[:24] + struct.pack("<Q", 1 << 60) + data[32:]


@file_case("its tensors reach to byte")
def a_truncated_gguf(data):
    return data[:-100]


@file_case("inside its header")
def only_a_header(data):
    return data[:300]


@file_case("tensor token_embd.weight|overlaps|no tensor|unknown type")
def a_type_that_is_none(data):
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    return data[:at] + struct.pack("<I", 77) + data[at + 4 :]


@file_case("larger than any file|reach to byte|cannot hold")
def a_shape_that_overflows(data):
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4
    return data[:at] + struct.pack("<QQ", 1 << 40, 1 << 40) + data[at + 16 :]


@file_case("overlaps another")
def two_in_one_place(data):
    at = data.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8 + 4
    return data[:at] + struct.pack("<Q", 0) + data[at + 8 :]


@file_case("has no tensor blk.0.attn_q.weight.*did you mean|does not explain|has no tensor")
def a_renamed_tensor(data):
    return data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_z.weight")


@file_case("architecture 'gptneo' is not read")
def another_architecture(data):
    return data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x06\0\0\0\0\0\0\0gptneo", 1)


@file_case("is not UTF-8")
def a_text_that_is_none(data):
    return data.replace(b"gpt2", b"\xff\xfe\xfd\xfc", 1)


def run(capsys, lab: Path, source: Path) -> str:
    code = main(["--lab", str(lab), "trunk", "import", str(source), "--name", "x/y", "--routed-layers", "1,2"])
    said = capsys.readouterr().err.strip()
    assert code == 2, said
    assert said.startswith("error: ")
    assert "\n" not in said
    assert len(said) < 1000
    assert not Registry(lab / "registry").list()
    return said


@pytest.mark.parametrize("name", FOLDERS)
def test_a_broken_folder_is_one_line(name: str, lab_folder: Path, tmp_path: Path, capsys) -> None:
    break_it, reason = FOLDERS[name]
    folder = write_folder(tmp_path / "model", CASES["llama"], make_weights(SHAPES, gemma=False))
    break_it(folder)
    said = run(capsys, lab_folder, folder)
    assert re.search(reason, said), said


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_one_line(name: str, lab_folder: Path, tmp_path: Path, capsys) -> None:
    break_it, reason = FILES[name]
    path = write_gguf(tmp_path / "model.gguf", "llama", "llama", SHAPES)
    path.write_bytes(break_it(bytearray(path.read_bytes())))
    said = run(capsys, lab_folder, path)
    assert re.search(reason, said), said

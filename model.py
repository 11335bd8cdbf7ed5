"""[2] Qwen3 by hand: the policy as one small decoder, its KV cache, and its safetensors files.

    ids [B, T] -> embed -> L x (attention + SwiGLU, each on a residual) -> RMSNorm -> hidden [B, T, C]

Two lines make it Qwen3 and not Llama. Queries and keys are RMS-normalised per head before the rotary embedding
(`q_norm`, `k_norm`), and the head dimension need not be hidden_size / heads. Module names are the checkpoint's names,
so loading is a comparison of two lists of tensors.

`forward` stops at the hidden states. The head is a separate call (`logits`), because training never wants all
the logits: `logprob.py` takes the hidden states of the tokens it needs and walks over them in chunks.

What a token attends to is decided by a *context*. There are three: its own row (`OwnRow`); a KV cache, for sampling
(`Cache`); and rows laid end to end that share prompts, for training (`Packed`). The layers know none of them: they ask
`context.attend(q, k, v)`.

Left out: mixture-of-experts, sliding windows, rope scaling, quantised weights. A config that asks for one is refused.

Shapes: B rows, T time, S keys that may be seen, N tokens of all rows, C channels, H heads, K key/value heads, D head
dim, L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness import modeldir


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
    rope_theta: float = 1_000_000.0  # Qwen3's own
    tie_word_embeddings: bool = False


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


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys; the context says what is attended to."""

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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, context: Context) -> Tensor:
        """x [B, T, C] -> [B, T, C]."""
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)  # [B, T, H, D], [B, T, K, D]
        return self.o_proj(context.attend(q, k, v).flatten(2))


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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, context: Context) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    """The dense Qwen3 decoder. Call the module (hooks of sharding engines hang on the call), not `.forward`."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # true: keep only each layer's input; the backward runs the layer again
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

        Alone, token t attends to tokens 0..t of its own row. With a cache, the T tokens are written after those that
        each row has, or at `positions` [B, T], and `cache.lengths` grows by T. With `packed`, ids [1, N] are the tokens
        it tells of. A cache and `packed` exclude each other. Raises ValueError if the cache has no slot for a token.
        """
        x = self.embed_tokens(ids)  # [B, T, C]
        if cache is not None:
            positions = cache.next_positions(ids.shape[1]) if positions is None else positions
            contexts = cache.layers(positions, x.dtype)
        elif packed is not None:
            positions = packed.positions
            contexts = [packed.context(x.dtype)] * len(self.layers)
        else:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
            contexts = [OwnRow()] * len(self.layers)
        cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        for layer, context in zip(self.layers, contexts, strict=True):
            if self.checkpoint_activations and torch.is_grad_enabled():  # Chen et al. 2016, arXiv 1604.06174
                x = checkpoint(layer, x, cos, sin, context, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, cos, sin, context)
        if cache is not None:
            cache.lengths += ids.shape[1]
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every entry of the vocabulary: [..., C] -> [..., V], padded rows of the head included."""
        return self.lm_head(hidden)

    def new_cache(self, rows: int, slots: int) -> Cache:
        """An empty cache of `rows` rows with room for `slots` tokens each."""
        c, weight = self.config, self.embed_tokens.weight
        shape = (c.num_hidden_layers, rows, c.num_key_value_heads, slots, c.head_dim)
        keys, values = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        return Cache(keys, values, torch.zeros(rows, dtype=torch.long, device=weight.device))


# --- contexts: what a token attends to --------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask) v: [B, T, H, D] and two of [B, S, K, D] -> [B, T, H, D], H a multiple of K.

    mask [B, 1, T, S] is 0 or -inf; None is causal, and only right without a past: its triangle is aligned top left.
    """
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    if not q.is_cpu:  # the fast CUDA kernels take a mask or fewer key heads than query heads, not both
        k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], 1) for heads in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.is_cpu)
    return out.transpose(1, 2)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """True -> 0, false -> -inf; made once for all layers."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, -torch.inf)


class OwnRow:
    """Token t attends to tokens 0..t of its own row."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, None)


GROWTH, GPU_GROWTH = 16, 256  # slots by which a cache grows: copied rarely; a GPU records its step anew as well


@dataclass
class Cache:
    """Keys and values of every row, and how many tokens each row holds. Passed in openly, and written in place.

    Slot s of a row holds its token at position s, so a row needs no offset, and rows of different lengths need no left
    padding. Rows that are given different numbers of tokens at once are padded on the *right*: no token sees what pads
    its row, and the caller then sets `lengths` back to the tokens that count, so that the next ones overwrite it.
    """

    keys: Tensor  # [L, B, K, slots, D]
    values: Tensor  # [L, B, K, slots, D]
    lengths: Tensor  # [B]
    recorder: Any = None  # of decoding steps on a GPU (harness/cuda_graph.py): good until keys and values move
    sees_all_slots: bool = False  # and masks those behind a token, instead of asking which is the last one

    def take(self, rows: Tensor) -> Cache:
        """A copy of these rows, in this order, repeats allowed."""
        return Cache(self.keys.index_select(1, rows), self.values.index_select(1, rows), self.lengths[rows])

    def put(self, rows: Tensor, other: Cache) -> None:
        """Write the rows of `other` to these rows: the inverse of `take`."""
        slots = other.keys.shape[3]
        self.reserve(slots)
        self.keys[:, rows, :, :slots], self.values[:, rows, :, :slots] = other.keys, other.values
        self.lengths[rows] = other.lengths

    def keep(self, rows: Tensor) -> None:
        """Only these rows, in this order, repeats allowed: a row that is named twice goes on in two ways."""
        self.recorder = None
        self.keys = self.keys.index_select(1, rows)  # one after the other: no two copies of both at a time
        self.values = self.values.index_select(1, rows)
        self.lengths = self.lengths[rows]

    def extend(self, other: Cache) -> None:
        """Further rows, behind the others."""
        self.recorder = None
        before, more = len(self.lengths), len(other.lengths)
        self.keys = F.pad(self.keys, (0, 0) * 3 + (0, more))  # as in `keep`
        self.values = F.pad(self.values, (0, 0) * 3 + (0, more))
        self.lengths = F.pad(self.lengths, (0, more))
        self.put(torch.arange(before, before + more, device=self.lengths.device), other)

    def reserve(self, slots: int) -> None:
        """Room for at least so many tokens in each row. Few rows are long, and `keep` copies every slot that there is:
        so a cache begins small and grows by some slots at a time."""
        have = self.keys.shape[3]
        if slots > have:
            self.recorder = None
            more = max(slots - have, GROWTH if self.keys.is_cpu else GPU_GROWTH)
            self.keys = F.pad(self.keys, (0, 0, 0, more))  # as in `keep`
            self.values = F.pad(self.values, (0, 0, 0, more))

    def next_positions(self, T: int) -> Tensor:
        """Where the next T tokens of each row belong: [B, T]."""
        return self.lengths[:, None] + torch.arange(T, device=self.lengths.device)

    def layers(self, positions: Tensor, dtype: torch.dtype) -> list[CachedLayer]:
        """Each layer's context for tokens at `positions` [B, T]. ValueError without such a slot, unless it sees all."""
        slots = self.keys.shape[3]
        S = slots if self.sees_all_slots or not positions.numel() else int(positions.max()) + 1  # up to the last token
        if S > slots:
            raise ValueError(f"the KV cache has {slots} slots, position {S - 1} does not fit")
        visible = torch.arange(S, device=positions.device) <= positions[:, None, :, None]  # [B, 1, T, S]
        mask = additive(visible, dtype)
        layers = zip(self.keys[..., :S, :], self.values[..., :S, :], strict=True)
        return [CachedLayer(keys, values, positions, mask) for keys, values in layers]


@dataclass(frozen=True)
class CachedLayer:
    """One layer's part of a cache, and where in it the present tokens go: row b's token t to slot positions[b, t]."""

    keys: Tensor  # [B, K, S, D]
    values: Tensor  # [B, K, S, D]
    positions: Tensor  # [B, T]
    mask: Tensor  # [B, 1, T, S]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k and v [B, T, K, D] into the cache, then attend to what is in it."""
        rows = torch.arange(len(k), device=k.device)[:, None]
        self.keys[rows, :, self.positions], self.values[rows, :, self.positions] = k, v
        if q.shape[1] > 1:
            return attend(q, self.keys.transpose(1, 2), self.values.transpose(1, 2), self.mask)
        # One token: the H/K query heads of a key head are the rows of one product, so that keys are read once for all.
        grouped = q[:, 0].unflatten(1, (k.shape[2], -1)) * q.shape[-1] ** -0.5  # [B, K, H/K, D]
        weights = (grouped @ self.keys.mT + self.mask).softmax(-1)  # [B, K, H/K, S]
        return (weights @ self.values).flatten(1, 2)[:, None]


@dataclass(frozen=True)
class Packed:
    """Prompts and answers laid end to end, N tokens without padding; `logprob.pack` makes it.

    A token sees its own row up to itself and, if the row is an answer, all of its prompt before that. A prompt is run
    once for all answers to it. Only attention knows of rows; the rest of the model works on single tokens.
    """

    positions: Tensor  # [1, N] of each token, counted from the beginning of its prompt
    prompts: Tensor  # [P, S] which of the N tokens each prompt holds; 0 as filler
    answers: Tensor  # [B, T] which of them each answer holds
    seen: Tensor  # [B, S + T] which of them an answer may see: its prompt's, then its own
    visible: Tensor  # [B, 1, T, S + T] which of these each token of the answer does see
    places: Tensor  # [N] where in the prompts, then the answers, laid out with their filler, each of the N tokens is

    def context(self, dtype: torch.dtype) -> PackedRows:
        return PackedRows(self, additive(self.visible, dtype))


@dataclass(frozen=True)
class PackedRows:
    """The context of packed rows, the same in every layer: tokens are unfolded to rows, attend, and are folded back.

    Two calls of attention, because the rows of one call are all as long as the longest: a prompt may hold the schema of
    a tool, and an answer a few tokens.
    """

    packed: Packed
    mask: Tensor  # [B, 1, T, S + T]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[1, N, H, D] and two of [1, N, K, D] -> [1, N, H, D]."""
        p = self.packed
        of_prompts = attend(unfold(q, p.prompts), unfold(k, p.prompts), unfold(v, p.prompts), None)
        of_answers = attend(unfold(q, p.answers), unfold(k, p.seen), unfold(v, p.seen), self.mask)
        return torch.cat([of_prompts.flatten(0, 1), of_answers.flatten(0, 1)])[p.places][None]


def unfold(heads: Tensor, tokens: Tensor) -> Tensor:
    """Rows of the packed tokens: heads [1, N, H, D] and tokens [B, T] -> [B, T, H, D]."""
    # An embedding, not heads[0][tokens]: an index's backward adds the gradients of many rows in no fixed order on CUDA.
    return F.embedding(tokens, heads[0].flatten(1)).unflatten(-1, heads.shape[2:])


Context = OwnRow | CachedLayer | PackedRows


# --- files ------------------------------------------------------------------------------------------------------------


def read_config(directory) -> Config:
    """The `Config` of a Hugging Face directory. FileNotFoundError without a config.json, ValueError naming the file and
    the field for anything that this file does not compute."""
    fields = Config.__dataclass_fields__
    required = tuple(name for name, field in fields.items() if field.default is MISSING)
    return Config(**modeldir.read_config(directory, tuple(fields), required))


def load(directory: modeldir.Place, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Qwen3:
    """A `Qwen3` with the weights of a Hugging Face directory: one safetensors file, or shards with an index.

    Every tensor must arrive: ValueError lists the missing, unexpected and mis-shaped. FileNotFoundError without any.
    """
    config = read_config(directory)
    with torch.device("meta"):
        expected = Qwen3(config).state_dict()
    found = modeldir.read_tensors(directory, device, dtype)
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
        found.pop("lm_head.weight", None)  # some exports store the tied copy too
    modeldir.fit(directory, found, expected)
    return assemble(config, found)


def assemble(config: Config, tensors: dict[str, Tensor]) -> Qwen3:
    """A `Qwen3` made of these very tensors, by name; a tied head is named once, as `embed_tokens.weight`."""
    with torch.device("meta"):
        model = Qwen3(config)
    model.load_state_dict(tensors, strict=False, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.requires_grad_(True)


def save(model: Qwen3, directory: modeldir.Place, like: modeldir.Place | None = None) -> None:
    """Write `config.json` and `model.safetensors`, in the model's own dtype, as `transformers` names them.

    `like`: a directory whose other files and config fields are kept, such as the one that the model was loaded from.
    """
    kind = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "attention_bias": False}
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    config = {**kind, **asdict(model.config), "torch_dtype": dtype}
    tensors = {
        name if name.startswith("lm_head.") else f"model.{name}": tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    modeldir.write(directory, config, tensors, like)

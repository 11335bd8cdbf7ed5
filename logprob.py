"""[6] Log-probs and entropies of what was sampled: rows packed end to end, and the head one chunk at a time.

    rollouts -> pack -> model -> hidden states of sampled tokens -> token_logps -> [B, T]

Two things make a training batch large, and neither is kept. The rollouts of a group share one prompt, and some of them
say the same: what is equal is run once, and nothing is padded outside of attention (`pack`). And the logits are the
largest tensor of all: 16,384 tokens of Qwen3 are 10 GB of them in fp32, and plain autograd keeps several copies. Here
they exist one chunk of tokens at a time, in the forward and again in the backward, which recomputes them. Kept in
between are the inputs and two numbers per token.

    forward    a chunk of logits [n, V] -> log-prob, entropy, and the maximum and log-sum that rebuild its softmax
    backward   the same chunk -> its own gradient, in place -> two matmuls carry that to hidden and head_weight

What happens to a chunk is written twice: as a Triton kernel for GPUs, and in plain torch, which is the reference and
the only path where Triton does not exist.

Left out: biases, logit soft-capping, a vocabulary split over devices, second derivatives. Which tokens carry loss is
decided in gspo.py.

Shapes: P prompts, B rollouts, U different ones, T time, S keys that a row may see; N tokens, n of a chunk; C channels,
V vocabulary.
"""

import math
import os
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model import Packed, Qwen3
from sampler import Rollout

try:
    import triton
    import triton.language as tl
except ImportError:  # no wheels for macOS and Windows
    triton = None

CHUNK_BYTES = 256 * 2**20  # logits of one chunk, in their own dtype; plain torch holds two such buffers, in bf16 five
VOCAB_BLOCK = 4096  # logits that one kernel program holds at a time

# Triton reads this variable when it decorates the kernels below, so it is read once here and not at each call.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def policy_logps(
    model: Qwen3, rollouts: list[Rollout], temperature: float, valid_vocab: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The model's log-probs of what it sampled: (logps, entropies, sampled), each [B, T] over the ids after the prompt.

    Entries that were not sampled are 0. A prompt is run once for all rollouts that share it, and of rollouts that say
    the same one is run: their gradients add up on the way back. With short answers that saves two rows in three. Hidden
    states are computed for all tokens, the head only for sampled ones.
    """
    device = model.embed_tokens.weight.device
    texts = [(r.prompt_ids, r.ids, r.sampled) for r in rollouts]
    distinct = _numbered(texts)
    prompts = _numbered(prompt for prompt, _, _ in distinct)
    prompt_of = [prompts[prompt] for prompt, _, _ in distinct]  # [U]
    ids, packed = pack(list(prompts), [answer for _, answer, _ in distinct], prompt_of, device)
    own = packed.answers  # [U, T] which of the N tokens
    U, T = own.shape
    sampled = torch.tensor([[*drawn, *[False] * (T - len(drawn))] for _, _, drawn in distinct], device=device)  # [U, T]
    ends = torch.tensor([len(prompt) for prompt in prompts], device=device).cumsum(0) - 1  # [P] last tokens of prompts
    # A token is predicted by the state of the one before it: the first of an answer by its prompt's last.
    predicting = torch.cat([ends[prompt_of][:, None], own[:, :-1]], 1)  # [U, T]
    place = sampled.nonzero(as_tuple=True)  # (row, t) of each sampled token
    hidden = model(ids, packed=packed)[0, predicting[place]]
    found = token_logps(hidden, model.lm_head.weight, ids[0, own[place]], temperature, valid_vocab)
    which = torch.tensor([distinct[text] for text in texts], device=device)  # [B]
    # an embedding for the reason that `model.unfold` gives
    logps, entropy = (F.embedding(which, values.new_zeros(U, T).index_put(place, values)) for values in found)
    return logps, entropy, sampled[which]


def _numbered(values: Iterable) -> dict:
    """The distinct values, in order, with their numbers."""
    return {value: i for i, value in enumerate(dict.fromkeys(values))}


def pack(
    prompts: list[Sequence[int]], answers: list[Sequence[int]], prompt_of: list[int], device
) -> tuple[Tensor, Packed]:
    """The ids [1, N] of prompts and answers laid end to end, and how they hang together: answer b continues prompt
    prompt_of[b].

    A prompt 7 8 9, and two answers to it, 1 2 and 3:

    >>> ids, packed = pack([[7, 8, 9]], [[1, 2], [3]], [0, 0], "cpu")
    >>> ids.tolist(), packed.positions.tolist()  # an answer's positions go on behind the prompt's
    ([[7, 8, 9, 1, 2, 3]], [[0, 1, 2, 3, 4, 3]])
    >>> packed.prompts.tolist(), packed.answers.tolist()  # which of the six tokens each row holds; 0 also fills up
    ([[0, 1, 2]], [[3, 4], [5, 0]])
    >>> packed.seen.tolist()  # what an answer may see: its prompt, then itself
    [[0, 1, 2, 3, 4], [0, 1, 2, 5, 0]]
    >>> packed.visible[0, 0].int().tolist()  # and what tokens 1 and 2 do see of it
    [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    >>> packed.places.tolist()  # where the six tokens are: three of the prompt, then of four places in the answers
    [0, 1, 2, 3, 4, 5]
    """
    first = sum(map(len, prompts))  # the first token of the answers
    prompt_tokens, is_prompt = _laid_out([len(row) for row in prompts], 0, device)  # [P, S]
    own_tokens, is_own = _laid_out([len(row) for row in answers], first, device)  # [B, T]
    (B, T), before = own_tokens.shape, is_prompt[prompt_of]  # [B, S]
    seen = torch.cat([prompt_tokens[prompt_of], own_tokens], 1)
    own = torch.ones(T, T, dtype=torch.bool, device=device).tril().expand(B, T, T)
    visible = torch.cat([before[:, None].expand(B, T, -1), own], 2)[:, None]  # [B, 1, T, S + T]
    at = torch.arange(max(prompt_tokens.shape[1], T), device=device)
    goes_on_at = is_prompt.sum(1)[prompt_of, None]  # [B, 1]
    positions = torch.cat([at[: is_prompt.shape[1]].expand_as(is_prompt)[is_prompt], (goes_on_at + at[:T])[is_own]])
    ids = torch.tensor([[token for row in (*prompts, *answers) for token in row]], device=device)
    places = torch.cat([is_prompt.flatten(), is_own.flatten()]).nonzero()[:, 0]
    return ids, Packed(positions[None], prompt_tokens, own_tokens, seen, visible, places)


def _laid_out(lengths: list[int], first: int, device) -> tuple[Tensor, Tensor]:
    """Rows of these lengths, their tokens numbered from `first` on: (numbers, 0 as filler, and which are tokens)."""
    lengths = torch.tensor(lengths, device=device)[:, None]  # [B, 1]
    is_token = torch.arange(int(lengths.max()), device=device) < lengths  # [B, T]
    numbers = torch.zeros(is_token.shape, dtype=torch.long, device=device)
    numbers[is_token] = torch.arange(first, first + int(lengths.sum()), device=device)
    return numbers, is_token


def plan(groups: list[int], lengths: list[int], budget: int) -> list[list[int]]:
    """Split rows into micro-batches of at most `budget` padded tokens: like beside like, a group's rows together. A
    longer row goes alone; the prompt of a group that lies across a boundary is run twice.

    Row i is one of groups[i], whose rows share a prompt, and has lengths[i] tokens, the prompt's included:

    >>> plan([0, 0, 1], [5, 3, 9], budget=10)  # two rows of 5, then one of 9
    [[0, 1], [2]]
    """
    longest = {}
    for group, length in zip(groups, lengths, strict=True):
        longest[group] = max(length, longest.get(group, 0))
    batches = []
    for i in sorted(range(len(lengths)), key=lambda i: (longest[groups[i]], groups[i])):
        if batches and (len(batches[-1]) + 1) * longest[groups[i]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def token_logps(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, temperature: float = 1.0, valid_vocab: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probs of chosen tokens, and the entropies of the distributions they were chosen from.

        z = hidden @ head_weight.T / temperature            over ids below valid_vocab; the others have probability 0
        logps[i] = z[i, targets[i]] - logsumexp(z[i])
        entropy[i] = -sum_v softmax(z[i])[v] * log softmax(z[i])[v]

    hidden [N, C] and head_weight [V, C] are floating point, targets [N] int64 or int32. Both results are [N], in nats,
    fp32 (float64 if hidden is). logps can be differentiated, once, by hidden and head_weight; entropy is a detached
    metric. The logits have hidden's dtype, whatever autocast says; sums over the vocabulary are fp32.

    The same inputs give the same bits again. Another N gives other chunks, hence matmuls of other shapes, which round
    differently: old and new log-probs need the same micro-batches.

    Raises ValueError on inputs that do not fit each other, and on a target that is no id below valid_vocab.
    """
    V = head_weight.shape[0]
    valid_vocab = V if valid_vocab is None else valid_vocab
    _check(hidden, head_weight, targets, temperature, valid_vocab)
    chunk_rows = max(1, CHUNK_BYTES // (V * hidden.element_size()))
    targets = targets.long().contiguous()
    return _TokenLogps.apply(hidden, head_weight, targets, float(temperature), valid_vocab, chunk_rows)


def _check(hidden, head_weight, targets, temperature, valid_vocab):
    """ValueError for what does not fit: a kernel would read beyond its row."""
    shapes = [list(tensor.shape) for tensor in (hidden, head_weight, targets)]
    if hidden.ndim != 2 or head_weight.ndim != 2 or shapes[0][1] != shapes[1][1] or shapes[2] != shapes[0][:1]:
        raise ValueError(f"hidden [N, C], head_weight [V, C] and targets [N] were expected, got {shapes}")
    if not (hidden.is_floating_point() and head_weight.is_floating_point()) or targets.is_floating_point():
        dtypes = f"{hidden.dtype}, {head_weight.dtype} and {targets.dtype}"
        raise ValueError(f"hidden and head_weight must be floating point, targets integer, got {dtypes}")
    if not hidden.device == head_weight.device == targets.device:
        devices = f"{hidden.device}, {head_weight.device} and {targets.device}"
        raise ValueError(f"hidden, head_weight and targets must be on one device, got {devices}")
    if not (0 < temperature < math.inf and 1 <= valid_vocab <= len(head_weight)):
        raise ValueError(
            f"temperature must be positive, valid_vocab in [1, {len(head_weight)}], got {temperature}, {valid_vocab}"
        )
    wrong = (targets < 0) | (targets >= valid_vocab)
    if wrong.any():  # on a GPU this waits for the work queued so far: microseconds, in a micro-batch of milliseconds
        position = int(wrong.nonzero()[0])
        raise ValueError(f"targets[{position}] is {int(targets[position])}, outside [0, {valid_vocab})")


class _TokenLogps(torch.autograd.Function):
    """The loop over chunks: logits exist for one chunk [n, V] at a time."""

    @staticmethod
    def forward(ctx, hidden, head_weight, targets, temperature, valid_vocab, chunk_rows):
        N = hidden.shape[0]
        head = head_weight.to(hidden.dtype)
        results = [torch.empty(N, dtype=_sum_dtype(hidden), device=hidden.device) for _ in range(4)]
        for rows in _chunks(N, chunk_rows):
            logits = _chunk_logits(hidden[rows], head, valid_vocab)
            stats = _stats_triton if _use_triton(logits) else _stats_torch
            for result, part in zip(results, stats(logits, targets[rows], temperature), strict=True):
                result[rows] = part
            del logits
        logps, entropy, row_max, log_sum = results
        ctx.save_for_backward(hidden, head_weight, targets, row_max, log_sum)
        ctx.temperature, ctx.valid_vocab, ctx.chunk_rows = temperature, valid_vocab, chunk_rows
        ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logps, _grad_entropy):
        hidden, head_weight, targets, row_max, log_sum = ctx.saved_tensors
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        head = head_weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Summed over chunks in fp32: a bf16 sum stops growing when it is some 256 times its terms.
        grad_head = torch.zeros_like(head_weight, dtype=_sum_dtype(hidden)) if needs_head else None
        for rows in _chunks(hidden.shape[0], ctx.chunk_rows):
            logits = _chunk_logits(hidden[rows], head, ctx.valid_vocab)  # the forward's shapes, so the forward's bits
            to_gradient_ = _gradient_triton_ if _use_triton(logits) else _gradient_torch_
            to_gradient_(logits, targets[rows], row_max[rows], log_sum[rows], grad_logps[rows], ctx.temperature)
            with _no_autocast(hidden):
                if needs_hidden:
                    grad_hidden[rows] = logits @ head[: ctx.valid_vocab]  # [n, C]
                if needs_head:
                    _add_product_(grad_head[: ctx.valid_vocab], logits.T, hidden[rows])  # [valid_vocab, C]
            del logits  # before the next chunk is made, and not when it takes the name
        return grad_hidden, grad_head.to(head_weight.dtype) if needs_head else None, None, None, None, None


def _chunk_logits(hidden, head, valid_vocab):
    """Logits [n, valid_vocab], a view of all V columns: heads are padded so that the rows of this matmul align."""
    with _no_autocast(hidden):
        return (hidden @ head.T)[:, :valid_vocab]


def _no_autocast(tensor):
    # backward() runs outside the caller's autocast region, and must rebuild the softmax from the forward's very logits.
    return torch.autocast(tensor.device.type, enabled=False)


def _add_product_(total, a, b):
    """total += a @ b. Of one dtype, nothing as large as the head is made beside the head's gradient itself."""
    total.addmm_(a, b) if total.dtype == b.dtype else total.add_(a @ b)


def _chunks(N, chunk_rows):
    """No more chunks than needed, of one size but for the last: each finds its memory where the one before left it."""
    size = -(-N // max(1, -(-N // chunk_rows))) or 1
    return [slice(start, start + size) for start in range(0, N, size)]


def _sum_dtype(tensor):
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _use_triton(logits):
    """Kernels take CUDA tensors, and CPU tensors under Triton's interpreter; float64 is always plain torch."""
    return triton is not None and logits.dtype != torch.float64 and (logits.is_cuda or INTERPRETED)


def _stats_torch(logits, targets, temperature):
    """Log-prob, entropy, maximum and log-sum [n] of each row of logits [n, V], which may be overwritten.

    With d = (logits - max) / temperature <= 0 and S = sum exp(d) >= 1: logp = d[target] - log S, and
    entropy = log S - sum exp(d) d / S, two terms >= 0. Nothing cancels after the maximum is gone, however large it was.
    """
    d = logits.to(_sum_dtype(logits))
    row_max = d.amax(-1)
    d = d.sub_(row_max[:, None]).div_(temperature)
    chosen = d.gather(1, targets[:, None]).squeeze(1)
    exp = d.exp()
    total = exp.sum(-1)
    # A logit of -inf adds 0 to the entropy, but 0 * -inf is NaN: hence the clamp.
    weighted = d.clamp_(min=torch.finfo(d.dtype).min).mul_(exp).sum(-1)
    log_sum = total.log()
    return chosen - log_sum, log_sum - weighted / total, row_max, log_sum


def _gradient_torch_(logits, targets, row_max, log_sum, grad_logps, temperature):
    """Overwrites logits [n, V] with the gradient of the loss by them: grad_logp * (onehot - softmax) / temperature."""
    scale = grad_logps / temperature
    d = logits.to(_sum_dtype(logits)).sub_(row_max[:, None]).div_(temperature)
    gradient = d.sub_(log_sum[:, None]).exp_().mul_(-scale[:, None])
    gradient[torch.arange(len(targets), device=targets.device), targets] += scale
    logits.copy_(gradient)


def _stats_triton(logits, targets, temperature):
    """_stats_torch, reading each logit once."""
    n, V = logits.shape
    results = [torch.empty(n, dtype=torch.float32, device=logits.device) for _ in range(4)]
    block = min(VOCAB_BLOCK, triton.next_power_of_2(V))
    with torch.cuda.device_of(logits):  # Triton launches on the current device, not on the tensors'
        _stats_kernel[(n,)](logits, targets, *results, logits.stride(0), V, temperature, BLOCK=block, num_warps=8)
    return results


def _gradient_triton_(logits, targets, row_max, log_sum, grad_logps, temperature):
    """_gradient_torch_, reading and writing each logit once."""
    n, V = logits.shape
    block = min(VOCAB_BLOCK, triton.next_power_of_2(V))
    rows = (targets, row_max, log_sum, grad_logps.contiguous())  # that of a plain sum is expanded: its stride is 0
    with torch.cuda.device_of(logits):
        grid = (n, triton.cdiv(V, block))
        _gradient_kernel[grid](logits, *rows, logits.stride(0), V, temperature, BLOCK=block, num_warps=8)


if triton is not None:
    LOWEST = tl.constexpr(-1.0e30)  # stands in for -inf where inf - inf or 0 * inf would make NaN

    @triton.jit
    def _stats_kernel(
        logits_ptr,
        targets_ptr,
        logps_ptr,
        entropy_ptr,
        row_max_ptr,
        log_sum_ptr,
        row_stride,
        V,
        temperature,
        BLOCK: tl.constexpr,
    ):
        """One program per row; sums are rescaled as the maximum grows (Milakov, Gimelshein 2018, arXiv 1805.02867)."""
        row = tl.program_id(0).to(tl.int64)  # row * row_stride can pass 2^31
        logits_ptr += row * row_stride
        row_max = tl.full((), LOWEST, tl.float32)
        total = tl.full((), 0.0, tl.float32)  # sum of exp(d)
        weighted = tl.full((), 0.0, tl.float32)  # sum of exp(d) * d
        for start in range(0, V, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            logits = tl.load(logits_ptr + ids, mask=ids < V, other=float("-inf")).to(tl.float32)
            new_max = tl.maximum(row_max, tl.max(logits, 0))
            shift = (row_max - new_max) / temperature  # each earlier d becomes d + shift
            d = (logits - new_max) / temperature
            exp = tl.exp(d)
            weighted = tl.exp(shift) * (weighted + shift * total) + tl.sum(exp * tl.maximum(d, LOWEST), 0)
            total = tl.exp(shift) * total + tl.sum(exp, 0)
            row_max = new_max
        chosen = tl.load(logits_ptr + tl.load(targets_ptr + row)).to(tl.float32)
        log_sum = tl.log(total)
        tl.store(logps_ptr + row, (chosen - row_max) / temperature - log_sum)
        tl.store(entropy_ptr + row, log_sum - weighted / total)
        tl.store(row_max_ptr + row, row_max)
        tl.store(log_sum_ptr + row, log_sum)

    @triton.jit
    def _gradient_kernel(
        logits_ptr,
        targets_ptr,
        row_max_ptr,
        log_sum_ptr,
        grad_logps_ptr,
        row_stride,
        V,
        temperature,
        BLOCK: tl.constexpr,
    ):
        """One program per row and block of the vocabulary."""
        row = tl.program_id(0).to(tl.int64)
        ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        logits_ptr += row * row_stride + ids
        logits = tl.load(logits_ptr, mask=ids < V, other=float("-inf")).to(tl.float32)
        softmax = tl.exp((logits - tl.load(row_max_ptr + row)) / temperature - tl.load(log_sum_ptr + row))
        onehot = (ids == tl.load(targets_ptr + row)).to(tl.float32)
        gradient = tl.load(grad_logps_ptr + row) * (onehot - softmax) / temperature
        tl.store(logits_ptr, gradient.to(logits_ptr.dtype.element_ty), mask=ids < V)

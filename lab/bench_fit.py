"""
Which micro-batch holds a config on a GPU, by a count; nothing is run. bench.py calls it.

    python bench.py fit config/gpt2.py --vocab_size=50304 --memory=80
    python bench.py fit config/gpt2_xl.py --vocab_size=50304 --memory=80 --batch_size=4

Counted is the compiled step in 16 bits where it is highest: at the end of the forward pass, or at the update. For its
backward pass a block keeps the inputs of its products in 16 bits and the residual stream in float32; the compiler
computes the rest again. The peaks in the committed logs lie within a tenth of the count (tests/lab/test_bench_fit.py
says which are compared). A teacher (distill_from) is on every GPU, whole and in float32, and its logits stay beside the model's.
"""

import math
from dataclasses import dataclass

import parallel
from configurator import key
from lab.costs import columns
from lab.match import sized
from linear.factors import matrices
from linear.kernels import head
from surgery import distill, rotate
from train import TrainConfig

USABLE = 0.92  # of a GPU's memory: the driver, workspaces of libraries and holes between blocks take the rest


@dataclass
class FitConfig(TrainConfig):
    memory: float = key(80.0, 'of one GPU, in GiB', above=0, group='fitting')

    def problems(self, sized=None):
        found = super().problems(sized)
        if self.compile is False or self.dtype == 'float32':
            found.append('compile, dtype: the count is of the compiled step in 16 bits; leave them out')
        return found


@dataclass
class Count:
    """Bytes of a training step."""

    params: int  # numbers that the optimizer moves
    weights: int  # float32: those the network computes with, and the factors beside it
    grads: int  # float32, of all these
    stays: int  # the part of the gradients that is there at the end of a forward pass
    state: int  # of the optimizer
    products: int  # of factors that are multiplied out, kept for the chain rule
    casts: int  # the weights in 16 bits
    gathered: (
        int  # fsdp: all blocks in 16 bits, or two where they are gathered for each pass; what is in no block in 32
    )
    block: float  # per token: what all blocks keep for the backward pass
    stream: float  # per token: that of it which is left where blocks are computed again
    head: float  # per token: the last norm, and what it is given back where the loss is made by parts
    logits: float  # per token: and their gradient
    at_once: float  # of logits, where the loss is made by parts
    early: int  # the head's gradient, which is there with the loss then
    evaluation: float  # per token: of a forward pass alone
    scores: float  # per token: logits of an evaluation
    teacher: int  # its weights, float32
    teaching: float  # per token: its forward pass, before that of the model

    def fixed(self, how: str, processes: int, several: bool) -> float:
        """Bytes at the end of a forward pass whatever the micro-batch. several: micro-batches of a process in a step."""
        if how == 'fsdp':  # sums of gradients are shared out with the last micro-batch
            grads = self.grads if several else self.grads / processes
            return (self.weights + self.state) / processes + grads + self.gathered + self.early + self.teacher
        grads = (self.grads if how == 'ddp' else self.stays) + self.early
        return self.weights + grads + self.state + self.products + self.casts + self.teacher

    def update(self, how: str, processes: int) -> float:
        shared = (self.weights + self.grads + self.state) / (processes if how == 'fsdp' else 1)
        return shared + self.products + self.teacher

    def per_token(self, again: bool, layers: int) -> float:
        """Without logits. again: blocks are computed again, so one at a time keeps what it needs."""
        return self.head + (self.stream + self.block / layers if again else self.block)

    def of_tokens(self, n: int, again: bool, layers: int) -> float:
        return max(n * self.per_token(again, layers) + min(n * self.logits, self.at_once), n * self.teaching)

    def largest(self, how: str, processes: int, several: bool, again: bool, cfg, room: float) -> int:
        """The micro-batch of so many bytes; 0 where none fits."""
        if self.update(how, processes) > room:
            return 0
        room -= self.fixed(how, processes, several)
        each, logits = cfg.block_size * self.per_token(again, cfg.n_layer), cfg.block_size * self.logits
        most = max(room / (each + logits), (room - self.at_once) / each)
        if self.teaching:
            most = min(most, room / (cfg.block_size * self.teaching))
        return max(0, int(most))


def kept(c, hidden: float) -> float:
    """Bytes that a block of dense layers keeps for each token."""
    n, kv = c.n_embd, c.n_embd * (c.n_kv_head or c.n_head) // c.n_head
    short = 2 * n + n + 2 * kv + n + 2 * c.n_head  # norms' outputs; q, k, v; what attention returns, its rows' sums
    if c.position == 'rope' or c.qk_norm:
        short += n + kv  # q and k as attention takes them
    if c.post_norm:
        short += 2 * n
    if c.mlp == 'moe':
        short += c.experts_active * 2 * (n + hidden)  # sorted by expert: inputs, h, act(h), outputs
    else:
        short += hidden * ((3 if c.mlp == 'swiglu' else 2) + c.mlp_gate)  # act(h), and h or act'(h)
    masks = 2 * n if c.dropout else 0
    return 2 * 4 * n + 2 * short + masks


def forward_pass(c) -> float:
    """Bytes for each token of a forward pass alone, without logits."""
    return 6 * c.n_embd + 2 * max(c.hidden(i) for i in range(c.n_layer))


def count(cfg, path=None, teacher=None, memory=math.inf) -> Count:
    """What a run of a config whose vocab_size is known keeps in memory. path: instead of its linear_path. teacher: the model of
    its distill_from. memory: bytes of a GPU, by which fsdp decides what stays gathered."""
    follow = cfg.step_rule == 'product'  # every W is formed, and the factors have no gradients
    model, beside = rotate.shapes(rotate.model_config(cfg), 'materialised' if follow else path)
    network = sum(p.numel() for p in model.parameters())
    blocks = [sum(p.numel() for p in b.parameters()) for b in model.transformer.h]
    reshard, _ = parallel.reshards(cfg.reshard_after_forward, 2 * sum(blocks), memory)
    products = sum(m.d_in * m.d_out for m in beside.values())
    factors = sum(W.numel() for m in beside.values() for W in m.parameters())
    led = matrices(model, beside) if follow else ()
    led = (found.values() for name, _, found in led if name in beside and name.startswith('transformer.h.'))
    graded = factors - sum(math.prod(M.shape) for tensors in led for M in tensors)
    # a captured update has gradients of its own, and those of several micro-batches are summed
    several = cfg.gradient_accumulation_steps > 1 or cfg.cuda_graph is True or network < 2**25
    inside = sum(m.traffic() for m in model.modules() if hasattr(m, 'factors'))  # written and read, in 16 bits
    odd = -cfg.vocab_size % 64  # the gradient of the padded logits is an array of its own
    logits = 2 * (cfg.vocab_size + odd)
    parts = head.ON and head.whole(model.lm_head) and not cfg.distill_from and cfg.dtype != 'float16'
    taught = 2 * cfg.vocab_size if teacher else 0  # the teacher's logits, which the backward pass reads, too
    hidden = [cfg.hidden(i) for i in range(cfg.n_layer)]
    return Count(
        params=network - products + factors,
        weights=4 * (network + factors),
        grads=4 * (network + graded),
        stays=4 * (graded + several * network),
        state=rotate.footprint(model, beside, cfg.optimizer, cfg.step_rule)
        - 4 * (2 * network + factors + graded + products),
        products=4 * products,
        casts=2 * network,
        gathered=2 * (2 * max(blocks) if reshard else sum(blocks)) + 4 * (network - sum(blocks)),
        block=sum(kept(cfg, h) for h in hidden) + inside,
        stream=4 * cfg.n_embd * cfg.n_layer,
        head=(8 if parts else 6) * cfg.n_embd,
        logits=logits * (2 if odd and not parts else 1) + taught,
        at_once=2 * head.MOST_LOGITS if parts else math.inf,
        early=4 * cfg.n_embd * cfg.vocab_size if parts else 0,
        evaluation=forward_pass(cfg),
        scores=logits * (1 if parts else 2),
        teacher=sum(4 * p.numel() for p in teacher.parameters()) if teacher else 0,
        teaching=forward_pass(teacher.config) + taught if teacher else 0,
    )


def fit(cfg):
    cfg = sized(cfg)
    teacher = distill.open_teacher(cfg, quiet=True) if cfg.distill_from else None
    c, room = count(cfg, teacher=teacher), USABLE * cfg.memory * 2**30
    gib = lambda n: f'{n / 2**30:.2f}'
    print(
        f'{c.params:,} parameters, vocabulary {cfg.vocab_size:,}, compiled, 16 bits; GiB: weights {gib(c.weights)},'
        f' gradients {gib(c.grads)}, optimizer state {gib(c.state)},\nproducts of factors {gib(c.products)}, weights in 16 bits {gib(c.casts)}{f", teacher {gib(c.teacher)}" if teacher else ""}; KiB per token: blocks'
        f' {c.block / 1024:.1f}, head {c.head / 1024:.1f}'
    )
    shared = count(cfg, 'factored', teacher, cfg.memory * 2**30)  # fsdp forms no matrix
    ways = [('one GPU', 1), ('ddp', 2), *(('fsdp', n) for n in (2, 8, 64) if cfg.step_rule != 'product')]
    mixture = cfg.mlp == 'moe' or cfg.linear == 'btt_moe'
    rows = []
    for how, n in ways:
        c = shared if how == 'fsdp' else c
        several = cfg.gradient_accumulation_steps > n
        fixed, update = c.fixed(how, n, several), c.update(how, n)
        for again in (False,) if mixture else (False, True):
            most = c.largest(how, n, several, again, cfg, room)
            peaks = [
                gib(max(fixed + c.of_tokens(batch * cfg.block_size, again, cfg.n_layer), update))
                for batch in (cfg.batch_size, most)
            ]
            rows.append({
                'GiB': how + (f', {n} GPUs' if how == 'fsdp' else '') + (', activation checkpointing' if again else ''),
                f'micro-batch {cfg.batch_size}': peaks[0],
                'largest': str(most or 'none'),
                'its peak': peaks[1] if most else '-',
            })  # fmt: skip
    print('\n'.join(columns(rows)))
    tokens = cfg.block_size * cfg.batch_size
    evaluation = tokens * c.evaluation + min(tokens * c.scores, c.at_once)
    print(
        f'largest: micro-batch (sequences of {cfg.block_size:,} tokens) that {USABLE:.0%} of {cfg.memory:g} GiB hold.'
        f' With cuda_graph an\nevaluation has its own {gib(evaluation)} GiB at micro-batch'
        f' {cfg.batch_size}'
    )

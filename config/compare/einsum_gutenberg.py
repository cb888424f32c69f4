# Which structure in all linear layers of the blocks buys the most loss per FLOP? Gutenberg in a vocabulary of its own,
# 6 layers, 128 wide, each arm at its own best rate and trained until it has used the dense run's FLOPs.
# config/structured/gutenberg_bpe.py says the rest of the setting; einsum_gutenberg_192.py is the next size.
#
#   python compare.py config/compare/einsum_gutenberg.py --cluster=pool --jobs=8
#
# A structure needs fewer FLOPs per token, so it sees more tokens than dense: max_iters is dense's 1,041 times the ratio
# of FLOPs per token, and compare.py checks that the FLOPs are equal. results/prices.md says what the runs cost. In all
# structures the input goes through the factors (linear_path): the papers count the FLOPs of that computation. `auto`
# would form the dense matrix where that is faster. At a third of the dense parameters the two cores of tensor_train
# would cost 2.7 times the FLOPs of dense; rank 8 costs the same as dense here.

claim = 'On the FLOPs of the dense run, each at its own best rate, {arm} has a lower loss on Gutenberg than {baseline}'
note = (
    "Structures in all linear layers of the blocks, a third of the dense parameters, the papers' start and rates; embeddings"
    ' and head are dense and tied. 20 tokens per parameter of the dense twin, then equal FLOPs.'
)
common = 'config/structured/gutenberg_bpe.py'
sizes = dict(w128='--n_embd=128 --n_head=4')
_structured = '--linear_layers=mlp+attn --linear_path=factored'
arms = dict(
    dense='',
    low_rank=f'--linear=low_rank {_structured} --max_iters=1681 --lr_decay_iters=1681 --warmup_iters=84',
    block_dense=f'--linear=block_dense {_structured} --max_iters=1681 --lr_decay_iters=1681 --warmup_iters=84',
    monarch=f'--linear=monarch {_structured} --max_iters=1697 --lr_decay_iters=1697 --warmup_iters=84',
    btt_rank1=f'--linear=btt --rank=1 {_structured} --max_iters=2026 --lr_decay_iters=2026 --warmup_iters=101',
    btt_rank4=f'--linear=btt --rank=4 {_structured} --max_iters=1402 --lr_decay_iters=1402 --warmup_iters=70',
    kronecker=f'--linear=kronecker {_structured} --max_iters=1755 --lr_decay_iters=1755 --warmup_iters=87',
    tensor_train=f'--linear=tensor_train --rank=8 {_structured} --max_iters=1041 --lr_decay_iters=1041 --warmup_iters=52',
    block_diagonal=f'--linear=block_diagonal {_structured} --max_iters=1800 --lr_decay_iters=1800 --warmup_iters=90',
    btt_moe=f'--linear=btt_moe {_structured} --max_iters=1705 --lr_decay_iters=1705 --warmup_iters=85',
    moe='--mlp=moe --max_iters=755 --lr_decay_iters=755 --warmup_iters=37',
)
_near = (2.5e-3, 4e-3, 6.4e-3, 1e-2)  # where the first two arms had their best rates
learning_rates = dict.fromkeys(arms, _near) | dict.fromkeys(('dense', 'low_rank'), (1.6e-3, *_near, 1.6e-2))
sweep_seeds = 3
seeds = 8
worth = 0.01
match = 'flops'
bench = False

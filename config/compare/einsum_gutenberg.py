# Which structure in all linear layers of the blocks buys the most loss per FLOP? Gutenberg in a vocabulary of its own,
# 6 layers, each arm at its own best rate and trained until it has used the dense run's FLOPs.
# config/structured/gutenberg_bpe.py says the rest of the setting.
#
#   python compare.py config/compare/einsum_gutenberg.py --only=w128 --cluster=pool --jobs=8
#
# Dense gets 20 tokens per parameter at each width (up to five passes over the text at 384). A structure needs fewer FLOPs
# per token, so it sees more tokens: match = 'flops' computes its iterations. results/prices.md says what the runs cost;
# --only takes sizes, arms or both (dense@w384). Rates are swept at 128 and 192 wide, and at 256 under AdamW.
# In all structures the input goes through the factors (linear_path): the papers count the FLOPs of that computation.
# `auto` would form the dense matrix where that is faster. At a third of the dense parameters the two cores of
# tensor_train would cost 2.7 times the FLOPs of dense at 128; rank 8 costs the same as dense there.
#
# The sizes muon_* are the same widths with the matrices of the blocks under Muon, at the rate of the rest. k2000 is an
# expansion: products of larger matrices. `worth` was set before any verdict: dense gains 0.45 from 128 to 192 wide, on 3.9
# times the FLOPs, so 10% of the FLOPs are worth 0.03.

claim = 'On the FLOPs of the dense run, each at its own best rate, {arm} has a lower loss on Gutenberg than {baseline}'
note = (
    'Structures in all linear layers of the blocks, a third of the dense parameters unless a rank is named (btt_rank4 at 128:'
    " half, btt_rank1: a seventh), the papers' start and rates; embeddings and head are dense and tied. 20 tokens per parameter"
    ' of the dense twin, then equal FLOPs.'
)
common = 'config/structured/gutenberg_bpe.py'


def _size(width, iters, eval_interval):
    return (
        f'--n_embd={width} --n_head={width // 32} --max_iters={iters} --lr_decay_iters={iters}'
        f' --warmup_iters={iters // 20} --eval_interval={eval_interval}'
    )


sizes = dict(
    w128=_size(128, 1041, 350), w192=_size(192, 2102, 700), w256=_size(256, 3522, 1174), w384=_size(384, 7443, 2481)
)
sizes |= {f'muon_{size}': f'{sizes[size]} --optimizer=muon' for size in ('w128', 'w192', 'w256')}
_structured = '--linear_layers=mlp+attn --linear_path=factored'
arms = dict(
    dense='',
    low_rank=f'--linear=low_rank {_structured}',
    block_dense=f'--linear=block_dense {_structured}',
    monarch=f'--linear=monarch {_structured}',
    btt_rank1=f'--linear=btt --rank=1 {_structured}',
    btt_rank4=f'--linear=btt --rank=4 {_structured}',
    kronecker=f'--linear=kronecker {_structured}',
    tensor_train=f'--linear=tensor_train --rank=8 {_structured}',
    block_diagonal=f'--linear=block_diagonal {_structured}',
    btt_moe=f'--linear=btt_moe {_structured}',
    moe='--mlp=moe',
    k2000='--linear=expanded --expansion=2000 --linear_layers=mlp+attn',
)
_near = (2.5e-3, 4e-3, 6.4e-3, 1e-2)  # where the first two arms had their best rates
learning_rates = dict.fromkeys(arms, _near) | dict.fromkeys(('dense', 'low_rank'), (1.6e-3, *_near, 1.6e-2))
learning_rates['k2000'] = (1.6e-3, 2.5e-3, 4e-3, 6.4e-3)
# two more for dense: the parabola through the others had its vertex at 1.17e-2, where training is not stable any more
# (results/README.md)
learning_rates['dense@w192'] = (1.6e-3, *_near[:3], 8e-3, 1e-2, 1.26e-2, 1.6e-2)
# at 192 three rates around the best one at 128; compare.py adds more where an edge is best
learning_rates |= {f'{arm}@w192': _near[1:] for arm in ('monarch', 'btt_rank1', 'btt_rank4', 'block_diagonal')}
learning_rates |= dict.fromkeys(('block_dense@w192', 'kronecker@w192', 'tensor_train@w192'), (6.4e-3, 1e-2, 1.6e-2))
learning_rates |= {'k2000@w192': (6.4e-4, 9.74e-4, 1.56e-3, 2.5e-3), 'moe@w192': _near[:3]}
# 256 takes the rates of 192 where runs stay stable at them. Under AdamW those of monarch, btt_rank4 and kronecker spiked
# (results/README.md), so these have a sweep of their own, dense and k2000 as well, and 384 takes the rates of 256. Under Muon
# low_rank spiked; 4e-3 was level with its best rate at 192 and far from divergence.
_at_256 = dict(dense=(4e-3, 6.4e-3, 1e-2), k2000=(4e-4, 6.4e-4, 1e-3))
_at_256 |= dict.fromkeys(('monarch', 'btt_rank4', 'kronecker'), (1.6e-3, 2.5e-3, 4e-3))
learning_rates |= {f'{arm}@w256': _at_256.get(arm, f'{arm}@w192') for arm in arms}
learning_rates |= {f'{arm}@w384': f'{arm}@w256' for arm in arms}
learning_rates |= {f'{arm}@muon_{size}': (4e-3, 8e-3, 1.6e-2) for arm in arms for size in ('w128', 'w192')}
# one more for kronecker: with 3.2e-2 and 6.4e-2, which compare.py added, the best was still the highest
learning_rates['kronecker@muon_w192'] = (4e-3, 8e-3, 1.6e-2, 3.2e-2)
learning_rates |= {f'{arm}@muon_w256': f'{arm}@muon_w192' for arm in arms}
learning_rates['low_rank@muon_w256'] = (4e-3,)
sweep_seeds = 3
seeds = 8
worth = 0.03
match = 'flops'
bench = False

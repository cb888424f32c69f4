# Do expanded MLPs train better where nothing overfits and at the end of the schedule? Gutenberg in a vocabulary of its own,
# 6 layers, 20 tokens per parameter of the dense model, the rate falls to 0; each arm at its own best rate.
#
#   python compare.py config/compare/expansion_gutenberg.py --only=w192 --cluster=pool --jobs=4
#
# At 192 wide 138 runs took 24 minutes of an H200, five or six at a time. 384 takes the rates of 192 and has not run;
# results/prices.md says what it costs. All arms see the same tokens; an expansion costs 2 to 10% more FLOPs.
#
# All parameters share a rate, and a product needs a lower one than the rest of the model: by theory 2.5 to 4.6 times for two factors
# and 4 to 9 times for three (effective_lr_ratio in linear/expanded.py); the best rates were 6 and 13 times lower than that of
# dense. So part of what k2000 and factors3 lose is that embeddings and attention train at that low rate. In the arms
# _matched the rate of the factors alone is divided by the ratio: about half of the distance to dense is gone for k2000, two thirds for
# factors3.

claim = 'At the end of its schedule and at its own best rate, {arm} has a lower loss on Gutenberg than {baseline}'
note = (
    'Every MLP matrix as a product of matrices with an inner width of 2,000: two (k2000), three (factors3), or one matrix'
    ' at a time as a product of two, four turns each (rotate). _matched: the rate of the factors is divided by how much faster'
    ' they change the matrix. Gutenberg, BPE of 4,096, 6 layers, 20 tokens per parameter.'
)
common = 'config/structured/gutenberg_bpe.py'


def _size(width, iters, eval_interval):
    return (
        f'--n_embd={width} --n_head={width // 32} --max_iters={iters} --lr_decay_iters={iters}'
        f' --warmup_iters={iters // 20} --eval_interval={eval_interval} --expansion_every={iters // (4 * 2 * 6)}'
    )


sizes = dict(w192=_size(192, 2102, 700), w384=_size(384, 7443, 2481))
_expanded = '--linear=expanded --linear_layers=mlp --expansion=2000'
arms = dict(
    dense='',
    k2000=_expanded,
    factors3=f'{_expanded} --expansion_depth=3',
    k2000_matched=f'{_expanded} --expansion_lr=matched',
    factors3_matched=f'{_expanded} --expansion_depth=3 --expansion_lr=matched',
    rotate=f'{_expanded} --expansion_init=orthogonal --expansion_schedule=rotate',
)
# With attention expanded as well k2000 had its best rate at 8.6e-4 and ended in spikes at 2.5e-3; dense had its at 1e-2
# (einsum_gutenberg). rotate had its best rate at 2.5e-3, the lowest of the first four; 1.6e-3 came after that.
learning_rates = dict.fromkeys(arms, (2.5e-3, 4e-3, 6.4e-3, 1e-2)) | dict(dense=(4e-3, 6.4e-3, 1e-2, 1.6e-2))
learning_rates |= dict.fromkeys(('k2000', 'factors3'), (6.4e-4, 1e-3, 1.6e-3, 2.5e-3))
learning_rates['rotate'] = (1.6e-3, 2.5e-3, 4e-3, 6.4e-3, 1e-2)
learning_rates |= {f'{arm}@w384': f'{arm}@w192' for arm in arms}
seeds = 8
worth = 0.01  # about 3% of the FLOPs: dense gains 0.45 on 3.9 times the FLOPs (einsum_gutenberg)
match = 'tokens'
bench = False

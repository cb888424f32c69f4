# Which start for a compressed GPT-2? GPT-2 small, trained on Gutenberg, factorized, then trained on for as many tokens
# in every arm, each at its own best rate. 95M and 81M: the sizes of Krony-PT's models.
#
#   python compare.py config/compare/kronecker_gutenberg.py --cluster=pool --jobs=5       on a GPU
#   python compare.py --show=results/kronecker_gutenberg                                   the log of an earlier run of it
#
# One source serves all random seeds. It takes 324 s of an H200, and an arm at one rate about 15 s. The arm "dense"
# trains the source for as many more tokens. Arms see other data than the source did at its start. In "distilled" each
# new block first learns to imitate the old one.

claim = 'Trained on for as many tokens, {arm} has a lower loss than {baseline}'
name = 'kronecker_gutenberg_seeds'
common = (
    'config/gpt2.py --batch_size=16 --gradient_accumulation_steps=1 --learning_rate=3e-4 --min_lr=3e-5'
    ' --max_iters=300 --lr_decay_iters=300 --warmup_iters=30 --eval_interval=300'
)
_cut = 'transfer.py factorize --checkpoint={source} --linear'
_95m, _81m = (f'{_cut}=kronecker --kronecker_shape={m},384' for m in (3072, 1536))  # half of the parameters, a quarter
steps = {
    'source': '--learning_rate=1e-3 --min_lr=1e-4 --warmup_iters=830 --max_iters=8300 --lr_decay_iters=8300 --eval_interval=8300',
    '95M-nearest': f'{_95m} --init=nearest',
    '95M-pruned': f'{_95m} --init=prune',
    '95M-learned': f'{_95m} --init=nearest --distill_iters=50 --distill_batch=16',
    '95M-anew': f'{_95m} --init=random',
    '81M-nearest': f'{_81m} --init=nearest',
    '81M-pruned': f'{_81m} --init=prune',
    '81M-learned': f'{_81m} --init=nearest --distill_iters=50 --distill_batch=16',
    '81M-anew': f'{_81m} --init=random',
    '81M-but-0': f'{_81m} --init=nearest --keep_dense=h.0.*',  # the block that resists most
    '81M-svd': f'{_cut}=low_rank --rank=153 --init=nearest',  # as many parameters, another structure
    '81M-whitened': f'{_cut}=low_rank --rank=153 --init=whitened',
    'attn-nearest': f'{_cut}=kronecker --linear_layers=attn --kronecker_shape=768,384 --init=nearest',
}
arms = {
    'dense': '--init_from={source}',
    '95M-vanloan': '--init_from={95M-nearest}',
    '95M-prune': '--init_from={95M-pruned}',
    '95M-distilled': '--init_from={95M-learned}',
    '95M-random': '--init_from={95M-anew}',
    '81M-vanloan': '--init_from={81M-nearest}',
    '81M-prune': '--init_from={81M-pruned}',
    '81M-distilled': '--init_from={81M-learned}',
    '81M-random': '--init_from={81M-anew}',
    '81M-vanloan-logits': '--init_from={81M-nearest} --distill_from={source}',
    '81M-vanloan-keep0': '--init_from={81M-but-0}',
    '81M-low_rank': '--init_from={81M-svd}',
    '81M-low_rank-whitened': '--init_from={81M-whitened}',
    'attn-vanloan': '--init_from={attn-nearest}',  # is it in the MLPs?
}
shared_steps = True
learning_rates = (1e-4, 3e-4, 1e-3)
sweep_seeds = 1
seeds = 3
looks = False  # from before docs/protocol.md: all seeds at once, the rate of the lowest mean
tasks = 'wikitext2,wikitext103,lambada'
bench = False  # shapes are known only after the surgery

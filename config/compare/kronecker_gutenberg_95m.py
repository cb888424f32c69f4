# As kronecker_gutenberg.py, for the 95M of Krony-PT's larger model (half of the parameters of each MLP). One arm has Kronecker
# products in the attention instead of the MLPs: are the MLPs to blame? The paper prefers the pruned start to the nearest products.
#
#   python compare.py config/compare/kronecker_gutenberg_95m.py --cluster=pool --jobs=5 --tasks=
#
# 300 s of an H200 for the source, and about 20 minutes for the arms. It has not run.

include('kronecker_gutenberg.py')

name = 'kronecker_gutenberg_95m'
note = note.replace('81M', '95M')
_cut = 'transfer.py factorize --checkpoint={source} --linear'
_kronecker = f'{_cut}=kronecker --kronecker_shape=3072,384'
steps = {
    'source': steps['source'],
    'products': f'{_kronecker} --init=nearest',
    'halves': f'{_kronecker} --init=prune',
    'learned': f'{_kronecker} --init=nearest --distill_iters=50 --distill_batch=16',
    'anew': f'{_kronecker} --init=random',
    'in-attn': f'{_cut}=kronecker --linear_layers=attn --kronecker_shape=768,384 --init=nearest',
}
arms = {arm: arms[arm] for arm in ('nearest', 'prune', 'distilled', 'random')} | {'attn': '--init_from={in-attn}'}
learning_rates = dict.fromkeys(arms, (1.5e-4, 3e-4, 6e-4)) | dict.fromkeys(('prune', 'random'), (5e-4, 1e-3, 2e-3))

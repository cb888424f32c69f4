# A control for growth_muon.py. A grown run warms up again, so with its source it has warmed up twice. Is that what `stack` gains from
# under AdamW? Scratch with its warm-up and with twice as long a one, under AdamW and under Muon, each at its own best rate.
#
#   python compare.py config/compare/growth_warm.py --cluster=pool --jobs=5
#
# 79 runs took 8 minutes of an H200, six at a time. `warm` is better by 0.027 under AdamW, where `stack` was by 0.098: part of that
# distance is that scratch warms up too briefly.

include('growth_muon.py')

claim = 'With twice the warm-up, {arm} ends with a lower loss on Gutenberg than {baseline}'
note = '6 layers, 192 wide, BPE of 4,096, 47M tokens, cosine to 0. The warm-up takes 5% of the steps, that of warm 10%.'
steps = {}
arms = dict(scratch='', warm='--warmup_iters=144')
mismatch = {}
learning_rates = {f'{arm}@adamw': (5e-3, 8e-3, 1.26e-2) for arm in arms} | {
    f'{arm}@muon': (8e-3, 1.6e-2, 3.2e-2) for arm in arms
}

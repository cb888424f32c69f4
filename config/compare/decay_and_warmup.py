# Does a comparison that tunes only the rate judge by the weight decay and the warm-up that it gives to all? AdamW's decay acts in
# proportion to the rate, so it differs most between arms whose best rates do. Dense, and the two entries of the board whose rates are
# furthest from dense's (expanded: 0.0015, tensor_train: 0.016, dense: 0.0036), each with another decay or a longer warm-up.
#
#   python compare.py config/compare/decay_and_warmup.py
#
# The setting is that of the small track (config/track/small.py): 3 layers, 64 wide, 400 steps on Tiny Shakespeare, weight decay 0.1,
# a warm-up of 5%. 217 runs of 7 to 20 s on two CPU cores, two at a time: 23 minutes.
#
# _no_decay, _decay1: weight decay 0 and 1. _warm: a warm-up of 15%. `worth` is that of the track. Expect no gain from another decay, and
# the same order of the three. What the longer warm-up brings dense depends on the seeds of its sweep: with --seed_offset=100 (and a
# --name) dense has a higher rate from the start (docs/protocol.md, "Limits").

include('../track/small.py')

track = ''
name = 'decay_and_warmup'
claim = 'On Tiny Shakespeare, from the same 307,200 tokens and each at its own best rate, {arm} has a lower loss than {baseline}'
note = (
    'The small track of the board with weight decay 0 and 1 instead of 0.1 (_no_decay, _decay1), and with a warm-up of 15% of the steps'
    ' instead of 5% (_warm).'
)
_others = dict(
    expanded='--linear=expanded --linear_layers=mlp+attn', tensor_train='--linear=tensor_train --linear_layers=mlp+attn'
)
_ways = dict(no_decay='--weight_decay=0', decay1='--weight_decay=1', warm='--warmup_iters=60')
arms = {
    '_'.join(filter(None, (arm, way))): f'{flags} {more}'.strip()
    for arm, flags in dict(dense='', **_others).items()
    for way, more in {'': '', **_ways}.items()
}
_rates = dict(dense=(2e-3, 4e-3, 8e-3), expanded=(7.5e-4, 1.5e-3, 3e-3), tensor=(8e-3, 1.6e-2, 3.2e-2))
learning_rates = {arm: _rates[arm.split('_')[0]] for arm in arms}
seeds = 6

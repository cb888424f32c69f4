# expansion_shakespeare_best.py cut to what an H100 does in a few minutes: two arms, three seeds, and 3000 iterations with the
# schedule ending there. At the rate 1e-3 and the longer schedule dense was at its best at 2000, k = 2000 at 3500
# (results/expansion_5000, a run each).
#
#   python compare.py config/compare/expansion_shakespeare_3000.py --cluster=pool --jobs=6

include('expansion_shakespeare_best.py')

claim = (
    'With its learning rate tuned as well as the dense one, {arm} reaches a lower best loss than {baseline} on Tiny'
    ' Shakespeare within 3000 iterations'
)
note = 'Every MLP matrix as a product of two factors, k = 2000; the schedule ends at iteration 3000.'
common = '--max_iters=3000 --lr_decay_iters=3000 --eval_interval=250'
arms = {k: arms[k] for k in ('dense', 'k2000')}
extend = 1
seeds = 3
bench = False  # the steps are those of expansion_shakespeare.py

# As expansion_shakespeare.py, but at each arm's best validation loss within 5000 iterations, where dense begins to overfit
# at about 2000 and the expanded arms later. Rates are swept anew: the best rate for 250 iterations is not the best one
# here.
#
#   python compare.py config/compare/expansion_shakespeare_best.py --cluster=pool --jobs=8
#
# About 40 runs that keep an H100 busy for half a minute to one and a half each: half an hour or more on one
# (estimated); expansion_shakespeare_3000.py is a smaller one.

include('expansion_shakespeare.py')

claim = (
    'With its learning rate tuned as well as the dense one, {arm} reaches a lower best loss than {baseline} on Tiny'
    ' Shakespeare within 5000 iterations'
)
common = '--max_iters=5000 --eval_interval=250 --save_checkpoint=false'
at = 'best'
learning_rates = (5e-4, 1e-3, 2e-3)
sweep_seeds = 1
extend = 2

# As expansion_shakespeare.py, but the figure is each arm's best validation loss within 5000 iterations. Dense begins to
# overfit at about 2000, the expanded arms later. Rates are swept anew: the best rate for 250 iterations is not the best
# one here.
#
#   python compare.py config/compare/expansion_shakespeare_best.py --cluster=pool --jobs=4
#
# A run ends when 1000 iterations have brought no lower loss, since what follows is overfitting. The two single runs at
# full length (results/expansion_5000) would have ended at 3000 and 4500 with the same best loss. Estimated seconds of
# one H100, which works 5.8, 6.6 and 10.2 ms per iteration: dense 100, k2000 160, k10000 250, the others 200 each. Four
# runs at once keep it busy. Arms are finished in this order. --seeds=5 later adds two random seeds.

include('expansion_shakespeare.py')

claim = (
    'With its learning rate tuned as well as the dense one, {arm} reaches a lower best loss than {baseline} on Tiny'
    ' Shakespeare within 5000 iterations'
)
note = (
    'Every MLP matrix as a product of factors (k: their inner width; 3 and 5 factors: k = 2000 throughout). The best of the'
    ' evaluations every 250 iterations, within 5000; a run ends when 1000 iterations brought no lower one.'
)
common = '--max_iters=5000 --eval_interval=250 --patience=1000 --save_checkpoint=false'
at = 'best'
learning_rates = (1e-3, 2e-3)  # compare.py adds more: the better one is at the edge
sweep_seeds = 1
extend = 3
seeds = 3
bench = False  # the steps are those of expansion_shakespeare.py

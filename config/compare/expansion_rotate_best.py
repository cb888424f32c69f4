# expansion_rotate.py for a GPU: the full-size job, at each arm's best validation loss within 5000 iterations, since there
# dense begins to overfit at about 2000. A run ends when 1000 iterations have brought no lower loss.
#
#   python compare.py config/compare/expansion_rotate_best.py --cluster=pool --jobs=12
#
# About 560 s of two H200. Its result is in results/expansion_rotate_best: no arm is ahead of dense, and three seeds do not
# tell them apart.

include('expansion_rotate.py')

claim = (
    'With its learning rate tuned as well, {arm} reaches a lower best loss than {baseline} on Tiny Shakespeare within'
    ' 5000 iterations'
)
common = '--eval_interval=250 --patience=1000 --save_checkpoint=false'
at = 'best'
learning_rates = (1e-3, 2e-3)  # and from there downhill

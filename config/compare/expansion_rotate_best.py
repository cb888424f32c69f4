# expansion_rotate.py for a GPU: the full-size job. The figure is each arm's best validation loss within 5000
# iterations, because dense begins to overfit at about 2000. A run ends when 1000 iterations have brought no lower loss.
#
#   python compare.py config/compare/expansion_rotate_best.py --cluster=pool --jobs=12
#
# It takes about 560 s of two H200. The result is in results/expansion_rotate_best: no arm is ahead of dense, and three
# random seeds show no difference between the arms.

include('expansion_rotate.py')

claim = (
    'With its learning rate tuned as well, {arm} reaches a lower best loss than {baseline} on Tiny Shakespeare within'
    ' 5000 iterations'
)
common = '--eval_interval=250 --patience=1000 --save_checkpoint=false'
at = 'best'
learning_rates = (1e-3, 2e-3)  # compare.py adds more where the better one is at the edge

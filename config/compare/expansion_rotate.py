# Is expanding one matrix at a time as good as expanding all of them? It needs the memory of only one expansion. Every
# arm has its own best learning rate. The arm "control" is dense, and restarts Adam's moments when "rotate" does.
#
#   python compare.py config/compare/expansion_rotate.py --jobs=2
#
# Without a GPU this uses the small preset of the configs: 27 minutes on two cores. The result is in
# results/expansion_rotate: dense is ahead of both expanded arms. Three random seeds show no difference between these
# two, and none between dense with and without the restarts. The full-size job for a GPU is expansion_rotate_best.py.

claim = 'With its learning rate tuned as well, {arm} has a lower loss than {baseline} at the end of training on Tiny Shakespeare'
note = (
    'all: every MLP matrix as a product of two factors throughout, from an orthogonal start; rotate: one of them at a time,'
    ' four turns each; control: dense, with the restarts of rotate.'
)
common = '--eval_interval=300 --save_checkpoint=false'
arms = dict(
    dense='config/shakespeare_char.py',
    all='config/expansive_shakespeare.py --expansion_init=orthogonal',
    rotate='config/expansive_rotate_shakespeare.py',
    control='config/expansive_rotate_shakespeare_control.py',
)
learning_rates = (1e-3, 2e-3, 4e-3)
sweep_seeds = 1
seeds = 3
looks = False  # from before docs/protocol.md: all seeds at once, the rate of the lowest mean
worth = 0.01
match = 'tokens'
bench = False

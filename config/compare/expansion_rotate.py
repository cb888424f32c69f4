# Is expanding one matrix at a time, which needs the memory of one expansion, worth as much as expanding all of them? Every
# arm with its own best learning rate; control is dense with the restarts of Adam's moments that rotating brings along.
#
#   python compare.py config/compare/expansion_rotate.py --jobs=2
#
# Without a GPU the small preset of the configs, 27 minutes on two cores. Its result is in results/expansion_rotate:
# dense is ahead of both expanded arms; between these, and of the restarts, three seeds show no difference. The
# full-size job for a GPU: expansion_rotate_best.py.

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
worth = 0.01
match = 'tokens'
bench = False

# One expansion at a time: as expansive_shakespeare.py, but only one MLP matrix at a time is a product of two factors.
# After its turn the factors are multiplied, and the next matrix is expanded from its current value. Each matrix has
# four turns in a run.
#
#   python train.py config/expansive_rotate_shakespeare.py
#   python train.py config/expansive_rotate_shakespeare.py --expansion_moments=map     Adam's moments carried over
#   python train.py config/expansive_rotate_shakespeare_control.py                     dense, with the same restarts
#
# On a GPU: best val loss within 5,000 iterations 1.471 at its own best rate, 2.5e-4, the lowest tried (dense: 1.464,
# all expanded: 1.467; three seeds; results/expansion_rotate_best). A rotation takes 0.1 s with k = 10000, and one
# expansion 480 MiB where all take 3,528 (results/rotate, an H200). Small preset: config/compare/expansion_rotate.py.

include('expansive_shakespeare.py')

expansion_init = 'orthogonal'  # exactly the matrix that is expanded
expansion_schedule = 'rotate'
expansion_every = max_iters // (4 * 2 * n_layer)
out_dir = out_dir.replace('expansive', 'expansive-rotate')
wandb_run_name = 'expansive-rotate'

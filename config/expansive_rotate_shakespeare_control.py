# The control of expansive_rotate_shakespeare.py: the effect of the restarts alone. The model is dense throughout. When
# the other run collapses one matrix and expands the next, Adam's moments and step counts of these two matrices start
# anew here, too. (The control of --expansion_moments=map is shakespeare_char.py itself.)
#
#   python train.py config/expansive_rotate_shakespeare_control.py
#
# On a GPU: best val loss within 5,000 iterations 1.470 at its own best rate, 2e-3 (dense without restarts: 1.464; three
# seeds; results/expansion_rotate_best). Small preset: config/compare/expansion_rotate.py.

include('expansive_rotate_shakespeare.py')

expansion_schedule = 'reset'
out_dir += '-control'
wandb_run_name = 'expansive-rotate-control'

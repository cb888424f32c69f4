# A point of the einsum family that none of the names covers: every index in use.
#
#   python train.py config/structured/einsum.py
#   python train.py config/structured/einsum.py config/structured/gutenberg.py --out_dir=out/structured/einsum-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: 2.0307 after 250 iterations at the rate 1e-3 (dense: 2.0733), on Gutenberg 5.4159 after 200 (dense:
# 5.4209). One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

linear = 'einsum'
theta = 0.5, 0.25, 0.25, 0.25, 0.5, 0.25, 0.5
out_dir = out_dir.replace('shakespeare-char', 'structured/einsum')
wandb_run_name = 'einsum'

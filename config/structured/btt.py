# Block Tensor-Train, split at the square root.
#
#   python train.py config/structured/btt.py
#   python train.py config/structured/btt.py config/structured/gutenberg.py --out_dir=out/structured/btt-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: 2.0072 after 250 iterations at the rate 1e-3 (dense: 2.0733), on Gutenberg 5.3735 after 200 (dense:
# 5.4209). One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

linear = 'btt'
out_dir = out_dir.replace('shakespeare-char', 'structured/btt')
wandb_run_name = 'btt'

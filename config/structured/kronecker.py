# One Kronecker product, its first factor nearly square and large.
#
#   python train.py config/structured/kronecker.py
#   python train.py config/structured/kronecker.py config/structured/gutenberg.py --out_dir=out/structured/kronecker-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: 2.0529 after 250 iterations at the rate 1e-3 (dense: 2.0733), on Gutenberg 5.4644 after 200 (dense:
# 5.4209). One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

linear = 'kronecker'
out_dir = out_dir.replace('shakespeare-char', 'structured/kronecker')
wandb_run_name = 'kronecker'

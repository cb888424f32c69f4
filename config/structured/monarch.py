# Monarch: two block-diagonal factors of four blocks around a permutation.
#
#   python train.py config/structured/monarch.py
#   python train.py config/structured/monarch.py config/structured/gutenberg.py --out_dir=out/structured/monarch-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: 2.0616 after 250 iterations at the rate 1e-3 (dense: 2.0733), on Gutenberg 8.4405 after 60 of the small
# preset. One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

linear = 'monarch'
out_dir = out_dir.replace('shakespeare-char', 'structured/monarch')
wandb_run_name = 'monarch'

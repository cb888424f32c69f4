# Low rank: W = B A with 128 features between.
#
#   python train.py config/structured/low_rank.py
#   python train.py config/structured/low_rank.py config/structured/gutenberg.py --out_dir=out/structured/low-rank-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: 2.1420 after 250 iterations at the rate 1e-3 (dense: 2.0733), on Gutenberg 8.5122 after 60 of the small
# preset. One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

linear = 'low_rank'
out_dir = out_dir.replace('shakespeare-char', 'structured/low_rank')
wandb_run_name = 'low_rank'

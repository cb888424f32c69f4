# SLTrain: low rank plus three percent of the entries, at random places that stay fixed.
#
#   python train.py config/structured/low_rank_sparse.py
#   python train.py config/structured/low_rank_sparse.py config/structured/gutenberg.py --out_dir=out/structured/low-rank-sparse-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: not measured yet.

include('../shakespeare_char.py')

linear = 'low_rank_sparse'
out_dir = out_dir.replace('shakespeare-char', 'structured/low_rank_sparse')
wandb_run_name = 'low_rank_sparse'

# Low rank: W = B A with 128 features between.
#
#   python train.py config/structured/low_rank.py
#   python train.py config/structured/low_rank.py config/structured/gutenberg.py
#
# The twin of shakespeare_char.py, all else alike. Shape and parameters are printed at the start. Loss: not measured yet.

include('../shakespeare_char.py')

linear = 'low_rank'
out_dir = out_dir.replace('shakespeare-char', 'structured/low_rank')
wandb_run_name = 'low_rank'

# Monarch: two block-diagonal factors of four blocks around a permutation.
#
#   python train.py config/structured/monarch.py
#   python train.py config/structured/monarch.py config/structured/gutenberg.py
#
# The twin of shakespeare_char.py, all else alike. Shape and parameters are printed at the start. Loss: not measured yet.

include('../shakespeare_char.py')

linear = 'monarch'
out_dir = out_dir.replace('shakespeare-char', 'structured/monarch')
wandb_run_name = 'monarch'

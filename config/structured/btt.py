# Block Tensor-Train, split at the square root.
#
#   python train.py config/structured/btt.py
#   python train.py config/structured/btt.py config/structured/gutenberg.py
#
# The twin of shakespeare_char.py, all else alike. Shape and parameters are printed at the start. Loss: not measured yet.

include('../shakespeare_char.py')

linear = 'btt'
out_dir = out_dir.replace('shakespeare-char', 'structured/btt')
wandb_run_name = 'btt'

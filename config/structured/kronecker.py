# One Kronecker product, its first factor nearly square and large.
#
#   python train.py config/structured/kronecker.py
#   python train.py config/structured/kronecker.py config/structured/gutenberg.py
#
# The twin of shakespeare_char.py, all else alike. Shape and parameters are printed at the start. Loss: not measured yet.

include('../shakespeare_char.py')

linear = 'kronecker'
out_dir = out_dir.replace('shakespeare-char', 'structured/kronecker')
wandb_run_name = 'kronecker'

# Block-dense: four blocks into the inner features, then dense.
#
#   python train.py config/structured/block_dense.py
#   python train.py config/structured/block_dense.py config/structured/gutenberg.py
#
# The twin of shakespeare_char.py, all else alike. Shape and parameters are printed at the start. Loss: not measured yet.

include('../shakespeare_char.py')

linear = 'block_dense'
out_dir = out_dir.replace('shakespeare-char', 'structured/block_dense')
wandb_run_name = 'block_dense'

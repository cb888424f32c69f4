# Block-diagonal: blocks that never mix, four (three at 384 wide).
#
#   python train.py config/structured/block_diagonal.py
#   python train.py config/structured/block_diagonal.py config/structured/gutenberg.py
#
# The twin of shakespeare_char.py, all else alike. Shape and parameters are printed at the start. Loss: not measured yet.

include('../shakespeare_char.py')

linear = 'block_diagonal'
out_dir = out_dir.replace('shakespeare-char', 'structured/block_diagonal')
wandb_run_name = 'block_diagonal'

# Block-diagonal: four blocks that never mix (three at 384 wide).
#
#   python train.py config/structured/block_diagonal.py
#   python train.py config/structured/block_diagonal.py config/structured/gutenberg.py --out_dir=out/structured/block-diagonal-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: 2.0095 after 250 iterations at the rate 1e-3 (dense: 2.0733), on Gutenberg 5.4773 after 200 (dense:
# 5.4209). One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

linear = 'block_diagonal'
out_dir = out_dir.replace('shakespeare-char', 'structured/block_diagonal')
wandb_run_name = 'block_diagonal'

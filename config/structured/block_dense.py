# Block-dense: two blocks into the inner features, then dense.
#
#   python train.py config/structured/block_dense.py
#   python train.py config/structured/block_dense.py config/structured/gutenberg.py --out_dir=out/structured/block-dense-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start. Val loss with four
# blocks (--blocks=4): 2.1175 after 250 iterations at the rate 1e-3 (dense: 2.0733), on Gutenberg 8.4799 after 60 of the
# small preset. One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

linear = 'block_dense'
out_dir = out_dir.replace('shakespeare-char', 'structured/block_dense')
wandb_run_name = 'block_dense'

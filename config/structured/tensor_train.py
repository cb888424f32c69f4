# A tensor train of two cores: the sum of as many Kronecker products as its rank.
#
#   python train.py config/structured/tensor_train.py
#   python train.py config/structured/tensor_train.py config/structured/gutenberg.py --out_dir=out/structured/tensor-train-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: 2.0763 after 250 iterations at the rate 1e-3 (dense: 2.0733), on Gutenberg 5.5773 after 200 (dense:
# 5.4209). One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

linear = 'tensor_train'
out_dir = out_dir.replace('shakespeare-char', 'structured/tensor_train')
wandb_run_name = 'tensor_train'

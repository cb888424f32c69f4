# A tensor train of three cores.
#
#   python train.py config/structured/tensor_train3.py
#   python train.py config/structured/tensor_train3.py config/structured/gutenberg.py --out_dir=out/structured/tensor-train3-gutenberg
#
# All else is as in shakespeare_char.py. Shape and parameters are printed at the start.
# Val loss: 2.0819 after 250 iterations at the rate 1e-3 (dense: 2.0733), on Gutenberg 8.4711 after 60 of the small
# preset. One random seed and one rate for all, so do not rank by it: results/structured/training.txt.

include('../shakespeare_char.py')

linear = 'tensor_train'
tt_cores = 3
out_dir = out_dir.replace('shakespeare-char', 'structured/tensor_train3')
wandb_run_name = 'tensor_train3'

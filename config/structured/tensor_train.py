# A tensor train of two cores: the sum of as many Kronecker products as its rank.
#
#   python train.py config/structured/tensor_train.py
#   python train.py config/structured/tensor_train.py config/structured/gutenberg.py
#
# The twin of shakespeare_char.py, all else alike. Shape and parameters are printed at the start. Loss: not measured yet.

include('../shakespeare_char.py')

linear = 'tensor_train'
out_dir = out_dir.replace('shakespeare-char', 'structured/tensor_train')
wandb_run_name = 'tensor_train'

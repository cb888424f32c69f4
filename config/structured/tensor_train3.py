# A tensor train of three cores.
#
#   python train.py config/structured/tensor_train3.py
#   python train.py config/structured/tensor_train3.py config/structured/gutenberg.py
#
# The twin of shakespeare_char.py, all else alike. Shape and parameters are printed at the start. Loss: not measured yet.

include('../shakespeare_char.py')

linear = 'tensor_train'
tt_cores = 3
out_dir = out_dir.replace('shakespeare-char', 'structured/tensor_train3')
wandb_run_name = 'tensor_train3'

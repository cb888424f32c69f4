# BTT-MoE: a router and eight Block Tensor-Trains in each matrix, two of them for each token.
#
#   python train.py config/structured/btt_moe.py
#   python train.py config/structured/btt_moe.py config/structured/gutenberg.py
#
# The twin of shakespeare_char.py, all else alike. Shape and parameters are printed at the start. Loss: not measured yet.

include('../shakespeare_char.py')

linear = 'btt_moe'
out_dir = out_dir.replace('shakespeare-char', 'structured/btt_moe')
wandb_run_name = 'btt_moe'

# Train a model of half the width, double it, go on: one command.
#
#   python train.py config/grow_shakespeare.py
#
# MEASURED

include('shakespeare_char.py')

init_from = 'transfer'
transfer_from = 'config/grow_shakespeare_source.py'  # trained first, unless it has been
transfer_method = 'clone'
transfer_noise = 1.0  # as large as the weights: the published 0.3 tells the copies apart too slowly here
warmup_iters = 20  # the moments come along: the rate need not start from nothing
max_iters = lr_decay_iters = max_iters * 3 // 4
out_dir = out_dir.replace('shakespeare-char', 'grow-shakespeare')
wandb_run_name = 'grown'

# Train a model of half the width, double it, go on: one command.
#
#   python train.py config/grow_shakespeare.py

include('shakespeare_char.py')

init_from = 'transfer'
transfer_from = 'config/grow_shakespeare_source.py'  # trained first, unless it has been
transfer_method = 'clone'
transfer_noise = 0.5
hidden_lr = 0.5
warmup_iters = 20
max_iters = lr_decay_iters = max_iters * 3 // 4
out_dir = out_dir.replace('shakespeare-char', 'grow-shakespeare')
wandb_run_name = 'grown'

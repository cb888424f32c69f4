# One command trains a model of half the width, doubles its width, and trains the result.
#
#   python train.py config/grow_shakespeare.py
#
# Without a GPU (the small preset; results/growth_cpu, one seed): the 64-wide model stops at 2.471 after 300 iterations
# and the grown one ends at 2.141 after 900 more. It does not pay at this size: for the same total FLOPs, 981
# iterations, shakespeare_char.py ends at 2.098, and with four times the learning rate it is 1.958 grown against 1.944
# from scratch. The full-size job on a GPU: not measured yet.

include('shakespeare_char.py')

init_from = 'transfer'
transfer_from = 'config/grow_shakespeare_source.py'  # trained first, unless it has been
transfer_method = 'clone'
transfer_noise = 1.0  # as large as the weights: with the published 0.3 the copies become different too slowly here
warmup_iters = 20  # short, because Adam's moments grow with the weights
max_iters = lr_decay_iters = max_iters * 3 // 4
out_dir = out_dir.replace('shakespeare-char', 'grow-shakespeare')
wandb_run_name = 'grown'

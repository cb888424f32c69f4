# The small model that grow_shakespeare.py grows: shakespeare_char.py at half the width, for fewer iterations.
#
#   python train.py config/grow_shakespeare_source.py

include('shakespeare_char.py')

n_embd = n_embd // 2
n_head = n_head // 2
max_iters = max_iters // 4
lr_decay_iters = 2 * max_iters  # it is grown before its rate has decayed
out_dir = out_dir.replace('shakespeare-char', 'grow-shakespeare-source')
wandb_run_name = 'small'

# Character-level Tiny Shakespeare, the dense twin of expansive_shakespeare.py: nanoGPT's train_shakespeare_char.
#
#   python train.py config/shakespeare_char.py
#
# On a GPU: 10.65M parameters, about 10 ms per iteration on an H100. Val loss 2.075 at iteration 250 (five seeds, std
# 0.009), best 1.471 at iteration 2000 of one full run, then it overfits (results/expansion_250,
# results/expansion_5000). Without a GPU a small preset takes over, made for two cores and two minutes.

import torch

out_dir = 'out/shakespeare-char'
eval_interval = 250  # keep frequent because we'll overfit
eval_iters = 200
log_interval = 10
always_save_checkpoint = False  # we expect to overfit on this small dataset, so only save when val improves
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'

dataset = 'shakespeare_char'
data_order = 'random'  # nanoGPT's windows
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256  # context of up to 256 previous characters

# baby GPT model :)
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3  # with baby networks can afford to go a bit higher
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4  # learning_rate / 10
beta2 = 0.99  # a bit bigger because the number of tokens per iter is small
warmup_iters = 100

if not torch.cuda.is_available():
    note = 'no GPU here: the small preset (4 layers, 128 wide, 1200 iterations); the full-size job runs on a GPU'
    out_dir = 'out/shakespeare-char-small'
    eval_iters = 20
    batch_size = 12
    block_size = 64
    n_layer = 4
    n_head = 4
    n_embd = 128
    dropout = 0.0
    max_iters = 1200
    lr_decay_iters = 1200

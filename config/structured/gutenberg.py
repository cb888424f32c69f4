# Add this file to any config of this folder: it trains a small GPT on Gutenberg in GPT-2 tokens instead of Shakespeare.
#
#   python train.py config/structured/monarch.py config/structured/gutenberg.py --out_dir=out/structured/monarch-gutenberg
#   python train.py config/shakespeare_char.py config/structured/gutenberg.py --out_dir=out/structured/shakespeare-char-gutenberg       the dense twin
#
# 8 layers, 512 wide: 25.2M parameters besides the embeddings when dense. 65.5M tokens. Loss: not measured yet.

import torch

dataset = 'gutenberg'
data_order = 'permutation'
n_layer, n_head, n_embd, block_size = 8, 8, 512, 512
batch_size, gradient_accumulation_steps = 64, 1  # 32,768 tokens per step
dropout = 0.0
max_iters = lr_decay_iters = 2000
warmup_iters = 100
beta2 = 0.95
eval_interval, eval_iters = 250, 20

if not torch.cuda.is_available():
    note = 'no GPU here: the small preset (2 layers, 64 wide, 300 iterations); the full-size job runs on a GPU'
    n_layer, n_head, n_embd, block_size = 2, 2, 64, 64
    batch_size, max_iters, lr_decay_iters = 8, 300, 300
    eval_iters = 5

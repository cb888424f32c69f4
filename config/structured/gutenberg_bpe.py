# The small GPT in which the structures of the einsum family are compared: Gutenberg in a vocabulary of its own (BPE,
# 4,096), 6 layers, here 128 wide. The dense one, and what all arms have in common.
#
#   python train.py config/structured/gutenberg_bpe.py
#   python train.py config/structured/gutenberg_bpe.py --linear=low_rank --linear_layers=mlp+attn --linear_path=factored
#   python compare.py config/compare/einsum_gutenberg.py --cluster=pool --jobs=8
#
# 20 training tokens per parameter of the dense model (1,705,600 with the token embeddings, which are the head too):
# 34.1M tokens of the 48.5M there are, in 1,041 steps. The rate falls to 0 (cosine), the whole validation split is
# evaluated, and the last evaluation is the figure. Without a GPU a small preset takes over.

import torch

out_dir = 'out/structured/gutenberg-bpe'
dataset = 'gutenberg_bpe'
data_order = 'permutation'

n_layer, n_head, n_embd, block_size = 6, 4, 128, 256  # heads of 32
batch_size, gradient_accumulation_steps = 128, 1  # 32,768 tokens per step
dropout = 0.0

learning_rate = 4e-3
min_lr = 0.0
warmup_iters = 52  # 5%
max_iters = lr_decay_iters = 1041
beta2 = 0.95
eval_interval, eval_iters = 350, 0
log_interval = 20
save_checkpoint = False
cuda_graph = torch.cuda.is_available()  # a model this small leaves the GPU idle otherwise
wandb_run_name = 'gutenberg-bpe'

if not torch.cuda.is_available():
    note = 'no GPU here: the small preset (2,048 tokens per step instead of 32,768); the full-size job runs on a GPU'
    batch_size, eval_iters = 8, 20

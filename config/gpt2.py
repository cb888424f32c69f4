# GPT-2 small: learned positions, LayerNorm, biases; vocabulary padded from 50257 to 50304.
#
# 124,475,904 parameters (123,689,472 without position embeddings), 854.7 MFLOP per token at 1,024 tokens. Val loss on
# Gutenberg after 136M tokens, 16 x 1,024 per step at a rate of 1e-3: 3.576 (results/kronecker_gutenberg). Step time:
# not measured alone.
#
#   python train.py config/gpt2.py

n_layer = 12
n_head = 12
n_embd = 768
bias = True

dataset = 'gutenberg'
block_size = 1024
batch_size = 32
gradient_accumulation_steps = 16  # 16 x 32 x 1024 = 524,288 tokens per step
learning_rate = 6e-4
min_lr = 6e-5
warmup_iters = 250
max_iters = 4768
lr_decay_iters = 4768
eval_interval = 250
eval_iters = 20
log_interval = 10
out_dir = 'out/gpt2'

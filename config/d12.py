# The baseline of the 3x-MLP document: GPT-2 small without position table, biases or norm weights: RoPE, weightless
# RMSNorm, attention branch scaled by 1/sqrt(2*n_layer).
#
# 123,532,032 parameters, 854.4 MFLOP per token at 1,024 tokens. Loss and step time: not measured yet.
#
#   python train.py config/d12.py

n_layer = 12
n_head = 12
n_embd = 768
vocab_size = 50257  # unpadded, as there
bias = False
norm = 'rmsnorm'
norm_affine = False
position = 'rope'
attn_scale = 0  # 1/sqrt(2*n_layer)

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
out_dir = 'out/d12'

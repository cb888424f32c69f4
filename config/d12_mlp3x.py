# d12_mlp3x as the work "the 3x MLP" documents it: factor 3, width raised to 832 to keep the parameters, post norm and
# QK norm.
#
# 124,880,704 parameters, 872.0 MFLOP per token at 1,024 tokens. Val loss after 8.2M tokens of Gutenberg, at one rate
# and one random seed, 5.294 (d12: 4.969; results/d12/screen.txt). One H200, 32 x 1,024 tokens, bf16, compiled: 75.4 ms
# per step, 1.05 of d12's (results/d12).
#
#   python train.py config/d12_mlp3x.py

include('d12.py')

n_embd = 832
n_head = 13
mlp_expansion_factor = 3
post_norm = True
qk_norm = True
out_dir = 'out/d12_mlp3x'

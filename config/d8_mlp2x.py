# The result of a search for d12's quality in less time: fewer, wider layers, a smaller MLP factor, wider heads.
#
# 118,572,032 parameters, 812.1 MFLOP per token at 1,024 tokens. Val loss on Gutenberg after 27.9M tokens 4.103 (two
# seeds, std 0.007; d12: 4.165; results/d12_finalists). One H200, 32 x 1,024 tokens, bf16, compiled: 60.7 ms per step,
# 0.85 of d12's (results/d12). That is early in training; whether it holds at billions of tokens is not measured.
#
#   python train.py config/d8_mlp2x.py

include('d12.py')

n_layer = 8
n_embd = 1024
n_head = 8  # of 128 each
mlp_expansion_factor = 2
out_dir = 'out/d8_mlp2x'
